"""Interfaces: their addresses, MTU, announcements, and what is plugged in and out live; by packets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mgmt.hosts.driver import Nic
from tests.bed import CELL, wait_for
from tests.netns.calls import both, echo, tcp, udp
from tests.netns.machines import Machine
from tests.netns.stage import (
    BACK,
    DMZ,
    L10,
    L20,
    LAN,
    LEFT,
    MACS,
    NEAR,
    R10,
    STORE,
    WEB,
    WORLD,
    Stage,
    allow,
    config,
    forward,
    interface,
    left,
    network,
    office,
    route,
)

EXTRA = "02:00:00:00:0a:77"
MOVED = "203.0.113.40"


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage(watch_seconds=1.0, more_bridges=("extra",)) as stage:
        yield stage


def test_several_addresses_each(stage: Stage) -> None:
    """Public, guest and private ones; two networks behind one interface don't reach each other untranslated."""
    desk = stage.desk
    desk.run(("ip", "address", "add", "10.1.9.30/24", "dev", "eth0"))
    stage.push(
        interface("lan", "guest", f"{LAN}/24", "10.1.9.1/24"),
        interface("back", "private", f"{BACK}/24", "172.17.0.1/24"),
        network("annex", "lan", "10.1.9.0/24", L20),
        allow("a", L10, "icmp"),
        allow("b", L20, "icmp"),
    )
    w = stage.world
    stage.meets("router", echo(w, L10), echo(w, L20))
    stage.meets("router", echo(stage.web, LAN), echo(desk, "10.1.9.1", "10.1.9.30"))
    stage.store.run(("ip", "address", "add", "172.17.0.5/24", "dev", "eth0"))
    stage.meets("router", echo(stage.store, BACK), echo(stage.store, "172.17.0.1"))
    stage.meets("world", *both(desk, WORLD, 80, "10.1.9.30"), seen=L20)
    stage.meets("world", *both(stage.web, WORLD, 80), seen=LEFT)
    stage.silent(*both(stage.web, "10.1.9.30", 80), echo(stage.web, "10.1.9.30"))
    stage.silent(echo(w, LEFT), echo(w, "203.0.113.30"))
    desk.run(("ip", "address", "del", "10.1.9.30/24", "dev", "eth0"))


def test_a_flow_to_a_kept_address_survives(stage: Stage) -> None:
    """Whatever comes and goes around it, the interface's first address too."""
    rules = (allow("a", L10, "tcp"), forward("f", L10, 80, WEB))
    stage.push(*rules)
    came, went = stage.flow(tcp(stage.world, L10, 80)), stage.flow(tcp(stage.db, WORLD, 80))
    stream = stage.stream(udp(stage.db, WORLD, 5000))
    stage.push(*rules, left("203.0.113.41/24", "203.0.113.42/32"))
    stage.push(*rules, left("203.0.113.42/24"))
    first_gone = interface(
        "left", "public", f"{L20}/24", f"{L10}/24", "203.0.113.30/24", gateway="203.0.113.1", mtu=1480
    )
    stage.push(*rules, first_gone, office(L20))
    stream.wait(20)
    assert came.goes_on()
    assert went.goes_on()
    assert not stage.run("ip -br address show to 203.0.113.2/32")
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=L20)
    stage.push(*rules)
    assert came.goes_on()
    assert went.goes_on()
    assert stream.lost() == 0
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_another_prefix_length(stage: Stage) -> None:
    rules = (allow("a", L10, "tcp"), forward("f", L10, 80, WEB))
    stage.push(*rules)
    came = stage.flow(tcp(stage.world, L10, 80))
    addresses = (f"{a}/25" for a in (LEFT, L10, L20, "203.0.113.30"))
    stage.push(*rules, interface("left", "public", *addresses, gateway="203.0.113.1"))
    assert came.goes_on()
    assert "203.0.113.0/25" in stage.run("ip route show table narthex-left")
    assert "/24" not in stage.run("ip -br -4 address show to 203.0.113.0/24")


