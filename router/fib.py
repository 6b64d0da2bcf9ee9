"""What the kernel's routing makes of a State: its addresses, routes and policy rules, looked up as the kernel does.

For trace.py. Linux 6.1 and later (net/ipv4/route.c, fib_frontend.c, fib_rules.c; net/ipv6/route.c), in one family: the
rules by priority, the kernel's own three among them (0 local, 32766 main, 32767 default); in a table the longest
prefix, then the lowest metric; a result that `suppress` rules out sends the search on. The table `local` is made of
the addresses: each is local, the last of each subnet is broadcast. An address that is `connected` puts its subnet into
`main`.

IPv6 has no broadcast, and no martians but the loopback's and multicast sources. A link-local address is on every link,
and nothing from or to one is sent on: who asks the router by it is `local`.

Before a packet is routed its source is looked at (`refusal`): one that is local, broadcast or nobody's is dropped as a
martian, and rp_filter may ask that the way back leads to the interface it came by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from appliance.state import Address, Rule, State
from appliance.values import bounds, is_v6, number, subnet

EVERYONE = number("255.255.255.255")
NOBODY = 0
LOOPBACK = bounds("127.0.0.0/8")
MULTICAST = bounds("224.0.0.0/4")
ALL_HOSTS = number("224.0.0.1")  # the one group that every machine is in
LOCAL, MAIN, DEFAULT = 255, 254, 253
_KERNELS_OWN = (Rule(0, LOCAL), Rule(32766, MAIN), Rule(32767, DEFAULT))
LINK_LOCAL, MULTICAST6 = bounds("fe80::/10"), bounds("ff00::/8")
GROUPS6 = bounds("ff02::/16")  # of one link: all nodes, all routers, DHCP servers, who is asked for by his neighbours


@dataclass(frozen=True, slots=True)
class Way:
    """Where an address leads: what kind it is for us, the link and gateway, our source there, and whose route it is."""

    kind: Literal["unicast", "local", "broadcast", "multicast", "nowhere"]
    link: str = ""
    via: str = ""
    source: str = ""
    owner: str = ""
    destination: str = ""


NOWHERE = Way("nowhere")
_Entry = tuple[int, int, int, int, Way]  # prefix length, metric, first and last address, way


class Fib:
    """The routing of one State, in one family."""

    def __init__(self, state: State, v6: bool = False) -> None:
        self.v6 = v6
        self._settings = {s.key: s.value for s in state.sysctls}
        own = (r for r in state.rules if r.family == (6 if v6 else 4))
        self._rules = sorted((*own, *_KERNELS_OWN), key=lambda r: r.priority)
        down = {link.name for link in state.links if not link.up}
        addresses = [a for a in (*state.addresses, *_LO) if is_v6(a.cidr) is v6 and a.link not in down]
        self._tables: dict[int, list[_Entry]] = {}
        for address in addresses:
            for table, entry in _of_address(address):
                self._tables.setdefault(table, []).append(entry)
        for route in state.routes:
            if is_v6(route.destination) is v6 and route.link not in down:
                way = Way("unicast", route.link, route.via, route.source, route.owner, route.destination)
                self._tables.setdefault(route.table, []).append(_entry(route.metric, route.destination, way))
        for entries in self._tables.values():
            entries.sort(key=lambda e: (-e[0], e[1]))
        self._first = _first_addresses(addresses)
        self._any_routers = {bounds(a.cidr)[0] for a in addresses if _has_any_router(a)}

    def look(self, destination: int, source: int, mark: int = 0) -> Way:
        """The way to an address for a packet from `source` (0: not chosen yet) with that mark."""
        for rule in self._rules:
            if not _selects(rule, source, mark):
                continue
            for length, _, first, last, way in self._tables.get(rule.table, ()):
                if first <= destination <= last:
                    if length <= rule.suppress:
                        break
                    return way
        return NOWHERE

    def kind(self, address: int) -> str:
        """What nft's `fib daddr type` says of an address."""
        if address == EVERYONE and not self.v6:
            return "broadcast"
        if self._is_group(address):
            return "multicast"
        if address in self._any_routers:
            return "anycast"
        kind = self.look(address, 0).kind
        return "unicast" if kind == "nowhere" else kind

    def arrive(self, source: int, destination: int, link: str, mark: int) -> Way:
        """Where a packet that came in by `link` goes."""
        if destination == EVERYONE and not self.v6:
            return Way("broadcast", link)
        if self._is_group(destination):
            joined = GROUPS6[0] <= destination <= GROUPS6[1] if self.v6 else destination == ALL_HOSTS
            return Way("multicast", link) if joined else NOWHERE
        way = self.look(destination, source, mark)
        of_a_link = self.v6 and any(LINK_LOCAL[0] <= a <= LINK_LOCAL[1] for a in (source, destination))
        if way.kind == "unicast" and of_a_link:
            return NOWHERE
        setting = "net.ipv6.conf.all.forwarding" if self.v6 else "net.ipv4.ip_forward"
        return way if way.kind != "unicast" or self._settings.get(setting, "0") != "0" else NOWHERE

    def _is_group(self, address: int) -> bool:
        first, last = MULTICAST6 if self.v6 else MULTICAST
        return first <= address <= last

    def refusal(self, source: int, destination: int, link: str) -> str:
        """Why the kernel drops a packet before it routes it, "" where it does not."""
        if self.v6:
            return "its source is nobody's address" if source == 1 or self._is_group(source) else ""
        if MULTICAST[0] <= source <= MULTICAST[1] or source == EVERYONE or LOOPBACK[0] <= source <= LOOPBACK[1]:
            return "its source is nobody's address"
        if source == NOBODY:
            return "" if destination == EVERYONE or MULTICAST[0] <= destination <= MULTICAST[1] else "it has no source"
        if LOOPBACK[0] <= destination <= LOOPBACK[1] or destination == NOBODY:
            return "its destination is nobody's address"
        back = self.look(source, 0)
        if back.kind in ("local", "broadcast"):
            return f"its source is a {back.kind} address of the router"
        demand = max(int(self._setting(f"conf.{where}.rp_filter", "0")) for where in ("all", link.replace(".", "/")))
        if demand and (back.kind == "nowhere" or (demand == 1 and back.link != link)):
            return "the way back to its source does not lead there (rp_filter)"
        return ""

    def source_for(self, way: Way, link: str = "") -> str:
        """The source the kernel gives a packet of ours that goes this way (by `link`), "" where it has none."""
        if way.source and link in ("", way.link):
            return way.source
        return self._first.get(link or way.link, "")

    def _setting(self, key: str, unset: str = "0") -> str:
        return self._settings.get(f"net.ipv4.{key}", unset)


