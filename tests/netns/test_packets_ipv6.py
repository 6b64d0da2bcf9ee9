"""IPv6 by packets: out and in without translation, public addresses, ACLs of both families, lies, neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.dual import (
    BACK6,
    DB6,
    DEPOT6,
    DMZ6,
    FAR6,
    L6,
    LAN6,
    LEFT6,
    MAIL6,
    NEAR6,
    OFFICE6,
    RIGHT6,
    STORE6,
    V6,
    WEB6,
    WORLD6,
    WORLD6_HIGH,
    DualStage,
    arrives,
    enter,
    office6,
    servers6,
)
from tests.netns.stage import (
    DB,
    L10,
    LEFT,
    STORE,
    WEB,
    WORLD,
    Json,
    allow,
    exception,
    forward,
    put,
    remove,
    route,
    span,
)

GRE, STRANGE = 47, 99
BOTH = (*V6, office6(), servers6())


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[DualStage]:
    with DualStage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: DualStage) -> None:
    stage.forget()


def item(name: str, action: str, protocol: str | int = "any", at: Any = None, *cidrs: str, **icmp: int) -> Json:
    return {"id": name, "action": action, "protocol": protocol, "ports": span(at), "cidrs": list(cidrs), **icmp}


def acl(name: str, ingress: list[Json] | None = None, egress: list[Json] | None = None, **defaults: str) -> Json:
    return {"_": "acls", "id": name, "ingress": ingress or [], "egress": egress or [], **defaults}


# --- outwards ---------------------------------------------------------------------------------------------------------


def test_guests_go_out_with_their_own_addresses(stage: DualStage) -> None:
    """By the uplink of their network, and in IPv4 translated as before."""
    stage.push(*BOTH)
    asked = (*both(stage.web, WORLD6, 80), echo(stage.web, WORLD6), raw(stage.web, WORLD6, GRE))
    stage.meets("world", *asked, raw(stage.web, WORLD6, STRANGE), seen=WEB6)
    stage.meets("world", *both(stage.web, WORLD6, 80), seen=WEB6, link="eth0")
    stage.meets("near", tcp(stage.mail, NEAR6, 22), seen=MAIL6)
    stage.meets("far", tcp(stage.db, FAR6, 22), seen=DB6)
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_a_network_leaves_by_its_uplink(stage: DualStage) -> None:
    """Servers are of the right uplink: its gateway sees their packets."""
    stage.push(*BOTH)
    stage.meets("world", tcp(stage.db, WORLD6, 80), seen=DB6, link="eth1")
    without = {**V6[1], "gateway6": None}
    stage.push(*BOTH, without)
    stage.meets("world", tcp(stage.db, WORLD6, 80), seen=DB6, link="eth0")


def test_egress_means_the_same(stage: DualStage) -> None:
    """One default and one list of exceptions for both families."""
    no = exception("no", "office", "tcp", 80)
    ping = exception("ping", "office", "icmpv6", icmp_type=128)
    some = exception("some", "office", "udp", 5000, destinations=["2001:db8:77::/49", "198.51.100.0/25"])
    stage.push(*BOTH, no, ping, some)
    stage.silent(tcp(stage.web, WORLD6, 80), echo(stage.web, WORLD6), udp(stage.web, WORLD6, 5000))
    stage.silent(tcp(stage.web, WORLD, 80), udp(stage.web, WORLD, 5000))
    stage.meets("world", tcp(stage.web, WORLD6, 22), udp(stage.web, WORLD6_HIGH, 5000), echo(stage.web, WORLD))
    stage.push(*BOTH, office6(egress={"default": "deny"}), no, ping, some)
    stage.meets("world", tcp(stage.web, WORLD6, 80), echo(stage.web, WORLD6), udp(stage.web, WORLD6, 5000))
    stage.silent(tcp(stage.web, WORLD6, 22), udp(stage.web, WORLD6_HIGH, 5000), echo(stage.web, WORLD))


# --- inwards ----------------------------------------------------------------------------------------------------------


def test_nobody_comes_in_without_a_rule(stage: DualStage) -> None:
    stage.push(*BOTH)
    asked = (*both(stage.world, WEB6, 80), echo(stage.world, WEB6), raw(stage.world, WEB6, GRE))
    stage.silent(*asked, tcp(stage.store, WEB6, 80), tcp(stage.far, DB6, 80))


def test_ingress_lets_in_what_it_names(stage: DualStage) -> None:
    stage.push(
        *BOTH,
        enter("web", "office", "tcp", 80, destinations=[f"{WEB6}/128"]),
        enter("range", "office", "udp", (5000, 5001), sources=["2001:db8:77::/49"]),
        enter("ping", "office", "icmpv6", icmp_type=128),
        enter("gre", "office", GRE, destinations=[f"{MAIL6}/127"]),
    )
    stage.meets("web", tcp(stage.world, WEB6, 80), echo(stage.world, WEB6), udp(stage.world, WEB6, 5001, WORLD6))
    stage.meets("mail", raw(stage.world, MAIL6, GRE), echo(stage.world, MAIL6))
    stage.meets("web", tcp(stage.store, WEB6, 80, STORE6), seen=STORE6)
    stage.silent(
        tcp(stage.world, MAIL6, 80), tcp(stage.world, WEB6, 22), udp(stage.world, WEB6, 5001, WORLD6_HIGH),
        raw(stage.world, WEB6, GRE), tcp(stage.world, DB6, 80), tcp(stage.world, WEB, 80),
    )  # fmt: skip


def test_ingress_by_patch(stage: DualStage) -> None:
    """A rule comes, changes and goes, and nothing else is lost: a live flow of a rule that goes goes on."""
    stage.push(*BOTH, enter("other", "office", "tcp", 22))
    stage.silent(tcp(stage.world, WEB6, 80))
    rule = enter("web", "office", "tcp", 80, sources=[f"{WORLD6}/128"])
    stage.bed.patch(put(rule))
    stage.meets("web", tcp(stage.world, WEB6, 80, WORLD6), tcp(stage.world, WEB6, 22))
    stage.silent(tcp(stage.world, WEB6, 80, WORLD6_HIGH))
    flow = stage.flow(tcp(stage.world, WEB6, 80, WORLD6))
    stage.bed.patch(remove(rule))
    stage.silent(tcp(stage.world, WEB6, 80, WORLD6))
    assert flow.goes_on()


# --- the router's own addresses ---------------------------------------------------------------------------------------


def test_a_public_address_is_judged_by_its_firewall(stage: DualStage) -> None:
    """From wherever it is asked: outside, a guest, a private interface."""
    stage.push(*BOTH)
    stage.silent(echo(stage.world, L6), echo(stage.web, L6), echo(stage.store, L6), tcp(stage.world, L6, 3922))
    ping = allow("ping", L6, "icmpv6", sources=["2001:db8:77::/49", OFFICE6], icmp_type=128)
    stage.push(*BOTH, ping)
    stage.meets("router", echo(stage.world, L6, WORLD6), echo(stage.web, L6))
    stage.silent(echo(stage.world, L6, WORLD6_HIGH), echo(stage.world, LEFT6), echo(stage.store, L6))
    stage.push(*BOTH, allow("tcp", L6, "tcp", 7001))
    stage.meets("refused", tcp(stage.world, L6, 7001))
    stage.silent(tcp(stage.world, L6, 7002), udp(stage.world, L6, 7001))


def test_a_neighbour_may_ping_the_router(stage: DualStage) -> None:
    stage.push(*BOTH)
    stage.meets("router", echo(stage.web, LAN6), echo(stage.db, DMZ6), echo(stage.store, BACK6))
    stage.silent(echo(stage.web, DMZ6), echo(stage.store, LAN6), echo(stage.world, LAN6), tcp(stage.web, LAN6, 3922))


def test_an_answer_leaves_by_the_uplink_it_was_asked_by(stage: DualStage) -> None:
    stage.push(*BOTH, enter("all", "office"), enter("all2", "servers"), allow("p", RIGHT6, "icmpv6"))
    stage.meets("web", tcp(stage.far, WEB6, 80), seen=FAR6)
    stage.meets("router", echo(stage.far, RIGHT6), echo(stage.world, RIGHT6, link="eth1"))


# --- lies -------------------------------------------------------------------------------------------------------------


def test_no_guest_speaks_for_another(stage: DualStage) -> None:
    """Of another network, of outside, of the router, of a private network; and none of them comes from outside."""
    stage.push(*BOTH, enter("all", "office"), enter("all2", "servers"))
    for source in (DB6, WORLD6, LAN6, STORE6, L6, "2001:db8:1::", "::1", "::", "ff02::1"):
        assert not arrives(stage, stage.web, source, WORLD6_HIGH), source
        assert not arrives(stage, stage.web, source, STORE6), source
    for source in (WEB6, STORE6, LAN6, L6):
        assert not arrives(stage, stage.near, source, DB6), source
    assert arrives(stage, stage.web, "2001:db8:1::77", STORE6) == ("store", "2001:db8:1::77")
    assert arrives(stage, stage.near, NEAR6, DB6) == ("db", NEAR6)


def test_nothing_of_a_link_is_sent_on(stage: DualStage) -> None:
    stage.push(*BOTH, enter("all", "office"))
    assert not arrives(stage, stage.web, "fe80::77", WORLD6)
    assert not arrives(stage, stage.near, "fe80::77", WEB6)
    assert not arrives(stage, stage.web, WEB6, "ff05::77")


# --- tiers ------------------------------------------------------------------------------------------------------------

TIERS = (*V6, office6(acl="office"), servers6(acl="servers"))


def test_acls_judge_both_families_by_one_list(stage: DualStage) -> None:
    """A list that mixes families says of each what its own members say; without members of a family nothing of it."""
    mixed = [
        item("no", "deny", "tcp", 22, "198.51.100.0/24", "2001:db8:77::/49"),
        item("v6", "allow", "tcp", (1, 100), "2001:db8:77::/48"),
        item("v4", "allow", "udp", None, "0.0.0.0/0"),
        item("all", "allow", "tcp", 5000),
    ]
    stage.push(*TIERS, acl("office", mixed), acl("servers"), forward("f", L10, (1, 9000), WEB), allow("a", L10))
    stage.meets(
        "web", tcp(stage.world, WEB6, 80, WORLD6), tcp(stage.world, WEB6, 22, WORLD6_HIGH), tcp(stage.world, WEB6, 5000)
    )
    stage.meets("web", tcp(stage.world, L10, 5000))
    stage.silent(
        tcp(stage.world, WEB6, 22, WORLD6), udp(stage.world, WEB6, 80), echo(stage.world, WEB6),
        tcp(stage.world, L10, 22, WORLD), tcp(stage.world, L10, 80), tcp(stage.world, DB6, 80),
    )  # fmt: skip


def test_the_default_ends_are_the_same(stage: DualStage) -> None:
    stage.push(*TIERS, acl("office"), acl("servers", ingress_default="allow", egress_default="deny"))
    stage.meets("world", tcp(stage.web, WORLD6, 80), echo(stage.web, WORLD6), seen=WEB6)
    stage.silent(tcp(stage.world, WEB6, 80), tcp(stage.db, WORLD6, 80), tcp(stage.db, WORLD, 80))
    stage.meets("db", tcp(stage.world, DB6, 80), tcp(stage.web, DB6, 22), seen="")
    stage.silent(tcp(stage.db, WEB6, 80))


def test_from_tier_to_tier(stage: DualStage) -> None:
    one = acl("office", egress=[item("db", "allow", "any", None, f"{DB6}/128", f"{DB}/32")], egress_default="deny")
    two = acl("servers", [item("web", "allow", "tcp", (1, 100), f"{WEB6}/128")])
    stage.push(*TIERS, one, two)
    stage.meets("db", tcp(stage.web, DB6, 80), seen=WEB6)
    stage.silent(
        tcp(stage.web, DB6, 5000), tcp(stage.mail, DB6, 80), tcp(stage.web, DB, 80), tcp(stage.web, WORLD6, 80)
    )
    stage.push(*V6, office6(acl="office"), servers6(), one, two)
    stage.silent(tcp(stage.web, DB6, 80), tcp(stage.db, WEB6, 80))


def test_a_private_gateway(stage: DualStage) -> None:
    """A tier and what is behind the gateway, by a route of IPv6 too; its own ACL guards it; nothing passes through."""
    way = route("depot", "2001:db8:d::/48", STORE6)
    tier = acl("office", [item("store", "allow", "any", None, "fd00::/8", "172.16.0.0/12")])
    stage.push(*TIERS, tier, acl("servers"), way)
    stage.meets("web", *both(stage.store, WEB6, 80, STORE6), echo(stage.store, WEB6, STORE6), seen=STORE6)
    stage.meets("web", tcp(stage.store, WEB, 80), seen=STORE)
    stage.meets("store", tcp(stage.web, STORE6, 80), tcp(stage.web, DEPOT6, 80), seen=WEB6)
    stage.silent(tcp(stage.store, WEB6, 80, DEPOT6), tcp(stage.store, DB6, 80, STORE6))
    gate = acl("gate", [item("in", "allow", "tcp", 80)], [item("out", "deny", "tcp", 80)], egress_default="allow")
    stage.push(*TIERS, tier, acl("servers"), way, gate, {**V6[4], "acl": "gate"})
    stage.silent(tcp(stage.store, WEB6, 80, STORE6), tcp(stage.web, STORE6, 22))
    stage.meets("web", tcp(stage.store, WEB6, 22, STORE6))
    stage.meets("store", tcp(stage.web, STORE6, 80))
    stage.silent(tcp(stage.world, STORE6, 80), tcp(stage.store, WORLD6, 80))


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_moved_address_is_told_to_the_neighbours(stage: DualStage) -> None:
    """Whoever had it before: its neighbours learn the router's MAC without asking."""
    stage.push(*BOTH)
    stage.near.run(
        ("ip", "-6", "neigh", "replace", "2001:db8:a::20", "lladdr", "02:00:00:00:0c:99", "dev", "eth0", "nud", "stale")
    )
    stage.push(*BOTH, {**V6[0], "addresses": [*V6[0]["addresses"], "2001:db8:a::20/64"]}, allow("p", "2001:db8:a::20"))
    wait_for(lambda: stage.near.neighbour("2001:db8:a::20") == V6[0]["mac"])
    stage.meets("router", echo(stage.near, "2001:db8:a::20"))


