"""What a document's interfaces and networks are to each other: whether they fit, and whose an address is.

`Ground` is what the other checks ask: which addresses are public, in which network an address lies. The
checks of this file are those of interfaces, networks and static routes. Every problem names its place, the
other object where there is one, and the remedy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.state import Problem
from appliance.values import bounds, is_v6, number, subnet
from router.checks_dhcp import option_problems
from router.config import Config, Interface, Network
from router.links import own_addresses
from router.routing import Subnet, subnets, towards

LEAST_MTU6 = 1280  # below it the kernel takes IPv6 away from a link


@dataclass(frozen=True, slots=True)
class Lot:
    """A guest network in one family: its bounds as numbers and the router's own addresses in it."""

    network: Network
    cidr: str
    first: int
    last: int
    own: frozenset[str]

    def why_not(self, address: str) -> str:
        """Why no guest can have this address, "" where one can. It is of the lot's family."""
        place = number(address)
        if not self.first <= place <= self.last:
            return f"{address} is not in network {self.network.id} ({self.cidr})"
        if address in self.own:
            return f"{address} is the router's own address in network {self.network.id}"
        if is_v6(address):
            return f"{address} is any router's address in {self.cidr} (RFC 4291, 2.6.1)" if place == self.first else ""
        if self.last - self.first > 1 and place in (self.first, self.last):
            return f"{address} is the network or broadcast address of {self.cidr}"
        return ""


@dataclass(frozen=True, slots=True)
class Ground:
    """Whose an address is: `public` by address, of either family; `lots` by network id, `order` by first address, of
    IPv4; `lots6`, of the networks that have IPv6."""

    public: Mapping[str, Interface]
    lots: Mapping[str, Lot]
    lots6: Mapping[str, Lot]
    order: tuple[Lot, ...]
    starts: tuple[int, ...]

    def lot_of(self, address: str) -> Lot | None:
        """The network in which an IPv4 address lies."""
        wanted = number(address)
        place = bisect_right(self.starts, wanted) - 1
        return self.order[place] if place >= 0 and wanted <= self.order[place].last else None

    def not_public(self, path: str, address: str) -> Iterator[Problem]:
        """The problem of an address that should be a public one."""
        if address not in self.public:
            known = listed(self.public) or "none"
            yield Problem(path, f"{address} is not an address of a public interface; those are: {known}")

    def no_guest(self, path: str, address: str) -> Iterator[Problem]:
        """The problem of an address that should be a guest's."""
        if is_v6(address):
            yield untranslated(path, address)
        elif (lot := self.lot_of(address)) is None:
            known = listed(f"{lot.network.id} ({lot.network.cidr})" for lot in self.order) or "none"
            yield Problem(path, f"{address} is in no guest network; the networks are: {known}")
        elif why := lot.why_not(address):
            yield Problem(path, f"{why}; give a guest's address")


def survey(config: Config) -> Ground:
    """The ground of a document, as far as it makes sense."""
    public = {a.partition("/")[0]: i for i in config.interfaces if i.use == "public" for a in i.addresses}
    interfaces = {i.id: i for i in config.interfaces}
    lots, lots6 = {}, {}
    for network in config.networks:
        interface = interfaces.get(network.interface)
        if not is_v6(network.cidr):
            lots[network.id] = _lot(network, network.cidr, interface)
        if network.cidr6 and is_v6(network.cidr6):
            lots6[network.id] = _lot(network, network.cidr6, interface)
    order = _in_order(lots)
    return Ground(public, lots, lots6, order, tuple(lot.first for lot in order))


def _lot(network: Network, cidr: str, interface: Interface | None) -> Lot:
    first, last = bounds(cidr)
    own = own_addresses(interface, is_v6(cidr)) if interface else ()
    return Lot(network, cidr, first, last, frozenset(a for a in own if first <= number(a) <= last))


def _in_order(lots: Mapping[str, Lot]) -> tuple[Lot, ...]:
    return tuple(sorted(lots.values(), key=lambda lot: lot.first))


def untranslated(path: str, text: str) -> Problem:
    """The problem of an IPv6 address where addresses are translated."""
    told = "IPv6 is not translated: let guests be reached by their own addresses, by rules in config.ingress"
    return Problem(path, f"{text} is IPv6, and {told}")


