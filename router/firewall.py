"""The packet filter: what may come in to a public address, what the router answers itself, what it passes on.

    ingress    prerouting mangle: senders.py, the mark of the flow's uplink, the firewall of the public address
    input      what is for the router itself: offers.py
    forward    what ACLs let pass (acl.py) of translated packets, guests outwards (egress.py), tunnels, and tiers
    reroute    output: the router's own packets take their flow's uplink

The firewall judges a packet before its translation, by the address and port it was sent to, so that it says
the same whatever is behind the port. A packet to a public address meets these lookups in chain `public`:

    m_ingress           address . protocol . port -> accept, or a chain that asks a long list of sources
    s_from_<length>     network . address . protocol . port: open to that source; one set for each prefix length
                        that a rule has
    m_ingress_address   address -> a chain of what no element can say: icmp, whole protocols, wide ranges

and is dropped if none takes it. Several rules that share an element unite in it: any of them may accept.

Marks come first in ingress and the firewall last, because a verdict from a map ends the chain; a flow that is
dropped leaves no mark behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from appliance.state import (
    Chain,
    Facts,
    FieldName,
    FilterRule,
    Hook,
    Masked,
    Match,
    NftSet,
    Ruleset,
    SetMark,
    State,
    Touched,
    Verdict,
    VerdictMap,
)
from appliance.values import is_v6
from router.acl import between, judges
from router.config import Config, Firewall
from router.doors import Door, doors
from router.family import speaks_v6, spoken, spoken_sets
from router.gate import (
    FLAT_CIDRS,
    Screen,
    amended,
    asked,
    distinct,
    exact_ports,
    filled,
    has_port,
    network_of,
    open_to,
    owner_of,
    rewritten,
    screen,
    terms_of,
)
from router.links import link_names, own_addresses
from router.offers import PORT_KEY, asked_at, offers
from router.routed import inwards
from router.routing import Uplink, uplink6_of, uplink_of, uplinks
from router.tunnels import behind, devices, through, tunnels

ACCEPT, DROP = Verdict("accept"), Verdict("drop")
SENT_TO: tuple[FieldName, ...] = ("ip daddr", "meta l4proto", "th dport")
# What ingress looks up, empty. Those by source are there only while a rule has a source of that length.
_BY_SOURCE: Mapping[str, NftSet] = {f"s_from_{n}": NftSet(f"s_from_{n}", f"ipv4_addr . {PORT_KEY}") for n in range(33)}
_INGRESS: Mapping[str, NftSet] = {
    "m_ingress": NftSet("m_ingress", PORT_KEY, "verdict"),
    "m_ingress_address": NftSet("m_ingress_address", "ipv4_addr", "verdict"),
    "m_ingress_address6": NftSet("m_ingress_address6", "ipv6_addr", "verdict"),
    **_BY_SOURCE,
}

_KNOWN = Match(("ct state",), ("established", "related"))
_INVALID = Match(("ct state",), ("invalid",))
_UNTRACKED = Match(("ct state",), ("untracked",))
_LOOPBACK = Match(("iifname",), ("lo",))
# Of a link, and the kernel takes it from there alone (hop limit 255); conntrack does not know it.
_NEIGHBOURS = Match(("icmpv6 type",), ("133", "134", "135", "136"))


def compile_firewall(config: Config, facts: Facts) -> State:
    """The chains of ingress, input and forward, with their sets."""
    known = uplinks(config, facts)
    opened = doors(config, facts)
    inward, screens = _ingress(config.firewall)
    inward += _opened(opened)
    sets = [*_links(config, facts), *_marks(config, known), *asked_at(config, facts, opened), *inward]
    sets += [s for found in screens for s in found.sets]
    v6 = speaks_v6(config)
    asked_sets = spoken_sets(sets, v6)
    return State(
        ruleset=Ruleset(
            asked_sets,
            (
                Chain("ingress", spoken(_ingress_rules(), v6), Hook("filter", "prerouting", -150)),
                Chain("input", _input_rules(config, facts, opened), Hook("filter", "input", 0, "drop")),
                Chain("forward", _forward_rules(config), Hook("filter", "forward", 0, "drop")),
                Chain("reroute", spoken(_reroute_rules(), v6), Hook("route", "output", -150)),
                _public(asked_sets),
                *(found.chain for found in screens),
            ),
        )
    )


def revise_firewall(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after these firewall rules changed: their elements, and nobody else's."""
    before = [t.before for t in touched if isinstance(t.before, Firewall)]
    after = [t.after for t in touched if isinstance(t.after, Firewall)]
    ids = {t.id for t in touched}
    wanted = {e for rule in (*before, *after) for e in _elements(rule)}
    # An element of one owner who is touched has nobody else: only the others must be searched for.
    shared = [e for e in wanted if (owner := _owner(ruleset, e)) and owner not in ids]
    groups = _grouped((*after, *_neighbours(config.firewall, shared, ids)))
    edits: dict[str, dict[str, tuple[str | Screen, str] | None]] = {}
    for name, key in wanted:
        group = groups.get(name, {}).get(key)
        edits.setdefault(name, {})[key] = (_value(name, group), owner_of([r.id for r in group])) if group else None
    found = amended(ruleset, edits, _BY_SOURCE)
    if found.sets.keys() & _BY_SOURCE.keys() == ruleset.sets.keys() & _BY_SOURCE.keys():
        return found
    return rewritten(found, [Screen(_public(found.sets), ())])


