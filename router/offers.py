"""What the router answers itself (README.md, 8), in chain `input` behind what every chain asks (firewall.py).

    s_own, s_own6            link . address -> a neighbour may ping it there
    s_service, s_service6    link . address . protocol . port: DHCP, DNS, and the doors of other features (doors.py)
    s_service_from, s_service_from6  link . address . source . protocol . port: doors for one neighbour; where there are
    s_protocol, s_protocol6  link . address . protocol: doors of protocols without ports; there while there are any

A public address answers whatever its firewall lets in: that has judged before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Facts, FieldName, FilterRule, Match, NftSet, Verdict
from appliance.values import bounds, contains, dotted, is_v6, number
from router.config import Config, Interface, Network
from router.doors import Door
from router.links import link_names, own_addresses
from router.tunnels import devices

ACCEPT = Verdict("accept")
PORT_KEY = "ipv4_addr . inet_proto . inet_service"
CONTROL_PORT = "3922"
DHCP_SERVERS = "ff02::1:2"  # all of a link (RFC 8415, 7.1)

_ECHO = Match(("icmp type",), ("8",))
_ECHO6 = Match(("icmpv6 type",), ("128",))


def offers(config: Config, facts: Facts, opened: tuple[Door, ...]) -> tuple[FilterRule, ...]:
    """What chain `input` accepts of new packets."""
    control = Match(("iifname",), tuple(link_names(config, facts, "control")))
    to_one = Match(("fib daddr type",), ("local",))  # nobody manages a router by broadcast
    manager = (control, to_one, Match(("meta l4proto",), ("tcp",)), Match(("th dport",), (CONTROL_PORT,)))
    here: tuple[FieldName, ...] = ("iifname", "ip daddr")
    here6: tuple[FieldName, ...] = ("iifname", "ip6 daddr")
    inner = Match(("iifname",), tuple(link_names(config, facts, "guest", "private", "control")))
    by_link = Match(("ip6 daddr",), ("fe80::/10",))  # the router's address in its advertisements
    return (
        FilterRule(manager, ACCEPT, "the manager"),
        FilterRule((control, to_one, _ECHO), ACCEPT, "the manager's ping"),
        FilterRule((control, to_one, _ECHO6), ACCEPT, "the manager's ping"),
        FilterRule((Match(("ip daddr",), set="s_public"),), ACCEPT, "the firewall has judged it"),
        FilterRule((Match(("ip6 daddr",), set="s_public6"),), ACCEPT, "the firewall has judged it"),
        FilterRule((Match(here, set="s_own"), _ECHO), ACCEPT, "ping from a neighbour"),
        FilterRule((Match(here6, set="s_own6"), _ECHO6), ACCEPT, "ping from a neighbour"),
        FilterRule((inner, by_link, _ECHO6), ACCEPT, "ping from a neighbour"),
        FilterRule((Match((*here, "meta l4proto", "th dport"), set="s_service"),), ACCEPT, "DHCP, DNS"),
        FilterRule((Match((*here6, "meta l4proto", "th dport"), set="s_service6"),), ACCEPT, "DHCPv6, DNS"),
        *(
            FilterRule((Match((*fields, "meta l4proto", "th dport"), set=name),), ACCEPT, "one neighbour's own")
            for name, fields in (("s_service_from", (*here, "ip saddr")), ("s_service_from6", (*here6, "ip6 saddr")))
            if any(_is_from(d) and is_v6(d.address) is name.endswith("6") for d in opened)
        ),
        *(
            FilterRule((Match((*fields, "meta l4proto"), set=name),), ACCEPT, "a protocol without ports")
            for name, fields in (("s_protocol", here), ("s_protocol6", here6))
            if any(_is_protocol(d) and is_v6(d.address) is (name == "s_protocol6") for d in opened)
        ),
    )


def _is_protocol(door: Door) -> bool:
    return not door.public and not door.port


def _is_from(door: Door) -> bool:
    return not door.public and bool(door.port and door.source)


def asked_at(config: Config, facts: Facts, opened: tuple[Door, ...]) -> Iterator[NftSet]:
    """s_own: where a neighbour may ping the router; s_service: where a guest may ask it; s_protocol: the same, of
    protocols without ports, where there is such a door."""
    own: dict[str, str] = {}
    services = _at(opened, v6=False)
    for link, interface in link_names(config, facts, "guest", "private").items():
        networks = [n for n in config.networks if n.interface == interface.id]
        for address in own_addresses(interface):
            own[f"{link} . {address}"] = interface.id
        for network in networks:
            for address in _asked_at(network, interface):
                own[f"{link} . {address}"] = interface.id
                services.update((f"{link} . {address} . {s}", network.id) for s in _services(network))
    own.update((f"{d.link} . {a}", d.id) for d in devices(config).values() for a in own_addresses(d))
    yield NftSet("s_own", "ifname . ipv4_addr", elements=dict.fromkeys(own, ""), owners=own)
    key = f"ifname . {PORT_KEY}"
    yield NftSet("s_service", key, elements=dict.fromkeys(services, ""), owners=services)
    yield from _own6(config, facts, opened)
    for name, of, v6 in (("s_service_from", "ipv4_addr", False), ("s_service_from6", "ipv6_addr", True)):
        some = [d for d in opened if _is_from(d) and is_v6(d.address) is v6]
        found = {f"{d.link} . {d.address} . {d.source} . {d.protocol} . {d.port}": d.owner for d in some}
        if found:
            key = f"ifname . {of} . {of} . inet_proto . inet_service"
            yield NftSet(name, key, elements=dict.fromkeys(found, ""), owners=found)
    for name, of, v6 in (("s_protocol", "ipv4_addr", False), ("s_protocol6", "ipv6_addr", True)):
        found = {f"{d.link} . {d.address} . {d.protocol}": d.owner for d in opened if _is_protocol(d)}
        found = {key: owner for key, owner in found.items() if (":" in key) is v6}
        if found:
            yield NftSet(name, f"ifname . {of} . inet_proto", elements=dict.fromkeys(found, ""), owners=found)


def _at(opened: Iterable[Door], v6: bool) -> dict[str, str]:
    """The doors of a family with a port, as keys of s_service, with their owners."""
    inner = (d for d in opened if d.port and not d.public and not d.source and is_v6(d.address) is v6)
    return {f"{d.link} . {d.address} . {d.protocol} . {d.port}": d.owner for d in inner}


def _own6(config: Config, facts: Facts, opened: tuple[Door, ...]) -> Iterator[NftSet]:
    """The same in IPv6, where who has no address yet asks a group."""
    own: dict[str, str] = {}
    services = _at(opened, v6=True)
    for link, interface in link_names(config, facts, "guest", "private").items():
        for address in own_addresses(interface, v6=True):
            own[f"{link} . {address}"] = interface.id
            for n in config.networks:
                if n.interface == interface.id and n.cidr6 and n.dns and contains(n.cidr6, address):
                    services.update((f"{link} . {address} . {s}", n.id) for s in ("udp . 53", "tcp . 53"))
        for n in config.networks:
            if n.interface == interface.id and n.cidr6 and n.advertise.addresses != "off":
                services[f"{link} . {DHCP_SERVERS} . udp . 547"] = n.id
    own.update((f"{d.link} . {a}", d.id) for d in devices(config).values() for a in own_addresses(d, v6=True))
    yield NftSet("s_own6", "ifname . ipv6_addr", elements=dict.fromkeys(own, ""), owners=own)
    key = "ifname . ipv6_addr . inet_proto . inet_service"
    yield NftSet("s_service6", key, elements=dict.fromkeys(services, ""), owners=services)


def _asked_at(network: Network, interface: Interface) -> Iterator[str]:
    """The router's addresses in a network, and the broadcasts by which a guest without an address asks."""
    first, last = bounds(network.cidr)
    yield from (a for a in own_addresses(interface) if first <= number(a) <= last)
    yield dotted(last)
    yield "255.255.255.255"


def _services(network: Network) -> Iterator[str]:
    if network.dhcp.enabled:
        yield "udp . 67"
    if network.dns:
        yield "udp . 53"
        yield "tcp . 53"