def only(path: str, texts: Iterable[str], v6: bool = False) -> Iterator[Problem]:
    """The addresses and networks in a list that aren't of the family that is wanted there."""
    for text in texts:
        if (":" in text) is not v6:
            here, wanted = ("IPv4", "IPv6") if v6 else ("IPv6", "IPv4")
            yield Problem(path, f"{text} is {here}, and this takes {wanted}; remove it")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message: the first few and how many more."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


# --- interfaces ---------------------------------------------------------------------------------------------


def interface_problems(config: Config) -> Iterator[Problem]:
    """Each interface by itself, then all of them among each other."""
    controls = [i.id for i in config.interfaces if i.use == "control"]
    if len(controls) != 1:
        told = f"has {len(controls)} ({listed(controls)})" if controls else "has none"
        yield Problem("config.interfaces", f"a router has one interface of use control; this document {told}")
    acls = [acl.id for acl in config.acls]
    for interface in config.interfaces:
        path = f"config.interfaces[{interface.id}]"
        yield from _interface(interface, path)
        yield from _private_gateway(interface, acls, path)
        if interface.use == "public" and interface.gateway is None and not _learns(config, interface):
            told = "a public interface needs a gateway; add the address of the next router"
            yield Problem(f"{path}.gateway", f"{told}, or take the default of a BGP peer that is a neighbour there")
    yield from _shared_macs(config)
    yield from _shared_addresses(config)
    yield from _overlaps(config)


def _learns(config: Config, interface: Interface) -> bool:
    """Does a peer on an interface tell of a default that is taken?"""
    known = subnets((interface,))
    return any(p.default and not is_v6(p.address) and towards(p.address, known) for p in config.bgp_peers)


def _interface(interface: Interface, path: str) -> Iterator[Problem]:
    for cidr in interface.addresses:
        if why := not_a_host(cidr):
            yield Problem(f"{path}.addresses", f"{cidr} {why}; give the interface an address of its own")
    if interface.mtu < LEAST_MTU6 and own_addresses(interface, v6=True):
        told = f"a link of IPv6 carries packets of {LEAST_MTU6} bytes (RFC 8200, 5), and this one {interface.mtu}"
        yield Problem(f"{path}.mtu", f"{told}; correct it, or remove the IPv6 addresses")
    if interface.use in ("public", "control") and not own_addresses(interface):
        yield Problem(f"{path}.addresses", f"a {interface.use} interface needs an IPv4 address; add one")
    yield from _gateway(interface, f"{path}.gateway")
    yield from _gateway6(interface, f"{path}.gateway6")


def _gateway(interface: Interface, path: str) -> Iterator[Problem]:
    gateway = interface.gateway
    if interface.use != "public":
        if gateway is not None:
            yield Problem(path, "only a public interface has a gateway; remove it, or write a static route")
    elif gateway is not None and is_v6(gateway):
        yield Problem(path, f"{gateway} is IPv6; write it as gateway6, and here the IPv4 address of the next router")
    elif gateway is not None:
        yield from _next_router(interface, gateway, path)


def _gateway6(interface: Interface, path: str) -> Iterator[Problem]:
    gateway = interface.gateway6
    if gateway is None:
        return
    if interface.use != "public":
        yield Problem(path, "only a public interface has a gateway; remove it, or write a static route")
    elif not is_v6(gateway):
        yield Problem(path, f"{gateway} is IPv4; write it as gateway, and here the IPv6 address of the next router")
    elif not own_addresses(interface, v6=True):
        yield Problem(path, "the interface has no IPv6 address to reach it from; add one to addresses")
    else:
        yield from _next_router(interface, gateway, path)


def _next_router(interface: Interface, gateway: str, path: str) -> Iterator[Problem]:
    """A gateway is a neighbour, and not the interface itself."""
    v6 = is_v6(gateway)
    known = [s for s in subnets((interface,)) if is_v6(s.cidr) is v6]
    if gateway in own_addresses(interface, v6):
        yield Problem(path, f"{gateway} is the interface's own address; give the next router's")
    elif known and towards(gateway, known) is None:
        told = listed(s.cidr for s in known)
        yield Problem(path, f"{gateway} is in no subnet of the interface ({told}); correct it, or the prefix lengths")


