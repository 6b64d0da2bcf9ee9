"""Who can be behind which link: a new packet whose source cannot have come from there is dropped (README.md, 0).

    m_sender, m_sender6
                     subnets of guest, private and control interfaces -> behind_<interface>; CIDRs of tunnels ->
                     beyond_<device> (tunnels.py)
    behind_<...>     came in by that interface: go on; else it is a lie
    senders          asks m_sender; what is in none of the subnets is a stranger: no guest interface has any

The kernel's own check (rp_filter) would ask the routing tables, which lead a marked packet by its uplink's, and drop
good answers. It still drops, whatever we say, what comes from one of the router's own IPv4 addresses or a broadcast
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Verdict, VerdictMap
from appliance.values import is_v6, merged, subnet
from router.config import Config, Interface
from router.family import speaks_v6, spoken, spoken_sets
from router.links import any_routers, link_names, own_addresses
from router.tunnels import Device, behind, devices, tunnels

DROP, RETURN = Verdict("drop"), Verdict("return")
NOBODYS6 = ("::/127", "ff00::/8")  # who has no address yet asks his neighbours, and that ingress takes before
LINK_LOCAL = ("fe80::/10",)


def compile_senders(config: Config, facts: Facts) -> State:
    """Chain `senders`, to which ingress (firewall.py) sends every new packet, with its map and chains."""
    inner = link_names(config, facts, "guest", "private", "control")
    known = devices(config)
    places: tuple[Interface | Device, ...] = (*config.interfaces, *known.values())
    own = {a: i.id for i in places for a in (*own_addresses(i, v6=True), *any_routers(i))}
    at_home = [_home(f"behind_{i.id}", link, i.id) for link, i in inner.items() if i.addresses]
    at_home += [_home(f"beyond_{d.id}", d.link, d.id) for d in known.values()]
    self6 = NftSet("s_self6", "ipv6_addr", elements=dict.fromkeys(own, ""), owners=own)
    v6 = speaks_v6(config)
    return State(
        ruleset=Ruleset(
            spoken_sets((*_homes(config, inner.values()), self6), v6),
            (Chain("senders", spoken(_rules(), v6)), *at_home),
        )
    )


def _home(name: str, link: str, owner: str) -> Chain:
    return Chain(
        name,
        (
            FilterRule((Match(("iifname",), (link,)),), RETURN, "it lives there", owner),
            FilterRule((), DROP, "its source lives elsewhere", owner, counter=True),
        ),
    )


def _homes(config: Config, inner: Iterable[Interface]) -> Iterator[NftSet]:
    """m_sender of each family: an inner interface's subnets, or what is behind a tunnel -> the chain that knows its
    link."""
    far = tunnels(config)
    for name, key, v6 in (("m_sender", "ipv4_addr", False), ("m_sender6", "ipv6_addr", True)):
        homes = {cidr: i for i in inner for cidr in merged(tuple(subnet(a) for a in i.addresses if is_v6(a) is v6))}
        leads = {cidr: f"goto behind_{i.id}" for cidr, i in homes.items()}
        owners = {cidr: i.id for cidr, i in homes.items()}
        for cidr, tunnel in behind(far, v6).items():
            leads[cidr], owners[cidr] = f"goto beyond_{tunnel.device.id}", tunnel.owner
        yield NftSet(name, key, "verdict", True, leads, owners)


def _rules() -> tuple[FilterRule, ...]:
    guest, v4 = Match(("iifname",), set="s_guest"), Match(("meta nfproto",), ("ipv4",))
    nobody, everyone = Match(("ip saddr",), ("0.0.0.0",)), Match(("ip daddr",), ("255.255.255.255",))
    return (
        FilterRule((), VerdictMap(("ip saddr",), "m_sender"), "who lives where"),
        FilterRule((guest, nobody, everyone), RETURN, "a guest that asks for an address"),
        FilterRule((guest, v4), DROP, "a stranger among guests", counter=True),
        FilterRule((Match(("ip6 saddr",), set="s_self6"),), DROP, "one of the router's own addresses", counter=True),
        FilterRule((Match(("ip6 saddr",), NOBODYS6),), DROP, "nobody's address", counter=True),
        FilterRule((Match(("ip6 daddr",), ("::/127",)),), DROP, "to nobody's address", counter=True),
        FilterRule((), VerdictMap(("ip6 saddr",), "m_sender6"), "who lives where"),
        FilterRule((Match(("ip6 saddr",), LINK_LOCAL),), RETURN, "of a link alone: the kernel sends none on"),
        FilterRule((guest, Match(("meta nfproto",), ("ipv6",))), DROP, "a stranger among guests", counter=True),
    )
