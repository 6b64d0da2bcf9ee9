"""Who can be behind which link: a new packet whose source cannot have come from there is dropped (README.md, 0).

    m_sender         subnets of guest, private and control interfaces -> behind_<interface>
    behind_<...>     came in by that interface: go on; else it is a lie
    senders          asks m_sender; what is in none of the subnets is a stranger: no guest interface has any

The kernel's own check (rp_filter) would ask the routing tables, which lead a marked packet by its uplink's, and drop
good answers. It still drops, whatever we say, what comes from one of the router's own addresses or a broadcast one.
"""

from __future__ import annotations

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Verdict, VerdictMap
from appliance.values import merged, subnet
from router.config import Config
from router.links import link_names

DROP, RETURN = Verdict("drop"), Verdict("return")


def compile_senders(config: Config, facts: Facts) -> State:
    """Chain `senders`, to which ingress (firewall.py) sends every new packet, with its map and chains."""
    inner = link_names(config, facts, "guest", "private", "control")
    homes = {cidr: i for i in inner.values() for cidr in merged(tuple(map(subnet, i.addresses)))}
    elements = {cidr: f"goto behind_{i.id}" for cidr, i in homes.items()}
    owners = {cidr: i.id for cidr, i in homes.items()}
    at_home = [
        Chain(
            f"behind_{i.id}",
            (
                FilterRule((Match(("iifname",), (link,)),), RETURN, "it lives there", i.id),
                FilterRule((), DROP, "its source lives elsewhere", i.id, counter=True),
            ),
        )
        for link, i in inner.items()
        if i.addresses
    ]
    return State(
        ruleset=Ruleset(
            {"m_sender": NftSet("m_sender", "ipv4_addr", "verdict", True, elements, owners)},
            (Chain("senders", _rules()), *at_home),
        )
    )


def _rules() -> tuple[FilterRule, ...]:
    guest, v4 = Match(("iifname",), set="s_guest"), Match(("meta nfproto",), ("ipv4",))
    nobody, everyone = Match(("ip saddr",), ("0.0.0.0",)), Match(("ip daddr",), ("255.255.255.255",))
    return (
        FilterRule((), VerdictMap(("ip saddr",), "m_sender"), "who lives where"),
        FilterRule((guest, nobody, everyone), RETURN, "a guest that asks for an address"),
        # IPv6 goes on to the chains that drop it: they let neighbour discovery be (README.md, 8).
        FilterRule((guest, v4), DROP, "a stranger among guests", counter=True),
    )
