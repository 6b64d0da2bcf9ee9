"""Places: where each guest network meets the router, the one thing that DHCP and DNS both build on.

A network is a subnet of one of its interface's addresses; that address is the router in it, whatever other addresses
and networks the interface carries.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.state import Facts
from appliance.values import is_v6, subnet
from router.config import Config, Interface, Network
from router.links import link_name


@dataclass(frozen=True, slots=True)
class Place:
    """A network, its interface, the name of the interface's link, and the router's address in the network: in IPv4,
    and in IPv6 ("" where the network has none)."""

    network: Network
    interface: Interface
    link: str
    router: str
    router6: str = ""


def places(config: Config, facts: Facts) -> tuple[Place, ...]:
    """The places of all IPv4 networks, sorted by the network's id.

    Raises LookupError where an interface isn't plugged or has no address in the network (checks.py has said so).
    """
    interfaces = {i.id: i for i in config.interfaces}
    networks = sorted((n for n in config.networks if not is_v6(n.cidr)), key=lambda n: n.id)
    return tuple(_place(n, interfaces[n.interface], facts) for n in networks)


def _place(network: Network, interface: Interface, facts: Facts) -> Place:
    router = _address_in(network.cidr, interface)
    if not router:
        raise LookupError(f"interface {interface.id} has no address in {network.cidr}, network {network.id}")
    router6 = _address_in(network.cidr6, interface) if network.cidr6 else ""
    return Place(network, interface, link_name(interface, facts), router, router6)


def _address_in(net: str, interface: Interface) -> str:
    """The interface's first address in a subnet, "" where it has none."""
    return next((cidr.partition("/")[0] for cidr in interface.addresses if subnet(cidr) == net), "")
