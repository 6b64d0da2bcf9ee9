"""What may come in to guests by their own addresses: in IPv6, and in IPv4 where a network is routed and not translated.

    m_routed, m_routed6   the network's cidr -> its chain; chain `forward` asks of what comes in from outside
    routed_<network>      not out by its link: return; m_routed_<network>: protocol . port -> the rule's verdict, or a
                          chain that asks its lists; the rules that are no elements; drop. Of a tier: accept,
                          for its ACL has judged

The rules are `Config.ingress`, the mirror of egress.py's: exceptions to a default that is always deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Verdict, VerdictMap
from router.config import Config, IngressRule, Network
from router.gate import Screen, exact_ports, filled, open_to, terms_of
from router.links import link_name

ACCEPT, DROP, RETURN = Verdict("accept"), Verdict("drop"), Verdict("return")


def compile_routed(config: Config, facts: Facts) -> State:
    """The maps and chains of the networks that can be reached so; nothing where there is none."""
    networks = reached(config)
    if not networks:
        return State()
    links = {i.id: link_name(i, facts) for i in config.interfaces}
    sets: dict[str, NftSet] = {}
    chains: list[Chain] = []
    for network in networks:
        rules = sorted((r for r in config.ingress if r.network == network.id), key=lambda r: r.id)
        ports, screens = _exact(network, rules)
        wide = [r for r in rules if exact_ports(r) is None]
        chains += [_chain(network, links[network.interface], ports, wide), *(s.chain for s in screens)]
        lists = [s for found in screens for s in found.sets]
        lists += [s for r in wide for terms in terms_of(r, _families(network)) for s in terms.sets]
        sets.update((s.name, s) for s in (*lists, ports) if s.elements)
    v4, v6 = {n.cidr: n for n in networks if n.routed}, {n.cidr6: n for n in networks if n.cidr6}
    for name, key, found in (("m_routed", "ipv4_addr", v4), ("m_routed6", "ipv6_addr", v6)):
        leads = {cidr: f"jump {_name(n)}" for cidr, n in found.items()}
        if found:
            sets[name] = NftSet(name, key, "verdict", True, leads, {cidr: n.id for cidr, n in found.items()})
    return State(ruleset=Ruleset(sets, tuple(chains)))


def inwards(config: Config) -> tuple[FilterRule, ...]:
    """What chain `forward` asks of new packets from outside."""
    from_outside, why = Match(("iifname",), set="s_outside"), "to guests by their own addresses"
    rules = []
    if any(n.routed for n in config.networks):
        rules.append(FilterRule((from_outside,), VerdictMap(("ip daddr",), "m_routed"), why))
    if any(n.cidr6 for n in config.networks):
        rules.append(FilterRule((from_outside,), VerdictMap(("ip6 daddr",), "m_routed6"), why))
    return tuple(rules)


def reached(config: Config) -> list[Network]:
    """The networks whose guests are reached by their own addresses, in one family or both."""
    return [n for n in config.networks if n.routed or n.cidr6]


def _families(network: Network) -> bool | None:
    """In which: both (None), IPv6 alone (True), or IPv4 alone (False)."""
    return None if network.routed and network.cidr6 else network.cidr6 is not None


def _name(network: Network) -> str:
    return f"routed_{network.id}"


def _exact(network: Network, rules: Iterable[IngressRule]) -> tuple[NftSet, list[Screen]]:
    """The map of the rules that are elements, and the chains it leads to."""
    groups: dict[str, list[IngressRule]] = {}
    for rule in rules:
        for port in exact_ports(rule) or ():
            groups.setdefault(f"{rule.protocol} . {port}", []).append(rule)
    found = {key: open_to(group, "accept", "enter", "may come in", _families(network)) for key, group in groups.items()}
    empty = NftSet(f"m_{_name(network)}", "inet_proto . inet_service", "verdict")
    return filled(empty, found, groups), [v for v in found.values() if isinstance(v, Screen)]


def _chain(network: Network, link: str, ports: NftSet, wide: Sequence[IngressRule]) -> Chain:
    return Chain(_name(network), tuple(_rules(network, link, ports, wide)))


def _rules(network: Network, link: str, ports: NftSet, wide: Sequence[IngressRule]) -> Iterator[FilterRule]:
    elsewhere = Match(("oifname",), (link,), negate=True)
    yield FilterRule((elsewhere,), RETURN, "a static route leads elsewhere", network.id)
    if network.acl:
        yield FilterRule((), ACCEPT, "its ACL has judged", network.id)
        return
    if ports.elements:
        yield FilterRule((), VerdictMap(("meta l4proto", "th dport"), ports.name), "what may come in", network.id)
    for rule in wide:
        for terms in terms_of(rule, _families(network)):
            yield FilterRule(terms.matches, ACCEPT, "may come in", rule.id)
    yield FilterRule((), DROP, "no rule lets it in", network.id, counter=True)