# --- ingress ------------------------------------------------------------------------------------------------


def _ingress_rules() -> tuple[FilterRule, ...]:
    from_guest = Match(("iifname",), set="s_guest")
    take_mark = SetMark("meta mark", copy="ct mark")
    return (
        FilterRule((_LOOPBACK,), ACCEPT, "the router to itself"),
        FilterRule((), take_mark, "a flow's packets take its uplink"),
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow", counter=True),
        FilterRule((_NEIGHBOURS,), ACCEPT, "IPv6 neighbour discovery"),
        FilterRule((), Verdict("jump", "senders"), "is it from where it says"),
        FilterRule((), SetMark("ct mark", fields=("iifname",), map="m_uplink"), "answers leave as questions came"),
        FilterRule((from_guest,), SetMark("ct mark", fields=("ip saddr",), map="m_uplink_net"), "a network's uplink"),
        FilterRule((from_guest,), SetMark("ct mark", fields=("ip6 saddr",), map="m_uplink_net6"), "a network's uplink"),
        FilterRule(
            (from_guest,),
            SetMark("ct mark", fields=("ip saddr",), map="m_uplink_host"),
            "a static NAT's uplink",
        ),
        FilterRule((), take_mark, "the first packet too"),
        FilterRule((Match(("ip daddr",), set="s_public"),), Verdict("jump", "public"), "the firewall judges"),
        FilterRule((Match(("ip6 daddr",), set="s_public6"),), Verdict("jump", "public"), "the firewall judges"),
    )


def _public(sets: Iterable[str]) -> Chain:
    """The chain that judges what was sent to a public address; `sets` name those there are."""
    sets = set(sets)
    lengths = sorted((int(name.removeprefix("s_from_")) for name in sets if name in _BY_SOURCE), reverse=True)
    rules = (
        FilterRule((), VerdictMap(SENT_TO, "m_ingress"), "open ports"),
        *(_from(length) for length in lengths),
        FilterRule((), VerdictMap(("ip daddr",), "m_ingress_address"), "what else an address takes"),
        FilterRule((), VerdictMap(("ip6 daddr",), "m_ingress_address6"), "what an IPv6 address takes"),
        *(rule for name, rule in _PUBLIC_DOORS.items() if name in sets),
        FilterRule((), DROP, "no firewall rule lets it in", counter=True),
    )
    return Chain("public", spoken(rules, "m_ingress_address6" in sets))


def _from(length: int) -> FilterRule:
    fields = (Masked("ip saddr", length), *SENT_TO)
    return FilterRule((Match(fields, set=f"s_from_{length}"),), ACCEPT, "ports open to a source")


def _opened(opened: Iterable[Door]) -> list[NftSet]:
    """What a public address takes without a rule of the document: a set of each kind that there is."""
    found: dict[str, dict[str, str]] = {}
    for door in opened:
        if door.public:
            name = f"s_public_{'port' if door.port else 'protocol'}{'6' if is_v6(door.address) else ''}"
            key = f"{door.address} . {door.protocol}" + (f" . {door.port}" if door.port else "")
            if door.source:
                name, key = name.replace("_port", "_from"), f"{door.source} . {key}"
            found.setdefault(name, {})[key] = door.owner
    return [
        NftSet(
            name,
            _public_key(name),
            elements=dict.fromkeys(owners, ""),
            owners=owners,
        )
        for name, owners in found.items()
    ]


