"""Routed networks: no translation in IPv4 either; guests by their own addresses, in by ingress rules or an ACL."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.dual import enter
from tests.netns.stage import (
    DB,
    DESK,
    FAR,
    L10,
    LAN,
    LEFT,
    MAIL,
    RIGHT,
    STORE,
    WEB,
    WORLD,
    WORLD_HIGH,
    Stage,
    allow,
    config,
    exception,
    forward,
    interface,
    office,
    put,
    remove,
    route,
    servers,
)

GRE, STRANGE = 47, 99
ROUTED = office(None, routed=True)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


def test_guests_go_out_with_their_own_addresses(stage: Stage) -> None:
    """By the first uplink; the network beside it is translated as ever."""
    stage.push(ROUTED)
    asked = (*both(stage.web, WORLD, 80), echo(stage.web, WORLD), raw(stage.web, WORLD, GRE))
    stage.meets("world", *asked, raw(stage.web, WORLD, STRANGE), seen=WEB)
    stage.meets("store", tcp(stage.web, STORE, 80), seen=WEB)
    stage.meets("world", tcp(stage.db, WORLD, 80), seen=RIGHT)


def test_egress_judges_them(stage: Stage) -> None:
    stage.push(office(None, routed=True, egress={"default": "deny"}), exception("web", "office", "tcp", 80))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=WEB)
    stage.silent(tcp(stage.web, WORLD, 22), udp(stage.web, WORLD, 80), echo(stage.web, WORLD))


def test_nobody_comes_in_without_a_rule(stage: Stage) -> None:
    """Nor does he where there is one and the network is not routed: that is refused."""
    stage.push(ROUTED)
    stage.silent(
        *both(stage.world, WEB, 80), echo(stage.world, WEB), raw(stage.world, WEB, GRE), tcp(stage.far, DB, 80)
    )
    document = stage.bed.document(config(ROUTED, enter("in", "servers", "tcp", 80)))
    problems = stage.bed.appliance.put(json.dumps(document).encode()).body["problems"]
    assert [p["path"] for p in problems] == ["config.ingress[in].network"]
    assert "routed" in problems[0]["message"]


def test_ingress_lets_in_what_it_names(stage: Stage) -> None:
    stage.push(
        ROUTED,
        enter("web", "office", "tcp", 80, destinations=[f"{WEB}/32"]),
        enter("some", "office", "udp", (5000, 5001), sources=["198.51.100.0/25"]),
        enter("ping", "office", "icmp", icmp_type=8),
        enter("gre", "office", GRE, destinations=[f"{MAIL}/31"]),
    )
    stage.meets(
        "web", tcp(stage.world, WEB, 80, WORLD), echo(stage.world, WEB, WORLD), udp(stage.world, WEB, 5001, WORLD)
    )
    stage.meets("web", tcp(stage.store, WEB, 80), seen=STORE)
    stage.meets("mail", raw(stage.world, MAIL, GRE))
    stage.silent(
        tcp(stage.world, MAIL, 80), tcp(stage.world, WEB, 22), udp(stage.world, WEB, 5001, WORLD_HIGH),
        raw(stage.world, WEB, GRE), echo(stage.world, WEB, icmp=(13, 0)),
        tcp(stage.world, DB, 80), tcp(stage.db, WEB, 80),
    )  # fmt: skip


def test_an_answer_leaves_by_the_uplink_it_was_asked_by(stage: Stage) -> None:
    """Far has the right uplink for its gateway; the network's own is the left."""
    stage.push(ROUTED, enter("all", "office"))
    stage.meets("web", *both(stage.far, WEB, 80), echo(stage.far, WEB), seen=FAR)


def test_a_forward_leads_there_too(stage: Stage) -> None:
    """And changes the destination alone."""
    stage.push(ROUTED, allow("a", L10, "tcp", 8000), forward("f", L10, 8000, WEB, 80))
    stage.meets("web", tcp(stage.world, L10, 8000, WORLD), seen=WORLD)
    stage.meets("web", tcp(stage.desk, L10, 8000), seen=LAN)


def test_no_lie_gets_through(stage: Stage) -> None:
    """What is let in from everywhere is not let in from a guest's own address."""
    stage.push(ROUTED, enter("all", "office"))
    stage.silent(tcp(stage.world, LAN, 80), tcp(stage.world, LAN, 3922), tcp(stage.far, LAN, 22))


def test_a_route_that_leads_elsewhere(stage: Stage) -> None:
    """A part of the network behind a private gateway: no rule of the network's opens that."""
    stage.push(ROUTED, enter("all", "office"), route("away", f"{DESK}/32", STORE))
    stage.meets("web", tcp(stage.world, WEB, 80))
    stage.silent(tcp(stage.world, DESK, 80))


def test_a_routed_tier(stage: Stage) -> None:
    """Its ACL takes the place of ingress and egress."""
    items = [{"id": "web", "action": "allow", "protocol": "tcp", "ports": {"first": 80, "last": 80}}]
    tier = {"_": "acls", "id": "t", "ingress": items}
    stage.push(office(None, routed=True, acl="t"), servers(acl="t"), tier)
    stage.meets("web", tcp(stage.world, WEB, 80, WORLD), tcp(stage.db, WEB, 80), tcp(stage.store, WEB, 80))
    stage.silent(tcp(stage.world, WEB, 22), udp(stage.world, WEB, 80), tcp(stage.world, DB, 80))
    stage.meets("world", tcp(stage.web, WORLD, 22), seen=WEB)


def test_source_nat_of_a_private_gateway_is_its_own(stage: Stage) -> None:
    gateway = interface("back", "private", "172.16.0.1/24", source_nat=True)
    stage.push(ROUTED, gateway)
    stage.meets("store", tcp(stage.web, STORE, 80), seen="172.16.0.1")
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=WEB)


def test_by_patch_and_back(stage: Stage) -> None:
    """A rule comes and goes; the network is translated again: who came in by its own address does no more."""
    stage.push(ROUTED, enter("other", "office", "tcp", 22))
    rule = enter("web", "office", "tcp", 80)
    stage.bed.patch(put(rule))
    stage.meets("web", tcp(stage.world, WEB, 80, WORLD), tcp(stage.world, WEB, 22, WORLD))
    live = stage.flow(tcp(stage.world, WEB, 22, WORLD))
    stage.bed.patch(remove(rule))
    stage.silent(tcp(stage.world, WEB, 80))
    assert live.goes_on()
    stage.push(office(LEFT))
    stage.silent(tcp(stage.world, WEB, 22))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_trace_tells_the_rule(stage: Stage) -> None:
    stage.push(ROUTED, enter("web", "office", "tcp", 80))
    query = {"in": "left", "src": WORLD, "dst": WEB, "dport": "80", "proto": "tcp"}
    outcome = stage.bed.appliance.trace(query).body["outcome"]
    assert (outcome["verdict"], outcome["destination"], outcome["owners"][-1]) == ("forwarded", WEB, "web")
