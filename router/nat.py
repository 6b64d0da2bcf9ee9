"""Translations: forwards and static NATs in, source NAT and static NAT out, and the hairpin between.

    dstnat, dstnat_own   prerouting and output, nat -100: a few lookups, the first that answers wins
        m_forward_from_<length>  network . address . protocol . port -> target . port, for who comes from that
                         network; one map for each prefix length that a forward has
        m_forward_from   address . protocol . port -> a chain of translations by long lists of sources
        m_forward        address . protocol . port -> target . port
        m_forward_range  address . protocol . ports -> target, the port stays (ranges that don't shift)
        m_balanced       address . protocol . port -> a chain that spreads (spread.py); where a rule balances UDP
        m_static_nat     address -> guest
    srcnat               postrouting, nat 100
        m_hairpin        a translated packet that leaves by the link it came by -> the router's address there
        m_static_nat_out guest -> address
        m_source_nat_<interface>  network -> the address of whoever leaves by that uplink or private gateway

A forward never opens anything: chain `forward` (firewall.py) accepts what was translated, and only after the
firewall of the public address took it. A range is one element where the ports stay, because one key of an
interval map can hold it; but such a map costs the kernel the square of its size, so whatever can be exact is
exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from appliance.state import (
    Chain,
    Facts,
    FieldName,
    FilterRule,
    Hook,
    Masked,
    Match,
    Nat,
    NftSet,
    Ruleset,
    State,
    Touched,
    VerdictMap,
)
from router.config import Config, Forward, Interface, StaticNat
from router.gate import (
    EVERYONE,
    EXACT_PORTS,
    FLAT_CIDRS,
    INLINE_CIDRS,
    Screen,
    Terms,
    amended,
    cidr_set,
    digest,
    distinct,
    network_of,
    owner_of,
    rewritten,
)
from router.links import link_name, link_names, own_addresses
from router.routing import Uplink, uplink_of, uplinks
from router.spread import NAME as BALANCED
from router.spread import balanced
from router.tunnels import behind, tunnels

SENT_TO: tuple[FieldName, ...] = ("ip daddr", "meta l4proto", "th dport")
PORT_KEY = "ipv4_addr . inet_proto . inet_service"
MOST_FLAT = FLAT_CIDRS * EXACT_PORTS  # a forward by source that would be more elements is asked in a chain
_BY_SOURCE: Mapping[str, NftSet] = {
    f"m_forward_from_{n}": NftSet(f"m_forward_from_{n}", f"ipv4_addr . {PORT_KEY}", "ipv4_addr . inet_service")
    for n in range(33)
}
_FORWARDS: Mapping[str, NftSet] = {
    "m_forward": NftSet("m_forward", PORT_KEY, "ipv4_addr . inet_service"),
    "m_forward_range": NftSet("m_forward_range", PORT_KEY, "ipv4_addr", interval=True),
    "m_forward_from": NftSet("m_forward_from", PORT_KEY, "verdict"),
    **_BY_SOURCE,
}
_TRANSLATED = Match(("ct status",), ("dnat",))


def compile_nat(config: Config, facts: Facts) -> State:
    """The chains of destination and source NAT, with their maps."""
    known = uplinks(config, facts)
    forwards, screens = _forwards(config.forwards)
    gateways = [i for i in config.interfaces if i.use == "private" and i.source_nat]
    sources = (*_source_nats(config, known), *(_gateway_nat(config, i) for i in gateways))
    sets = [*forwards, *_static_nats(config, known), _hairpin(config, facts), *sources]
    sets += [s for found in screens for s in found.sets]
    return State(
        ruleset=Ruleset(
            {s.name: s for s in sets},
            (
                *_in_chains((*(s.name for s in forwards), *((BALANCED,) if balanced(config) else ()))),
                Chain("srcnat", _out_rules(known, gateways, facts), Hook("nat", "postrouting", 100)),
                *(found.chain for found in screens),
            ),
        )
    )


def _in_chains(sets: Iterable[str]) -> tuple[Chain, Chain]:
    """The chains of destination NAT, for packets from outside and for our own; `sets` name those there are."""
    names = tuple(sets)
    lengths = sorted((int(name.removeprefix("m_forward_from_")) for name in names if name in _BY_SOURCE), reverse=True)
    rules = _in_rules(lengths, BALANCED in names)
    return (
        Chain("dstnat", rules, Hook("nat", "prerouting", -100)),
        Chain("dstnat_own", rules, Hook("nat", "output", -100)),
    )


def _in_rules(lengths: Iterable[int], balances: bool) -> tuple[FilterRule, ...]:
    by_source = (Nat("dnat", (Masked("ip saddr", n), *SENT_TO), f"m_forward_from_{n}") for n in lengths)
    return (
        *(FilterRule((), nat, "forwards by source") for nat in by_source),
        FilterRule((), VerdictMap(SENT_TO, "m_forward_from"), "forwards by long lists of sources"),
        FilterRule((), Nat("dnat", SENT_TO, "m_forward"), "forwards"),
        FilterRule((), Nat("dnat", SENT_TO, "m_forward_range"), "forwards of ranges"),
        *((FilterRule((), VerdictMap(SENT_TO, BALANCED), "balanced UDP"),) if balances else ()),
        FilterRule((), Nat("dnat", ("ip daddr",), "m_static_nat"), "static NAT in"),
    )


def _out_rules(known: tuple[Uplink, ...], gateways: Iterable[Interface], facts: Facts) -> tuple[FilterRule, ...]:
    outwards = Match(("oifname",), set="s_uplink")
    ways = [(u.link, u.interface) for u in sorted(known, key=lambda u: u.mark)]
    ways += [(link_name(i, facts), i) for i in sorted(gateways, key=lambda i: i.id)]
    return (
        FilterRule((_TRANSLATED,), Nat("snat", ("iifname", "oifname"), "m_hairpin"), "back by the link it came by"),
        FilterRule((outwards,), Nat("snat", ("ip saddr",), "m_static_nat_out"), "static NAT out"),
        *(
            FilterRule(
                (Match(("oifname",), (link,)),),
                Nat("snat", ("ip saddr",), _source_nat_map(way)),
                "source NAT",
                way.id,
            )
            for link, way in ways
        ),
    )


# --- forwards -----------------------------------------------------------------------------------------------

# What one forward puts into a map: the map's name, the key and the value; in m_forward_from that is its target.
Element = tuple[str, str, str]


def _elements(forward: Forward) -> Iterator[Element]:
    ports, shift = forward.ports, _shift(forward)
    head = f"{forward.address} . {forward.protocol} . "
    sources = (distinct(forward.sources) or (EVERYONE,)) if forward.sources else ()
    if sources and len(sources) <= FLAT_CIDRS and len(sources) * (ports.last - ports.first + 1) <= MOST_FLAT:
        for address, length in map(network_of, sources):
            for port in range(ports.first, ports.last + 1):
                value = f"{forward.target} . {port + shift}"
                yield f"m_forward_from_{length}", f"{address} . {head}{port}", value
    elif sources:
        for port in range(ports.first, ports.last + 1):
            yield (
                "m_forward_from",
                f"{head}{port}",
                f"{forward.target}:{port + shift}" if shift else forward.target,
            )
    elif ports.first != ports.last and not shift:
        yield "m_forward_range", f"{head}{ports.first}-{ports.last}", forward.target
    else:
        for port in range(ports.first, ports.last + 1):
            yield "m_forward", f"{head}{port}", f"{forward.target} . {port + shift}"


def _shift(forward: Forward) -> int:
    """How far the target's ports lie from the public ones."""
    return forward.target_ports.first - forward.ports.first if forward.target_ports else 0


