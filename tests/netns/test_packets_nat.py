"""Source NAT and static NAT: by which address guests go out, and who comes in to them; by packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.stage import (
    DB,
    DESK,
    FAR,
    L10,
    L20,
    L30,
    LAN,
    LEFT,
    MAIL,
    NEAR,
    R10,
    R20,
    RIGHT,
    STORE,
    WEB,
    WORLD,
    Stage,
    allow,
    exception,
    forward,
    left,
    office,
    put,
    right,
    servers,
    static,
)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


# --- source NAT -------------------------------------------------------------------------------------------------------


def test_each_network_by_its_own_address(stage: Stage) -> None:
    stage.push(office(L10), servers(R20))
    stage.meets("world", *both(stage.web, WORLD, 80), seen=L10, link="eth0")
    stage.meets("world", echo(stage.mail, WORLD), raw(stage.mail, WORLD, 99), seen=L10)
    stage.meets("world", *both(stage.db, WORLD, 80), seen=R20, link="eth1")
    stage.meets("world", echo(stage.db, WORLD), seen=R20)
    stage.meets("near", tcp(stage.web, NEAR, 80), seen=L10)
    stage.meets("far", tcp(stage.db, FAR, 80), seen=R20)


def test_between_private_addresses_nothing_is_translated(stage: Stage) -> None:
    stage.push()
    stage.meets("store", *both(stage.web, STORE, 80), echo(stage.web, STORE), seen=WEB)
    stage.meets("store", tcp(stage.db, STORE, 80), seen=DB)


def test_no_source_nat(stage: Stage) -> None:
    """The guest goes out as what it is; its network's uplink is the first."""
    stage.push(office(None))
    stage.meets("near", *both(stage.web, NEAR, 80), echo(stage.web, NEAR), seen=WEB)
    stage.push(office(LEFT))
    stage.meets("near", *both(stage.web, NEAR, 80), seen=LEFT)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_change_keeps_live_flows(stage: Stage, protocol: str) -> None:
    """They go on under the old address while it is ours; new flows have the new one."""
    ask = tcp if protocol == "tcp" else udp
    stage.push(office(L10))
    old = stage.flow(ask(stage.web, WORLD, 80))
    other = stage.flow(ask(stage.db, WORLD, 80))
    stage.push(office(L20))
    assert old.seen == L10
    assert old.goes_on()
    assert other.goes_on()
    stage.meets("world", *both(stage.web, WORLD, 80), echo(stage.web, WORLD), seen=L20)
    stage.bed.patch(put(office(L30)))
    assert old.goes_on()
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=L30)


def test_a_change_of_the_uplink_keeps_live_flows(stage: Stage) -> None:
    """The old ones keep their uplink too: their answers come to its address."""
    stage.push(office(L10))
    old = stage.flow(tcp(stage.web, WORLD, 80))
    stage.push(office(R10))
    assert old.goes_on()
    stage.meets("world", *both(stage.web, WORLD, 80), seen=R10, link="eth1")
    assert old.goes_on()


def test_an_address_that_goes_takes_its_flows(stage: Stage) -> None:
    """And no other flow."""
    stage.push(left("203.0.113.40/24"), office("203.0.113.40"))
    gone, stays = stage.flow(tcp(stage.web, WORLD, 80)), stage.flow(tcp(stage.db, WORLD, 80))
    assert gone.seen == "203.0.113.40"
    stage.push(office(LEFT))
    assert not gone.goes_on(1.0)
    assert stays.goes_on()
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_out_to_a_neighbour_of_another_uplink(stage: Stage) -> None:
    """A neighbour's subnet is no reason to leave by another uplink: far is reached by way of left's gateway."""
    stage.push(office(L10))
    stage.meets("world", tcp(stage.web, "192.0.2.1", 80), seen=L10, link="eth0")


def test_every_address_can_be_chosen(stage: Stage) -> None:
    for address, link in ((LEFT, "eth0"), (L20, "eth0"), (RIGHT, "eth1"), (R20, "eth1")):
        stage.push(office(address))
        stage.meets("world", tcp(stage.web, WORLD, 80), udp(stage.web, WORLD, 80), seen=address, link=link)


