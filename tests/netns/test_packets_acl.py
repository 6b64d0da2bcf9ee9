"""ACLs of tiers and private gateways: in order, both ways, after translation, one tier to another; by packets.

`office` on lan and `servers` on dmz are tiers of a VPC here, `back` is its private gateway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.stage import (
    BACK,
    DB,
    DEPOT,
    DESK,
    L10,
    L20,
    LEFT,
    MAIL,
    NEAR,
    RIGHT,
    STORE,
    WEB,
    WORLD,
    WORLD_HIGH,
    WORLD_LOW,
    Json,
    Stage,
    allow,
    forward,
    interface,
    office,
    put,
    route,
    servers,
    span,
    static,
)

GRE, STRANGE = 47, 99
OFFICE, SERVERS = office(acl="office"), servers(acl="servers")


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


def item(name: str, action: str, protocol: str | int = "any", at: Any = None, *cidrs: str, **icmp: int) -> Json:
    return {"id": name, "action": action, "protocol": protocol, "ports": span(at), "cidrs": list(cidrs), **icmp}


def acl(name: str, ingress: list[Json] | None = None, egress: list[Json] | None = None, **defaults: str) -> Json:
    return {"_": "acls", "id": name, "ingress": ingress or [], "egress": egress or [], **defaults}


def back(acl: str | None = None, **more: Any) -> Json:
    return interface("back", "private", f"{BACK}/24", acl=acl, **more)


ALL = item("all", "allow")


# --- the default ends -------------------------------------------------------------------------------------------------


def test_by_default_out_but_not_in(stage: Stage) -> None:
    """Whatever the firewall lets in, an ACL that says nothing keeps out of its tier."""
    stage.push(OFFICE, SERVERS, acl("office"), acl("servers", [ALL]), allow("a", L10), forward("f", L10, 80, WEB))
    asked = (*both(stage.web, WORLD, 80), echo(stage.web, WORLD), raw(stage.web, WORLD, GRE))
    stage.meets("world", *asked, raw(stage.web, WORLD, STRANGE), seen=LEFT)
    stage.meets("store", tcp(stage.web, STORE, 80))
    stage.meets("db", *both(stage.web, DB, 80), echo(stage.web, DB), seen=WEB)
    stage.silent(tcp(stage.world, L10, 80), tcp(stage.near, L10, 80))
    stage.silent(tcp(stage.db, WEB, 80), echo(stage.db, WEB), tcp(stage.store, WEB, 80), tcp(stage.db, L10, 80))


def test_the_other_defaults(stage: Stage) -> None:
    stage.push(
        OFFICE, acl("office", ingress_default="allow", egress_default="deny"), allow("a", L10), static("s", L10, WEB)
    )
    stage.meets("web", *both(stage.world, L10, 80), echo(stage.world, L10), raw(stage.world, L10, STRANGE))
    stage.meets("web", tcp(stage.store, WEB, 80), seen=STORE)
    stage.silent(*both(stage.web, WORLD, 80), echo(stage.web, WORLD), tcp(stage.web, STORE, 80))
    stage.silent(tcp(stage.mail, DB, 80))
    stage.silent(tcp(stage.world, WEB, 80), echo(stage.near, WEB))  # an ACL opens no way around translation


# --- the items --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_items_by_protocol(stage: Stage, default: str) -> None:
    """Each names exactly what it says; the other way round they are denials."""
    action = "deny" if default == "allow" else "allow"
    items = [
        item("one", action, "tcp", 80),
        item("few", action, "udp", (5000, 5001)),
        item("wide", action, "tcp", (6000, 7000)),
        item("ping", action, "icmp", icmp_type=8, icmp_code=0),
        item("gre", action, GRE),
    ]
    stage.push(OFFICE, acl("office", egress=items, egress_default=default))
    w = stage.web
    named = (
        tcp(w, WORLD, 80), udp(w, WORLD, 5000), udp(w, WORLD, 5001), tcp(w, WORLD, 6000), tcp(w, WORLD, 7000),
        echo(w, WORLD), raw(w, WORLD, GRE),
    )  # fmt: skip
    others = (
        tcp(w, WORLD, 22), udp(w, WORLD, 80), udp(w, WORLD, 5002), tcp(w, WORLD, 5000), udp(w, WORLD, 6000),
        raw(w, WORLD, STRANGE),
    )  # fmt: skip
    denied, allowed = (named, others) if action == "deny" else (others, named)
    stage.meets("world", *allowed, seen=LEFT)
    stage.silent(*denied)


def test_the_first_that_fits_decides(stage: Stage) -> None:
    narrow, wide = item("narrow", "deny", "tcp", 80, f"{WORLD}/32"), item("wide", "allow", "tcp", 80)
    rules = (OFFICE, allow("a", L10), forward("f", L10, 80, WEB))
    stage.push(*rules, acl("office", [narrow, wide]))
    low, high = tcp(stage.world, L10, 80, WORLD), tcp(stage.world, L10, 80, WORLD_HIGH)
    stage.meets("web", high)
    stage.silent(low)
    stage.push(*rules, acl("office", [wide, narrow]))
    stage.meets("web", high, low)


def test_far_ends(stage: Stage) -> None:
    """CIDRs of ingress are sources as they come, of egress destinations; a long list is a set."""
    many = [f"198.18.{i}.0/24" for i in range(40)]
    into = [
        item("some", "allow", "tcp", (1, 65535), *many, f"{WORLD_LOW}/31"),
        item("near", "allow", "udp", 80, f"{NEAR}/32"),
    ]
    outof = [item("not", "deny", "any", None, *many, f"{WORLD_HIGH}/32")]
    stage.push(
        OFFICE,
        acl("office", into, outof),
        allow("a", L10),
        forward("f", L10, 80, WEB),
        forward("g", L10, 80, WEB, protocol="udp"),
    )
    w = stage.world
    stage.meets("web", tcp(w, L10, 80, WORLD_LOW), udp(stage.near, L10, 80))
    stage.silent(tcp(w, L10, 80, WORLD), udp(w, L10, 80, WORLD_LOW), tcp(stage.near, L10, 80))
    stage.meets("world", *both(stage.web, WORLD, 80), *both(stage.web, WORLD_LOW, 80))
    stage.silent(*both(stage.web, WORLD_HIGH, 80), echo(stage.web, WORLD_HIGH))


def test_ports_are_those_behind_the_translation(stage: Stage) -> None:
    """An ACL judges where a packet goes, the firewall what it was sent to."""
    stage.push(
        OFFICE, acl("office", [item("i", "allow", "tcp", 80)]), allow("a", L10, "tcp", (8000, 8001)),
        forward("f", L10, 8000, WEB, 80), forward("g", L10, 8001, WEB, 22), forward("h", L10, 80, MAIL),
    )  # fmt: skip
    stage.meets("web", tcp(stage.world, L10, 8000))
    stage.silent(tcp(stage.world, L10, 8001), tcp(stage.world, L10, 80))


# --- between tiers ----------------------------------------------------------------------------------------------------


def test_from_tier_to_tier_both_agree(stage: Stage) -> None:
    """The egress of one and the ingress of the other."""
    office_acl = acl("office", [item("db", "allow", "any", None, f"{DB}/32")], [item("no", "deny", "tcp", 22)])
    servers_acl = acl("servers", [item("web", "allow", "tcp", (1, 100), f"{WEB}/32")])
    stage.push(OFFICE, SERVERS, office_acl, servers_acl)
    stage.meets("db", tcp(stage.web, DB, 80), seen=WEB)
    stage.silent(tcp(stage.web, DB, 22), tcp(stage.web, DB, 5000), udp(stage.web, DB, 80), tcp(stage.mail, DB, 80))
    stage.meets("web", *both(stage.db, WEB, 22), echo(stage.db, WEB), seen=DB)
    stage.meets("desk", tcp(stage.db, DESK, 80))


def test_a_network_without_an_acl_is_no_tier(stage: Stage) -> None:
    stage.push(OFFICE, acl("office", [ALL], [ALL]))
    stage.silent(tcp(stage.web, DB, 80), tcp(stage.db, WEB, 80), echo(stage.web, DB))
    stage.meets("world", tcp(stage.db, WORLD, 80), seen=RIGHT)


def test_by_a_public_address_of_another_tier(stage: Stage) -> None:
    """A guest that reaches another by its public address is judged by both ACLs too; and one of its own tier."""
    only_mail = acl("office", [item("m", "allow", "tcp", 80, f"{MAIL}/32")])
    rules = (OFFICE, SERVERS, acl("servers"), allow("a", L10), forward("f", L10, 80, WEB))
    stage.push(*rules, only_mail)
    stage.silent(tcp(stage.db, L10, 80), tcp(stage.desk, L10, 80), tcp(stage.world, L10, 80))
    stage.meets("web", tcp(stage.mail, L10, 80))
    stage.push(*rules, acl("office", [item("db", "allow", "tcp", 80, f"{DB}/32")]))
    stage.meets("web", tcp(stage.db, L10, 80))


# --- private gateways -------------------------------------------------------------------------------------------------


def test_a_private_gateway(stage: Stage) -> None:
    """What is behind it reaches tiers as their ACLs allow; its own guards what goes there and comes from there."""
    way = route("depot", "172.20.0.0/16", STORE)
    tier = acl("office", [item("store", "allow", "any", None, "172.16.0.0/12")])
    stage.push(OFFICE, tier, way)
    stage.meets("web", *both(stage.store, WEB, 80), echo(stage.store, WEB), seen=STORE)
    stage.meets("web", tcp(stage.store, WEB, 80, DEPOT), seen=DEPOT)
    stage.meets("store", tcp(stage.web, STORE, 80), tcp(stage.web, DEPOT, 80), seen=WEB)
    stage.silent(tcp(stage.store, DB, 80))
    gate = acl("gate", [item("in", "allow", "tcp", 80, f"{WEB}/32")], [item("out", "deny", "tcp", 80)])
    stage.push(OFFICE, tier, way, gate, back("gate"))
    stage.silent(tcp(stage.store, WEB, 80), tcp(stage.store, WEB, 80, DEPOT))
    stage.meets("web", tcp(stage.store, WEB, 22), udp(stage.store, WEB, 80))
    stage.meets("store", tcp(stage.web, STORE, 80), tcp(stage.web, DEPOT, 80))
    stage.silent(tcp(stage.web, STORE, 22), tcp(stage.mail, STORE, 80), tcp(stage.db, STORE, 80))


def test_source_nat_of_a_private_gateway(stage: Stage) -> None:
    """For whoever goes out by it; what comes in by it keeps its source, and its answers theirs."""
    stage.push(OFFICE, acl("office", [ALL]), back(source_nat=True), route("depot", "172.20.0.0/16", STORE))
    stage.meets("store", *both(stage.web, STORE, 80), tcp(stage.web, DEPOT, 80), tcp(stage.db, STORE, 80), seen=BACK)
    stage.meets("web", tcp(stage.store, WEB, 80), seen=STORE)
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_nothing_passes_through_a_vpc(stage: Stage) -> None:
    """Neither from outside to a private gateway, nor the other way."""
    stage.push(OFFICE, SERVERS, acl("office", [ALL]), acl("servers", [ALL]), acl("gate", [ALL]), back("gate"))
    stage.silent(
        tcp(stage.world, STORE, 80), tcp(stage.store, WORLD, 80), tcp(stage.world, WEB, 80), tcp(stage.far, DB, 80)
    )


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_new_order_takes_effect_at_once_and_ends_no_flow(stage: Stage) -> None:
    """By PATCH, one transaction; what was let in goes on, and no packet of it is lost, nor of the other tier's."""
    yes, no = item("yes", "allow", "tcp", 80), item("no", "deny", "tcp", (1, 100))
    rules = (OFFICE, SERVERS, acl("servers", [ALL]), allow("a", L10), allow("b", L20), forward("f", L10, 80, WEB))
    stage.push(*rules, acl("office", [yes, no]), static("s", L20, DB))
    came = stage.flow(tcp(stage.world, L10, 80))
    streams = [stage.stream(udp(stage.world, L20, 5000)), stage.stream(tcp(stage.world, L10, 80))]
    for _ in range(5):
        stage.bed.patch(put(acl("office", [no, yes])))
        stage.silent(tcp(stage.world, L10, 80))
        stage.bed.patch(put(acl("office", [yes, no])))
        stage.meets("web", tcp(stage.world, L10, 80))
    assert came.goes_on()
    assert [stream.lost() for stream in streams] == [0, 0]


def test_a_thousand_items(stage: Stage) -> None:
    """The last of them decides as the first does; the same turned round."""
    items = [item(f"i{n}", "deny", "tcp", 1000 + n, f"198.18.{n % 250}.0/24") for n in range(999)]
    last = item("last", "allow", "tcp", 80, f"{WORLD}/32")
    rules = (OFFICE, allow("a", L10), forward("f", L10, 80, WEB))
    for ordered in ([*items, last], [last, *reversed(items)]):
        stage.push(*rules, acl("office", ordered))
        stage.meets("web", tcp(stage.world, L10, 80, WORLD))
        stage.silent(tcp(stage.world, L10, 80, WORLD_HIGH))


def test_trace_names_the_acl(stage: Stage) -> None:
    stage.push(OFFICE, acl("office", [item("web-in", "deny", "tcp", 80)]), allow("a", L10), forward("f", L10, 80, WEB))
    query = {"in": "left", "src": WORLD, "dst": L10, "dport": "80", "proto": "tcp"}
    outcome = stage.bed.appliance.trace(query).body["outcome"]
    assert (outcome["verdict"], outcome["owners"]) == ("dropped", ["office"])
    assert "deny web-in" in outcome["why"]