def _forwards(forwards: Iterable[Forward]) -> tuple[tuple[NftSet, ...], list[Screen]]:
    """The maps of forwards, and the chains that m_forward_from leads to."""
    values: dict[str, dict[str, str]] = {name: {} for name in _FORWARDS}
    owners: dict[str, dict[str, str]] = {name: {} for name in _FORWARDS}
    shared: dict[str, list[tuple[Forward, str]]] = {}
    for forward in forwards:
        for name, key, value in _elements(forward):
            if name == "m_forward_from":
                shared.setdefault(key, []).append((forward, value))
            else:
                values[name][key] = value
                owners[name][key] = forward.id
    screens = {key: _by_source(group) for key, group in shared.items()}
    values["m_forward_from"] = {key: found.verdict for key, found in screens.items()}
    owners["m_forward_from"] = {key: owner_of([f.id for f, _ in group]) for key, group in shared.items()}
    there = (name for name, found in values.items() if found or name not in _BY_SOURCE)
    sets = (replace(_FORWARDS[name], elements=values[name], owners=owners[name]) for name in there)
    return tuple(sets), list(screens.values())


# A rule of a chain by source: sources, target, and the protocol where the target has a port (nft asks for it).
_Target = tuple[tuple[str, ...], str, str]


def _by_source(group: Sequence[tuple[Forward, str]]) -> Screen:
    """The chain of the forwards of one port, in any order: their sources are disjoint (checks.py)."""
    return _choice(tuple(sorted((distinct(f.sources), to, f.protocol if ":" in to else "") for f, to in group)))


