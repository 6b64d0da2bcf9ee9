"""Random documents and the packets that are worth trying on them.

The world is small, so that things meet: three uplinks, three guest interfaces and a private one at most, a handful of
addresses on each, CIDRs that overlap, ports that touch. Whatever a document names becomes a boundary (`Axes`): the
packets are taken from both sides of each.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from appliance.document import validate
from appliance.state import Facts, LinkFact
from appliance.values import bounds, contains, dotted, number
from router.checks import problems
from router.config import Config, EgressRule, Firewall, Forward, Ports, StaticNat
from router.packet import Packet
from tests.router.samples import without

LINKS = ("ctl", "isp-a", "isp.b", "isp_c", "web", "db", "dmz", "lan")
MACS = {ident: f"02:00:00:00:00:{n:02x}" for n, ident in enumerate(LINKS, 1)}
NAMES = {ident: f"eth{n}" for n, ident in enumerate(LINKS)}
FACTS = Facts("r-1", {MACS[i]: LinkFact(NAMES[i], MACS[i], n + 2, 1500, True) for n, i in enumerate(LINKS)})

UPLINKS = {
    "isp-a": (("203.0.113.10/24", "203.0.113.11/24", "203.0.113.12/24", "192.0.2.130/26"), "203.0.113.1"),
    "isp.b": (("198.51.100.10/25", "198.51.100.11/25", "203.0.113.200/30"), "198.51.100.1"),
    "isp_c": (("192.0.2.10/26", "192.0.2.11/26"), "192.0.2.1"),
}
INSIDE = {
    "web": ("10.1.1.1/24", "10.1.4.1/28"),
    "db": ("10.1.2.1/24", "10.1.5.129/25"),
    "dmz": ("10.1.3.1/25", "10.1.3.129/25"),
}
GUESTS = ("10.1.1.10", "10.1.1.11", "10.1.4.2", "10.1.2.10", "10.1.2.20", "10.1.5.130", "10.1.3.10", "10.1.3.200")
CIDRS = (
    "0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "198.51.100.0/24", "10.0.0.0/8",
    "10.1.1.0/24", "10.1.1.10/31", "10.1.1.11/32", "10.1.2.0/23", "172.16.0.0/12", "203.0.113.0/24", "128.0.0.0/1",
)  # fmt: skip
MANY = tuple(f"192.0.{i}.0/24" for i in range(0, 12, 2)) + ("10.1.1.8/29", "10.1.2.10/32")
LONG = (*MANY, *(f"198.51.{i}.0/25" for i in range(100, 120, 2)))
ROUTES = (
    ("10.9.0.0/16", "172.16.0.9"), ("198.18.0.0/15", "203.0.113.1"), ("10.1.2.128/25", "172.16.0.9"),
    ("203.0.113.128/25", "10.1.1.20"), ("0.0.0.0/1", "198.51.100.1"), ("10.8.0.0/16", "10.1.2.77"),
    ("8.8.8.8/32", "192.0.2.1"), ("203.0.113.11/32", "172.16.0.9"), ("10.1.1.11/32", "203.0.113.1"),
)  # fmt: skip
SPANS = (
    (80, 80),
    (80, 82),
    (81, 81),
    (82, 90),
    (22, 22),
    (53, 53),
    (1000, 1063),
    (1000, 1070),
    (1, 65535),
    (65535, 65535),
)

# --- documents ---


@st.composite
def _interfaces(draw: st.DrawFn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"id": "ctl", "mac": MACS["ctl"], "use": "control", "addresses": ["169.254.3.4/16"]}]
    for ident in draw(st.permutations(list(UPLINKS)))[: draw(st.sampled_from([1, 2, 2, 3, 3, 0]))]:
        pool, gateway = UPLINKS[ident]
        more = draw(st.permutations(pool[1:]))[: draw(st.integers(0, len(pool) - 1))]
        own = [pool[0], *more]
        found.append({"id": ident, "mac": MACS[ident], "use": "public", "addresses": own, "gateway": gateway})
    for ident in draw(st.permutations(list(INSIDE)))[: draw(st.integers(1, 3))]:
        own = list(INSIDE[ident][: draw(st.integers(1, 2))])
        found.append({"id": ident, "mac": MACS[ident], "use": "guest", "addresses": own})
    if draw(st.booleans()):
        found.append({"id": "lan", "mac": MACS["lan"], "use": "private", "addresses": ["172.16.0.2/24"]})
    return found


@st.composite
def _networks(draw: st.DrawFn, interfaces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    publics = [c.partition("/")[0] for i in interfaces if i["use"] == "public" for c in i["addresses"]]
    found: list[dict[str, Any]] = []
    for interface in interfaces:
        for cidr in interface["addresses"] if interface["use"] == "guest" else ():
            first, _ = bounds(cidr)
            if draw(st.integers(0, 9)):
                found.append(
                    {
                        "id": f"net-{len(found)}",
                        "interface": interface["id"],
                        "cidr": f"{dotted(first)}/{cidr.partition('/')[2]}",
                        "source_nat": draw(st.sampled_from([*publics, None])),
                        "egress": {"default": draw(st.sampled_from(["allow", "deny"]))},
                        "dhcp": {"enabled": draw(st.booleans())},
                        "dns": draw(st.booleans()),
                    }
                )
    return found


_sources: st.SearchStrategy[list[str]] = st.one_of(
    st.just([]),
    st.lists(st.sampled_from(CIDRS), min_size=1, max_size=3, unique=True),
    st.sampled_from([list(MANY), list(LONG)]),
)


def _ports(span: tuple[int, int]) -> dict[str, int]:
    return {"first": span[0], "last": span[1]}


@st.composite
def _forward(draw: st.DrawFn, publics: list[str], guests: list[str]) -> dict[str, Any]:
    sources = draw(_sources)
    # By source each port is an element: a range of all of them would take the test's time, and shows nothing more.
    first, last = draw(st.sampled_from([s for s in SPANS if not sources or s[1] - s[0] < 100]))
    shift = draw(st.sampled_from([None, 0, 1, 1000]))
    fits = shift is not None and last + shift < 65536 and last - first < 100
    return {
        "protocol": draw(st.sampled_from(["tcp", "udp"])),
        "address": draw(st.sampled_from(publics)),
        "ports": _ports((first, last)),
        "target": draw(st.sampled_from(guests)),
        "target_ports": _ports((first + (shift or 0), last + (shift or 0))) if fits else None,
        "sources": sources,
    }


@st.composite
def _opening(draw: st.DrawFn, what: dict[str, Any]) -> dict[str, Any]:
    """A firewall rule for a forward or a static NAT: without one nothing would ever reach it."""
    rule: dict[str, Any] = {"protocol": what.get("protocol", "any"), "address": what["address"]}
    if "ports" in what:
        rule["ports"] = draw(st.sampled_from([what["ports"], what["ports"], None, _ports((1, 65535))]))
    return {**rule, "sources": draw(st.one_of(st.just([]), _sources))}


@st.composite
def _gated(draw: st.DrawFn) -> dict[str, Any]:
    protocol = draw(st.sampled_from(["tcp", "tcp", "udp", "icmp", "any", 47, 6, 1, 50]))
    found: dict[str, Any] = {"protocol": protocol, "sources": draw(_sources)}
    if protocol in ("tcp", "udp"):
        found["ports"] = draw(st.one_of(st.none(), st.sampled_from(SPANS).map(_ports)))
    if protocol == "icmp":
        found["icmp_type"] = draw(st.sampled_from([None, 8, 8, 13, 0]))
        found["icmp_code"] = draw(st.sampled_from([None, 0, 1])) if found["icmp_type"] is not None else None
    return found


@st.composite
def documents(draw: st.DrawFn, most: int = 6) -> Config:
    """A sound document, with at most `most` objects in each collection."""
    interfaces = draw(_interfaces())
    networks = draw(_networks(interfaces))
    publics = [c.partition("/")[0] for i in interfaces if i["use"] == "public" for c in i["addresses"]]
    guests = [g for g in GUESTS if _within([n["cidr"] for n in networks], [g])]
    raw: dict[str, Any] = {"interfaces": interfaces, "networks": networks}
    rules: list[dict[str, Any]] = []
    if publics and guests:
        forwards = _several(draw, _forward(publics, guests), most)
        where = st.fixed_dictionaries({"address": st.sampled_from(publics), "target": st.sampled_from(guests)})
        nats = _several(draw, where, min(most, 2))
        raw |= {"forwards": _named("fwd", forwards), "static_nats": _named("nat", nats)}
        rules = [draw(_opening(what)) for what in (*forwards, *nats) if draw(st.integers(0, 3))]
    if publics:
        judged = st.tuples(_gated(), st.sampled_from(publics)).map(lambda t: {**t[0], "address": t[1]})
        raw["firewall"] = _named("fw", rules + _several(draw, judged, most // 2))
    if networks:
        ids = st.sampled_from([n["id"] for n in networks])
        exceptions = st.tuples(_gated(), ids, _sources).map(lambda t: {**t[0], "network": t[1], "destinations": t[2]})
        raw["egress"] = _named("out", _several(draw, exceptions, most))
    routes = draw(st.lists(st.sampled_from(ROUTES), max_size=3, unique=True))
    raw["routes"] = _named("way", [{"destination": to, "via": via} for to, via in routes])
    return sound(raw)


def _several(draw: st.DrawFn, one: st.SearchStrategy[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """From none to `most`, each number as likely: lists as hypothesis draws them are mostly short."""
    size = draw(st.integers(0, most))
    return draw(st.lists(one, min_size=size, max_size=size))


def _named(kind: str, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": f"{kind}-{n}", **o} for n, o in enumerate(objects)]


def sound(raw: dict[str, Any]) -> Config:
    """The document without the objects that have problems."""
    while True:
        config = validate(Config, raw)
        found = problems(config)
        if not found:
            return config
        raw = without(raw, found)


# --- packets ---

Service = tuple[str | int, int, int, int]  # protocol, destination port, ICMP type and code

# What every document has in common: addresses that are nobody's, a stranger, the world's ends.
_WORLD = ("0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/4", "224.0.0.1/32", "240.0.0.0/4", "255.255.255.255/32", "8.8.8.8/32")
_PORTS = (0, 53, 67, 3922, 65535)
_OTHERS = (47, 50, 89)  # protocols without ports: the first two stand in documents


Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Axes:
    """The places where a document cuts each axis: addresses as the first and last of each piece, ports alike.

    `address_cells` and `port_cells` have one piece of each kind: no two of them are inside the same spans.
    """

    interfaces: tuple[str, ...]
    addresses: tuple[Span, ...]
    address_cells: tuple[Span, ...]
    ports: tuple[Span, ...]
    port_cells: tuple[Span, ...]
    icmp: tuple[Span, ...]
    protocols: tuple[int, ...]


def axes(config: Config) -> Axes:
    """Every boundary that occurs in a document."""
    cidrs = [*_WORLD, *(c for i in config.interfaces for c in i.addresses), *(n.cidr for n in config.networks)]
    cidrs += [a.partition("/")[0] for i in config.interfaces for a in i.addresses]
    cidrs += [dotted(bounds(a)[1]) for i in config.interfaces for a in i.addresses]
    cidrs += [x for f in config.forwards for x in (*f.sources, f.target)]
    cidrs += [x.target for x in config.static_nats]
    cidrs += [c for r in config.firewall for c in r.sources]
    cidrs += [c for e in config.egress for c in (*e.sources, *e.destinations)]
    cidrs += [r.destination for r in config.routes]
    ruled: list[Firewall | EgressRule] = [*config.firewall, *config.egress]
    ports = [(p, p) for p in _PORTS]
    ports += [(f.ports.first, f.ports.last) for f in config.forwards]
    ports += [(r.ports.first, r.ports.last) for r in ruled if r.ports]
    types = {8, 13, 0, *(r.icmp_type for r in ruled if r.icmp_type is not None)}
    codes = {0, 255, *(r.icmp_code for r in ruled if r.icmp_code is not None)}
    named = {r.protocol for r in ruled if isinstance(r.protocol, int) and r.protocol not in (1, 6, 17)}
    spans = [bounds(c) for c in cidrs]
    return Axes(
        tuple(i.id for i in config.interfaces),
        pieces(spans, (1 << 32) - 1),
        cells(spans, (1 << 32) - 1),
        pieces(ports, 65535),
        cells(ports, 65535),
        tuple((t, c) for t in sorted(types) for c in sorted(codes)),
        tuple(sorted({*named, 89})),
    )


def pieces(spans: Iterable[Span], last: int) -> tuple[Span, ...]:
    """The axis from 0 to `last` cut at both ends of every span."""
    starts = sorted({0, *(x for first, end in spans for x in (first, end + 1) if x <= last)})
    return tuple(zip(starts, [s - 1 for s in starts[1:]] + [last], strict=True))


def cells(spans: Sequence[Span], last: int) -> tuple[Span, ...]:
    """The pieces of which no two are inside the same spans: from the first of each kind to the last."""
    kinds: dict[tuple[bool, ...], Span] = {}
    for start, end in pieces(spans, last):
        kind = tuple(a <= start <= b for a, b in spans)
        kinds[kind] = (kinds[kind][0] if kind in kinds else start, end)
    return tuple(kinds.values())


def services(cuts: Axes, ports: Sequence[Span], end: int) -> list[Service]:
    """The first (`end` 0) or last (1) value of each piece of the ports; each ICMP type and code; each protocol."""
    found: list[Service] = [(p, span[end], 8, 0) for p in ("tcp", "udp") for span in ports]
    found += [("icmp", 0, kind, code) for kind, code in cuts.icmp]
    return found + [(p, 0, 8, 0) for p in cuts.protocols]


def likely_packets(config: Config, count: int, seed: int) -> list[Packet]:
    """Packets on boundaries, half of them aimed at an object of the document, most from where they may come."""
    luck = Luck(config, seed)
    return [luck.packet() for _ in range(count)]


class Luck:
    """Draws packets for one document, the same from the same seed. Plain random numbers: hypothesis's are slow."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.luck = config, random.Random(seed)
        cuts = axes(config)
        self.ends = [dotted(x) for span in cuts.addresses for x in span]
        self.offered = services(cuts, cuts.ports, 0) + services(cuts, cuts.ports, 1)
        self.uses = {"": "", **{i.id: i.use for i in config.interfaces}}
        self.own = [c.partition("/")[0] for i in config.interfaces for c in i.addresses]
        self.behind = {i.id: _within(i.addresses, self.ends) for i in config.interfaces}
        inner = {a for i, found in self.behind.items() if self.uses[i] != "public" for a in found}
        self.strangers = [a for a in self.ends if a not in inner]
        self.last = {bounds(a)[1] for i in config.interfaces for a in i.addresses} | {bounds("127.0.0.0/8")[1]}
        self.hosts = {
            i: [a for a in found if a not in self.own and bounds(a)[0] not in self.last] or found
            for i, found in self.behind.items()
        }
        self.aims: list[Forward | StaticNat | Firewall | EgressRule] = [
            *config.forwards,
            *config.static_nats,
            *config.firewall,
            *config.egress,
        ]

    def packet(self) -> Packet:
        how = self.luck.choices((self._aimed, self._leaving, self._asking, self._wild), (5, 2, 1, 2))[0]
        came_by, source, destination, service = how()
        if self.luck.random() < 0.1:
            source = self.luck.choice(self.ends)
        protocol, port, kind, code = service
        if came_by == "":
            source = source if source in self.own else self.luck.choice(self.own)
            destination = destination if self.is_sendable(destination) else self.luck.choice(GUESTS)
            kind = kind if kind in (8, 13) else 8  # nor what answers nothing
        return Packet(came_by, source, destination, protocol, 40000, port, kind, code)

    def is_sendable(self, destination: str) -> bool:
        """Would the router itself send a packet there: not to all, nor to nobody."""
        return 0 < number(destination) < 224 << 24 and number(destination) not in self.last

    def _wild(self) -> tuple[str, str, str, Service]:
        came_by = self.luck.choice(tuple(self.uses))
        destination = self.luck.choice(self.own if self.luck.random() < 0.4 else self.ends)
        return came_by, self._source(came_by), destination, self.luck.choice(self.offered)

    def _leaving(self) -> tuple[str, str, str, Service]:
        """From a guest, most likely one that has something of its own, to the outside."""
        if not self.config.networks:
            return self._wild()
        network = self.luck.choice(self.config.networks)
        special = [
            x.target for x in (*self.config.static_nats, *self.config.forwards) if contains(network.cidr, x.target)
        ]
        source = self.luck.choice([*special, self._source(network.interface)])
        return network.interface, source, self.luck.choice(self.strangers), self.luck.choice(self.offered)

    def _asking(self) -> tuple[str, str, str, Service]:
        """At the router itself: what it might offer, at its addresses and to all."""
        came_by = self.luck.choice(tuple(self.uses))
        doors = [c for i in self.config.interfaces if i.id == came_by for c in i.addresses] or self.own
        destination = self.luck.choice([dotted(number(d.partition("/")[0])) for d in doors] * 2 + self.own)
        source = self._source(came_by)
        if self.luck.random() < 0.3:
            destination = self.luck.choice(["255.255.255.255", *(dotted(bounds(d)[1]) for d in doors)])
            source = self.luck.choice([source, "0.0.0.0"])
        service = self.luck.choice(
            (("icmp", 0, 8, 0), ("udp", 67, 8, 0), ("udp", 53, 8, 0), ("tcp", 53, 8, 0), ("tcp", 3922, 8, 0))
        )
        return came_by, source, destination, service

    def _aimed(self) -> tuple[str, str, str, Service]:
        """At an object: by its port or beside it, from its sources or beside them."""
        if not self.aims:
            return self._wild()
        aim = self.luck.choice(self.aims)
        if isinstance(aim, EgressRule):
            came_by = next(n.interface for n in self.config.networks if n.id == aim.network)
            destination = self.luck.choice(self._ends_of(aim.destinations))
            return came_by, self._source(came_by), destination, self._service(aim.protocol, aim.ports, aim)
        came_by = self.luck.choice(tuple(self.uses))
        if isinstance(aim, StaticNat):
            return came_by, self._source(came_by), aim.address, self.luck.choice(self.offered)
        sources = [a for a in self._ends_of(aim.sources) if a in self.strangers]
        from_them = sources and self.uses[came_by] == "public"
        source = self.luck.choice(sources) if from_them else self._source(came_by)
        rule = aim if isinstance(aim, Firewall) else None
        return came_by, source, aim.address, self._service(aim.protocol, aim.ports, rule)

    def _source(self, came_by: str) -> str:
        if self.uses[came_by] == "":
            return self.luck.choice(self.own)
        return self.luck.choice(self.strangers if self.uses[came_by] == "public" else self.hosts[came_by])

    def _ends_of(self, cidrs: Sequence[str]) -> list[str]:
        """The first and last address of each, and their neighbours."""
        near = {x for c in cidrs for end in bounds(c) for x in (end - 1, end, end + 1)}
        return [dotted(x) for x in sorted(near) if 0 <= x < 1 << 32] or self.ends

    def _service(self, protocol: str | int, ports: Ports | None, rule: Firewall | EgressRule | None) -> Service:
        if protocol == "any":
            return self.luck.choice(self.offered)
        if protocol in ("icmp", 1):
            kind = rule.icmp_type if rule and rule.icmp_type is not None else 8
            code = rule.icmp_code if rule and rule.icmp_code is not None else 0
            return "icmp", 0, kind, self.luck.choice((code, code, code ^ 1))
        first, last = (ports.first, ports.last) if ports else (0, 65535)
        return protocol, min(65535, max(0, self.luck.choice((first, last, first - 1, last + 1)))), 8, 0


def _within(cidrs: Sequence[str], addresses: Iterable[str]) -> list[str]:
    spans = [bounds(c) for c in cidrs]
    return [a for a in addresses if any(first <= bounds(a)[0] <= last for first, last in spans)]


def grid(config: Config, end: int) -> Iterator[Packet]:
    """One packet of every cell: by each interface and from the router itself, the first or last value of each piece."""
    cuts = axes(config)
    addresses = [dotted(span[end]) for span in cuts.address_cells]
    offered = services(cuts, cuts.port_cells, end)
    luck = Luck(config, 0)
    for came_by in ("", *cuts.interfaces):
        for source in addresses if came_by else luck.own:
            for destination in addresses:
                if came_by or luck.is_sendable(destination):
                    for protocol, port, kind, code in offered:
                        if came_by or protocol != "icmp" or kind in (8, 13):
                            yield Packet(came_by, source, destination, protocol, 40000, port, kind, code)