def _public_key(name: str) -> str:
    address = "ipv6_addr" if name.endswith("6") else "ipv4_addr"
    source = f"{address} . " if "_from" in name else ""
    return f"{source}{address} . inet_proto" + " . inet_service" * ("_protocol" not in name)


def _public_door(name: str) -> FilterRule:
    v6 = name.endswith("6")
    address: FieldName = "ip6 daddr" if v6 else "ip daddr"
    source: tuple[FieldName, ...] = (("ip6 saddr" if v6 else "ip saddr"),) if "_from" in name else ()
    port: tuple[FieldName, ...] = () if "_protocol" in name else ("th dport",)
    match = Match((*source, address, "meta l4proto", *port), set=name)
    return FilterRule((match,), ACCEPT, "the router's own, without a rule")


_PUBLIC_DOORS = {
    name: _public_door(name)
    for kind in ("port", "from", "protocol")
    for name in (f"s_public_{kind}", f"s_public_{kind}6")
}


def _ingress(rules: Iterable[Firewall]) -> tuple[list[NftSet], list[Screen]]:
    """The sets and maps of ingress, and the chains that they lead to."""
    sets: list[NftSet] = []
    screens: list[Screen] = []
    for name, groups in _grouped(rules).items():
        values = {key: _value(name, group) for key, group in groups.items()}
        sets.append(filled(_INGRESS[name], values, groups))
        screens += [v for v in values.values() if isinstance(v, Screen)]
    return sets, screens


# What a rule puts into ingress: the name of the set or map, and the key.
_Element = tuple[str, str]


def _elements(rule: Firewall) -> Sequence[_Element]:
    if is_v6(rule.address):
        return [("m_ingress_address6", rule.address)]  # few: they are the router's own, none leads to a guest
    ports = exact_ports(rule)
    if ports is None:
        return [("m_ingress_address", rule.address)]
    head = f"{rule.address} . {rule.protocol} . "
    sources = distinct(rule.sources)
    if not sources or len(sources) > FLAT_CIDRS:
        return [("m_ingress", f"{head}{port}") for port in ports]
    networks = map(network_of, sources)
    return [(f"s_from_{length}", f"{address} . {head}{port}") for address, length in networks for port in ports]


def _grouped(rules: Iterable[Firewall]) -> dict[str, dict[str, list[Firewall]]]:
    """For each set or map, the rules of each key."""
    groups: dict[str, dict[str, list[Firewall]]] = {"m_ingress": {}, "m_ingress_address": {}, "m_ingress_address6": {}}
    for rule in rules:
        for name, key in _elements(rule):
            groups.setdefault(name, {}).setdefault(key, []).append(rule)
    return groups


def _value(name: str, rules: Sequence[Firewall]) -> str | Screen:
    """What the element is that these rules share."""
    if name == "m_ingress":
        return open_to(rules, "accept", "from", "from where the firewall allows")
    if name in ("m_ingress_address", "m_ingress_address6"):
        terms = (found for rule in rules for found in terms_of(rule, is_v6(rule.address)))
        return screen("open", asked(terms), ACCEPT, "the firewall allows")
    return ""


def _owner(ruleset: Ruleset, element: _Element) -> str | None:
    found = ruleset.sets.get(element[0])
    return found.owners.get(element[1]) if found else None


def _neighbours(rules: Iterable[Firewall], shared: Sequence[_Element], ids: set[str]) -> list[Firewall]:
    """The rules but those of `ids` that may have one of the elements: those of the same address and port."""
    if not shared:
        return []
    whole = ("m_ingress_address", "m_ingress_address6")
    addresses = {key for name, key in shared if name in whole}
    doors: dict[tuple[str, str | int], list[int]] = {}
    for name, key in shared:
        if name not in whole:
            address, protocol, port = key.split(" . ")[-3:]
            doors.setdefault((address, protocol), []).append(int(port))
    near = [r for r in rules if (d := doors.get((r.address, r.protocol))) and has_port(r, d)]
    if addresses:
        near += [r for r in rules if r.address in addresses and (is_v6(r.address) or exact_ports(r) is None)]
    return [r for r in near if r.id not in ids]


# --- the ways out, and the router's own flows ---------------------------------------------------------------