def _private_gateway(interface: Interface, acls: Sequence[str], path: str) -> Iterator[Problem]:
    """What only a private interface has."""
    if interface.acl is not None:
        yield from _known_acl(interface.acl, acls, f"{path}.acl")
    if interface.use == "private":
        if interface.source_nat and not own_addresses(interface):
            told = "source NAT needs an IPv4 address to translate to; add one to addresses, or remove source_nat"
            yield Problem(f"{path}.source_nat", told)
        return
    told = f"only a private interface has one, and this is of use {interface.use}"
    if interface.acl is not None:
        yield Problem(f"{path}.acl", f"{told}; a network names its ACL itself")
    if interface.source_nat:
        yield Problem(f"{path}.source_nat", f"{told}; a network names its source_nat itself")


def _known_acl(acl: str, acls: Sequence[str], path: str) -> Iterator[Problem]:
    if acl not in acls:
        yield Problem(path, f"there is no ACL {acl}; those are: {listed(acls) or 'none'}")


def _not_a_host(cidr: str) -> str:
    """Why an address with its length can be no interface's, "" where it can."""
    address = cidr.partition("/")[0]
    first, last = bounds(cidr)
    if last - first > 1 and number(address) in (first, last):
        return "is the network or broadcast address of its subnet"
    if int(address.partition(".")[0]) in (0, 127) or number(address) >= 224 << 24:
        return "is no unicast address"
    return ""


def _not_a_host6(cidr: str) -> str:
    """The same of an IPv6 address."""
    address, first = number(cidr.partition("/")[0]), bounds(cidr)[0]
    if address >> 120 == 0xFF or address < 2:
        return "is no unicast address"
    if address >> 118 == 0xFE80 >> 6:
        return "is an address of the link alone, of which the kernel makes its own"
    if address == first and not cidr.endswith(("/127", "/128")):
        return "is the address of any router of its subnet (RFC 4291, 2.6.1)"
    return ""


def not_a_host(cidr: str) -> str:
    """Why no machine can have this address with its length, "" where one can."""
    return _not_a_host6(cidr) if is_v6(cidr) else _not_a_host(cidr)


