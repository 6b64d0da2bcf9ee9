"""The trace: it tells what met the packet, knows every kind of rule, and never guesses."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from appliance.state import (
    Address,
    Chain,
    Field,
    FieldName,
    FilterRule,
    Hook,
    Link,
    Masked,
    Match,
    Nat,
    NftSet,
    Route,
    Ruleset,
    SetMark,
    State,
    Sysctl,
    Verdict,
    VerdictMap,
)
from appliance.state import Rule as PolicyRule
from router.fib import Fib
from router.packet import Packet
from router.trace import Tracer

ACCEPT, DROP = Verdict("accept"), Verdict("drop")
PACKET = Packet("in", "192.0.2.7", "10.1.1.10", "tcp", 40000, 80)
LINKS = (Link("eth0", "02:00:00:00:00:01", owner="in"), Link("eth1", "02:00:00:00:00:02", owner="out"))


def state(*rules: FilterRule, sets: dict[str, NftSet] | None = None, hook: Hook | None = None, **parts: Any) -> State:
    """A machine between 192.0.2.0/24 and 10.1.1.0/24 with these rules in one chain, at forward if not said."""
    chains = (Chain("here", rules, hook or Hook("filter", "forward", 0)), *parts.pop("chains", ()))
    return State(
        links=LINKS,
        addresses=(Address("eth0", "192.0.2.1/24"), Address("eth1", "10.1.1.1/24")),
        sysctls=(Sysctl("net.ipv4.ip_forward", "1"),),
        ruleset=Ruleset(sets or {}, chains),
        **parts,
    )


def fate(machine: State, packet: Packet = PACKET) -> str:
    return Tracer(machine).trace(packet).outcome.verdict


def drops_if(match: Match, packet: Packet = PACKET, sets: dict[str, NftSet] | None = None) -> bool:
    return fate(state(FilterRule((match,), DROP), sets=sets), packet) == "dropped"


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        (Match(("iifname",), ("eth0",)), True),
        (Match(("oifname",), ("eth0",)), False),
        (Match(("oifname",), ("eth0",), negate=True), True),
        (Match(("ip saddr",), ("192.0.2.0/29",)), True),
        (Match(("ip saddr",), ("192.0.2.8/29", "192.0.2.6")), False),
        (Match(("ip daddr",), ("10.1.1.9-10.1.1.11",)), True),
        (Match(("th dport",), ("79", "81-90")), False),
        (Match(("th dport",), ("80-90",)), True),
        (Match(("th sport",), ("40000",)), True),
        (Match(("meta l4proto",), ("tcp", "udp")), True),
        (Match(("meta nfproto",), ("ipv4",)), True),
        (Match(("ct state",), ("established", "new")), True),
        (Match(("ct state",), ("invalid",)), False),
        (Match(("ct status",), ("dnat",)), False),
        (Match(("ct direction",), ("original",)), True),
        (Match(("meta mark",), ("0",)), True),
        (Match(("ct mark",), ("0x0",)), True),
        (Match(("icmp type",), ("8",)), False),
        (Match(("icmp type",), ("8",), negate=True), False),
        (Match(("ip6 saddr",), ("::1",), negate=True), False),
        (Match(("fib daddr type",), ("unicast",)), True),
    ],
)
def test_literals(match: Match, holds: bool) -> None:
    assert drops_if(match) == holds


@pytest.mark.parametrize(
    ("fields", "key", "interval", "element", "holds"),
    [
        (("ip saddr", "th dport"), "ipv4_addr . inet_service", False, "192.0.2.7 . 80", True),
        (("ip saddr", "th dport"), "ipv4_addr . inet_service", False, "192.0.2.7 . 81", False),
        (("ip saddr", "th dport"), "ipv4_addr . inet_service", True, "192.0.2.0/24 . 79-81", True),
        (("meta l4proto", "th dport"), "inet_proto . inet_service", True, "tcp . 80", True),
        (("meta l4proto", "th dport"), "inet_proto . inet_service", True, "udp . 80", False),
        ((Masked("ip saddr", 29), "th dport"), "ipv4_addr . inet_service", False, "192.0.2.0 . 80", True),
        ((Masked("ip saddr", 30), "th dport"), "ipv4_addr . inet_service", False, "192.0.2.0 . 80", False),
    ],
)
def test_sets(fields: tuple[Field, ...], key: str, interval: bool, element: str, holds: bool) -> None:
    sets = {"s": NftSet("s", key, interval=interval, elements={element: ""})}
    assert drops_if(Match(fields, set="s"), sets=sets) == holds
    assert drops_if(Match(fields, set="s", negate=True), sets=sets) != holds


def test_every_field_is_known() -> None:
    for name in get_args(FieldName):
        drops_if(Match((name,), ()))


@pytest.mark.parametrize(
    "machine",
    [
        state(FilterRule((Match(("ct state",), ("snapped",)),), DROP)),
        state(FilterRule((Match(("tcp flags",), ("syn",)),), DROP)),  # type: ignore[arg-type]
        state(FilterRule((), Verdict("queue"))),  # type: ignore[arg-type]
        state(FilterRule((), "log")),  # type: ignore[arg-type]
        state(hook=Hook("filter", "prerouting", -300)),
    ],
)
def test_what_it_does_not_know_it_does_not_guess(machine: State) -> None:
    with pytest.raises(NotImplementedError):
        fate(machine)


def test_a_negated_port_of_a_packet_without_ports_is_not_guessed() -> None:
    with pytest.raises(NotImplementedError):
        drops_if(Match(("th dport",), ("80",), negate=True), Packet("in", "192.0.2.7", "10.1.1.10", 47))


def test_jump_comes_back_and_goto_does_not() -> None:
    side = Chain("side", (FilterRule((Match(("th dport",), ("81",)),), DROP),))
    for kind, verdict in (("jump", "dropped"), ("goto", "forwarded")):
        rules = (FilterRule((), Verdict(kind, "side")), FilterRule((), DROP))  # type: ignore[arg-type]
        assert fate(state(*rules, chains=(side,))) == verdict


def test_return_ends_the_chain_it_stands_in() -> None:
    side = Chain("side", (FilterRule((), Verdict("return")), FilterRule((), DROP)))
    assert fate(state(FilterRule((), Verdict("jump", "side")), FilterRule((), ACCEPT), chains=(side,))) == "forwarded"
    assert fate(state(FilterRule((), Verdict("return")), hook=Hook("filter", "forward", 0, "drop"))) == "dropped"


def test_an_accept_ends_its_hook_and_not_the_next() -> None:
    last = Chain("last", (FilterRule((), DROP, "the end"),), Hook("filter", "forward", 10))
    assert fate(state(FilterRule((), ACCEPT), chains=(last,))) == "dropped"


def test_verdict_maps_name_the_element_and_its_object() -> None:
    elements, owners = {"80": "drop"}, {"80": "fw-9"}
    sets = {"m": NftSet("m", "inet_service", "verdict", elements=elements, owners=owners)}
    told = Tracer(state(FilterRule((), VerdictMap(("th dport",), "m"), "ports"), sets=sets)).trace(PACKET)
    assert (told.outcome.verdict, told.outcome.owners, told.outcome.why) == ("dropped", ("fw-9",), "ports")
    assert told.steps[-1].element == "80"


def test_translation_moves_the_packet_and_is_known_afterwards() -> None:
    elements = {"192.0.2.1 . 80": "10.1.1.10 . 8080"}
    sets = {"m": NftSet("m", "ipv4_addr . inet_service", "ipv4_addr . inet_service", elements=elements)}
    dnat = FilterRule((), Nat("dnat", ("ip daddr", "th dport"), "m"))
    only = Chain(
        "only",
        (FilterRule((Match(("ct status",), ("dnat",)),), ACCEPT), FilterRule((), DROP)),
        Hook("filter", "forward", 0),
    )
    source = Chain("source", (FilterRule((), Nat("masquerade")),), Hook("nat", "postrouting", 100))
    machine = state(dnat, sets=sets, hook=Hook("nat", "prerouting", -100), chains=(only, source))
    outcome = Tracer(machine).trace(Packet("in", "192.0.2.7", "192.0.2.1", "tcp", 40000, 80)).outcome
    assert outcome.compared == ("forwarded", "out", "10.1.1.1", "10.1.1.10", 8080)
    assert fate(machine) == "dropped"


def test_a_mark_chooses_the_table() -> None:
    mark = FilterRule((), SetMark("meta mark", value="7"))
    machine = state(
        mark,
        hook=Hook("filter", "prerouting", -150),
        routes=(Route("0.0.0.0/0", "eth0", "192.0.2.254"), Route("0.0.0.0/0", "eth1", "10.1.1.254", table=100)),
        rules=(PolicyRule(100, 254, suppress=0), PolicyRule(110, 100, mark=7, mask=0xFF)),
    )
    away = Packet("in", "192.0.2.7", "8.8.8.8", 47)
    assert Tracer(machine).trace(away).outcome.out_interface == "out"
    assert (
        Tracer(State(**{f: getattr(machine, f) for f in ("links", "addresses", "sysctls", "routes", "rules")}))
        .trace(away)
        .outcome.out_interface
        == "in"
    )


def test_an_icmp_error_without_its_flow_is_invalid_and_not_translated() -> None:
    lost = Packet("in", "192.0.2.7", "192.0.2.1", "icmp", icmp_type=3)
    machine = state(FilterRule((), Nat("dnat", to="10.1.1.10")), hook=Hook("nat", "prerouting", -100))
    assert fate(machine, lost) == "local"
    invalid = FilterRule((Match(("ct state",), ("invalid",)),), DROP)
    assert fate(state(invalid, hook=Hook("filter", "input", 0)), lost) == "dropped"


@pytest.mark.parametrize(
    ("source", "destination", "link", "fits"),
    [
        ("192.0.2.7", "10.1.1.10", "eth0", True),
        ("10.1.1.10", "192.0.2.1", "eth0", True),  # rp_filter is off
        ("192.0.2.1", "10.1.1.10", "eth0", False),
        ("192.0.2.255", "10.1.1.10", "eth0", False),
        ("127.0.0.1", "10.1.1.10", "eth0", False),
        ("224.0.0.1", "10.1.1.10", "eth0", False),
        ("0.0.0.0", "255.255.255.255", "eth0", True),
        ("0.0.0.0", "10.1.1.10", "eth0", False),
        ("192.0.2.7", "127.0.0.1", "eth0", False),
    ],
)
def test_martians(source: str, destination: str, link: str, fits: bool) -> None:
    packet = Packet("in", source, destination, 47)
    assert (fate(state(), packet) != "dropped") == fits


def test_rp_filter() -> None:
    base = state()
    strict = State(addresses=base.addresses, sysctls=(Sysctl("net.ipv4.conf.eth0.rp_filter", "1"),))
    loose = State(addresses=base.addresses, sysctls=(Sysctl("net.ipv4.conf.all.rp_filter", "2"),))
    there, elsewhere, nowhere = (3221225991, 167837962, 134744072)  # 192.0.2.7, 10.1.1.10, 8.8.8.8
    assert [bool(Fib(strict).refusal(x, there + 1, "eth0")) for x in (there, elsewhere, nowhere)] == [False, True, True]
    assert [bool(Fib(loose).refusal(x, there + 1, "eth0")) for x in (there, elsewhere, nowhere)] == [False, False, True]


def test_without_forwarding_nothing_goes_through() -> None:
    base = state()
    still = State(links=base.links, addresses=base.addresses, ruleset=base.ruleset)
    assert fate(still) == "dropped"
