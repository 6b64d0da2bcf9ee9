"""Whether a document's two members can be one router: their interfaces, and the addresses that stay with each.

No address that stays with a member may lie in a guest network, nor in any other subnet of the router: a backup would
route by it, and its DHCP server answer from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.state import Facts, Problem
from appliance.values import bounds, is_v6, subnet
from router.config import Config, Interface
from router.config_redundancy import Redundancy
from router.redundancy import addresses_of, control_mac, mac_of, member_of


def redundancy_problems(config: Config) -> Iterator[Problem]:
    """All that is wrong with `redundancy`; nothing where a router is alone."""
    redundancy = config.redundancy
    if redundancy is None:
        return
    interfaces = {i.id: i for i in config.interfaces}
    yield from _members(redundancy, interfaces)
    yield from _macs(redundancy, interfaces)
    yield from _own_addresses(config, redundancy, interfaces)
    yield from _meeting(redundancy, interfaces)
    yield from _tracks(redundancy, interfaces)


def plugged_problems(config: Config, facts: Facts) -> Iterator[Problem]:
    """What of a redundant document does not fit this machine."""
    redundancy = config.redundancy
    assert redundancy
    me = member_of(config, facts)
    if me is None:
        wanted = ", ".join(f"{m.id} {control_mac(config, m)}" for m in redundancy.members)
        has = ", ".join(sorted(facts.links))
        told = f"this machine is no member: their control interfaces are {wanted}; it has {has}"
        yield Problem("config.redundancy.members", f"{told}; correct the MACs")
        return
    if facts.control and control_mac(config, me) != facts.control:
        told = f"the control interface of this machine is {facts.control} by its seed"
        yield Problem(f"config.redundancy.members[{me.id}].interfaces", f"{told}; correct the MAC")
    for interface in config.interfaces:
        mac = mac_of(interface, me)
        if mac not in facts.links:
            told = f"no interface with MAC {mac} ({interface.id}) is plugged; it has: {', '.join(sorted(facts.links))}"
            yield Problem(f"config.redundancy.members[{me.id}].interfaces", told)


def _members(redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    first, second = redundancy.members
    path = "config.redundancy.members"
    if first.id == second.id:
        yield Problem(f"{path}[{first.id}].id", "both members have this id; give each its own")
    if first.priority == second.priority:
        told = f"both members have the priority {first.priority}; who is to be the router? Give them two"
        yield Problem(f"{path}[{second.id}].priority", told)
    for member in redundancy.members:
        named = [s.interface for s in member.interfaces]
        for name in dict.fromkeys(named):
            here = f"{path}[{member.id}].interfaces"
            if name not in interfaces:
                yield Problem(here, f"there is no interface {name}; there are: {', '.join(sorted(interfaces))}")
            if named.count(name) > 1:
                yield Problem(here, f"{name} is named {named.count(name)} times; name it once")


def _macs(redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    """Each link has a MAC of its own, among both members'."""
    seen: dict[str, str] = {}
    for member in redundancy.members:
        for interface in interfaces.values():
            mac, here = mac_of(interface, member), f"{interface.id} of {member.id}"
            if mac in seen:
                told = f"{here} and {seen[mac]} have one MAC, {mac}; name each interface of this member with its own"
                yield Problem(f"config.redundancy.members[{member.id}].interfaces", told)
            seen.setdefault(mac, here)


def _own_addresses(config: Config, redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    for member in redundancy.members:
        path = f"config.redundancy.members[{member.id}].interfaces"
        for interface in interfaces.values():
            for cidr in addresses_of(interface, member):
                if interface.use == "control":
                    continue
                for whose, other in _others(config):
                    if _overlap(cidr, other):
                        told = f"{cidr} stays with this member and overlaps {other} of {whose}, which is the router's"
                        yield Problem(path, f"{told}; take a subnet of its own, as 169.254.51.0/30")
    yield from _one_address(redundancy, interfaces)


def _others(config: Config) -> Iterator[tuple[str, str]]:
    """(who, subnet) of all subnets that the router has."""
    for other in config.interfaces:
        yield from ((other.id, subnet(cidr)) for cidr in other.addresses)
    for network in config.networks:
        yield from ((network.id, cidr) for cidr in (network.cidr, network.cidr6) if cidr)


def _overlap(cidr: str, other: str) -> bool:
    if is_v6(cidr) is not is_v6(other):
        return False
    (first, last), (low, high) = bounds(cidr), bounds(other)
    return first <= high and low <= last


def _one_address(redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    """No two members have one address, the control interface's among them."""
    first, second = redundancy.members
    for interface in interfaces.values():
        own = [addresses_of(interface, m) for m in (first, second)]
        if interface.use == "control":
            own = [found or interface.addresses for found in own]
        both = {c.partition("/")[0] for c in own[0]} & {c.partition("/")[0] for c in own[1]}
        for address in sorted(both):
            told = f"{address} on {interface.id} is {first.id}'s too; give each member its own"
            yield Problem(f"config.redundancy.members[{second.id}].interfaces", told)


def _meeting(redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    """Where they meet: both have an IPv4 address there, in one subnet."""
    path = "config.redundancy.interface"
    interface = interfaces.get(redundancy.interface)
    if interface is None:
        yield Problem(path, f"there is no interface {redundancy.interface}; there are: {', '.join(sorted(interfaces))}")
        return
    if interface.use not in ("guest", "private"):
        yield Problem(path, f"{interface.id} is {interface.use}; the members meet on a guest or private interface")
        return
    nets = {}
    for member in redundancy.members:
        own = [cidr for cidr in addresses_of(interface, member) if not is_v6(cidr)]
        if not own:
            here = f"config.redundancy.members[{member.id}].interfaces"
            yield Problem(here, f"it has no IPv4 address of its own on {interface.id}, where they meet; add one")
        else:
            nets[member.id] = subnet(own[0])
    if len(set(nets.values())) > 1:
        told = ", ".join(f"{name} is in {net}" for name, net in nets.items())
        yield Problem(path, f"the members are not in one subnet there: {told}; correct their addresses")


def _tracks(redundancy: Redundancy, interfaces: Mapping[str, Interface]) -> Iterator[Problem]:
    seen: set[str] = set()
    for track in redundancy.track:
        path = f"config.redundancy.track[{track.interface}]"
        if track.interface not in interfaces:
            yield Problem(path, f"there is no interface {track.interface}; there are: {', '.join(sorted(interfaces))}")
        if track.interface in seen:
            yield Problem(path, "it is named twice; name it once")
        if track.weight and not redundancy.preempt:
            yield Problem(path, "a weight says nothing where nobody preempts; leave it out, or set preempt")
        seen.add(track.interface)
