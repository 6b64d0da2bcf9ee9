"""Limits of bandwidth: who shares which class of which link, and which packet is put into which class.

What is sent is held back where it leaves: `up` at the public and private links, `down` at the guests'. At each of them
the limits are a tree (appliance/tc.py shapes by it), so that a guest's limit is a part of its network's, and a
network's a part of its source NAT address's:

    guest link, down                      public or private link, up
    203.0.113.10   source NAT of tier     203.0.113.10   leaves by this address
      tier           the network            tier
        vm-7           the guest              vm-7

A limit of a network or an address is two classes: the tree's (its number), and, as a part of that, a leaf for whatever
no limit below it takes (its number and LEAF). Of one packet the guest's leaf is taken, else the network's, else the
address's. So where limits meet:

    guest and network            both hold
    network and its source NAT   both hold: the address's for all that its networks and it send together
    guest and its static NAT     both hold; the network's does not, for the guest leaves by an address of its own
    another address, by which    the guest's or the network's alone holds
    something is forwarded to a
    guest or network with a limit

A limit holds at each link by itself: what a guest sends by two uplinks may be twice its limit, and an address whose
networks are behind two interfaces may get twice its own. A tier's packets to another tier are limited as down there.
What the router itself sends to a guest counts as the guest's; what it takes itself (a tunnel's outer packets), and what
leaves by a tunnel's link, is not limited.

    postrouting  filter  50  shape          m_shape_down_address, m_shape_{up,down}_net, m_shape_{up,down}: the last
                                            that has the packet decides; before the source is translated
    postrouting  filter 150  shape_address  m_shape_up_address, of what is in no class yet: by the address on the wire

A class' number follows from its limit's id alone (`numbers`), so that a change of one limit leaves the others' alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from zlib import crc32

from appliance.state import (
    Chain,
    Class,
    Facts,
    FieldName,
    FilterRule,
    Hook,
    Match,
    NftSet,
    Ruleset,
    SetMark,
    Shaper,
    State,
    Touched,
)
from appliance.values import is_v6
from router.config import Config, Host, Interface, Network
from router.config_bandwidth import Limit
from router.gate import amended
from router.links import link_names, own_addresses

QDISC = 0x6E78  # the handle of our trees: appliance/tc.py
LEAF = 0x8000
SLOTS = 0x7FF0  # numbers are 1 to this
_LENT = 1  # kbit/s that a part has of its own: it lives on what its parent lends
# What a packet has for a priority that nobody gave it: by its TOS (net/ipv4/route.c, ip_tos2prio), or none.
_UNSHAPED = Match(("meta priority",), ("0:0", "0:1", "0:2", "0:4", "0:6"))


@dataclass(frozen=True, slots=True)
class _Way:
    """A link: `up` where what guests send leaves; `addresses` are those it is translated to there, its own first."""

    link: str
    interface: Interface
    up: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a limit's classes depend on."""

    ways: tuple[_Way, ...]
    numbers: Mapping[str, int]
    limits: Mapping[tuple[str, str], Limit]  # those of networks and addresses, by what they are of
    networks: Mapping[str, Network]
    hosts: Mapping[str, Host]  # those that have limits
    static: Mapping[str, str]  # guest -> its public address


def compile_bandwidth(config: Config, facts: Facts) -> State:
    """The trees of all links, the maps and the chains that lead to them; nothing where there is no limit."""
    if not config.limits:
        return State()
    ground = _ground(config, facts, config.limits)
    trees: dict[str, dict[int, Class]] = {}
    elements: dict[str, dict[str, str]] = {name: {} for name in _MAPS}
    owners: dict[str, dict[str, str]] = {name: {} for name in _MAPS}
    for limit in config.limits:
        for link, number, found in _classes(limit, ground):
            trees.setdefault(link, {})[number] = found
        for name, key, value in _elements(limit, ground):
            elements[name][key], owners[name][key] = value, limit.id
    sets = {
        name: NftSet(name, key, "classid", name.endswith("_net"), elements[name], owners[name])
        for name, key in _MAPS.items()
    }
    chains = (
        Chain("shape", _RULES, Hook("filter", "postrouting", 50)),
        Chain("shape_address", _LAST, Hook("filter", "postrouting", 150)),
    )
    shapers = tuple(Shaper(way.link, trees[way.link]) for way in ground.ways if way.link in trees)
    return State(shapers=shapers, ruleset=Ruleset(sets, chains))


# --- numbers ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def numbers(ids: tuple[str, ...]) -> Mapping[str, int]:
    """A number for each id, whatever their order: the one its checksum says, or the next that is free. Which of two
    has it does not depend on who came first, and an id more moves few others, if any."""
    found: dict[str, int] = {}
    taken: set[int] = set()
    for home, ident in sorted((crc32(ident.encode()) % SLOTS, ident) for ident in ids):
        while home in taken:
            home = (home + 1) % SLOTS
        taken.add(home)
        found[ident] = home + 1
    return found


