"""Usage: what is counted, exactly; and that it only grows: pushes, changes, restarts, kills and others' hands."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest

from mgmt.hosts.namespace import Ground
from tests.bed import CELL, wait_for
from tests.netns.calls import echo, udp
from tests.netns.flows import Flow
from tests.netns.stage import (
    DB,
    L10,
    L20,
    LAN,
    LEFT,
    MAIL,
    WEB,
    WORLD,
    Json,
    Stage,
    allow,
    config,
    forward,
    left,
    office,
    put,
    remove,
    servers,
    static,
)

HEAD = 28  # IPv4 and UDP
SIZE, COUNT = 1000, 50
TIER6, WEB6, DB6 = "2001:db8:1::/64", "2001:db8:1::10", "2001:db8:2::10"


def host(name: str, where: str, address: str, number: int, address6: str | None = None) -> Json:
    mac = f"02:00:00:00:0b:{number:02x}"
    plain = {"id": name, "network": where, "mac": mac, "address": address, "name": name, "address6": address6}
    return {"_": "hosts", **plain}


GUESTS = (host("vm-web", "office", WEB, 5), host("vm-mail", "office", MAIL, 6), host("vm-db", "servers", DB, 8))
OPEN = (allow("a", L10), forward("f", L10, 5000, WEB, 7001, protocol="udp"), allow("b", L20), static("s", L20, MAIL))


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def push(stage: Stage, *objects: Json) -> None:
    stage.bed.push({**config(*GUESTS, *OPEN, *objects), "usage": True})


def told(stage: Stage) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = stage.bed.appliance.usage().body["usage"]
    return found


def of(stage: Stage, kind: str, name: str) -> tuple[int, int, int, int]:
    """Bytes received and sent, packets received and sent."""
    four = told(stage).get(kind, {}).get(name, {})
    ways = ("received_bytes", "sent_bytes", "received_packets", "sent_packets")
    return tuple(four.get(way, 0) for way in ways)  # type: ignore[return-value]


def grown(stage: Stage, kind: str, name: str, since: tuple[int, int, int, int]) -> tuple[int, ...]:
    return tuple(now - was for now, was in zip(of(stage, kind, name), since, strict=True))


def send(by: Ground, to: str, port: int = 7001, count: int = COUNT, size: int = SIZE, v6: bool = False) -> None:
    """Datagrams to a port that nobody listens on."""
    with by.entered():
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for _ in range(count):
            sock.sendto(bytes(size), (to, port))


# --- what is counted --------------------------------------------------------------------------------------------------


def test_exactly_what_went_through_both_ways(stage: Stage) -> None:
    push(stage)
    before = {k: of(stage, *k) for k in (("guests", "vm-web"), ("networks", "office"), ("addresses", LEFT))}
    other = of(stage, "guests", "vm-mail"), of(stage, "networks", "servers"), of(stage, "addresses", L10)
    flow = Flow(udp(stage.web, WORLD, 5000))  # a question and its greeting, then so many echoes
    first = {k: grown(stage, *k, since) for k, since in before.items()}
    for _ in range(COUNT):
        flow.socket.send(bytes(SIZE))
        assert len(flow.socket.recv(2048)) == SIZE
    size = COUNT * (SIZE + HEAD)
    for key, since in before.items():
        found = [now - was for now, was in zip(grown(stage, *key, since), first[key], strict=True)]
        # An address receives what its guest does: each is told from its own side of the router.
        assert found == [size, size, COUNT, COUNT], key
    now = of(stage, "guests", "vm-mail"), of(stage, "networks", "servers"), of(stage, "addresses", L10)
    assert now == other
    flow.close()


def test_forwards_and_static_nats_are_their_addresses_and_their_guests(stage: Stage) -> None:
    push(stage)
    keys = (("addresses", L10), ("guests", "vm-web"), ("addresses", L20), ("guests", "vm-mail"))
    before = {key: of(stage, *key) for key in keys}
    send(stage.world, L10, 5000)
    send(stage.world, L20, 7001, count=COUNT // 2)
    size = COUNT * (SIZE + HEAD)
    wait_for(lambda: of(stage, "guests", "vm-mail")[2] - before["guests", "vm-mail"][2] >= COUNT // 2)
    assert [grown(stage, *key, before[key])[::2] for key in keys[:2]] == [(size, COUNT)] * 2
    assert [grown(stage, *key, before[key])[::2] for key in keys[2:]] == [(size // 2, COUNT // 2)] * 2


def test_what_is_dropped_and_what_the_router_is_asked_counts_nowhere(stage: Stage) -> None:
    push(stage)
    before = told(stage)
    send(stage.world, LEFT, 9)  # no firewall rule
    send(stage.world, WEB, 5000)  # untranslated
    stage.silent(udp(stage.world, LEFT, 80))
    assert {k: v for k, v in told(stage).items() if k != "since"} == {k: v for k, v in before.items() if k != "since"}
    assert stage.web.run(("ping", "-c1", "-W2", LAN)).returncode == 0
    assert of(stage, "guests", "vm-web") == tuple(before["guests"]["vm-web"].values())


def test_tiers_count_what_they_exchange(stage: Stage) -> None:
    push(
        stage,
        office(acl="open"),
        servers(acl="open"),
        {"_": "acls", "id": "open", "ingress": [{"id": "all", "action": "allow", "protocol": "any"}]},
    )
    before = of(stage, "networks", "office"), of(stage, "networks", "servers"), of(stage, "guests", "vm-db")
    send(stage.web, DB, 7001, count=7)
    size = 7 * (SIZE + HEAD)
    wait_for(lambda: grown(stage, "guests", "vm-db", before[2])[2] == 7)
    assert grown(stage, "networks", "office", before[0])[1::2] == (size, 7)
    assert grown(stage, "networks", "servers", before[1])[::2] == (size, 7)


# --- it only grows ----------------------------------------------------------------------------------------------------


class Sender(threading.Thread):
    """Datagrams from web to world, until `end()` tells how many the kernel took. Used as a context manager."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        with stage.web.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ends = threading.Event()
        self._sent = 0

    def run(self) -> None:
        while not self._ends.wait(0.002):
            self._socket.sendto(bytes(SIZE), (WORLD, 7001))
            self._sent += 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> int:
        self._ends.set()
        self.join()
        self._socket.close()
        return self._sent