def _shared_macs(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for interface in config.interfaces:
        other = seen.setdefault(interface.mac, interface.id)
        if other != interface.id:
            path = f"config.interfaces[{interface.id}].mac"
            yield Problem(path, f"interface {other} has the MAC {interface.mac} too; each has its own")


def _shared_addresses(config: Config) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for interface in config.interfaces:
        for address in (a.partition("/")[0] for a in interface.addresses):
            path = f"config.interfaces[{interface.id}].addresses"
            if address in seen:
                yield Problem(path, f"{address} is an address of interface {seen[address]} already; remove one")
            seen[address] = interface.id


def _overlaps(config: Config) -> Iterator[Problem]:
    """Two interfaces on overlapping subnets: only public ones may, for each has a table of its own."""
    inner = [s for s in subnets(config.interfaces) if s.interface.use != "public"]
    for v6 in (False, True):
        reach: Subnet | None = None
        for here in sorted((s for s in inner if is_v6(s.cidr) is v6), key=lambda s: (s.first, -s.last)):
            if reach and here.first <= reach.last and here.interface is not reach.interface:
                path = f"config.interfaces[{here.interface.id}].addresses"
                other = f"{reach.cidr} of interface {reach.interface.id}"
                yield Problem(path, f"subnet {here.cidr} overlaps {other}; give them separate subnets")
            if reach is None or here.last > reach.last:
                reach = here


# --- networks -----------------------------------------------------------------------------------------------


def network_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """Each network by itself, then among each other."""
    interfaces = {i.id: i for i in config.interfaces}
    acls = [acl.id for acl in config.acls]
    for network in config.networks:
        path = f"config.networks[{network.id}]"
        if network.acl is not None:
            yield from _known_acl(network.acl, acls, f"{path}.acl")
            if network.egress.default == "deny":
                told = "a network with an ACL leaves its egress to that; say deny as its egress_default"
                yield Problem(f"{path}.egress.default", told)
        if is_v6(network.cidr):
            yield Problem(f"{path}.cidr", f"{network.cidr} is IPv6; write it as cidr6, and here the IPv4 subnet")
        else:
            yield from _place(network, interfaces, path)
        if network.source_nat is not None:
            yield from _source_nat(network.source_nat, network, ground, f"{path}.source_nat")
        yield from _dhcp(network, ground, f"{path}.dhcp")
    for name, order in (("cidr", ground.order), ("cidr6", _in_order(ground.lots6))):
        for before, after in zip(order, order[1:], strict=False):
            if after.first <= before.last:
                path = f"config.networks[{after.network.id}].{name}"
                other = f"{before.cidr} of network {before.network.id}"
                yield Problem(path, f"{after.cidr} overlaps {other}; give them separate subnets")


def _source_nat(address: str, network: Network, ground: Ground, path: str) -> Iterator[Problem]:
    if network.routed:
        yield Problem(path, "a routed network is not translated; remove this, or routed")
    elif is_v6(address):
        yield untranslated(path, address)
    else:
        yield from ground.not_public(path, address)


def _place(network: Network, interfaces: Mapping[str, Interface], path: str) -> Iterator[Problem]:
    interface = interfaces.get(network.interface)
    if interface is None:
        known = listed(i.id for i in interfaces.values() if i.use == "guest") or "none"
        told = f"there is no interface {network.interface}; those of use guest are: {known}"
        yield Problem(f"{path}.interface", told)
    elif interface.use != "guest":
        told = f"interface {interface.id} is of use {interface.use}; a network needs one of use guest"
        yield Problem(f"{path}.interface", told)
    elif network.cidr not in (found := [subnet(a) for a in interface.addresses if not is_v6(a)]):
        known = listed(found) or "none"
        told = f"{network.cidr} is no subnet of interface {interface.id}; those are: {known}"
        yield Problem(f"{path}.cidr", f"{told}; add the router's address there, or correct the cidr")


def _dhcp(network: Network, ground: Ground, path: str) -> Iterator[Problem]:
    dhcp = network.dhcp
    for name in ("routers", "dns", "ntp"):
        yield from only(f"{path}.{name}", getattr(dhcp, name) or ())
    for route in dhcp.routes:
        yield from only(f"{path}.routes", (route.destination, route.via))
    yield from option_problems(dhcp.options, f"{path}.options")
    if dhcp.boot and dhcp.boot.server:
        yield from only(f"{path}.boot.server", (dhcp.boot.server,))
    if (dhcp.first is None) != (dhcp.last is None):
        yield Problem(path, "a range has both ends; give first and last, or neither")
    if dhcp.first is None or dhcp.last is None or (lot := ground.lots.get(network.id)) is None:
        return
    for name, end in (("first", dhcp.first), ("last", dhcp.last)):
        if is_v6(end):
            yield from only(f"{path}.{name}", (end,))
        elif not lot.first <= number(end) <= lot.last:
            yield Problem(f"{path}.{name}", f"{end} is not in {network.cidr}; the range lies inside the network")
    if not is_v6(dhcp.first + dhcp.last) and number(dhcp.first) > number(dhcp.last):
        yield Problem(path, f"the range ends ({dhcp.last}) before it starts ({dhcp.first}); swap them")


# --- static routes ------------------------------------------------------------------------------------------


def route_problems(config: Config) -> Iterator[Problem]:
    """Each route's gateway is a neighbour, and each destination has one way."""
    if not config.routes:
        return
    known = subnets(config.interfaces)
    own = {a.partition("/")[0]: i.id for i in config.interfaces for a in i.addresses}
    connected = {s.cidr: s.interface.id for s in known if s.interface.use != "public"}
    uplink = next((i.id for i in config.interfaces if i.use == "public"), None)
    seen: dict[str, str] = {}
    for route in config.routes:
        path, to, via = f"config.routes[{route.id}]", route.destination, route.via
        if is_v6(via) is not is_v6(to):
            yield Problem(f"{path}.via", f"{via} is of another family than {to}; a route stays in its own")
        elif via in own:
            yield Problem(f"{path}.via", f"{via} is the router's own address on {own[via]}; give the next router's")
        elif towards(via, known) is None:
            told = listed(s.cidr for s in known)
            yield Problem(f"{path}.via", f"{via} is in no subnet of an interface ({told}); it must be a neighbour")
        if to in connected:
            told = f"{to} is the subnet of interface {connected[to]} itself; remove the route"
            yield Problem(f"{path}.destination", told)
        if to in ("0.0.0.0/0", "::/0") and uplink is not None:
            told = f"the default is the gateway of public interface {uplink}"
            yield Problem(f"{path}.destination", f"{told} (gateway6 in IPv6); remove the route, or change that gateway")
        if (other := seen.setdefault(to, route.id)) != route.id:
            yield Problem(f"{path}.destination", f"route {other} leads to {to} too; remove one of them")
