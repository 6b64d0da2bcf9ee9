"""ACLs: what goes in and out of the tiers of a VPC, and of what is behind its private gateways.

    m_acl_from, m_acl_from6  a network's cidr -> acl_<acl>_egress        (its source is no lie: senders.py)
    m_acl_from_link          a private link   -> acl_<acl>_egress
    m_acl_to, m_acl_to6      a network's cidr -> into_<network>: not out by its link: return; acl_<acl>_ingress
    m_acl_to_link            a private link   -> acl_<acl>_ingress
    acl_<...>                the items in their order: allow returns, deny drops; at the end the list's default

Chain `forward` (firewall.py) asks these of every new packet, after its translation: an ACL judges where a packet
really goes. One list serves both families: an item whose CIDRs are of both is a rule for each. What comes back from
them is allowed as far as ACLs are concerned; `between` then accepts what no other rule would: from tier to tier, and
from a private gateway into a tier.

    s_tier, s_tier6          the cidrs of tiers
    m_tier, m_tier6          a tier's cidr -> tier_<network>: out by its link: accept

An ordered list is one chain of as many rules: a new flow asks them one after the other, its later packets none. A
change of its order is that chain written anew, in the one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Touched, Verdict, VerdictMap
from router.config import Acl, Config, Interface, Network
from router.family import speaks_v6, spoken, spoken_sets
from router.gate import Screen, ends, family_of, rewritten, serving
from router.links import link_name

ACCEPT, DROP, RETURN = Verdict("accept"), Verdict("drop"), Verdict("return")
Side = Literal["ingress", "egress"]
SIDES: tuple[Side, Side] = ("ingress", "egress")


def compile_acl(config: Config, facts: Facts) -> State:
    """The sets and chains of the ACLs that somebody names; nothing in a document without one."""
    named = _named(config)
    if not named:
        return State()
    links = {i.id: link_name(i, facts) for i in config.interfaces}
    screens = [_list(acl, side) for acl in config.acls if acl.id in named for side in SIDES]
    sets = spoken_sets(_places(config, links), speaks_v6(config))
    sets.update((s.name, s) for found in screens for s in found.sets)
    return State(
        ruleset=Ruleset(
            sets,
            (
                *(found.chain for found in screens),
                *(_into(n, links[n.interface]) for n in tiers(config)),
                *(_tier(n, links[n.interface]) for n in tiers(config)),
            ),
        )
    )


def revise_acls(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after the lists of these ACLs changed. Nobody came to name one, and nobody ceased to."""
    named = _named(config)
    acls = [t.after for t in touched if isinstance(t.after, Acl) and t.id in named]
    return rewritten(ruleset, [_list(acl, side) for acl in acls for side in SIDES])


def judges(config: Config) -> tuple[FilterRule, ...]:
    """What chain `forward` asks of every new packet."""
    if not _named(config):
        return ()
    rules = (
        FilterRule((), VerdictMap(("ip saddr",), "m_acl_from"), "out of a tier"),
        FilterRule((), VerdictMap(("ip6 saddr",), "m_acl_from6"), "out of a tier"),
        FilterRule((), VerdictMap(("iifname",), "m_acl_from_link"), "in by a private gateway"),
        FilterRule((), VerdictMap(("ip daddr",), "m_acl_to"), "into a tier"),
        FilterRule((), VerdictMap(("ip6 daddr",), "m_acl_to6"), "into a tier"),
        FilterRule((), VerdictMap(("oifname",), "m_acl_to_link"), "out by a private gateway"),
    )
    return spoken(rules, speaks_v6(config))


def between(config: Config) -> tuple[FilterRule, ...]:
    """What chain `forward` accepts at its end, after the judges."""
    if not _named(config):
        return ()
    from_gateway = Match(("iifname",), set="s_private")
    to_tier, to_tier6 = VerdictMap(("ip daddr",), "m_tier"), VerdictMap(("ip6 daddr",), "m_tier6")
    rules = (
        FilterRule((Match(("ip saddr",), set="s_tier"),), to_tier, "from tier to tier"),
        FilterRule((Match(("ip6 saddr",), set="s_tier6"),), to_tier6, "from tier to tier"),
        FilterRule((from_gateway,), to_tier, "from a private gateway to a tier"),
        FilterRule((from_gateway,), to_tier6, "from a private gateway to a tier"),
    )
    return spoken(rules, speaks_v6(config))


