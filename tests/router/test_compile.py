"""What holds for every compiled ruleset, whatever the document; what the document's order means (nothing)."""

from __future__ import annotations

import ipaddress
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.state import Chain, Field, FilterRule, Masked, NftSet, Ruleset, State, Touched
from router.compile import compile, revise
from router.config import Config
from tests.router.samples import (
    COLLECTIONS,
    LONG,
    PUBLIC,
    configs,
    document,
    facts_of,
    forward,
    made,
    ports,
    rule,
    sound,
)

JUMP = re.compile(r"(?:jump|goto) (\S+)")


def compiled(config: Config) -> State:
    return compile(config, facts_of(config))


def references(chain: Chain) -> tuple[set[str], set[str]]:
    """The chains and the sets that a chain's rules name."""
    chains, sets = set(), set()
    for r in chain.rules:
        chains.add(getattr(r.statement, "chain", ""))
        sets.add(getattr(r.statement, "map", ""))
        sets.update(m.set for m in r.matches)
    return chains - {""}, sets - {""}


def complaints(ruleset: Ruleset) -> list[str]:
    """Everything that nft would refuse, and everything that nobody refers to."""
    names = [c.name for c in ruleset.chains]
    chains = {n for c in ruleset.chains for n in references(c)[0]}
    used = {n for c in ruleset.chains for n in references(c)[1]}
    for s in ruleset.sets.values():
        chains |= {m[1] for v in s.elements.values() if (m := JUMP.match(v))}
    helpers = {c.name for c in ruleset.chains if c.hook is None}
    return [
        *(f"chain {n} twice" for n in names if names.count(n) > 1),
        *(f"no chain {n}" for n in chains - set(names)),
        *(f"nobody leads to {n}" for n in helpers - chains),
        *(f"no set {n}" for n in used - set(ruleset.sets)),
        *(f"nobody asks {n}" for n in set(ruleset.sets) - used),
        *(f"set {n} is called {s.name}" for n, s in ruleset.sets.items() if n != s.name),
        *(f"{s.name} has owners of nothing" for s in ruleset.sets.values() if not set(s.owners) <= set(s.elements)),
        *(f"{n} is too long" for n in (*names, *ruleset.sets) if len(n) > 127),
        *(w for s in ruleset.sets.values() for w in wrong_keys(s)),
    ]


def wrong_keys(s: NftSet) -> list[str]:
    """Keys that are not canonical, or overlap in an interval map."""
    kinds = s.key.split(" . ")
    found = [f"{s.name}: {k}" for k in s.elements if not canonical(k, kinds, s.interval)]
    boxes = [[bounds(part) for part in key.split(" . ")] for key in s.elements] if s.interval else []
    found += [
        f"{s.name}: keys overlap"
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if all(x[0] <= y[1] and y[0] <= x[1] for x, y in zip(a, b, strict=True))
    ]
    return found


def canonical(key: str, kinds: list[str], interval: bool) -> bool:
    parts = key.split(" . ")
    return len(parts) == len(kinds) and all(fits(p, k, interval) for p, k in zip(parts, kinds, strict=True))


def fits(part: str, kind: str, interval: bool) -> bool:
    if kind in ("ipv4_addr", "ipv6_addr"):
        address = ipaddress.ip_address(part.partition("/")[0])
        net = interval and not part.endswith(f"/{address.max_prefixlen}") and part == str(ipaddress.ip_network(part))
        return address.version == int(kind[3]) and (part == str(address) or net)
    if kind == "inet_proto":
        return part in ("tcp", "udp")
    if kind == "inet_service":
        first, dash, last = part.partition("-")
        return first == str(int(first)) and (not dash or (interval and int(first) < int(last)))
    return kind == "ifname" and re.fullmatch(r"eth\d", part) is not None


