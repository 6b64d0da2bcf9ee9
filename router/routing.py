"""Which way out: a mark and a table for every uplink (public interface), and the rules that choose between
them.

A flow carries its uplink as its conntrack mark, set by ingress (firewall.py) when it starts; every packet of
it takes that mark, and the rules below lead a marked packet to the uplink's own table: its subnets and its
gateway, nothing else. What is nearer wins: rule 100 asks main first for anything but a default route, so that
guests, private networks and static routes are found before any uplink.

    100  main without its default      guests, private and control networks, static routes, tunnels
    110  mark of an uplink             -> table narthex-<interface>: its subnets, its gateway
    120  table narthex-uplinks         subnets of all uplinks, for own packets that have no mark yet
    32766 main                         the default, through the first public interface

A mark comes from the MAC, not from a position: a flow lives longer than a document, and plugging an interface
must not turn the marks of the others' flows into something else. Two MACs of one document that fall on one
mark are told apart in the order of the MACs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from appliance.state import Facts, File, Route, Rule, State
from appliance.values import bounds, is_v6, number, subnet
from router.config import Config, Interface
from router.links import link_name, own_addresses
from router.tunnels import tunnel_routes

MAIN = 254
MASK = 0xFFFF
UPLINKS_TABLE = 7_000_000  # an uplink's table is this plus its mark; far from the numbers that people choose
_TABLES = "/etc/iproute2/rt_tables.d/narthex.conf"


@dataclass(frozen=True, slots=True)
class Uplink:
    """A public interface: the name of its link, its mark and its IPv4 addresses, its own first."""

    interface: Interface
    link: str
    mark: int
    addresses: tuple[str, ...]

    @property
    def table(self) -> int:
        return UPLINKS_TABLE + self.mark


def uplinks(config: Config, facts: Facts) -> tuple[Uplink, ...]:
    """The public interfaces in the document's order: the first is the way out of whoever has no other."""
    public = [i for i in config.interfaces if i.use == "public"]
    marks = marks_of(i.mac for i in public)
    return tuple(Uplink(i, link_name(i, facts), marks[i.mac], own_addresses(i)) for i in public)


def marks_of(macs: Iterable[str]) -> dict[str, int]:
    """A mark from 1 to 0xffff for each MAC, the same whatever other MACs there are (but for a collision)."""
    marks: dict[str, int] = {}
    for mac in sorted(macs):
        folded = crc32(mac.encode())
        mark = (folded ^ folded >> 16) % MASK + 1
        while mark in marks.values():
            mark = mark % MASK + 1
        marks[mac] = mark
    return marks


def uplink_of(address: str | None, known: tuple[Uplink, ...]) -> Uplink:
    """The uplink that holds a public address, else the first."""
    return next((u for u in known if address in u.addresses), known[0])


def uplink6_of(address: str | None, known: tuple[Uplink, ...]) -> Uplink:
    """The uplink of IPv6 for a network with this source NAT: the same as in IPv4 if it has a gateway6, else the first
    that has one."""
    same = uplink_of(address, known)
    return same if same.interface.gateway6 else next((u for u in known if u.interface.gateway6), same)


def compile_routing(config: Config, facts: Facts) -> State:
    """Tables, routes, rules; the gateways as probes."""
    known = uplinks(config, facts)
    in_order_of_mark = sorted(known, key=lambda u: u.mark)
    return State(
        files=(_table_names(in_order_of_mark),) if known else (),
        routes=(
            *_default(known),
            *_static(config, facts),
            *tunnel_routes(config),
            *_neighbours(in_order_of_mark),
            *(route for uplink in in_order_of_mark for route in _own_table(uplink)),
        ),
        rules=tuple(_rules(in_order_of_mark)) if known else (),
        probes=tuple(u.interface.gateway for u in known if u.interface.gateway),
    )


def _table_names(known: Iterable[Uplink]) -> File:
    lines = [f"{UPLINKS_TABLE} narthex-uplinks", *(f"{u.table} narthex-{u.interface.id}" for u in known)]
    return File(_TABLES, "".join(f"{line}\n" for line in lines))


