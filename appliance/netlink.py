"""Links, addresses, routes and policy rules of this machine: read, set, added, removed; no process is started.

"Ours" are the routes and rules that carry our protocol number (rtnl.PROTOCOL), and all permanent addresses of the links
that a State names: an appliance owns its interfaces wholly. What is read back is in the vocabulary of state.py, and
where it equals the wish it is the wished part itself, so that `plan(observed, after)` is empty on a machine that is
right. Every change may be made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from errno import EADDRNOTAVAIL, EAFNOSUPPORT, EEXIST, ENODEV, ENOENT, ESRCH
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, if_indextoname, if_nametoindex
from typing import TypeVar

from appliance import arp, ndp, rtnl, wire
from appliance.state import Address, Link, LinkFact, Route, Rule
from appliance.wire import NetlinkError as NetlinkError

PROTOCOL = rtnl.PROTOCOL
MADE = frozenset({"wireguard", "xfrm"})  # kinds of links that we make
_SETTINGS = Path("/proc/sys/net/ipv4/conf")

P = TypeVar("P", Link, Address, Route, Rule)


class Netlink:
    """The machine's network by rtnetlink(7), on a socket that is kept. Any thread may call; calls take turns."""

    def __init__(self) -> None:
        # strict: the kernel filters dumps by what the request's header says
        self._channel = wire.Channel(wire.ROUTE, strict=True)
        self._packets = arp.open_socket()

    def close(self) -> None:
        self._channel.close()
        self._packets.close()

    @property
    def port(self) -> int:
        """The port that events.py reports for what this object did."""
        return self._channel.port

    # --- observe ---

    def facts(self) -> dict[str, LinkFact]:
        """All links that have a MAC, by it; where several share one (a VLAN and its parent), the oldest."""
        found: dict[str, LinkFact] = {}
        for link in sorted(self._links(), key=lambda link: link.index):
            if link.mac and link.kind not in MADE:
                found.setdefault(link.mac, link)
        return found

    def index(self, link: str) -> int:
        """The link's number, which no other link of this namespace ever had."""
        return self._link(f"find {link}", link).index

    def observe_links(self, wished: Iterable[Link]) -> tuple[Link, ...]:
        """The links that are wished for and there, as they are; an MTU that nobody wishes is not looked at."""
        there = {link.name: link for link in self._links()}
        return tuple(_known(_seen(w, found), {w: w}) for w in wished if (found := there.get(w.name)))

    def observe_addresses(self, links: Iterable[str], wished: Iterable[Address] = ()) -> tuple[Address, ...]:
        """All permanent addresses of these links, without the link-local ones of IPv6. One that floats is as wished."""
        known = {w: w for w in wished}
        floating = {(w.link, w.cidr): w for w in known if w.floating}
        return tuple(floating.values()) + tuple(
            _known(found, known)
            for name in dict.fromkeys(links)
            for found, _ in self._addresses(name)
            if (name, found.cidr) not in floating
        )

    def observe_routes(self, wished: Iterable[Route] = ()) -> tuple[Route, ...]:
        """All routes of ours, whatever their table. One that floats is as wished."""
        known = {w: w for w in wished}
        return tuple(w for w in known if w.floating) + tuple(
            _known(found, known)
            for body in self._dump_both("list routes", rtnl.GETROUTE, rtnl.route_question)
            if (found := rtnl.route_part(body, link_name))
        )

    def observe_rules(self, wished: Iterable[Rule] = ()) -> tuple[Rule, ...]:
        """All policy rules of ours."""
        known = {w: w for w in wished}
        return tuple(
            _known(found, known)
            for body in self._dump_both("list rules", rtnl.GETRULE, rtnl.rule_question)
            if (found := rtnl.rule_part(body))
        )

    def way(self, address: str) -> tuple[str, str, str]:
        """How a packet of ours gets to `address`: link, gateway or "", our source address. Raises NetlinkError."""
        answers = self._do(f"find the way to {address}", rtnl.GETROUTE, rtnl.way_question(address))
        index, gateway, source = rtnl.way(answers[0][1])
        return link_name(index), gateway, source

    # --- change ---

    def set_link(self, link: Link) -> None:
        """Give a link its MTU, and set it up or down. One that is not there is down."""
        what = f"set link {link.name}"
        if link.kind:
            self._make(link)
        try:
            found = self._link(what, link.name)
        except NetlinkError:
            if not link.up and link_is_gone(link.name):
                return
            raise
        if link.mac and found.mac != link.mac:
            if not link.up:
                return  # another link has the name now: the one that was meant is gone
            raise NetlinkError(what, f"it has the MAC {found.mac or 'of nobody'}, not {link.mac}")
        if found.up != link.up or link.mtu not in (0, found.mtu):
            self._do(what, rtnl.NEWLINK, rtnl.link_change(found.index, link.up, link.mtu))

    def _make(self, link: Link) -> None:
        """Make a link of ours where there is none; one of another kind that has its name goes."""
        what = f"make link {link.name}"
        if not link_is_gone(link.name):
            found = self._link(what, link.name)
            if (found.kind, found.if_id) == (link.kind, link.if_id):
                return
            if found.kind not in MADE:
                raise NetlinkError(what, f"there is an interface {link.name} that is none of ours")
            self.remove_link(link)
        self._is_new(what, rtnl.NEWLINK, rtnl.link_made(link.name, link.kind, link.if_id))

    def remove_link(self, link: Link) -> None:
        """Remove a link of ours, and with it all that it has."""
        if not link_is_gone(link.name):
            what = f"remove link {link.name}"
            self._do(what, rtnl.DELLINK, rtnl.link_gone(_index(what, link.name)), met=(ENODEV,))

    def add_address(self, address: Address) -> None:
        """Add an address. One that is there with another `connected` is removed first: no message changes that.
        One that floats is left to whoever has it."""
        if address.floating:
            return
        what = f"add address {address.cidr} on {address.link}"
        index = _index(what, address.link)
        body = rtnl.address_body(address, index)
        if not self._is_new(what, rtnl.NEWADDR, body):
            found = {a.cidr: a for a, _ in self._addresses(address.link)}.get(address.cidr)
            if found is not None and found.connected != address.connected:
                self.remove_address(found)
            if found is None or found.connected != address.connected:
                # None: it is not permanent, but lent by somebody's DHCP client; REPLACE makes it permanent
                self._do(what, rtnl.NEWADDR, body, wire.CREATE | wire.REPLACE)

    def remove_address(self, address: Address) -> None:
        """Remove an address, and only that: secondaries that the kernel would take along are put back."""
        what = f"remove address {address.cidr} on {address.link}"
        if link_is_gone(address.link):
            return  # and all its addresses with it
        index = _index(what, address.link)
        keep = [] if _promotes(address.link) else self._secondaries(address)
        self._do(what, rtnl.DELADDR, rtnl.address_body(address, index), met=(EADDRNOTAVAIL, ENODEV))
        for lost in keep:
            self.add_address(lost)

    def add_route(self, route: Route) -> None:
        """Add a route, in the place of the one with the same destination, table and metric. One that floats is left to
        whoever has it, and takes the place of one of ours."""
        if route.floating:
            self.remove_route(route)
            return
        what = f"add route {_route(route)}"
        body = rtnl.route_body(route, _index(what, route.link))
        self._do(what, rtnl.NEWROUTE, body, wire.CREATE | wire.REPLACE)

    def remove_route(self, route: Route) -> None:
        """Remove a route of ours, also one that was observed and that we have no words for (it has no link)."""
        what = f"remove route {_route(route)}"
        if route.link and link_is_gone(route.link):
            return  # the kernel removed the routes with the link
        body = rtnl.route_body(route, _index(what, route.link) if route.link else 0, gone=True)
        self._do(what, rtnl.DELROUTE, body, met=(ESRCH, ENODEV))

    def add_rule(self, rule: Rule) -> None:
        """Add a policy rule. An equal one of somebody else's does not count: it would go when they want it to."""
        what = f"add rule {_rule(rule)}"
        body = rtnl.rule_body(rule)
        if not self._is_new(what, rtnl.NEWRULE, body) and rule not in self.observe_rules():
            self._do(what, rtnl.NEWRULE, body, wire.CREATE)

    def remove_rule(self, rule: Rule) -> None:
        """Remove a policy rule of ours."""
        self._do(f"remove rule {_rule(rule)}", rtnl.DELRULE, rtnl.rule_body(rule), met=(ENOENT, ESRCH))

    def announce(self, link: str, cidr: str) -> bool:
        """Gratuitous ARP, or in IPv6 an advertisement, without waiting; False where none could be sent."""
        address = cidr.partition("/")[0]
        if link_is_gone(link):
            return False
        mac = self._link(f"announce {cidr} on {link}", link).mac
        return bool(mac) and (ndp if ":" in address else arp).announce(self._packets, link, mac, address)

    # --- inside ---

    def _links(self) -> list[LinkFact]:
        return [rtnl.link_fact(b) for b in self._dump("list links", rtnl.GETLINK, rtnl.link_question())]

    def _link(self, what: str, name: str) -> LinkFact:
        return rtnl.link_fact(self._do(what, rtnl.GETLINK, rtnl.link_question(name))[0][1])

    def _addresses(self, link: str) -> list[tuple[Address, bool]]:
        """(address, is it a secondary) of a link; nothing of one that is not there."""
        if link_is_gone(link):
            return []
        what = f"list addresses of {link}"
        question = partial(rtnl.address_question, index=_index(what, link))
        bodies = self._dump_both(what, rtnl.GETADDR, question)
        return [found for body in bodies if (found := rtnl.address_part(body, link))]

    def _secondaries(self, address: Address) -> list[Address]:
        """The addresses that go with this one where the kernel does not promote them; none if it is one itself."""
        found = self._addresses(address.link)
        if any(secondary for there, secondary in found if there.cidr == address.cidr):
            return []
        return [there for there, secondary in found if secondary]

    def _is_new(self, what: str, kind: int, body: bytes) -> bool:
        """Add; False where there was one like it."""
        try:
            self._channel.ask(kind, body, wire.CREATE | wire.EXCL)
        except wire.KernelError as refusal:
            if refusal.errno != EEXIST:
                raise NetlinkError(what, wire.words(refusal)) from None
            return False
        except OSError as error:
            raise NetlinkError(what, wire.words(error)) from None
        return True

    def _do(self, what: str, kind: int, body: bytes, flags: int = 0, met: tuple[int, ...] = ()) -> list[wire.Message]:
        """Ask for a change; an errno in `met` says that it is as wished already."""
        try:
            return self._channel.ask(kind, body, flags)
        except wire.KernelError as refusal:
            if refusal.errno in met:
                return []
            raise NetlinkError(what, wire.words(refusal)) from None
        except OSError as error:
            raise NetlinkError(what, wire.words(error)) from error

    def _dump_both(self, what: str, kind: int, question: Callable[[int], bytes]) -> list[bytes]:
        """Both address families' entries. A kernel without IPv6 refuses, or answers with what it has: not asked for."""
        return [
            body
            for family in (AF_INET, AF_INET6)
            for body in self._dump(what, kind, question(family))
            if body[0] == family
        ]

    def _dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        try:
            return [found for _, found in self._channel.dump(kind, body)]
        except wire.KernelError as refusal:
            if refusal.errno == EAFNOSUPPORT:
                return []
            raise NetlinkError(what, wire.words(refusal)) from None
        except OSError as error:
            raise NetlinkError(what, wire.words(error)) from None


