"""A router of two and IPv6: guests that learned their way out from one member go on by the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.pair import LAN, MACS, Pair, until
from tests.netns.surfer import Surfer

LAN6, PREFIX = "2001:db8:1::1", "2001:db8:1::/64"
SECONDS = 2.0  # on a machine that does other things too


@pytest.fixture(scope="module", name="pair")
def pair_fixture() -> Iterator[Pair]:
    with Pair() as pair:
        document = pair.document()
        (lan,) = (i for i in document["interfaces"] if i["id"] == "lan")
        lan["addresses"] = [f"{LAN}/24", f"{LAN6}/64"]
        (office,) = document["networks"]
        office["cidr6"] = PREFIX
        pair.push(document)
        pair.settled("r1", "r2")
        yield pair


@pytest.fixture(name="guest")
def guest_fixture(pair: Pair, tmp_path: Path) -> Iterator[Surfer]:
    surfer = Surfer(f"{pair.name}-s", "lan", "02:00:00:00:5d:01", pair.ground, tmp_path)
    try:
        yield surfer.create()
    finally:
        surfer.destroy()


def way_of(member: str) -> str:
    """The address of a member's on the guests' link: what its kernel makes of the MAC."""
    octets = [int(o, 16) for o in MACS[member, "lan"].split(":")]
    return f"fe80::ff:fe00:{octets[4] << 8 | octets[5]:x}"


def ways_out(guest: Surfer) -> list[str]:
    words = guest.run(("ip", "-6", "route", "show", "default")).stdout.split()
    return sorted(words[n + 1] for n, word in enumerate(words) if word == "via")


def test_guests_go_by_the_primary(pair: Pair, guest: Surfer) -> None:
    primary, _ = pair.one_of_two()
    until(lambda: ways_out(guest) == [way_of(primary)] and guest.addresses(), 10.0, lambda: ways_out(guest))
    assert guest.heard().router_s == 1800


def test_a_member_that_steps_back_is_no_way_out_any_more(pair: Pair, guest: Surfer) -> None:
    """At once, and the other is: guests would else go on by who lives and sends nothing on."""
    primary, backup = pair.one_of_two()
    until(lambda: ways_out(guest) == [way_of(primary)], 10.0, lambda: ways_out(guest))
    pair.cut(primary, "left")
    try:
        pair.settled(backup)
        until(lambda: ways_out(guest) == [way_of(backup)], SECONDS, lambda: ways_out(guest))
        assert guest.run(("ping", "-6", "-c1", "-W2", LAN6)).returncode == 0
    finally:
        pair.cut(primary, "left", up=True)
    pair.settled(backup, primary)
    guest.heard(lambda heard: LAN6 not in heard.servers and PREFIX in heard.prefixes)
    assert ways_out(guest) == [way_of(backup)]


def test_a_member_that_dies_is_none_either(pair: Pair, guest: Surfer) -> None:
    """It can't say so itself."""
    dying, other = pair.one_of_two()
    until(lambda: ways_out(guest) == [way_of(dying)], 10.0, lambda: ways_out(guest))
    pair.kill(dying)
    try:
        pair.settled(other)
        until(lambda: ways_out(guest) == [way_of(other)], SECONDS, lambda: ways_out(guest))
        assert guest.run(("ping", "-6", "-c1", "-W2", LAN6)).returncode == 0
    finally:
        pair.bring_back(dying)
    pair.settled(other, dying)