def bounds(part: str) -> tuple[int, int]:
    if "." in part or ":" in part:
        net = ipaddress.ip_network(part)
        return int(net[0]), int(net[-1])
    if part in ("tcp", "udp"):
        return len(part) + ord(part[0]), len(part) + ord(part[0])
    first, _, last = part.partition("-")
    return int(first), int(last or first)


@given(configs())
def test_ruleset_is_whole(config: Config) -> None:
    assert complaints(compiled(config).ruleset) == []


@given(configs(), st.randoms(use_true_random=False))
def test_order_means_nothing(config: Config, dice: random.Random) -> None:
    """But for the public interfaces: the first of them is the default way out (README.md, 9)."""
    shuffled = {n: dice.sample(v := getattr(config, n), len(v)) for n in (*COLLECTIONS, "networks")}
    public = [i for i in config.interfaces if i.use == "public"]
    interfaces = [*public, *dice.sample(rest := [i for i in config.interfaces if i.use != "public"], len(rest))]
    other = config.model_copy(update={n: tuple(v) for n, v in shuffled.items()} | {"interfaces": tuple(interfaces)})
    one, two = compiled(config), compiled(other)
    assert one == two
    assert owners(one) == owners(two)


def owners(state: State) -> dict[str, dict[str, str]]:
    """NftSet's equality leaves its owners out."""
    return {name: dict(s.owners) for name, s in state.ruleset.sets.items()}


# --- revise ----------------------------------------------------------------------------------------------------


@st.composite
def changes(draw: st.DrawFn) -> tuple[Config, Config, tuple[Touched, ...]]:
    """Two sound documents, the second a change of some objects of the first."""
    before = draw(configs())
    raw = before.model_dump(mode="json")
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(["forwards", "firewall", "static_nats", "egress", "ingress", "acls", "hosts"]))
        new = draw(COLLECTIONS[name])
        kept = [o for o in raw[name] if o["id"] != new["id"]]
        raw = {**raw, name: [*kept, new] if draw(st.booleans()) else kept}
    after = sound(raw)
    return before, after, tuple(touched(before, after))


def touched(before: Config, after: Config) -> list[Touched]:
    found = []
    for name in COLLECTIONS:
        old = {o.id: o for o in getattr(before, name)}
        new = {o.id: o for o in getattr(after, name)}
        for ident in {**old, **new}:
            if old.get(ident) != new.get(ident):
                found.append(Touched(name, ident, old.get(ident), new.get(ident)))
    return found


@given(changes())
def test_revise_is_compile(change: tuple[Config, Config, tuple[Touched, ...]]) -> None:
    before, after, what = change
    facts = facts_of(before)
    was = compile(before, facts)
    found = revise(was, after, what, facts)
    whole = compile(after, facts)
    if found is not None:
        assert found == whole
        assert owners(found) == owners(whole)
        assert complaints(found.ruleset) == []
    assert was == compile(before, facts), "revise changed the state before"


def test_revise_leaves_the_rest_the_same_objects() -> None:
    before = made(forwards=[forward()], firewall=[rule(), rule("fw-2", sources=["192.0.2.0/24"], ports=ports(90))])
    new = made(forwards=[forward("fwd-2", ports=ports(2223))]).forwards[0]
    after = before.model_copy(update={"forwards": (*before.forwards, new)})
    was = compiled(before)
    found = revise(was, after, (Touched("forwards", new.id, None, new),), facts_of(before))
    assert found is not None
    changed = {n for n in found.ruleset.sets if found.ruleset.sets[n] is not was.ruleset.sets[n]}
    assert changed == {"m_forward"}
    assert found.ruleset.chains is was.ruleset.chains
    assert found.files is was.files
    assert found.routes is was.routes


@pytest.mark.parametrize("collection", ["interfaces", "networks", "routes", "records"])
def test_revise_leaves_what_concerns_all_to_compile(collection: str) -> None:
    config = made()
    what = (Touched(collection, "x", None, None),)
    assert revise(compiled(config), config, what, facts_of(config)) is None