def _seen(wished: Link, found: LinkFact) -> Link:
    """A link as it is. One that should be ours and is of another kind has that kind's absence."""
    mtu = found.mtu if wished.mtu else 0
    if not wished.kind:
        return Link(wished.name, found.mac, mtu, found.up)
    is_it = (found.kind, found.if_id) == (wished.kind, wished.if_id)
    return Link(wished.name, "", mtu, found.up, wished.kind, wished.if_id) if is_it else Link(wished.name, "", mtu)


def _known(found: P, wished: Mapping[P, P]) -> P:
    """The wished part itself where what was found equals it: it knows its owner."""
    return wished.get(found, found)


def link_name(index: int) -> str:
    """The name of the link with this index, "" where there is none (any more)."""
    try:
        return if_indextoname(index)
    except OSError:
        return ""


def link_is_gone(name: str) -> bool:
    """There is no link of this name."""
    try:
        return not if_nametoindex(name)
    except OSError:
        return True


def _index(what: str, link: str) -> int:
    try:
        return if_nametoindex(link)
    except OSError:
        raise NetlinkError(what, f"ENODEV: there is no interface {link}") from None


def _promotes(link: str) -> bool:
    """Does the kernel make a secondary the primary when that is removed? (ip-sysctl: for `all` or for this link)"""
    try:
        return any((_SETTINGS / name / "promote_secondaries").read_text()[0] == "1" for name in ("all", link))
    except OSError:
        return False


def _route(route: Route) -> str:
    return f"{route.destination} via {route.via or route.link} table {route.table}"


def _rule(rule: Rule) -> str:
    return f"{rule.priority} to table {rule.table}"
