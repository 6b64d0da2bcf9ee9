"""Port forwards: what they lead where, for whom, and what they don't open; by packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.calls import both, echo, tcp, udp
from tests.netns.stage import (
    DB,
    DESK,
    L10,
    L20,
    LAN,
    LEFT,
    MAIL,
    R10,
    WEB,
    WORLD,
    WORLD_HIGH,
    WORLD_LOW,
    Stage,
    allow,
    forward,
    static,
)

OPEN = (allow("open", L10), allow("open-right", R10))  # the firewall is not what is asked here
LOWER, UPPER = "198.51.100.0/25", "198.51.100.128/25"


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def test_a_single_port(stage: Stage) -> None:
    stage.push(
        *OPEN,
        forward("tcp", L10, 80, WEB),
        forward("udp", L10, 5000, MAIL, protocol="udp"),
        forward("other-port", L10, 8022, DESK, 22),
        forward("other-net", L10, 8023, DB, 22),
    )
    w = stage.world
    stage.meets("web", tcp(w, L10, 80, WORLD), seen=WORLD)
    stage.meets("mail", udp(w, L10, 5000, WORLD), seen=WORLD)
    stage.meets("desk", tcp(w, L10, 8022, WORLD), seen=WORLD)
    stage.meets("db", tcp(w, L10, 8023, WORLD), seen=WORLD)
    # Whatever else there is at the address is the router's own, and it serves nothing.
    stage.meets("refused", udp(w, L10, 80), tcp(w, L10, 5000), tcp(w, L10, 22))
    stage.meets("router", echo(w, L10))


def test_ranges(stage: Stage) -> None:
    """The same ports, and others: each port leads to its own, and the ends are where they should be."""
    stage.push(
        *OPEN,
        forward("same", L10, (5000, 5001), WEB),
        forward("same-udp", L10, (5000, 5002), MAIL, protocol="udp"),
        forward("shifted", R10, (5000, 5002), DESK, (6000, 6002)),
        forward("shifted-udp", R10, (7000, 7002), DB, (5000, 5002), protocol="udp"),
    )
    w = stage.world
    stage.meets("web", tcp(w, L10, 5000), tcp(w, L10, 5001))
    stage.meets("mail", udp(w, L10, 5000), udp(w, L10, 5002))
    stage.meets("desk", *(tcp(w, R10, port) for port in (5000, 5001, 5002)))
    stage.meets("db", *(udp(w, R10, port) for port in (7000, 7001, 7002)))
    stage.meets("refused", tcp(w, L10, 4999), tcp(w, L10, 5002), udp(w, L10, 5003), tcp(w, R10, 4999))
    stage.meets("refused", tcp(w, R10, 5003), tcp(w, R10, 6000), udp(w, R10, 6999), udp(w, R10, 7003))


def test_a_shifted_port_is_the_one_that_it_should_be(stage: Stage) -> None:
    """Every guest answers on every port: only the last, that nobody serves, tells them apart."""
    stage.push(*OPEN, forward("s", L10, (100, 103), WEB, (6000, 6003)))
    stage.meets("web", *(tcp(stage.world, L10, port) for port in (100, 101, 102)))
    stage.meets("refused", tcp(stage.world, L10, 103))
    flow = stage.flow(tcp(stage.world, L10, 102))
    assert stage.web.run(("ss", "-Htn", "sport", "=", ":6002")).stdout
    assert not stage.web.run(("ss", "-Htn", "sport", "=", ":102")).stdout
    flow.close()


def test_for_whom(stage: Stage) -> None:
    """By source, for one port: different guests, and one for everybody else."""
    stage.push(
        *OPEN,
        forward("lower", L10, 80, WEB, sources=[LOWER]),
        forward("upper", L10, 80, MAIL, 22, sources=[UPPER]),
        forward("rest", L10, 80, DESK),
        forward("only", L10, 7000, DB, protocol="udp", sources=[f"{WORLD}/32", UPPER]),
    )
    w = stage.world
    stage.meets("web", tcp(w, L10, 80, WORLD), tcp(w, L10, 80, WORLD_LOW))
    stage.meets("mail", tcp(w, L10, 80, WORLD_HIGH), seen=WORLD_HIGH)
    stage.meets("desk", tcp(stage.near, L10, 80))
    stage.meets("db", udp(w, L10, 7000, WORLD), udp(w, L10, 7000, WORLD_HIGH))
    stage.meets("refused", udp(w, L10, 7000, WORLD_LOW), udp(stage.near, L10, 7000))


def test_for_a_long_list(stage: Stage) -> None:
    many = [f"198.18.{i}.0/24" for i in range(0, 200, 2)]
    stage.push(*OPEN, forward("f", L10, 80, WEB, 22, sources=[*many, f"{WORLD}/32"]))
    stage.meets("web", tcp(stage.world, L10, 80, WORLD))
    stage.meets("refused", tcp(stage.world, L10, 80, WORLD_LOW))


def test_a_forward_needs_the_firewall(stage: Stage) -> None:
    """And the firewall is asked for the port that the packet was sent to, not the guest's."""
    f = (forward("f", L10, 8080, WEB, 80), forward("g", L10, 8081, WEB, 80))
    stage.push(*f, allow("a", L10, "tcp", 8080))
    stage.meets("web", tcp(stage.world, L10, 8080))
    stage.silent(tcp(stage.world, L10, 8081), tcp(stage.world, L10, 80))
    stage.push(*f, allow("a", L10, "tcp", 80))
    stage.silent(tcp(stage.world, L10, 8080), tcp(stage.world, L10, 8081))