# the kernel's own, when lo goes up
_LO = (Address("lo", "127.0.0.1/8", connected=False), Address("lo", "::1/128", connected=False))


def _selects(rule: Rule, source: int, mark: int) -> bool:
    if (mark ^ rule.mark) & rule.mask:
        return False
    if not rule.source:
        return True
    first, last = bounds(rule.source)
    return first <= source <= last


def _entry(metric: int, destination: str, way: Way) -> _Entry:
    first, last = bounds(destination)
    longest = 128 if is_v6(destination) else 32
    return (int(destination.partition("/")[2] or longest), metric, first, last, way)


def _of_address(address: Address) -> Iterator[tuple[int, _Entry]]:
    """What an address puts into the tables."""
    own, _, length = address.cidr.partition("/")
    first, last = bounds(address.cidr)
    mine = subnet(address.cidr) if address.link == "lo" else own  # at lo the whole subnet is ours
    yield LOCAL, _entry(0, mine, Way("local", "lo", source=own, owner=address.owner, destination=mine))
    if is_v6(own):
        net = subnet(address.cidr)
        if _has_any_router(address):
            anyone = Way("local", "lo", source=own, owner=address.owner, destination=net)
            yield LOCAL, (128, 0, first, first, anyone)  # the routers of a subnet (RFC 4291, 2.6.1)
        if address.connected and int(length) < 128:
            yield MAIN, _entry(0, net, Way("unicast", address.link, source=own, owner=address.owner, destination=net))
        return
    if int(length) < 31:
        yield LOCAL, (32, 0, last, last, Way("broadcast", address.link, source=own, owner=address.owner))
    if address.connected and int(length) < 32:
        net = subnet(address.cidr)
        yield MAIN, _entry(0, net, Way("unicast", address.link, source=own, owner=address.owner, destination=net))


def _has_any_router(address: Address) -> bool:
    """Is there an address in its subnet that is any router's (RFC 4291, 2.6.1; RFC 6164)?"""
    return is_v6(address.cidr) and int(address.cidr.partition("/")[2]) < 127


def _first_addresses(addresses: Iterable[Address]) -> dict[str, str]:
    found: dict[str, str] = {}
    for address in addresses:
        found.setdefault(address.link, address.cidr.partition("/")[0])
    return found
