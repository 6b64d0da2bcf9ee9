"""Networks' IPv6: whether the prefix is the interface's, and what guests are told of it can be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.state import Problem
from appliance.values import is_v6, subnet
from router.config import Advertise, Config, Interface, Network
from router.topology import listed, only


def advertise_problems(config: Config) -> Iterator[Problem]:
    """Each network by itself, then those of one interface, of which the router says one thing."""
    interfaces = {i.id: i for i in config.interfaces}
    told: dict[str, Network] = {}
    for network in config.networks:
        path = f"config.networks[{network.id}]"
        yield from _prefix(network, interfaces, path)
        if network.cidr6 is None or network.advertise.addresses == "off":
            continue
        other = told.setdefault(network.interface, network)
        if other.advertise.default is not network.advertise.default:
            words = f"network {other.id} of the same interface says {str(other.advertise.default).lower()}"
            yield Problem(f"{path}.advertise.default", f"{words}, and an advertisement is for both; say the same")


def _prefix(network: Network, interfaces: Mapping[str, Interface], path: str) -> Iterator[Problem]:
    """A network's prefix, and how guests get their addresses in it."""
    advertise, cidr, interface = network.advertise, network.cidr6, interfaces.get(network.interface)
    if cidr is None:
        if advertise != Advertise():
            yield Problem(f"{path}.advertise", "the network has no IPv6 prefix to tell of; add cidr6, or remove this")
        return
    if not is_v6(cidr):
        yield Problem(f"{path}.cidr6", f"{cidr} is IPv4; write it as cidr, and here the IPv6 prefix")
        return
    if interface and cidr not in (found := [subnet(a) for a in interface.addresses if is_v6(a)]):
        told = f"{cidr} is no subnet of interface {interface.id}; those of IPv6 are: {listed(found) or 'none'}"
        yield Problem(f"{path}.cidr6", f"{told}; add the router's address there, or correct the cidr6")
    length = int(cidr.partition("/")[2])
    if advertise.addresses == "slaac" and length != 64:
        told = f"guests choose addresses in a /64 alone (RFC 4862), and this is a /{length}"
        yield Problem(f"{path}.cidr6", f"{told}; take a /64, or say stateful or off in advertise.addresses")
    elif advertise.addresses == "stateful" and length < 64:
        told = f"a link has 64 bits of hosts at most (RFC 4291, 2.5.4), and this is a /{length}"
        yield Problem(f"{path}.cidr6", f"{told}; take a /64")
    yield from only(f"{path}.advertise.dns", advertise.dns or (), v6=True)