@lru_cache(maxsize=2048)
def _choice(targets: tuple[_Target, ...]) -> Screen:
    """The shared chain that translates to the target of whichever sources hold the packet's."""
    rules = tuple(
        FilterRule(Terms(protocol, sources=cidrs).matches, Nat("dnat", to=to), "forward by source")
        for cidrs, to, protocol in targets
    )
    text = " ".join(f"{protocol}|{','.join(cidrs)}|{to}" for cidrs, to, protocol in targets)
    lists = tuple(cidr_set(cidrs) for cidrs, _, _ in targets if len(cidrs) > INLINE_CIDRS)
    return Screen(Chain(f"pick_{digest(text)}", rules), lists)


def revise_forwards(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after these forwards changed: their elements, and nobody else's."""
    before = [t.before for t in touched if isinstance(t.before, Forward)]
    after = [t.after for t in touched if isinstance(t.after, Forward)]
    edits: dict[str, dict[str, tuple[str | Screen, str] | None]] = {name: {} for name in _FORWARDS}
    for forward in before:
        for name, key, _ in _elements(forward):
            edits[name][key] = None
    for forward in after:
        for name, key, value in _elements(forward):
            edits[name][key] = value, forward.id
    if keys := edits["m_forward_from"].keys():
        owners = ruleset.sets["m_forward_from"].owners
        ids = {t.id for t in touched}
        # An element of one owner who is touched has nobody else: only the others must be searched for.
        shared = any(k in owners and owners[k] not in ids for k in keys)
        groups: dict[str, list[tuple[Forward, str]]] = {}
        for forward in _restricted(config.forwards, keys) if shared else after:
            for name, key, value in _elements(forward):
                if name == "m_forward_from" and key in keys:
                    groups.setdefault(key, []).append((forward, value))
        for key in keys:
            group = groups.get(key)
            edits["m_forward_from"][key] = (_by_source(group), owner_of([f.id for f, _ in group])) if group else None
    found = amended(ruleset, {name: changes for name, changes in edits.items() if changes}, _BY_SOURCE)
    if found.sets.keys() & _BY_SOURCE.keys() == ruleset.sets.keys() & _BY_SOURCE.keys():
        return found
    return rewritten(found, [Screen(chain, ()) for chain in _in_chains(found.sets)])


def _restricted(forwards: Iterable[Forward], keys: Iterable[str]) -> list[Forward]:
    """The forwards with sources on the addresses of these keys."""
    addresses = {key.partition(" ")[0] for key in keys}
    return [f for f in forwards if f.sources and f.address in addresses]


# --- static NAT, source NAT, hairpin ------------------------------------------------------------------------


def _static_nats(config: Config, known: tuple[Uplink, ...]) -> Iterator[NftSet]:
    """In, out, and the uplink that a guest's own flows take."""
    found = [(n, _static_elements(n, known)) for n in config.static_nats]
    for place, (name, value) in enumerate(_STATIC_MAPS.items()):
        elements = {e[place][1]: e[place][2] for _, e in found}
        owners = {e[place][1]: n.id for n, e in found}
        yield NftSet(name, "ipv4_addr", value, elements=elements, owners=owners)


_STATIC_MAPS: Mapping[str, str] = {
    "m_static_nat": "ipv4_addr",
    "m_static_nat_out": "ipv4_addr",
    "m_uplink_host": "mark",
}


def _static_elements(nat: StaticNat, known: tuple[Uplink, ...]) -> tuple[Element, ...]:
    return (
        ("m_static_nat", nat.address, nat.target),
        ("m_static_nat_out", nat.target, nat.address),
        ("m_uplink_host", nat.target, str(uplink_of(nat.address, known).mark)),
    )


def revise_static_nats(ruleset: Ruleset, config: Config, touched: Sequence[Touched], facts: Facts) -> Ruleset:
    """`ruleset` after these static NATs changed."""
    known = uplinks(config, facts)
    edits: dict[str, dict[str, tuple[str | Screen, str] | None]] = {name: {} for name in _STATIC_MAPS}
    for nat in (t.before for t in touched):
        if isinstance(nat, StaticNat):
            for name, key, _ in _static_elements(nat, known):
                edits[name][key] = None
    for nat in (t.after for t in touched):
        if isinstance(nat, StaticNat):
            for name, key, value in _static_elements(nat, known):
                edits[name][key] = value, nat.id
    return amended(ruleset, edits)


def _source_nat_map(way: Interface) -> str:
    return f"m_source_nat_{way.id}"


def _source_nats(config: Config, known: tuple[Uplink, ...]) -> Iterator[NftSet]:
    """For each uplink: what a network's guests, and a tunnel's users, become when they leave by it."""
    sources = {n.cidr: n.source_nat for n in config.networks if n.source_nat}
    owners = {n.cidr: n.id for n in config.networks if n.source_nat}
    for cidr, tunnel in behind(tunnels(config), v6=False).items():
        if tunnel.internet:
            sources[cidr], owners[cidr] = tunnel.internet, tunnel.owner
    for uplink in known:
        elements = {c: own if own in uplink.addresses else uplink.addresses[0] for c, own in sources.items()}
        yield NftSet(_source_nat_map(uplink.interface), "ipv4_addr", "ipv4_addr", True, elements, owners)


def _gateway_nat(config: Config, gateway: Interface) -> NftSet:
    """Every network's guests become the private gateway when they leave by it."""
    elements = {n.cidr: own_addresses(gateway)[0] for n in config.networks}
    owners = {n.cidr: n.id for n in config.networks}
    return NftSet(_source_nat_map(gateway), "ipv4_addr", "ipv4_addr", True, elements, owners)


def _hairpin(config: Config, facts: Facts) -> NftSet:
    """Came in by a link and leaves by it: the router's first address there."""
    found = link_names(config, facts, "guest", "private", "public", "control")
    elements = {f"{link} . {link}": own[0] for link, i in found.items() if (own := own_addresses(i))}
    owners = {f"{link} . {link}": i.id for link, i in found.items()}
    return NftSet("m_hairpin", "ifname . ifname", "ipv4_addr", elements=elements, owners=owners)
