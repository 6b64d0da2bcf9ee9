"""A router of two: real keepalived and conntrackd in two cells, and flows that live through what happens to either."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mgmt.hosts.guest import Guest, NoLease
from tests.netns.calls import both, tcp, udp
from tests.netns.flows import Flow
from tests.netns.pair import DESK, FORWARDED, LAN, MEMBERS, SHARED, STATIC, WORLD, Beat, Json, Pair, until
from tests.trials import trials

Figure = Callable[[str, float, str], None]
BUSY_S = 1.5  # a machine that does other things too is not told from a slow router


@pytest.fixture(scope="module", name="pair")
def pair_fixture() -> Iterator[Pair]:
    with Pair() as pair:
        pair.push(pair.document())
        pair.settled("r1", "r2")
        yield pair


def live(pair: Pair) -> list[Flow]:
    """A flow of each kind of translation, through the router as it is."""
    out, came = Flow(tcp(pair.web, WORLD, 80)), Flow(tcp(pair.world, FORWARDED, 5000))
    to, own = Flow(tcp(pair.world, STATIC, 22)), Flow(tcp(pair.desk, WORLD, 25))
    assert [f.name for f in (out, came, to, own)] == ["world", "web", "desk", "world"]
    assert [out.seen, own.seen] == [SHARED, STATIC]
    return [out, came, to, own]


def lost(flows: list[Flow]) -> list[str]:
    """Those that do not go on."""
    return [str(flow.call) for flow in flows if not flow.goes_on()]


def other(member: str) -> str:
    return next(m for m in MEMBERS if m != member)


# --- who is the router ------------------------------------------------------------------------------------------------


def test_one_is_the_router(pair: Pair) -> None:
    assert (pair.holds("r1", "left"), pair.holds("r2", "left")) == ([SHARED, FORWARDED, STATIC], [])
    assert not lost(live(pair))
    until(lambda: all(report["ok"] for report in pair.reports()), 5.0, pair.reports)
    assert pair.report("r2")["words"] == "backup; r1 is primary"


@pytest.mark.soak("router")
def test_flows_live_on_when_the_primary_dies(pair: Pair, record_figure: Figure) -> None:
    """Its plug pulled, again and again, whichever it is; nothing of it is drift."""
    gaps = []
    for _ in range(trials(20) // 2):
        dying, _ = pair.one_of_two()
        flows, beat = live(pair), Beat(udp(pair.world, FORWARDED, 5000))
        pair.kill(dying)
        pair.settled(other(dying))
        assert not lost(flows)
        gaps.append(beat.gap())
        record_figure("failover_s", gaps[-1], "s")
        pair.bring_back(dying)
        pair.settled(other(dying), dying)
        assert pair.way(other(dying)).state().body["drift"] == []
        assert not lost(flows)
    assert min(gaps) <= 1.0, gaps
    assert max(gaps) <= BUSY_S, gaps


def test_an_interface_that_is_lost(pair: Pair) -> None:
    """The member that has lost one stands back at once, and is a backup again when it is there again."""
    primary, backup = pair.one_of_two()
    flows, beat = live(pair), Beat(udp(pair.world, FORWARDED, 5000))
    pair.cut(primary, "left")
    try:
        pair.settled(backup)
        assert pair.role(primary) == "fault"
        assert not lost(flows)
        assert beat.gap() <= BUSY_S
    finally:
        pair.cut(primary, "left", up=True)
    pair.settled(backup, primary)
    assert not lost(flows)


# --- documents --------------------------------------------------------------------------------------------------------


def test_a_push_moves_nothing(pair: Pair) -> None:
    """First to the backup, then to the primary: what it brings is there, and nobody noticed."""
    primary, backup = pair.one_of_two()
    flows, beat = live(pair), Beat(udp(pair.world, FORWARDED, 5000))
    more = pair.document()
    more["interfaces"][1]["addresses"].append("203.0.113.30/24")
    more["firewall"].append({"id": "more", "address": "203.0.113.30", "protocol": "any"})
    more["forwards"].append({
        "id": "new", "protocol": "tcp", "address": "203.0.113.30", "ports": {"first": 80, "last": 80}, "target": DESK,
    })  # fmt: skip
    pair.push(more, backup)
    words = f"primary; {backup} is backup and has another document: push it to both"
    until(lambda: pair.report(primary)["words"] == words, 5.0, pair.reports)
    assert not pair.report(primary)["ok"]
    pair.push(more, primary)
    until(lambda: all(report["ok"] for report in pair.reports()), 5.0, pair.reports)
    pair.meets("desk", tcp(pair.world, "203.0.113.30", 80))
    pair.push(pair.document())
    assert "203.0.113.30" not in pair.holds(primary, "left")
    assert not lost(flows)
    assert beat.gap() <= BUSY_S / 2
    assert pair.one_of_two() == (primary, backup)


def test_a_change_of_one_object_is_one_document(pair: Pair) -> None:
    """What a PATCH made of it here and a whole document there are the same."""
    primary, backup = pair.one_of_two()
    forward = {"id": "p", "protocol": "tcp", "address": FORWARDED, "ports": {"first": 7000, "last": 7000},
               "target": DESK}  # fmt: skip
    whole = pair.document()
    whole["forwards"].append(forward)
    pair.push(whole, backup)
    until(lambda: not any(report["ok"] for report in pair.reports()), 5.0, pair.reports)
    pair.patch(primary, {"op": "put", "collection": "forwards", "object": forward})
    until(lambda: all(report["ok"] for report in pair.reports()), 5.0, pair.reports)
    pair.meets("desk", tcp(pair.world, FORWARDED, 7000))


def test_who_is_behind_does_not_take_over_from_the_living(pair: Pair) -> None:
    """r1 is the stronger and may preempt. With another document than r2's it does not, while r2 lives; with the same it
    comes back, with all flows."""
    returning = {"preempt": True, "preempt_after": 1}
    pair.push(pair.document(returning))
    pair.settled("r1", "r2", 15.0)
    pair.kill("r1")
    pair.settled("r2")
    flows, beat = live(pair), Beat(udp(pair.world, FORWARDED, 5000))
    pair.push(pair.document(returning, upstream=["192.0.2.53"]), "r2")
    pair.bring_back("r1")
    until(lambda: "another document" in pair.report("r1").get("words", ""), 10.0, pair.reports)
    time.sleep(2.5)
    assert [pair.role(m) for m in MEMBERS] == ["backup", "primary"]
    pair.push(pair.document(returning), "r2")
    pair.settled("r1", "r2", 15.0)
    assert not lost(flows)
    assert beat.gap() <= BUSY_S
    pair.push(pair.document(upstream=["192.0.2.53"]), "r2")
    until(lambda: "another document" in pair.report("r2")["words"], 5.0, pair.reports)
    pair.kill("r1")
    pair.settled("r2")  # but it does from the dead
    assert not lost(flows)
    pair.bring_back("r1")
    pair.push(pair.document())
    pair.settled("r2", "r1")


def test_alone_and_together_again(pair: Pair) -> None:
    """A document without `redundancy` makes of the primary a router of its own, and back."""
    alone = pair.document()
    del alone["redundancy"]
    if pair.one_of_two()[0] == "r2":  # the document's MACs are r1's
        pair.kill_unit("r2", "keepalived", by="TERM")
        pair.settled("r1", "r2")
    pair.driver.stop("r2")
    pair.push(alone, "r1")
    assert LAN in pair.holds("r1")
    pair.meets("world", *both(pair.web, WORLD, 80), seen=SHARED)
    pair.meets("web", tcp(pair.world, FORWARDED, 5000))
    pair.push(pair.document(), "r1")
    pair.settled("r1")
    pair.meets("world", *both(pair.web, WORLD, 80), seen=SHARED)
    pair.bring_back("r2")
    pair.settled("r1", "r2")


# --- both, or none ----------------------------------------------------------------------------------------------------


def test_both_are_the_router_until_they_hear_each_other(pair: Pair) -> None:
    """Nothing passes where they meet: each is alone to itself, and says so. Then the stronger stays."""
    _, backup = pair.one_of_two()
    pair.hinder("")
    try:
        pair.settled(backup)
        assert [pair.role(m) for m in MEMBERS] == ["primary", "primary"]
        until(lambda: all("silent" in report["words"] for report in pair.reports()), 5.0, pair.reports)
        assert not any(report["ok"] for report in pair.reports())
    finally:
        pair.let_pass()
    pair.settled("r1", "r2")
    assert not lost(live(pair))


def test_both_while_vrrp_is_not_let_through(pair: Pair) -> None:
    """The members hear each other, but not VRRP: the weaker stands back, and comes back when it hears it again."""
    pair.hinder("ip protocol 112")
    try:
        until(lambda: pair.report("r2")["hold"] == -254, 10.0, pair.reports)
        until(lambda: pair.role("r2") == "fault" and LAN not in pair.holds("r2"), 5.0, pair.reports)
        assert pair.role("r1") == "primary"
        assert all(report["splits"] for report in pair.reports())
        assert "stands back" in pair.report("r2")["words"]
        pair.meets("web", tcp(pair.world, FORWARDED, 5000))
        time.sleep(2.0)
        assert [pair.role(m) for m in MEMBERS] == ["primary", "fault"]
    finally:
        pair.let_pass()
    pair.settled("r1", "r2")


def test_a_backup_without_carrier_leaves_it_to_the_primary(pair: Pair) -> None:
    primary, backup = pair.one_of_two()
    flows = live(pair)
    pair.cut(backup, "sync")
    try:
        until(lambda: pair.role(backup) == "fault", 5.0, pair.reports)
        assert "has no carrier" in pair.report(backup)["words"]
        time.sleep(1.5)
        assert (pair.role(primary), LAN in pair.holds(backup)) == ("primary", False)
        assert not lost(flows)
    finally:
        pair.cut(backup, "sync", up=True)
    pair.settled(primary, backup)


# --- daemons that die -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["keepalived", "conntrackd", "peer"])
def test_a_daemon_that_is_killed(pair: Pair, unit: str) -> None:
    """It comes back by itself, and there is one router, whichever; no flow is lost then nor at the next take-over."""
    primary, _ = pair.one_of_two()
    flows = live(pair)
    pair.kill_unit(primary, unit)
    time.sleep(1.0)
    primary, backup = pair.one_of_two()
    assert not lost(flows)
    pair.kill_unit(primary, "keepalived", by="TERM")
    pair.settled(backup, primary)
    assert not lost(flows)


# --- leases -----------------------------------------------------------------------------------------------------------

RANGE = {"first": "10.1.1.100", "last": "10.1.1.103", "lease": 600}


def with_dhcp(pair: Pair, **redundancy: Any) -> Json:
    office = {"id": "office", "interface": "lan", "cidr": "10.1.1.0/24", "source_nat": SHARED, "dhcp": RANGE}
    host = {"id": "h", "network": "office", "mac": "02:00:00:00:5c:01", "address": "10.1.1.50", "name": "h"}
    return pair.document(redundancy, networks=[office], hosts=[host])


@pytest.fixture(name="guests")
def guests_fixture(pair: Pair) -> Iterator[list[Guest]]:
    """A known host, and two strangers."""
    found = [Guest(f"{pair.name}-g{n}", f"g{n}") for n in range(3)]
    try:
        for n, guest in enumerate(found, 1):
            guest.create()
            guest.plug("nx-lan", f"02:00:00:00:5c:{n:02x}", ground=pair.ground)
        yield found
    finally:
        for guest in found:
            guest.destroy()


def test_leases_follow(pair: Pair, guests: list[Guest]) -> None:
    """Only the primary's server answers; who takes over knows the strangers' leases, and gives none of them away."""
    known, stranger, late = guests
    pair.push(with_dhcp(pair))
    primary, backup = pair.one_of_two()
    assert known.renew().address == "10.1.1.50/24"
    given = stranger.renew().address
    assert "DHCPACK" not in pair.said(backup, "dhcp-lan")
    until(lambda: given.partition("/")[0] in pair.kept(backup), 5.0, lambda: pair.kept(backup))
    pair.kill(primary)
    pair.settled(backup)
    until(lambda: given.partition("/")[0] in pair.leases(backup), 5.0, lambda: pair.said(backup, "peer"))
    taken = {late.renew().address}
    for n in range(4, 7):
        with Guest(f"{pair.name}-more{n}", "more") as more:
            more.plug("nx-lan", f"02:00:00:00:5c:{n:02x}", ground=pair.ground)
            try:
                taken.add(more.renew(attempts=2).address)
            except NoLease:
                break
    assert len(taken) == 3, taken  # four addresses, and one of them is a stranger's
    assert given not in taken
    for guest in (known, stranger):
        guest.run(("ip", "addr", "flush", "dev", "eth0"))
    assert (known.renew().address, stranger.renew().address) == ("10.1.1.50/24", given)
    pair.bring_back(primary)
    pair.settled(backup, primary)


def asked(guest: Guest, request: str) -> str:
    """What the password service answers."""
    with guest.entered():
        client = socket.create_connection((LAN, 8080), 5.0)
    with client:
        client.sendall(f"GET / HTTP/1.0\r\nDomU_Request: {request}\r\n\r\n".encode())
        told = b"".join(iter(lambda: client.recv(4096), b""))
    return told.partition(b"\r\n\r\n")[2].decode().strip()


def test_an_acknowledged_password_follows(pair: Pair, guests: list[Guest]) -> None:
    known = guests[0]
    told = with_dhcp(pair)
    told["networks"][0]["metadata"] = True
    told["hosts"][0]["metadata"] = {"password": {"id": "p-1", "value": "fnord"}}
    pair.push(told)
    primary, backup = pair.one_of_two()
    known.renew()
    assert asked(known, "send_my_password") == "fnord"
    assert asked(known, "saved_password") == "saved_password"
    path = ("cat", "/var/lib/narthex/metadata/h")
    until(lambda: "p-1" in pair.driver.run(backup, path, check=False).stdout, 5.0, pair.reports)
    pair.kill_unit(primary, "keepalived", by="TERM")
    pair.settled(backup, primary)
    assert asked(known, "send_my_password") == "saved_password"
    told["hosts"][0]["metadata"] = {"password": {"id": "p-2", "value": "other"}}
    pair.push(told)
    assert asked(known, "send_my_password") == "other"
    assert asked(known, "saved_password") == "saved_password"
    until(lambda: "p-2" in pair.driver.run(primary, path, check=False).stdout, 5.0, pair.reports)
    pair.kill_unit(backup, "keepalived", by="TERM")
    pair.settled(primary, backup)
    assert asked(known, "send_my_password") == "saved_password"


# --- how it is seen ---------------------------------------------------------------------------------------------------


def test_health_says_who_is_who(pair: Pair) -> None:
    """The primary is asked for what the router does; the backup for nothing that is not its own."""
    pair.push(with_dhcp(pair))
    primary, backup = pair.one_of_two()
    for member, words in ((primary, f"primary; {backup} is backup"), (backup, f"backup; {primary} is primary")):
        until(lambda m=member: pair.report(m)["ok"], 5.0, pair.reports)
        told = pair.way(member).request("GET", "/v1/health?now=1").body["checks"]
        (report,) = [c for c in told if c["kind"] == "report"]
        assert (report["ok"], report["why"]) == (True, words)
        assert [c for c in told if not c["ok"] and c["kind"] not in ("disk", "memory", "clock")] == []
        asked = {c["kind"]: c["why"] for c in told if c["kind"] in ("gateway", "dns", "dhcp")}
        assert len(asked) == 3
        assert all(("is not here now" in why) is (member == backup) for why in asked.values()), asked
        assert f'words="{words}"' in str(pair.way(member).request("GET", "/metrics").body)
