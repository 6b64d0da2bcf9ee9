"""The packets that are worth trying on a document.

Whatever a document names becomes a boundary (`Axes`), and packets are taken from both sides of each: at random, aimed
at the document's objects (`likely_packets`), or one from every cell (`grid`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from appliance.values import address_text, bounds, is_v6, number
from router.config import AclItem, Config, EgressRule, Firewall, Forward, IngressRule, Network, Ports, StaticNat
from router.packet import Packet
from tests.property.world import GUESTS, GUESTS6

Service = tuple[str | int, int, int, int]  # protocol, destination port, ICMP type and code
Ruled = Firewall | EgressRule | IngressRule | AclItem

# What every document has in common: addresses that are nobody's, a stranger, the world's ends.
_WORLD = ("0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/4", "224.0.0.1/32", "240.0.0.0/4", "255.255.255.255/32", "8.8.8.8/32")
_WORLD6 = ("::1/128", "2001:db8:8888::8/128", "fe80::9/128", "ff00::/8", "ff02::1/128", "ff02::1:2/128", "ff05::/16")
METADATA = "169.254.169.254"
_PORTS = (0, 53, 67, 3922, 65535)
_OTHERS = (47, 50, 89)  # protocols without ports: the first two stand in documents


Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Axes:
    """The places where a document cuts each axis, in one family: addresses as the first and last of each piece, ports
    alike.

    `address_cells` and `port_cells` have one piece of each kind: no two of them are inside the same spans.
    """

    interfaces: tuple[str, ...]
    addresses: tuple[Span, ...]
    address_cells: tuple[Span, ...]
    ports: tuple[Span, ...]
    port_cells: tuple[Span, ...]
    icmp: tuple[Span, ...]
    protocols: tuple[int, ...]


def axes(config: Config, v6: bool = False) -> Axes:
    """Every boundary of a family that occurs in a document."""
    known = [*(_WORLD6 if v6 else _WORLD), *(c for i in config.interfaces for c in i.addresses)]
    known += [c for n in config.networks for c in (n.cidr, n.cidr6) if c]
    known += [a.partition("/")[0] for i in config.interfaces for a in i.addresses]
    known += [address_text(bounds(a)[1], is_v6(a)) for i in config.interfaces for a in i.addresses]
    known += [x for f in config.forwards for x in (*f.sources, f.target)]
    known += [x.target for x in config.static_nats]
    known += [c for r in config.firewall for c in r.sources]
    known += [c for e in config.egress for c in (*e.sources, *e.destinations)]
    known += [c for e in config.ingress for c in (*e.sources, *e.destinations)]
    items = [item for acl in config.acls for item in (*acl.ingress, *acl.egress)]
    known += [c for item in items for c in item.cidrs]
    known += [r.destination for r in config.routes]
    told = any(n.metadata for n in config.networks)
    known += [f"{METADATA}/32"] if told else []
    cidrs = [c for c in known if is_v6(c) is v6]
    last = (1 << (128 if v6 else 32)) - 1
    ruled: list[Ruled] = [*config.firewall, *config.egress, *config.ingress, *items]
    ports = [(p, p) for p in (*_PORTS, *((80, 8080) if told else ()))]
    ports += [(f.ports.first, f.ports.last) for f in config.forwards]
    ports += [(r.ports.first, r.ports.last) for r in ruled if r.ports]
    own = [r for r in ruled if r.protocol == ("icmpv6" if v6 else "icmp")]
    types = {*((128, 139, 129) if v6 else (8, 13, 0)), *(r.icmp_type for r in own if r.icmp_type is not None)}
    codes = {0, 255, *(r.icmp_code for r in ruled if r.icmp_code is not None)}
    named = {r.protocol for r in ruled if isinstance(r.protocol, int) and r.protocol not in (1, 6, 17)}
    spans = [bounds(c) for c in cidrs]
    return Axes(
        tuple(i.id for i in config.interfaces),
        pieces(spans, last),
        cells(spans, last),
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


def services(cuts: Axes, ports: Sequence[Span], end: int, v6: bool = False) -> list[Service]:
    """The first (`end` 0) or last (1) value of each piece of the ports; each ICMP type and code; each protocol."""
    found: list[Service] = [(p, span[end], 8, 0) for p in ("tcp", "udp") for span in ports]
    found += [("icmpv6" if v6 else "icmp", 0, kind, code) for kind, code in cuts.icmp]
    return found + [(p, 0, 8, 0) for p in cuts.protocols]


def likely_packets(config: Config, count: int, seed: int) -> list[Packet]:
    """Packets on boundaries, half of them aimed at an object of the document, most from where they may come."""
    luck = Luck(config, seed)
    if not has_v6(config):
        return [luck.packet() for _ in range(count)]
    luck6 = Luck(config, seed, v6=True)
    return [(luck6 if n % 2 else luck).packet() for n in range(count)]


def has_v6(config: Config) -> bool:
    return any(is_v6(a) for i in config.interfaces for a in i.addresses)


class Luck:
    """Draws packets of a family for one document, the same from the same seed. Plain random numbers: hypothesis's are
    slow."""

    def __init__(self, config: Config, seed: int, v6: bool = False) -> None:
        self.config, self.luck, self.v6 = config, random.Random(seed), v6
        cuts = axes(config, v6)
        self.ends = [address_text(x, v6) for span in cuts.addresses for x in span]
        self.offered = services(cuts, cuts.ports, 0, v6) + services(cuts, cuts.ports, 1, v6)
        self.uses = {"": "", **{i.id: i.use for i in config.interfaces}}
        self.cidrs = {i.id: [c for c in i.addresses if is_v6(c) is v6] for i in config.interfaces}
        self.own = [c.partition("/")[0] for cidrs in self.cidrs.values() for c in cidrs]
        self.behind = {i: _within(cidrs, self.ends) for i, cidrs in self.cidrs.items()}
        inner = {a for i, found in self.behind.items() if self.uses[i] != "public" for a in found}
        self.strangers = [a for a in self.ends if a not in inner]
        self.last = {bounds(a)[1] for cidrs in self.cidrs.values() for a in cidrs} | {bounds("127.0.0.0/8")[1]}
        self.hosts = {
            i: [a for a in found if a not in self.own and bounds(a)[0] not in self.last] or found or self.ends
            for i, found in self.behind.items()
        }
        self.aims: list[Forward | StaticNat | Firewall | EgressRule | IngressRule] = [
            *(() if v6 else config.forwards),
            *(() if v6 else config.static_nats),
            *(rule for rule in config.firewall if is_v6(rule.address) is v6),
            *config.egress,
            *config.ingress,
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
            destination = destination if self.is_sendable(destination) else self.luck.choice(self._guests())
            kind = (128 if self.v6 else 8) if kind not in (8, 13) or self.v6 else kind  # nor what answers nothing
        return Packet(came_by, source, destination, protocol, 40000, port, kind, code)

    def is_sendable(self, destination: str) -> bool:
        """Would the router itself send a packet there: not to all, nor to nobody."""
        if self.v6:
            return 1 < number(destination) < 0xFE80 << 112
        return 0 < number(destination) < 224 << 24 and number(destination) not in self.last

    def _guests(self) -> tuple[str, ...]:
        return GUESTS6 if self.v6 else GUESTS

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
        special = _within([_prefix(network, self.v6)], [t for t in targets if is_v6(t) is self.v6])
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
        doors = self.cidrs.get(came_by) or self.own
        if not doors:
            return self._wild()
        destination = self.luck.choice([d.partition("/")[0] for d in doors] * 2 + self.own)
        source = self._source(came_by)
        if self.luck.random() < 0.3:
            everyone = "ff02::1:2" if self.v6 else "255.255.255.255"
            destination = self.luck.choice([everyone, *(address_text(bounds(d)[1], self.v6) for d in doors)])
            source = self.luck.choice([source, "fe80::9" if self.v6 else "0.0.0.0"])
        echo, dhcp = (("icmpv6", 0, 128, 0), 547) if self.v6 else (("icmp", 0, 8, 0), 67)
        offered: list[Service] = [echo, ("udp", dhcp, 8, 0), ("udp", 53, 8, 0), ("tcp", 53, 8, 0), ("tcp", 3922, 8, 0)]
        if any(n.metadata for n in self.config.networks):
            offered += [("tcp", 80, 8, 0), ("tcp", 80, 8, 0), ("tcp", 8080, 8, 0)]
            destination = METADATA if not self.v6 and self.luck.random() < 0.3 else destination
        service = self.luck.choice(offered)
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
        if isinstance(aim, IngressRule):
            network = next(n for n in self.config.networks if n.id == aim.network)
            inside = _within([_prefix(network, self.v6)], self._ends_of(aim.destinations)) or self.ends
            sources = [a for a in self._ends_of(aim.sources) if a in self.strangers] or self.strangers
            service = self._service(aim.protocol, aim.ports, aim)
            return came_by, self.luck.choice(sources), self.luck.choice(inside), service
        if isinstance(aim, StaticNat):
            return came_by, self._source(came_by), aim.address, self.luck.choice(self.offered)
        sources = [a for a in self._ends_of(aim.sources) if a in self.strangers]
        from_them = sources and self.uses[came_by] == "public"
        source = self.luck.choice(sources) if from_them else self._source(came_by)
        rule = aim if isinstance(aim, Firewall) else None
        return came_by, source, aim.address, self._service(aim.protocol, aim.ports, rule)

    def _source(self, came_by: str) -> str:
        if self.uses[came_by] == "":
            return self.luck.choice(self.own or self.ends)
        return self.luck.choice(self.strangers if self.uses[came_by] == "public" else self.hosts[came_by])

    def _ends_of(self, cidrs: Sequence[str]) -> list[str]:
        """The first and last address of each, and their neighbours."""
        own = [c for c in cidrs if is_v6(c) is self.v6]
        near = {x for c in own for end in bounds(c) for x in (end - 1, end, end + 1)}
        return [address_text(x, self.v6) for x in sorted(near) if 0 <= x < 1 << (128 if self.v6 else 32)] or self.ends

    def _service(self, protocol: str | int, ports: Ports | None, rule: Ruled | None) -> Service:
        if protocol == "any":
            return self.luck.choice(self.offered)
        if protocol in ("icmp", "icmpv6", 1):
            protocol, usual = ("icmpv6", 128) if self.v6 else ("icmp", 8)
            kind = rule.icmp_type if rule and rule.icmp_type is not None else usual
            code = rule.icmp_code if rule and rule.icmp_code is not None else 0
            return protocol, 0, kind, self.luck.choice((code, code, code ^ 1))
        first, last = (ports.first, ports.last) if ports else (0, 65535)
        return protocol, min(65535, max(0, self.luck.choice((first, last, first - 1, last + 1)))), 8, 0


def _within(cidrs: Sequence[str], addresses: Iterable[str]) -> list[str]:
    spans = [bounds(c) for c in cidrs]
    return [a for a in addresses if any(first <= bounds(a)[0] <= last for first, last in spans)]


def _prefix(network: Network, v6: bool) -> str:
    return (network.cidr6 or "::/0") if v6 else network.cidr


def grid(config: Config, end: int, v6: bool = False) -> Iterator[Packet]:
    """One packet of every cell: by each interface and from the router itself, the first or last value of each piece."""
    cuts = axes(config, v6)
    addresses = [address_text(span[end], v6) for span in cuts.address_cells]
    offered = services(cuts, cuts.port_cells, end, v6)
    luck = Luck(config, 0, v6)
    for came_by in ("", *cuts.interfaces):
        for source in addresses if came_by else luck.own:
            for destination in addresses:
                if came_by or luck.is_sendable(destination):
                    for protocol, port, kind, code in offered:
                        if came_by or protocol not in ("icmp", "icmpv6") or kind in (8, 13, 128):
                            yield Packet(came_by, source, destination, protocol, 40000, port, kind, code)