def _marks(config: Config, known: tuple[Uplink, ...]) -> Iterator[NftSet]:
    """The mark of whoever starts a flow: by the link it comes in by, by guest network, guest, own address."""
    owners = {u.link: u.interface.id for u in known}
    yield NftSet("m_uplink", "ifname", "mark", elements={u.link: str(u.mark) for u in known}, owners=owners)
    for v6, suffix, key in ((False, "", "ipv4_addr"), (True, "6", "ipv6_addr")):
        own = {a: u for u in known for a in own_addresses(u.interface, v6)}
        marks = {a: str(u.mark) for a, u in own.items()}
        owners = {a: u.interface.id for a, u in own.items()}
        yield NftSet(f"m_uplink_own{suffix}", key, "mark", elements=marks, owners=owners)
        yield NftSet(f"s_public{suffix}", key, elements=dict.fromkeys(own, ""), owners=owners)
    networks = config.networks if known else ()
    users = tuple(t for t in tunnels(config) if t.internet) if known else ()
    marks = {n.cidr: str(uplink_of(n.source_nat, known).mark) for n in networks}
    marks.update((c, str(uplink_of(t.internet, known).mark)) for c, t in behind(users, v6=False).items())
    owners = {n.cidr: n.id for n in networks} | {c: t.owner for c, t in behind(users, v6=False).items()}
    yield NftSet("m_uplink_net", "ipv4_addr", "mark", interval=True, elements=marks, owners=owners)
    marks = {n.cidr6: str(uplink6_of(n.source_nat, known).mark) for n in networks if n.cidr6}
    marks.update((c, str(uplink6_of(t.internet, known).mark)) for c, t in behind(users, v6=True).items())
    owners = {n.cidr6: n.id for n in networks if n.cidr6} | {c: t.owner for c, t in behind(users, v6=True).items()}
    yield NftSet("m_uplink_net6", "ipv6_addr", "mark", interval=True, elements=marks, owners=owners)


def _reroute_rules() -> tuple[FilterRule, ...]:
    new = Match(("ct state",), ("new",))
    by_source = SetMark("ct mark", fields=("ip saddr",), map="m_uplink_own")
    by_source6 = SetMark("ct mark", fields=("ip6 saddr",), map="m_uplink_own6")
    return (
        FilterRule((new,), by_source, "own flows leave by their source's uplink"),
        FilterRule((new,), by_source6, "own flows leave by their source's uplink"),
        FilterRule((), SetMark("meta mark", copy="ct mark"), "own packets take their flow's uplink"),
    )


def _links(config: Config, facts: Facts) -> Iterator[NftSet]:
    for name, uses in (
        ("s_guest", ("guest",)),
        ("s_uplink", ("public",)),
        ("s_outside", ("public", "private")),
    ):
        found = link_names(config, facts, *uses)
        owners = {link: i.id for link, i in found.items()}
        if name == "s_guest":  # who comes in by a tunnel is no stranger there either (senders.py), and has an uplink
            owners.update((d.link, d.id) for d in devices(config).values())
        yield NftSet(name, "ifname", elements=dict.fromkeys(owners, ""), owners=owners)


# --- input and forward --------------------------------------------------------------------------------------


def _input_rules(config: Config, facts: Facts, opened: tuple[Door, ...]) -> tuple[FilterRule, ...]:
    return (
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow"),
        FilterRule((_LOOPBACK,), ACCEPT, "the router to itself"),
        FilterRule((_NEIGHBOURS,), ACCEPT, "IPv6 neighbour discovery"),
        *spoken(offers(config, facts, opened), speaks_v6(config)),
    )


def _forward_rules(config: Config) -> tuple[FilterRule, ...]:
    outwards, v6 = Match(("oifname",), set="s_outside"), speaks_v6(config)
    untracked = FilterRule((_UNTRACKED,), DROP, "neighbour discovery is a link's own")
    guests = (
        FilterRule((outwards,), VerdictMap(("ip saddr",), "m_egress"), "guests outwards"),
        FilterRule((outwards,), VerdictMap(("ip6 saddr",), "m_egress6"), "guests outwards"),
    )
    return (
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow"),
        *((untracked,) if v6 else ()),
        *judges(config),
        FilterRule((Match(("ct status",), ("dnat",)),), ACCEPT, "translated: the firewall has judged it"),
        *spoken(guests, v6),
        *inwards(config),
        *through(config),
        *between(config),
    )