def _rules(known: Iterable[Uplink]) -> Iterator[Rule]:
    known = tuple(known)
    families: tuple[Literal[4, 6], ...] = (4, 6) if any(map(_has_v6, known)) else (4,)
    for family in families:
        yield Rule(100, MAIN, suppress=0, family=family)
        for uplink in known:
            yield Rule(110, uplink.table, mark=uplink.mark, mask=MASK, family=family, owner=uplink.interface.id)
        yield Rule(120, UPLINKS_TABLE, family=family)


def _has_v6(uplink: Uplink) -> bool:
    return any(map(is_v6, uplink.interface.addresses))


def _default(known: tuple[Uplink, ...]) -> Iterator[Route]:
    """Main's default: the first public interface's gateway."""
    for uplink in known[:1]:
        if uplink.interface.gateway:
            yield _out(uplink, uplink.interface.gateway, MAIN)
    for uplink in [u for u in known if u.interface.gateway6][:1]:
        yield _out(uplink, str(uplink.interface.gateway6), MAIN)


def _own_table(uplink: Uplink) -> Iterator[Route]:
    """An uplink's table: its subnets on the link, the rest through its gateway."""
    for cidr, source in _subnets(uplink).items():
        yield Route(cidr, uplink.link, table=uplink.table, source=source, owner=uplink.interface.id)
    for gateway in (uplink.interface.gateway, uplink.interface.gateway6):
        if gateway:
            yield _out(uplink, gateway, uplink.table)


def _out(uplink: Uplink, gateway: str, table: int) -> Route:
    near = towards(gateway, subnets((uplink.interface,)))
    source = near.address if near else own_addresses(uplink.interface, is_v6(gateway))[0]
    default = "::/0" if is_v6(gateway) else "0.0.0.0/0"
    return Route(default, uplink.link, gateway, table, source, owner=uplink.interface.id)


def _neighbours(known: Iterable[Uplink]) -> Iterator[Route]:
    """The subnets of all uplinks; one that two of them share is the first one's."""
    seen: set[str] = set()
    for uplink in known:
        for cidr, source in _subnets(uplink).items():
            if cidr not in seen:
                seen.add(cidr)
                yield Route(cidr, uplink.link, table=UPLINKS_TABLE, source=source, owner=uplink.interface.id)


def _subnets(uplink: Uplink) -> dict[str, str]:
    """The subnets on an uplink, each with the first address in it. One of a single address has no neighbours."""
    return {s.cidr: s.address for s in subnets((uplink.interface,)) if s.first < s.last}


def _static(config: Config, facts: Facts) -> Iterator[Route]:
    """The document's routes, in main, through the interface on whose subnet the gateway is."""
    known = subnets(config.interfaces) if config.routes else ()
    for route in sorted(config.routes, key=lambda r: r.id):
        near = towards(route.via, known)
        if near is None:
            raise LookupError(f"no interface has {route.via}, the gateway of route {route.id}, in its subnets")
        link = link_name(near.interface, facts)
        yield Route(route.destination, link, route.via, MAIN, near.address, owner=route.id)


# --- who is next to whom ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet that an interface is on, its bounds as numbers, and the interface's first address in it."""

    cidr: str
    first: int
    last: int
    interface: Interface
    address: str


def subnets(interfaces: Iterable[Interface]) -> tuple[Subnet, ...]:
    """The subnets of these interfaces, the smallest first; each interface's once."""
    found: dict[tuple[str, str], Subnet] = {}
    for interface in interfaces:
        for cidr in interface.addresses:
            if (interface.id, net := subnet(cidr)) not in found:
                found[interface.id, net] = Subnet(net, *bounds(cidr), interface, cidr.partition("/")[0])
    return tuple(sorted(found.values(), key=lambda s: (s.last - s.first, s.interface.id)))


def towards(address: str, known: Iterable[Subnet]) -> Subnet | None:
    """The smallest subnet that holds an address, as a router would choose."""
    wanted, v6 = number(address), is_v6(address)
    return next((s for s in known if s.first <= wanted <= s.last and is_v6(s.cidr) is v6), None)