def test_mtu(stage: Stage) -> None:
    """A packet that may not be cut is told of at the size where it doesn't fit; what fits goes through."""
    stage.push(left(mtu=1400))
    assert _df_ping(stage.web, WORLD, 1372) == "answered"
    assert _df_ping(stage.web, WORLD, 1373) == "mtu 1400"
    stage.web.run(("ip", "route", "flush", "cache"))
    stage.push(left(mtu=1300))
    assert _df_ping(stage.web, WORLD, 1272) == "answered"
    assert _df_ping(stage.web, WORLD, 1273) == "mtu 1300"
    assert _df_ping(stage.db, WORLD, 1472) == "answered"  # by the other uplink
    stage.web.run(("ip", "route", "flush", "cache"))
    stage.push()
    assert _df_ping(stage.web, WORLD, 1472) == "answered"


def _df_ping(machine: Machine, to: str, size: int) -> str:
    done = machine.run(("ping", "-c", "1", "-W", "2", "-M", "do", "-s", str(size), to), check=False)
    if done.returncode == 0:
        return "answered"
    told = done.stdout + done.stderr
    for words in ("mtu = ", "mtu="):
        if words in told:
            return f"mtu {told.partition(words)[2].split()[0].rstrip(')')}"
    return told


def test_a_neighbour_hears_of_an_address(stage: Stage) -> None:
    """It moves here from another machine: the neighbour's cache is right before it sends anything."""
    stage.push()
    near, old = stage.near, stage.world
    old.run(("ip", "address", "add", f"{MOVED}/32", "dev", "eth0"))
    stage.meets("world", echo(near, MOVED))
    assert near.neighbour(MOVED) == old.macs["eth0"]
    old.run(("ip", "address", "del", f"{MOVED}/32", "dev", "eth0"))
    stage.push(left(f"{MOVED}/24"), allow("ping", MOVED, "icmp"))
    wait_for(lambda: near.neighbour(MOVED) == MACS["left"], 5.0, "nobody told the neighbour")
    stage.meets("router", echo(near, MOVED))


def test_a_guest_hears_of_its_router(stage: Stage) -> None:
    """The gateway of a network moves here from another router."""
    stage.push()
    stage.desk.run(("ip", "address", "add", "10.1.1.250/32", "dev", "eth0"))
    stage.meets("desk", echo(stage.web, "10.1.1.250"))
    assert stage.web.neighbour("10.1.1.250") == stage.desk.macs["eth0"]
    stage.desk.run(("ip", "address", "del", "10.1.1.250/32", "dev", "eth0"))
    stage.push(interface("lan", "guest", f"{LAN}/24", "10.1.1.250/24"))
    wait_for(lambda: stage.web.neighbour("10.1.1.250") == MACS["lan"], 5.0, "nobody told the guest")


def test_an_address_is_answered_for_on_its_own_link_only(stage: Stage) -> None:
    """arp_ignore: a guest that asks for the public address by ARP gets nothing."""
    stage.push(allow("a", L10))
    asked = stage.web.run(("arping", "-c", "1", "-w", "1", "-I", "eth0", L10), check=False)
    assert asked.returncode
    assert not stage.web.run(("arping", "-c", "1", "-w", "2", "-I", "eth0", LAN)).returncode