def test_no_read_push_change_or_restart_takes_anything_back(stage: Stage) -> None:
    """Read all the while; whatever is done, what is told only grows, and at the end it is what was sent."""
    push(stage)
    start = of(stage, "guests", "vm-web")
    with Sender(stage) as sender:
        seen: list[tuple[int, int, int, int]] = []

        def look() -> None:
            stage.bed.wait_ready()
            seen.append(of(stage, "guests", "vm-web"))

        look()
        for number in range(3):
            push(stage, forward(f"more-{number}", L10, 1000 + number, WEB))  # some of them by a new table
            look()
        stage.bed.patch(put(host("vm-new", "office", "10.1.1.77", 0x77)))
        look()
        stage.bed.patch(remove(host("vm-new", "office", "10.1.1.77", 0x77)))
        look()
        stage.bed.push(config(*GUESTS))  # counts no more, and then again
        push(stage)
        look()
        for end in (signal.SIGTERM, signal.SIGKILL):
            stage.run(f"kill -{int(end)} {stage.bed.pid_of('agent')}")
            look()
        stage.run("nft delete table inet narthex_usage")
        stage.bed.appliance.usage()
        wait_for(lambda: "narthex_usage" in stage.run("nft list tables"), 20.0, "the counters were not healed")
        look()
        sent = sender.end()
        assert seen == sorted(seen)
        assert len(set(seen)) > len(seen) // 2
        counted = grown(stage, "guests", "vm-web", start)[3]
        assert counted <= sent
        assert counted >= sent * 0.5  # while it counted: not while it was switched off, or another had the table


def test_a_patch_of_a_guest_leaves_the_others_counting(stage: Stage) -> None:
    """Not one datagram is lost to the sums by changes of hosts, nor by pushes that replace the packet filter."""
    push(stage)
    start = of(stage, "guests", "vm-web")
    with Sender(stage) as sender:
        for number in range(4):
            stage.bed.patch(put(host("vm-new", "office", f"10.1.1.{70 + number}", 0x77)))
            push(stage, left(mtu=1500 - number), host("vm-new", "office", "10.1.1.99", 0x77))
        sent = sender.end()
        wait_for(lambda: grown(stage, "guests", "vm-web", start)[3] == sent, 3.0, "datagrams were lost to the sums")


