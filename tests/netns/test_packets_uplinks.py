"""Two public interfaces: an answer leaves by the one that its question came in by; by packets.

world is behind both, as WORLD; a call with a link hears only what comes back by that link.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.stage import (
    BACK,
    FAR,
    L10,
    L20,
    LEFT,
    NEAR,
    R10,
    R20,
    RIGHT,
    WEB,
    WORLD,
    Stage,
    allow,
    config,
    forward,
    left,
    right,
    servers,
    static,
)

OPEN = tuple(allow(f"open-{address}", address) for address in (LEFT, L10, L20, RIGHT, R10, R20))
OBJECTS = (
    *OPEN,
    forward("left-tcp", L10, 80, WEB),
    forward("left-udp", L10, 80, WEB, protocol="udp"),
    forward("right-tcp", R10, 80, WEB),
    forward("right-udp", R10, 80, WEB, protocol="udp"),
    static("s", R20, WEB),
)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        # Roundabout ways, for who binds to the other link: to each uplink's addresses by the other uplink.
        for to, via, link in ((L10, RIGHT, "eth1"), (R10, LEFT, "eth0")):
            stage.world.run(("ip", "route", "add", to, "via", via, "dev", link, "metric", "500"))
        yield stage


def test_answers_of_a_forward(stage: Stage) -> None:
    stage.push(*OBJECTS)
    w = stage.world
    stage.meets("web", *both(w, L10, 80, WORLD, "eth0"), *both(w, R10, 80, WORLD, "eth1"), seen=WORLD)
    stage.meets("web", *both(stage.near, L10, 80), seen=NEAR)
    stage.meets("web", *both(stage.far, R10, 80), seen=FAR)


def test_answers_of_a_static_nat(stage: Stage) -> None:
    stage.push(*OBJECTS)
    w = stage.world
    stage.meets("web", *both(w, R20, 22, WORLD, "eth1"), echo(w, R20, WORLD, "eth1"), seen=WORLD)
    stage.meets("web", raw(w, R20, 99, WORLD), seen=WORLD)
    stage.meets("web", *both(stage.far, R20, 22), echo(stage.far, R20), seen=FAR)


def test_answers_of_the_router_itself(stage: Stage) -> None:
    stage.push(*OBJECTS)
    w = stage.world
    stage.meets("router", echo(w, LEFT, WORLD, "eth0"), echo(w, RIGHT, WORLD, "eth1"), echo(w, R10, WORLD, "eth1"))
    stage.meets("refused", *both(w, RIGHT, 9, WORLD, "eth1"), *both(w, LEFT, 9, WORLD, "eth0"))
    stage.meets("router", echo(stage.far, RIGHT), echo(stage.near, LEFT))


def test_by_the_interface_and_not_by_the_address(stage: Stage) -> None:
    """What is sent to left's address comes in by right: there the answer goes."""
    stage.push(*OBJECTS)
    w = stage.world
    stage.meets("web", *both(w, L10, 80, WORLD, "eth1"), *both(w, R10, 80, WORLD, "eth0"), seen=WORLD)
    stage.meets("router", echo(w, L10, WORLD, "eth1"), echo(w, R10, WORLD, "eth0"))
    stage.meets("web", *both(stage.far, L10, 80), seen=FAR)
    stage.meets("web", *both(stage.near, R10, 80), seen=NEAR)


def test_guests_new_flows(stage: Stage) -> None:
    """By the uplink of their source NAT; a guest with a static NAT by that one's."""
    stage.push(*OBJECTS)
    stage.meets("world", *both(stage.mail, WORLD, 80), seen=LEFT, link="eth0")
    stage.meets("world", *both(stage.db, WORLD, 80), seen=RIGHT, link="eth1")
    stage.meets("world", *both(stage.web, WORLD, 80), seen=R20, link="eth1")


def test_the_routers_own_flows(stage: Stage) -> None:
    """By the uplink of the address that they come from; without one by the first's."""
    stage.push(*OBJECTS)
    r = stage.router
    stage.meets("world", *both(r, WORLD, 80, R10), seen=R10, link="eth1")
    stage.meets("world", *both(r, WORLD, 80, L10), seen=L10, link="eth0")
    stage.meets("world", *both(r, WORLD, 80), link="eth0", seen=LEFT)
    stage.meets("world", echo(r, WORLD, R20), seen=R20)
    stage.meets("far", *both(r, FAR, 80), seen=RIGHT)
    stage.meets("near", *both(r, NEAR, 80), seen=LEFT)