# --- static NAT -------------------------------------------------------------------------------------------------------


def test_static_nat_in_and_out(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), static("t", R20, MAIL), allow("a", L20), allow("b", R20, "tcp"))
    w = stage.world
    stage.meets("web", *both(w, L20, 80, WORLD), echo(w, L20, WORLD), raw(w, L20, 99, WORLD), seen=WORLD)
    stage.meets("mail", tcp(w, R20, 80))
    stage.silent(udp(w, R20, 80), echo(w, R20))
    stage.meets("world", *both(stage.web, WORLD, 80), link="eth0", seen=L20)
    stage.meets("world", echo(stage.web, WORLD), raw(stage.web, WORLD, 99), seen=L20)
    # mail's own uplink is that of its own address, whatever its network's is
    stage.meets("world", *both(stage.mail, WORLD, 80), link="eth1", seen=R20)
    stage.meets("world", *both(stage.desk, WORLD, 80), link="eth0", seen=LEFT)


def test_static_nat_hairpin(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("a", L20))
    stage.meets("web", *both(stage.mail, L20, 80), echo(stage.mail, L20), *both(stage.web, L20, 80), seen=LAN)
    stage.meets("web", *both(stage.db, L20, 80), echo(stage.db, L20), seen=DB)


def test_static_nat_opens_no_guest(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("a", L20))
    for who in (stage.world, stage.near, stage.store, stage.db):
        stage.silent(*both(who, WEB, 80), *both(who, MAIL, 80), echo(who, WEB))


def test_static_nat_goes_out_under_its_networks_egress(stage: Stage) -> None:
    stage.push(
        static("s", L20, WEB), office(egress={"default": "deny"}), exception("mail-only", "office", "tcp", 25)
    )  # fmt: skip
    stage.meets("world", tcp(stage.web, WORLD, 25), seen=L20)
    stage.silent(tcp(stage.web, WORLD, 80), echo(stage.web, WORLD))


def test_a_static_nat_that_goes_takes_its_flows(stage: Stage) -> None:
    """In and out, and no others; the address is then the router's own again."""
    rules = (allow("a", L20, "tcp"), allow("b", L30, "tcp"))
    stage.push(*rules, static("s", L20, WEB), static("t", L30, MAIL))
    came, went = stage.flow(tcp(stage.world, L20, 80)), stage.flow(tcp(stage.web, WORLD, 80))
    others = stage.flow(tcp(stage.world, L30, 80)), stage.flow(tcp(stage.mail, WORLD, 80))
    unconcerned = stage.flow(tcp(stage.desk, WORLD, 80))
    stage.push(*rules, static("t", L30, MAIL))
    assert not came.goes_on(1.0)
    assert not went.goes_on(1.0)
    assert all(flow.goes_on() for flow in (*others, unconcerned))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)
    stage.meets("refused", tcp(stage.world, L20, 80))


def test_a_static_nat_that_changes_its_guest(stage: Stage) -> None:
    stage.push(allow("a", L20), static("s", L20, WEB))
    old = stage.flow(tcp(stage.world, L20, 80))
    stage.bed.patch(put(static("s", L20, DESK)))
    assert not old.goes_on(1.0)
    stage.meets("desk", *both(stage.world, L20, 80), echo(stage.world, L20))
    stage.meets("world", tcp(stage.desk, WORLD, 80), seen=L20)
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_forwards_and_static_nat_beside_each_other(stage: Stage) -> None:
    stage.push(
        allow("a", L20), allow("b", L10), static("s", L20, WEB), forward("f", L10, 80, WEB),
        forward("g", L10, 22, MAIL), right("192.0.2.30/24"),
    )  # fmt: skip
    w = stage.world
    stage.meets("web", tcp(w, L20, 80), tcp(w, L10, 80), tcp(w, L20, 22))
    stage.meets("mail", tcp(w, L10, 22))
    flow = stage.flow(tcp(w, L10, 80))  # its answers leave by the forward's address, not the static one
    assert flow.name == "web"
    assert flow.goes_on()