def test_a_forward_opens_nothing_else(stage: Stage) -> None:
    """Not the guest's port by its own address, nor another guest's, nor another network's, from anywhere."""
    stage.push(*OPEN, allow("own", LEFT), forward("f", L10, 80, WEB), forward("g", L10, 5000, WEB, protocol="udp"))
    stage.meets("web", tcp(stage.world, L10, 80), udp(stage.world, L10, 5000))
    for outside in (stage.world, stage.near, stage.store):
        stage.silent(*both(outside, WEB, 80), *both(outside, MAIL, 80), *both(outside, DB, 80), echo(outside, WEB))
        stage.silent(udp(outside, WEB, 5000))
    stage.silent(*both(stage.db, WEB, 80), udp(stage.db, WEB, 5000), echo(stage.db, WEB))
    stage.meets("refused", tcp(stage.world, LEFT, 80))


def test_hairpin(stage: Stage) -> None:
    """A guest by its own network's public address: the guest there sees the router, and answers through it."""
    stage.push(*OPEN, forward("f", L10, 80, WEB), forward("u", L10, 5000, WEB, 5001, protocol="udp"))
    stage.meets("web", tcp(stage.mail, L10, 80), udp(stage.mail, L10, 5000), seen=LAN)
    stage.meets("web", tcp(stage.web, L10, 80), udp(stage.web, L10, 5000), seen=LAN)  # itself too
    # From elsewhere nothing is lost of who it is.
    stage.meets("web", tcp(stage.db, L10, 80), seen=DB)
    stage.meets("web", tcp(stage.store, L10, 80), seen="172.16.0.5")
    stage.meets("refused", tcp(stage.mail, L10, 22))
    stage.push(forward("f", L10, 80, WEB), allow("others", L10, "tcp", 80, sources=["198.51.100.0/24"]))
    stage.silent(tcp(stage.mail, L10, 80), tcp(stage.db, L10, 80))


def test_from_the_router_itself(stage: Stage) -> None:
    """Translated alike; the firewall does not judge what the router itself sends."""
    stage.push(
        forward("f", L10, 80, WEB),
        forward("u", L10, (5000, 5002), DB, protocol="udp"),
        forward("from", L10, 22, MAIL, sources=[UPPER]),
        static("s", L20, DESK),
    )
    r = stage.router
    stage.meets("web", tcp(r, L10, 80))
    stage.meets("db", udp(r, L10, 5001))
    stage.meets("desk", *both(r, L20, 80), echo(r, L20))
    stage.meets("refused", tcp(r, L10, 22), tcp(r, L10, 81))


def test_patched_in_and_out(stage: Stage) -> None:
    """One by one, beside others that stay."""
    from tests.netns.stage import put, remove

    kept, other = forward("kept", L10, 80, WEB), forward("other", L10, 22, MAIL, sources=[LOWER])
    stage.push(*OPEN, kept)
    stage.bed.patch(put(other))
    stage.meets("mail", tcp(stage.world, L10, 22, WORLD))
    stage.bed.patch(put(forward("other", L10, 22, DESK, sources=[LOWER])))
    stage.meets("desk", tcp(stage.world, L10, 22, WORLD))
    stage.meets("refused", tcp(stage.world, L10, 22, WORLD_HIGH))
    stage.bed.patch(remove(other))
    stage.meets("refused", tcp(stage.world, L10, 22, WORLD))
    stage.meets("web", tcp(stage.world, L10, 80))