# --- the tree -----------------------------------------------------------------------------------------------


def _ground(config: Config, facts: Facts, limits: Iterable[Limit]) -> _Ground:
    wanted = {limit.host for limit in limits if limit.host}
    return _Ground(
        tuple(_ways(config, facts)),
        numbers(tuple(limit.id for limit in config.limits)),
        {limit.what: limit for limit in config.limits if limit.host is None},
        {n.id: n for n in config.networks},
        {h.id: h for h in config.hosts if h.id in wanted},
        {n.target: n.address for n in config.static_nats},
    )


def _ways(config: Config, facts: Facts) -> Iterator[_Way]:
    for link, interface in link_names(config, facts, "public", "private", "guest").items():
        addresses = (*own_addresses(interface), *own_addresses(interface, v6=True)) if interface.use == "public" else ()
        yield _Way(link, interface, interface.use != "guest", addresses)


def _rate(limit: Limit, way: _Way) -> int | None:
    return limit.up_kbit if way.up else limit.down_kbit


def _classes(limit: Limit, ground: _Ground) -> Iterator[tuple[str, int, Class]]:
    """(link, number, class) of each class of a limit."""
    number, (kind, ident) = ground.numbers[limit.id], limit.what
    for way in ground.ways:
        rate = _rate(limit, way)
        if rate is None or not _is_there(kind, ident, way, ground):
            continue
        burst = limit.burst_kib << 10 if limit.burst_kib else max(16 << 10, rate * 5 // 2)
        parent = _parent(kind, ident, way, ground)
        own = Class(parent, _LENT if parent else rate, rate, burst, limit.id)
        if kind == "host":
            yield way.link, LEAF | number, own
        else:
            yield way.link, number, own
            yield way.link, LEAF | number, Class(number, _LENT, rate, burst, limit.id)


def _is_there(kind: str, ident: str, way: _Way, ground: _Ground) -> bool:
    """Do packets of what is limited leave by a link?"""
    if kind == "address":
        return ident in way.addresses if way.up else not is_v6(ident)
    network = ground.networks[ident if kind == "network" else ground.hosts[ident].network]
    return way.up or network.interface == way.interface.id


def _parent(kind: str, ident: str, way: _Way, ground: _Ground) -> int:
    """The number of the class that a limit is a part of on a link, 0 for none."""
    if kind == "address":
        return 0
    network = ground.networks[ident if kind == "network" else ground.hosts[ident].network]
    above: list[tuple[str, str]] = []
    if kind == "host":
        static = ground.static.get(ground.hosts[ident].address)
        if static and (not way.up or static in way.addresses):
            above.append(("address", static))
        above.append(("network", network.id))
    if address := _source(network, way):
        above.append(("address", address))
    for what in above:
        limit = ground.limits.get(what)
        if limit is not None and _rate(limit, way) is not None:
            return ground.numbers[limit.id]
    return 0


def _source(network: Network, way: _Way) -> str | None:
    """The address that a network's guests have outside, as far as a link has to do with it (nat.py)."""
    if network.source_nat is None or not way.up:
        return network.source_nat
    return network.source_nat if network.source_nat in way.addresses else next(iter(way.addresses), None)


# --- the way of a packet ------------------------------------------------------------------------------------

_MAPS: Mapping[str, str] = {
    "m_shape_up_net": "ipv4_addr", "m_shape_down_net": "ipv4_addr", "m_shape_up": "ipv4_addr",
    "m_shape_down": "ipv4_addr", "m_shape_up6_net": "ipv6_addr", "m_shape_down6_net": "ipv6_addr",
    "m_shape_up6": "ipv6_addr", "m_shape_down6": "ipv6_addr", "m_shape_up_address": "ipv4_addr",
    "m_shape_up6_address": "ipv6_addr", "m_shape_down_address": "ipv4_addr",
}  # fmt: skip


_FIELD: Mapping[tuple[bool, str], FieldName] = {
    (False, "saddr"): "ip saddr", (False, "daddr"): "ip daddr",
    (True, "saddr"): "ip6 saddr", (True, "daddr"): "ip6 daddr",
}  # fmt: skip


def _put(by: str, field: FieldName, name: str, why: str, *more: Match) -> FilterRule:
    matches = (Match(("oifname",), set=by), *more)
    return FilterRule(matches, SetMark("meta priority", fields=(field,), map=name), why)


_RULES = (
    _put("s_guest", "ct original ip daddr", "m_shape_down_address", "an address's, down",
         Match(("ct direction",), ("original",))),
    _put("s_guest", "ct reply ip daddr", "m_shape_down_address", "an address's, down",
         Match(("ct direction",), ("reply",))),
    *(
        _put(by, field, f"m_shape_{way}{suffix}", why)
        for suffix, why in (("_net", "a network's"), ("6_net", "a network's"), ("", "a guest's"), ("6", "a guest's"))
        for way, by, end in (("up", "s_outside", "saddr"), ("down", "s_guest", "daddr"))
        for field in (_FIELD[suffix.startswith("6"), end],)
    ),
)  # fmt: skip
_LAST = (
    _put("s_uplink", "ip saddr", "m_shape_up_address", "an address's, up", _UNSHAPED),
    _put("s_uplink", "ip6 saddr", "m_shape_up6_address", "an address's, up", _UNSHAPED),
)


def _elements(limit: Limit, ground: _Ground) -> Iterator[tuple[str, str, str]]:
    """(map, key, value) of each element of a limit."""
    kind, ident = limit.what
    if kind == "network":
        network = ground.networks[ident]
        ends, suffix = (network.cidr, network.cidr6), "_net"
    elif kind == "host":
        host = ground.hosts[ident]
        ends, suffix = (host.address, host.address6), ""
    else:
        ends, suffix = (ident, None), "_address"
    value = f"{QDISC:x}:{LEAF | ground.numbers[limit.id]:x}"
    for way, rate in (("up", limit.up_kbit), ("down", limit.down_kbit)):
        for end in ends:
            name = f"m_shape_{way}{'6' if end and is_v6(end) else ''}{suffix}"
            if rate is not None and end and name in _MAPS:
                yield name, end, value


# --- a change alone -----------------------------------------------------------------------------------------


def revise_bandwidth(state: State, config: Config, touched: Mapping[str, Sequence[Touched]], facts: Facts) -> State:
    """`state` after a change of limits, hosts or static NATs: at the cost of the guests' limits that it touches, or,
    where it touches what limits are parts of, with all trees made anew."""
    if not (config.limits or state.shapers or "shape" in (c.name for c in state.ruleset.chains)):
        return state
    limits, hosts = touched.get("limits", ()), touched.get("hosts", ())
    changed = {t.id for t in hosts}
    concerned = [one for one in config.limits if one.host in changed] if changed else []
    if not limits and not concerned and "static_nats" not in touched:
        return state
    of_hosts = all(getattr(part, "host", "") is not None for t in limits for part in (t.before, t.after) if part)
    first = not config.limits or "m_shape_up" not in state.ruleset.sets
    found = None if first or not of_hosts or "static_nats" in touched else _amended(state, config, limits, hosts, facts)
    return found or _anew(state, compile_bandwidth(config, facts))


def _amended(
    state: State, config: Config, limits: Sequence[Touched], hosts: Sequence[Touched], facts: Facts
) -> State | None:
    """None where another's number moves, or a link begins or ends to be shaped."""
    ids, named = tuple(one.id for one in config.limits), {t.id for t in limits}
    come, gone = ({t.id for t in limits if (t.before, t.after)[side] is None} for side in (0, 1))
    was = (*(ident for ident in ids if ident not in come), *sorted(gone)) if come or gone else ids
    old, new = numbers(was), numbers(ids)
    if any(new.get(ident) != number for ident, number in old.items() if ident not in named):
        return None
    moved = {t.id for t in hosts}
    after = [one for one in config.limits if one.id in named or one.host in moved]
    before = [t.before for t in limits if isinstance(t.before, Limit)]
    before += [one for one in after if one.id not in named]
    wanted = {one.host for one in (*before, *after)}
    ground = _ground(config, facts, after)
    then = {h.id: h for h in config.hosts if h.id in wanted}
    for t in hosts:
        then.pop(t.id, None)
        if isinstance(t.before, Host):
            then[t.id] = t.before
    ground_then = replace(ground, numbers=old, hosts=then)
    edits: dict[str, dict[str, tuple[str, str] | None]] = {}
    trees = {shaper.link: dict(shaper.classes) for shaper in state.shapers}
    for limit in before:
        for name, key, _ in _elements(limit, ground_then):
            edits.setdefault(name, {})[key] = None
        for tree in trees.values():
            tree.pop(LEAF | old[limit.id], None)
    for limit in after:
        for name, key, value in _elements(limit, ground):
            edits.setdefault(name, {})[key] = value, limit.id
        for link, number, found in _classes(limit, ground):
            if link not in trees:
                return None
            trees[link][number] = found
    if not all(trees.values()):
        return None
    shapers = tuple(s if s.classes == trees[s.link] else Shaper(s.link, trees[s.link]) for s in state.shapers)
    return replace(state, shapers=shapers, ruleset=amended(state.ruleset, edits))


def _anew(state: State, part: State) -> State:
    """`state` with the trees, maps and chains of `part` in place of its own."""
    sets = {**{name: s for name, s in state.ruleset.sets.items() if name not in _MAPS}, **part.ruleset.sets}
    rest = [c for c in state.ruleset.chains if c.name not in ("shape", "shape_address")]
    place = next((i for i, c in enumerate(rest) if c.hook is None), len(rest))
    chains = (*rest[:place], *part.ruleset.chains, *rest[place:])
    return replace(state, shapers=part.shapers, ruleset=Ruleset(sets, chains))