def test_plugged_in_live(stage: Stage) -> None:
    """An interface comes, carries packets, goes without a document, comes back, and leaves with one."""
    driver = stage.bed.driver
    machine = Machine(f"{stage.bed.name}-extra", "extra")
    with machine:
        machine.settle(
            stage.bed.ground, [("extra", "02:00:00:00:0b:77", ["172.18.0.5/24"])], [("default", "172.18.0.1")]
        )
        extra = {**interface("extra", "private", "172.18.0.1/24"), "mac": EXTRA}
        stage.push(allow("a", L10, "tcp"), forward("f", L10, 80, WEB))
        flow = stage.flow(tcp(stage.world, L10, 80))

        driver.plug(CELL, Nic(EXTRA, "nx-extra"))
        objects = (extra, allow("a", L10), forward("f", L10, 80, WEB))
        stage.push(*objects)
        stage.meets("router", echo(machine, "172.18.0.1"), echo(machine, L10))
        stage.meets("web", tcp(machine, L10, 80), seen="172.18.0.5")
        assert flow.goes_on()

        driver.unplug(CELL, EXTRA)
        stage.meets("web", tcp(stage.world, L10, 80))
        assert flow.goes_on()
        driver.plug(CELL, Nic(EXTRA, "nx-extra"))
        wait_for(lambda: bool(stage.run("ip -br address show to 172.18.0.1")), 20.0, "it was not healed")
        stage.meets("router", echo(machine, "172.18.0.1"))

        driver.unplug(CELL, EXTRA)
        stage.push(allow("a", L10, "tcp"), forward("f", L10, 80, WEB))
        stage.meets("web", tcp(stage.world, L10, 80))
        assert flow.goes_on()
        wait_for(lambda: not stage.bed.appliance.state().body["broken"])


def test_one_that_is_not_plugged_is_named(stage: Stage) -> None:
    stage.push(allow("a", L10, "tcp"), forward("f", L10, 80, WEB))
    document = stage.bed.document(config({**interface("spare", "private", "172.19.0.1/24"), "mac": EXTRA}))
    answer = stage.bed.appliance.put(json.dumps(document).encode())
    assert answer.status == 422
    (problem,) = answer.body["problems"]
    assert problem["path"] == "config.interfaces[spare].mac"
    assert EXTRA in problem["message"]
    stage.meets("web", tcp(stage.world, L10, 80))


# --- private networks and static routes -------------------------------------------------------------------------------


def test_static_routes(stage: Stage) -> None:
    """Guests reach what is behind the private network, and are answered; nobody there reaches a guest by itself."""
    stage.push(route("depot", "172.20.0.0/16", STORE), allow("a", L10), forward("f", L10, 80, WEB))
    depot = "172.20.0.5"
    stage.meets("store", *both(stage.web, depot, 80), echo(stage.web, depot), seen=WEB)
    stage.meets("store", *both(stage.router, depot, 80), seen=BACK)
    store = stage.store
    stage.silent(*both(store, WEB, 80, depot), echo(store, WEB, depot), *both(store, WEB, 80))
    stage.meets("web", tcp(store, L10, 80, depot), seen=depot)  # by the public address, as anybody
    stage.silent(*both(store, NEAR, 80), echo(store, NEAR))  # private to public: rule 7
    stage.push(allow("a", L10), forward("f", L10, 80, WEB))
    stage.silent(*both(stage.web, depot, 80))
    assert "172.20.0.0" not in stage.run("ip route show table all")


def test_a_route_wins_over_uplinks(stage: Stage) -> None:
    """A more special route to a part of the outside leads into the private network."""
    stage.store.run(("ip", "address", "add", "198.51.100.77/32", "dev", "eth0"))
    stage.push(route("inside", "198.51.100.77/32", STORE))
    stage.meets("store", *both(stage.web, "198.51.100.77", 80), seen=WEB)
    stage.meets("world", *both(stage.web, WORLD, 80), seen=LEFT)


def test_the_routers_own_addresses(stage: Stage) -> None:
    """Rule 8: a neighbour may ping the address on its own link, and nothing more."""
    stage.push(allow("a", L10, "icmp"))
    stage.meets("router", echo(stage.web, LAN), echo(stage.db, DMZ), echo(stage.store, BACK), echo(stage.web, L10))
    stage.silent(echo(stage.web, DMZ), echo(stage.web, BACK), echo(stage.store, LAN), echo(stage.world, LAN))
    stage.silent(*both(stage.web, LAN, 80), *both(stage.store, BACK, 80), echo(stage.web, LAN, icmp=(13, 0)))
    stage.silent(echo(stage.web, R10), *both(stage.web, LAN, 53), udp(stage.web, LAN, 67))