def test_a_guest_that_goes_keeps_its_sum_and_comes_back_to_it(stage: Stage) -> None:
    push(stage)
    send(stage.mail, WORLD, count=5)
    wait_for(lambda: of(stage, "guests", "vm-mail")[3] >= 5)
    before = of(stage, "guests", "vm-mail")
    stage.bed.patch(remove(GUESTS[1]))
    gone = told(stage)["guests"]["vm-mail"]
    assert gone["gone_since"]
    assert gone["sent_packets"] == before[3]
    send(stage.mail, WORLD, count=5)
    stage.bed.patch(put(GUESTS[1]))
    assert of(stage, "guests", "vm-mail") == before
    send(stage.mail, WORLD, count=5)
    wait_for(lambda: of(stage, "guests", "vm-mail")[3] == before[3] + 5)
    assert "gone_since" not in told(stage)["guests"]["vm-mail"]


def test_a_cell_that_is_started_anew_goes_on_from_its_sums(stage: Stage) -> None:
    if not stage.bed.where.is_cell:
        pytest.skip("a VM's reboot is in tests/vm")
    push(stage)
    send(stage.web, WORLD, count=5)
    wait_for(lambda: of(stage, "guests", "vm-web")[3] >= 5)
    before = of(stage, "guests", "vm-web")
    stage.bed.driver.stop(CELL)
    stage.bed.driver.start(CELL)
    stage.bed.wait_ready()
    wait_for(lambda: bool(stage.bed.appliance.state().body["converged"]))
    assert of(stage, "guests", "vm-web") == before
    send(stage.web, WORLD, count=5)
    wait_for(lambda: of(stage, "guests", "vm-web")[3] == before[3] + 5)


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_metrics_have_the_same_sums(stage: Stage) -> None:
    push(stage)
    stage.meets("world", echo(stage.web, WORLD))
    text = stage.bed.appliance.metrics().body
    (line,) = [x for x in text.splitlines() if x.startswith("narthex_usage_sent_packets_total") and '"vm-web"' in x]
    assert int(line.split()[-1]) == of(stage, "guests", "vm-web")[3] > 0


def test_without_it_nothing_is_counted(stage: Stage) -> None:
    stage.bed.push(config(*GUESTS, *OPEN))
    assert "narthex_usage" not in stage.run("nft list tables")


def test_ipv6(stage: Stage) -> None:
    lan = {"_": "interfaces", "id": "lan", "mac": "02:00:00:00:0a:03", "use": "guest"}
    dmz = {"_": "interfaces", "id": "dmz", "mac": "02:00:00:00:0a:04", "use": "guest"}
    push(
        stage,
        {**lan, "addresses": [f"{LAN}/24", "2001:db8:1::1/64"]},
        {**dmz, "addresses": ["10.1.2.1/24", "2001:db8:2::1/64"]},
        office(acl="open", cidr6=TIER6),
        servers(acl="open", cidr6="2001:db8:2::/64"),
        {"_": "acls", "id": "open", "ingress": [{"id": "all", "action": "allow", "protocol": "any"}]},
        host("vm-web", "office", WEB, 5, WEB6),
        host("vm-db", "servers", DB, 8, DB6),
    )
    for machine, own, gateway in ((stage.web, WEB6, "2001:db8:1::1"), (stage.db, DB6, "2001:db8:2::1")):
        machine.run(("ip", "addr", "replace", f"{own}/64", "dev", "eth0", "nodad"))
        machine.run(("ip", "-6", "route", "replace", "2001:db8::/32", "via", gateway))
    before = of(stage, "networks", "office"), of(stage, "guests", "vm-db"), of(stage, "guests", "vm-web")
    send(stage.web, DB6, count=9, v6=True)
    size = 9 * (SIZE + HEAD + 20)
    wait_for(lambda: grown(stage, "guests", "vm-db", before[1])[2] == 9)
    assert grown(stage, "networks", "office", before[0])[1::2] == (size, 9)
    assert grown(stage, "guests", "vm-web", before[2])[1::2] == (size, 9)
    assert grown(stage, "guests", "vm-db", before[1])[::2] == (size, 9)