def test_live_flows_go_on_through_a_push(stage: DualStage) -> None:
    stage.push(*BOTH, enter("all", "office"))
    flow, stream = stage.flow(tcp(stage.web, WORLD6, 80)), stage.stream(udp(stage.world, WEB6, 5000))
    for n in range(4):
        stage.push(*BOTH, enter("all", "office"), *(enter(f"r{m}", "servers", "tcp", 80 + m) for m in range(n)))
    assert flow.goes_on()
    assert stream.lost() == 0


def test_a_document_without_ipv6_sends_nothing_on(stage: DualStage) -> None:
    """Of IPv6; and what was there before is gone: addresses, routes, rules."""
    stage.push(*BOTH)
    stage.push()
    stage.silent(tcp(stage.web, WORLD6, 80), echo(stage.web, LAN6), echo(stage.world, L6))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_trace_tells_of_both_families(stage: DualStage) -> None:
    stage.push(*BOTH, enter("web", "office", "tcp", 80))
    asked = {"in": "left", "src": WORLD6, "dst": WEB6, "proto": "tcp"}
    outcome = stage.bed.appliance.trace({**asked, "dport": "80"}).body["outcome"]
    assert (outcome["verdict"], outcome["out_interface"], outcome["owners"][-1]) == ("forwarded", "lan", "web")
    outcome = stage.bed.appliance.trace({**asked, "dport": "22"}).body["outcome"]
    assert (outcome["verdict"], outcome["owners"]) == ("dropped", ["office"])


def test_nobody_is_asked_for_the_routers_own_address_of_a_link(stage: DualStage) -> None:
    """Who answered that it is taken would have it."""
    stage.push(*BOTH)
    lines = stage.run("ip -o link").splitlines()
    (link,) = (line.split()[1].strip(":").partition("@")[0] for line in lines if V6[2]["mac"] in line)
    assert stage.run(f"sysctl -n net.ipv6.conf.{link}.accept_dad").strip() == "0"


def test_who_sends_too_large_a_packet_is_told(stage: DualStage) -> None:
    """Nobody on the way cuts packets in IPv6: the sender must hear of it, whatever the firewall says."""
    stage.push(*BOTH, {**V6[0], "mtu": 1280})
    ping = ("ping", "-6", "-n", "-c", "2", "-W", "2", "-M", "do", "-s", "1400", WORLD6)
    assert "mtu=1280" in stage.web.run(ping, check=False).stdout
    stage.push(*BOTH, enter("all", "office"))
    stage.web.run(("ip", "-6", "route", "flush", "cache"))
    assert stage.web.run(ping, check=False).returncode == 0
