"""What may come in to guests by their own addresses: in IPv6, and in IPv4 where a network is routed and not translated.

    m_routed, m_routed6   the network's cidr -> its chain; chain `forward` asks of what comes in from outside
    routed_<network>      not out by its link: return; m_routed_<network>: protocol . port -> the rule's verdict, or a
                          chain that asks its lists; the rules that are no elements; drop. Of a tier: accept,
                          for its ACL has judged

The rules are `Config.ingress`, the mirror of egress.py's: exceptions to a default that is always deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Touched, Verdict, VerdictMap
from router.config import Config, IngressRule, Network
from router.gate import Screen, amended, exact_ports, filled, open_to, owner_of, rewritten, terms_of
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
        groups, verdicts, wide = _asked(network, config.ingress)
        screens = [v for v in verdicts.values() if isinstance(v, Screen)]
        chains += [_chain(network, links[network.interface], bool(verdicts), wide), *(s.chain for s in screens)]
        lists = (*(s for found in screens for s in found.sets), *_lists(network, wide))
        ports = filled(_ports_of(network), verdicts, groups)
        sets.update((s.name, s) for s in (*lists, ports) if s.elements)
    v4, v6 = {n.cidr: n for n in networks if n.routed}, {n.cidr6: n for n in networks if n.cidr6}
    for name, key, found in (("m_routed", "ipv4_addr", v4), ("m_routed6", "ipv6_addr", v6)):
        leads = {cidr: f"jump {_name(n)}" for cidr, n in found.items()}
        if found:
            sets[name] = NftSet(name, key, "verdict", True, leads, {cidr: n.id for cidr, n in found.items()})
    return State(ruleset=Ruleset(sets, tuple(chains)))


def revise_ingress(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after these rules changed: the maps and chains of their networks, and nobody else's."""
    rules = [o for t in touched for o in (t.before, t.after) if isinstance(o, IngressRule)]
    found = ruleset
    for network in reached(config):
        if network.id not in {r.network for r in rules}:
            continue
        groups, verdicts, wide = _asked(network, config.ingress)
        name = f"m_{_name(network)}"
        old = ruleset.sets.get(name, _ports_of(network))
        edits: dict[str, tuple[str | Screen, str] | None] = dict.fromkeys(old.elements)
        edits.update((key, (v, owner_of([r.id for r in groups[key]]))) for key, v in verdicts.items())
        found = amended(found, {name: edits}, {name: _ports_of(network)})
        before = next(c for c in found.chains if c.name == _name(network))
        after = Chain(before.name, (before.rules[0], *_rules(network, bool(verdicts), wide)))
        if after != before:
            found = rewritten(found, [Screen(after, _lists(network, wide))])
    return found


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


def _ports_of(network: Network) -> NftSet:
    """The map of the rules that are elements, empty: it is there only while there are any."""
    return NftSet(f"m_{_name(network)}", "inet_proto . inet_service", "verdict")


_Groups = dict[str, list[IngressRule]]


def _asked(
    network: Network, every: Iterable[IngressRule]
) -> tuple[_Groups, dict[str, str | Screen], list[IngressRule]]:
    """A network's rules: those of each element, what each element leads to, and those that are none."""
    rules = sorted((r for r in every if r.network == network.id), key=lambda r: r.id)
    groups: _Groups = {}
    for rule in rules:
        for port in exact_ports(rule) or ():
            groups.setdefault(f"{rule.protocol} . {port}", []).append(rule)
    found = {key: open_to(group, "accept", "enter", "may come in", _families(network)) for key, group in groups.items()}
    return groups, found, [r for r in rules if exact_ports(r) is None]


def _lists(network: Network, wide: Iterable[IngressRule]) -> tuple[NftSet, ...]:
    return tuple(s for r in wide for terms in terms_of(r, _families(network)) for s in terms.sets)


def _chain(network: Network, link: str, has_ports: bool, wide: Sequence[IngressRule]) -> Chain:
    elsewhere = Match(("oifname",), (link,), negate=True)
    first = FilterRule((elsewhere,), RETURN, "a static route leads elsewhere", network.id)
    return Chain(_name(network), (first, *_rules(network, has_ports, wide)))


def _rules(network: Network, has_ports: bool, wide: Sequence[IngressRule]) -> Iterator[FilterRule]:
    if network.acl:
        yield FilterRule((), ACCEPT, "its ACL has judged", network.id)
        return
    if has_ports:
        by_port = VerdictMap(("meta l4proto", "th dport"), _ports_of(network).name)
        yield FilterRule((), by_port, "what may come in", network.id)
    for rule in wide:
        for terms in terms_of(rule, _families(network)):
            yield FilterRule(terms.matches, ACCEPT, "may come in", rule.id)
    yield FilterRule((), DROP, "no rule lets it in", network.id, counter=True)