def test_the_order_of_the_document_moves_no_flow(stage: Stage) -> None:
    """The first public interface is the default's; marks belong to interfaces, so live flows keep their way."""
    stage.push(*OBJECTS)
    w = stage.world
    flows = [
        stage.flow(tcp(w, L10, 80, WORLD, "eth0")), stage.flow(tcp(w, R10, 80, WORLD, "eth1")),
        stage.flow(udp(w, R10, 80, WORLD, "eth1")), stage.flow(tcp(stage.db, WORLD, 80)),
    ]  # fmt: skip
    turned = config(*OBJECTS)
    turned["interfaces"].reverse()
    stage.bed.push(turned)
    assert all(flow.goes_on() for flow in flows)
    stage.meets("world", tcp(stage.router, WORLD, 80), link="eth1")
    stage.meets("web", tcp(w, L10, 80, WORLD, "eth0"), tcp(w, R10, 80, WORLD, "eth1"))
    stage.push(*OBJECTS)
    assert all(flow.goes_on() for flow in flows)


def test_an_uplink_that_goes_leaves_the_others_flows(stage: Stage) -> None:
    stage.push(*OBJECTS)
    w = stage.world
    stays, inner = stage.flow(tcp(w, L10, 80, WORLD, "eth0")), stage.flow(tcp(stage.mail, WORLD, 80))
    one = config(*(o for o in OBJECTS if o.get("address", "").startswith("203.")), servers(LEFT))
    one["interfaces"] = [i for i in one["interfaces"] if i["id"] != "right"]
    stage.bed.push(one)
    assert stays.goes_on()
    assert inner.goes_on()
    stage.silent(*both(w, R10, 80), echo(w, RIGHT))
    stage.meets("world", tcp(stage.db, WORLD, 80), seen=LEFT, link="eth0")
    shown = stage.run("ip rule") + stage.run("ip route show table all")
    assert "narthex-right" not in shown
    assert "192.0.2." not in shown
    stage.push(*OBJECTS)
    assert stays.goes_on()
    stage.meets("web", tcp(w, R10, 80, WORLD, "eth1"))


def test_another_gateway(stage: Stage) -> None:
    """near is right too: new flows by it, and no flow is lost by the push itself."""
    stage.push(*OBJECTS)
    stage.world.run(("ip", "address", "add", "203.0.113.254/24", "dev", "eth0"))
    flow = stage.flow(tcp(stage.mail, WORLD, 80))
    stage.push(*OBJECTS, left(gateway="203.0.113.254"))
    assert flow.goes_on()
    stage.meets("world", tcp(stage.mail, WORLD, 80), seen=LEFT)
    stage.meets("web", tcp(stage.world, L10, 80, WORLD, "eth0"))
    assert "via 203.0.113.254" in stage.run("ip route show default")
    stage.push(*OBJECTS)


def test_what_is_ours_can_be_told(stage: Stage) -> None:
    """Rules and routes carry our protocol number and tables have names: a person sees whose they are."""
    stage.push(*OBJECTS)
    rules = stage.run("ip rule").splitlines()
    ours = [line for line in rules if "proto 110" in line]
    assert {word for line in ours for word in line.split() if word.startswith("narthex-")} == {
        "narthex-left", "narthex-right", "narthex-uplinks",
    }  # fmt: skip
    foreign = [line.split(":")[0] for line in rules if "proto 110" not in line]
    assert foreign == ["0", "32766", "32767"]
    for uplink, gateway in (("left", "203.0.113.1"), ("right", "192.0.2.1")):
        routes = stage.run(f"ip route show table narthex-{uplink}").splitlines()
        assert all("proto 110" in line for line in routes)
        assert any(line.startswith(f"default via {gateway}") for line in routes)
        assert len(routes) == 2
    assert all(
        line.startswith(("default", "10.1.", "172.16.", "169.254.")) for line in stage.run("ip route").splitlines()
    )


def test_more_addresses_of_an_uplink(stage: Stage) -> None:
    """A second subnet on an uplink has its answers there too."""
    stage.world.run(("ip", "address", "add", "192.0.3.1/24", "dev", "eth1"))
    stage.push(*OBJECTS, right("192.0.3.2/24", "192.0.3.9/24"), allow("more", "192.0.3.9"))
    w = stage.world
    stage.meets("router", echo(w, "192.0.3.9", WORLD, "eth1"), echo(w, "192.0.3.9", "192.0.3.1", "eth1"))
    stage.silent(echo(w, "192.0.3.2"))


def test_private_is_no_uplink(stage: Stage) -> None:
    stage.push(*OBJECTS)
    stage.meets("web", *both(stage.store, R10, 80), seen="172.16.0.5")
    stage.meets("router", echo(stage.store, BACK), echo(stage.store, R10), echo(stage.store, L10))