def _named(config: Config) -> set[str]:
    """The ACLs that a network or a private interface names."""
    return {n.acl for n in tiers(config) if n.acl} | {i.acl for i in config.interfaces if i.acl}


def tiers(config: Config) -> list[Network]:
    """The networks that have an ACL."""
    return [n for n in config.networks if n.acl is not None]


# --- places -------------------------------------------------------------------------------------------------


def _places(config: Config, links: dict[str, str]) -> Iterator[NftSet]:
    """Who is judged by which list: networks by their cidr, private interfaces by their link."""
    found = tiers(config)
    yield from _families({n.cidr: n for n in found}, "ipv4_addr", "")
    yield from _families({n.cidr6: n for n in found if n.cidr6}, "ipv6_addr", "6")
    private = [i for i in config.interfaces if i.use == "private"]
    yield from _gateways([i for i in private if i.acl is not None], links)
    owners = {links[i.id]: i.id for i in private}
    yield NftSet("s_private", "ifname", elements=dict.fromkeys(owners, ""), owners=owners)


def _families(found: dict[str, Network], key: str, suffix: str) -> Iterator[NftSet]:
    owners = {cidr: n.id for cidr, n in found.items()}
    egress = {cidr: f"jump {_name(n.acl, 'egress')}" for cidr, n in found.items()}
    into = {cidr: f"jump into_{n.id}" for cidr, n in found.items()}
    tier = {cidr: f"jump tier_{n.id}" for cidr, n in found.items()}
    yield NftSet(f"m_acl_from{suffix}", key, "verdict", True, egress, owners)
    yield NftSet(f"m_acl_to{suffix}", key, "verdict", True, into, owners)
    yield NftSet(f"m_tier{suffix}", key, "verdict", True, tier, owners)
    yield NftSet(f"s_tier{suffix}", key, "", True, dict.fromkeys(owners, ""), owners)


def _gateways(guarded: Sequence[Interface], links: dict[str, str]) -> Iterator[NftSet]:
    owners = {links[i.id]: i.id for i in guarded}
    for name, side in zip(("m_acl_to_link", "m_acl_from_link"), SIDES, strict=True):
        leads = {links[i.id]: f"jump {_name(i.acl, side)}" for i in guarded}
        yield NftSet(name, "ifname", "verdict", elements=leads, owners=owners)


def _into(network: Network, link: str) -> Chain:
    elsewhere = Match(("oifname",), (link,), negate=True)
    return Chain(
        f"into_{network.id}",
        (
            FilterRule((elsewhere,), RETURN, "a static route leads elsewhere"),
            FilterRule((), Verdict("jump", _name(network.acl, "ingress")), "its ACL judges", network.id),
        ),
    )


def _tier(network: Network, link: str) -> Chain:
    accept = FilterRule((Match(("oifname",), (link,)),), ACCEPT, "the ACLs have judged it", network.id)
    return Chain(f"tier_{network.id}", (accept,))


# --- lists --------------------------------------------------------------------------------------------------


def _name(acl: str | None, side: Side) -> str:
    return f"acl_{acl}_{side}"


def _list(acl: Acl, side: Side) -> Screen:
    """One list of an ACL as a chain, and the sets that it asks."""
    items, default = (acl.ingress, acl.ingress_default) if side == "ingress" else (acl.egress, acl.egress_default)
    rules: list[FilterRule] = []
    sets: list[NftSet] = []
    for item in items:
        family = family_of(item)
        for far in ends(item.cidrs, (), family) if side == "ingress" else ends((), item.cidrs, family):
            terms = serving(item, far)
            rules.append(_rule(item.action, f"{item.action} {item.id}", acl, terms.matches))
            sets += terms.sets
    rules.append(_rule(default, f"by default {default}", acl))
    return Screen(Chain(_name(acl.id, side), tuple(rules)), tuple(sets))


def _rule(action: str, why: str, acl: Acl, matches: tuple[Match, ...] = ()) -> FilterRule:
    return FilterRule(matches, RETURN if action == "allow" else DROP, why, acl.id, counter=action == "deny")
