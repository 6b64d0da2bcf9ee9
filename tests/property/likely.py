"""The packets that are worth trying on a document.

Whatever a document names becomes a boundary (`Axes`), and packets are taken from both sides of each: at random, aimed
at the document's objects (`likely_packets`), or one from every cell (`grid`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from appliance.values import bounds, contains, dotted, number
from router.config import AclItem, Config, EgressRule, Firewall, Forward, Ports, StaticNat
from router.packet import Packet
from tests.property.world import GUESTS

Service = tuple[str | int, int, int, int]  # protocol, destination port, ICMP type and code
Ruled = Firewall | EgressRule | AclItem

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
    items = [item for acl in config.acls for item in (*acl.ingress, *acl.egress)]
    cidrs += [c for item in items for c in item.cidrs]
    cidrs += [r.destination for r in config.routes]
    ruled: list[Ruled] = [*config.firewall, *config.egress, *items]
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
        ways = (self._aimed, self._leaving, self._asking, self._wild, self._between)
        how = self.luck.choices(ways, (5, 2, 1, 2, 3 if self.config.acls else 0))[0]
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
        targets = [n.target for n in self.config.static_nats] + [f.target for f in self.config.forwards]
        special = [target for target in targets if contains(network.cidr, target)]
        source = self.luck.choice([*special, self._source(network.interface)])
        return network.interface, source, self.luck.choice(self.strangers), self.luck.choice(self.offered)

    def _between(self) -> tuple[str, str, str, Service]:
        """From place to place, aimed at an item of an ACL."""
        places = [i for i in self.config.interfaces if i.use in ("guest", "private")]
        here, there = self.luck.choice(places).id, self.luck.choice(places).id
        items = [item for acl in self.config.acls for item in (*acl.ingress, *acl.egress)]
        if not items or self.luck.random() < 0.3:
            return here, self._source(here), self.luck.choice(self.hosts[there]), self.luck.choice(self.offered)
        item = self.luck.choice(items)
        service = self._service(item.protocol, item.ports, item)
        return here, self._source(here), self.luck.choice(self.hosts[there]), service

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

    def _service(
        self, protocol: str | int, ports: Ports | None, rule: Firewall | EgressRule | AclItem | None
    ) -> Service:
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