# --- the shape of single parts ---------------------------------------------------------------------------------


def sets_of(**collections: Any) -> dict[str, NftSet]:
    return dict(compiled(made(**collections)).ruleset.sets)


def chain_of(state: State, name: str) -> Chain:
    return next(c for c in state.ruleset.chains if c.name == name)


def test_forward_is_one_element() -> None:
    sets = sets_of(forwards=[forward()])
    assert sets["m_forward"].elements == {"203.0.113.10 . tcp . 2222": "10.1.1.10 . 22"}
    assert sets["m_forward"].owners == {"203.0.113.10 . tcp . 2222": "fwd-1"}


def test_range_that_stays_is_one_element() -> None:
    sets = sets_of(forwards=[forward(ports=ports(5000, 5010), target_ports=None)])
    assert sets["m_forward_range"].elements == {"203.0.113.10 . tcp . 5000-5010": "10.1.1.10"}


def test_range_that_shifts_is_an_element_a_port() -> None:
    sets = sets_of(forwards=[forward(ports=ports(5000, 5010), target_ports=ports(6000, 6010))])
    assert len(sets["m_forward"].elements) == 11
    assert sets["m_forward"].elements["203.0.113.10 . tcp . 5003"] == "10.1.1.10 . 6003"


def asked_by_source(state: State, chain: str) -> list[tuple[int, str]]:
    """(prefix length, set or map) of the lookups by source in a chain."""
    return [
        (fields[0].prefix, name)
        for r in chain_of(state, chain).rules
        for name, fields in [*((m.set, m.fields) for m in r.matches), looked_up(r)]
        if fields and isinstance(fields[0], Masked)
    ]


def looked_up(r: FilterRule) -> tuple[str, tuple[Field, ...]]:
    return getattr(r.statement, "map", ""), getattr(r.statement, "fields", ())


def test_forward_by_source_is_one_element() -> None:
    config = made(
        forwards=[
            forward("a", sources=["192.0.2.0/25", "198.51.100.7/32"]),
            forward("b", sources=["192.0.2.128/25"], target="10.1.1.11"),
            forward("c", sources=["0.0.0.0/0"], ports=ports(80), target_ports=None),
        ]
    )
    state = compiled(config)
    assert asked_by_source(state, "dstnat") == [(n, f"m_forward_from_{n}") for n in (32, 25, 0)]
    sets = state.ruleset.sets
    assert sets["m_forward_from_25"].elements == {
        "192.0.2.0 . 203.0.113.10 . tcp . 2222": "10.1.1.10 . 22",
        "192.0.2.128 . 203.0.113.10 . tcp . 2222": "10.1.1.11 . 22",
    }
    assert list(sets["m_forward_from_25"].owners.values()) == ["a", "b"]
    assert sets["m_forward_from_32"].elements == {"198.51.100.7 . 203.0.113.10 . tcp . 2222": "10.1.1.10 . 22"}
    assert sets["m_forward_from_0"].elements == {"0.0.0.0 . 203.0.113.10 . tcp . 80": "10.1.1.10 . 80"}
    assert not sets["m_forward_from"].elements


def test_forwards_by_long_lists_share_a_chain() -> None:
    config = made(forwards=[forward("a", sources=LONG), forward("b", sources=LONG, ports=ports(2223))])
    state = compiled(config)
    (verdict,) = set(state.ruleset.sets["m_forward_from"].elements.values())
    (only,) = chain_of(state, verdict.removeprefix("jump ")).rules
    assert getattr(only.statement, "to", "") == "10.1.1.10:22"
    assert asked_by_source(state, "dstnat") == []


def test_wide_forward_by_source_is_asked_in_a_chain() -> None:
    sets = sets_of(forwards=[forward(sources=["192.0.2.0/24"], ports=ports(1, 2000), target_ports=None)])
    assert (len(sets["m_forward_from"].elements), "m_forward_from_24" in sets) == (2000, False)


