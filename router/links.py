"""Interfaces: their links, addresses and the kernel settings that a router needs.

A document names an interface by its MAC; which name the kernel gave it is a fact of the machine
(`facts.links`), and this is where the two meet. Everything here is sorted by the interface's id, for the
order of a document means nothing; the addresses of one interface keep theirs, for the first is the
interface's own.

A public address brings no route for its subnet: with several uplinks that subnet belongs in the uplink's own
table (routing.py), or answers would leave by whichever uplink was plugged first.

The settings are those of one network namespace (net.*), by link where the kernel would otherwise take the
larger of `all` and the link's own. There is none of conntrack's, for their keys exist only once its module is
in use, and their defaults are right: nf_conntrack_tcp_loose=1 lets flows live on through a router that is
built anew, and each of them is judged as new.
"""

from __future__ import annotations

from typing import Protocol

from appliance.state import Address, Facts, Link, State, Sysctl
from appliance.values import address_text, bounds, is_v6
from router.config import Config, Interface
from router.family import speaks_v6

# ip_forward stands first: writing it sets the others back to the defaults of a host or a router (ip-sysctl).
_ALL = (
    ("net.ipv4.ip_forward", "1"),
    (
        "net.ipv4.conf.all.rp_filter",
        "0",
    ),  # the ruleset judges sources; with uplink tables strict would drop answers
    ("net.ipv4.conf.all.send_redirects", "0"),  # a hairpin leaves by the link it came in by: that is meant
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.all.accept_source_route", "0"),
    ("net.ipv4.conf.all.arp_ignore", "1"),  # an address is answered for on its own link only
    ("net.ipv4.conf.all.arp_announce", "2"),
    ("net.ipv4.conf.all.promote_secondaries", "1"),  # removing the first address leaves the others
)
_EACH = (
    ("net.ipv4.conf.{}.rp_filter", "0"),  # effective: the larger of `all` and the link's
    ("net.ipv4.conf.{}.send_redirects", "0"),  # effective: `all` or the link's
    ("net.ipv6.conf.{}.accept_ra", "0"),  # a guest must not become the router's router
)

# A guest that claims the router's link-local address while the kernel asks for it would take it, and IPv6, away.
_EACH6 = (("net.ipv6.conf.{}.accept_dad", "0"),)


def compile_links(config: Config, facts: Facts) -> State:
    """The sysctls, links and addresses of all interfaces."""
    interfaces = sorted(config.interfaces, key=lambda i: i.id)
    return State(
        sysctls=(
            *(Sysctl(key, value) for key, value in _ALL),
            Sysctl("net.ipv6.conf.all.forwarding", "1" if speaks_v6(config) else "0"),
            *(s for i in interfaces for s in _settings(i, link_name(i, facts), speaks_v6(config))),
        ),
        links=tuple(Link(link_name(i, facts), i.mac, i.mtu, owner=i.id) for i in interfaces),
        addresses=tuple(
            Address(link_name(i, facts), cidr, connected=i.use != "public", owner=i.id)
            for i in interfaces
            for cidr in i.addresses
        ),
    )


def _settings(interface: Interface, link: str, v6: bool) -> list[Sysctl]:
    # sysctl(8) writes a dot inside a name as a slash: eth0.100 is net.ipv4.conf.eth0/100.rp_filter
    name = link.replace(".", "/")
    return [Sysctl(key.format(name), value, interface.id) for key, value in (*_EACH, *(_EACH6 if v6 else ()))]


def link_name(interface: Interface, facts: Facts) -> str:
    """What the machine calls an interface. Raises LookupError where it isn't plugged."""
    try:
        return facts.links[interface.mac].name
    except KeyError:
        raise LookupError(f"no interface with MAC {interface.mac} ({interface.id}) is plugged") from None


def link_names(config: Config, facts: Facts, *uses: str) -> dict[str, Interface]:
    """The interfaces of these uses by the name of their link, sorted by id."""
    found = sorted((i for i in config.interfaces if i.use in uses), key=lambda i: i.id)
    return {link_name(i, facts): i for i in found}


class Addressed(Protocol):
    """What has addresses of the router's own, each with its length: an interface, or a tunnel's device."""

    @property
    def addresses(self) -> tuple[str, ...]: ...


def own_addresses(interface: Addressed, v6: bool = False) -> tuple[str, ...]:
    """An interface's addresses of a family without their length, its own first."""
    return tuple(cidr.partition("/")[0] for cidr in interface.addresses if is_v6(cidr) is v6)


def any_routers(interface: Addressed) -> tuple[str, ...]:
    """The address that is any router's in each of an interface's IPv6 subnets: the kernel makes it ours, and nobody has
    it as a source (RFC 4291, 2.6.1). A /127 and a single address have none (RFC 6164)."""
    nets = (c for c in interface.addresses if is_v6(c) and not c.endswith(("/127", "/128")))
    return tuple(dict.fromkeys(address_text(bounds(c)[0], v6=True) for c in nets))