def test_firewall_rule_by_source_is_one_element() -> None:
    state = compiled(
        made(firewall=[rule(sources=["192.0.2.0/24"]), rule("fw-2", sources=["192.0.2.0/24", "10.0.0.0/8"])])
    )
    assert asked_by_source(state, "public") == [(24, "s_from_24"), (8, "s_from_8")]
    assert state.ruleset.sets["s_from_24"].owners == {"192.0.2.0 . 203.0.113.10 . tcp . 2222": "fw-1 and 1 more"}
    assert state.ruleset.sets["s_from_8"].owners == {"10.0.0.0 . 203.0.113.10 . tcp . 2222": "fw-2"}
    assert not state.ruleset.sets["m_ingress"].elements


@pytest.mark.parametrize(("count", "elements"), [(16, 16), (17, 0)])
def test_long_lists_are_asked_in_a_chain(count: int, elements: int) -> None:
    sets = sets_of(firewall=[rule(sources=LONG[:count])])
    assert ("s_from_24" in sets and len(sets["s_from_24"].elements)) == elements
    assert len(sets["m_ingress"].elements) == (not elements)


def test_equal_sources_are_one_chain_and_one_set() -> None:
    rules = [rule(f"fw-{n}", ports=ports(n), sources=LONG) for n in (80, 443, 8080)]
    state = compiled(made(firewall=rules))
    assert len(set(state.ruleset.sets["m_ingress"].elements.values())) == 1
    assert len([n for n in state.ruleset.sets if n.startswith("s_list_")]) == 1


def test_everyone_needs_no_chain() -> None:
    sets = sets_of(firewall=[rule(sources=["0.0.0.0/0"]), rule("fw-2", sources=["192.0.2.0/24"])])
    assert set(sets["m_ingress"].elements.values()) == {"accept"}


@pytest.mark.parametrize(("last", "elements"), [(1063, 64), (1064, 0)])
def test_wide_ranges_are_asked_in_a_chain(last: int, elements: int) -> None:
    sets = sets_of(firewall=[rule(ports=ports(1000, last))])
    assert len(sets["m_ingress"].elements) == elements
    assert bool(sets["m_ingress_address"].elements) == (elements == 0)


def test_uplink_of_network_and_guest() -> None:
    state = compiled(made(static_nats=[{"id": "n", "address": PUBLIC[2], "target": "10.1.1.10"}]))
    sets = state.ruleset.sets
    mark = sets["m_uplink"].elements
    assert sets["m_uplink_net"].elements == {"10.1.1.0/24": mark["eth1"], "10.1.2.0/24": mark["eth1"]}
    assert sets["m_uplink_host"].elements == {"10.1.1.10": mark["eth2"]}


def test_source_nat_is_the_address_of_the_uplink_left_by() -> None:
    sets = sets_of()
    assert sets["m_source_nat_isp-a"].elements == {"10.1.1.0/24": "203.0.113.10"}
    assert sets["m_source_nat_isp.b"].elements == {"10.1.1.0/24": "198.51.100.10"}


def test_guests_ask_the_router_where_it_serves_them() -> None:
    web = {"id": "web", "interface": "web", "cidr": "10.1.1.0/24", "dns": False}
    sets = sets_of(networks=[web])
    places = ("10.1.1.1", "10.1.1.255", "255.255.255.255")
    assert set(sets["s_service"].elements) == {f"eth3 . {place} . udp . 67" for place in places}
    assert set(sets["s_own"].elements) == {
        "eth4 . 10.1.2.1",
        "eth5 . 172.16.0.2",
        *(f"eth3 . {place}" for place in places),
    }


def test_absent_interface_is_named() -> None:
    config = made()
    facts = facts_of(made(interfaces=document()["interfaces"][:3], networks=[]))
    with pytest.raises(LookupError, match="02:00:00:00:00:0"):
        compile(config, facts)
