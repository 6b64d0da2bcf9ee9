"""What guests may reach outside: one chain per network, egress_<network>, found by the guest's source
address.

    m_egress, m_egress6   the network's cidr -> its chain; a source in no network meets the policy, drop
    egress_<network>      a source that came in by another link: drop
                          m_egress_<network>: protocol . port -> the exception's verdict, or a chain that asks
                          on the exceptions that are no elements: icmp, whole protocols, wide ranges
                          the network's default; of a tier that is allow, for its ACL has judged (acl.py)

An exception's verdict is the opposite of the default, so their order means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Touched, Verdict, VerdictMap
from router.config import Config, EgressRule, Network
from router.family import speaks_v6
from router.gate import Screen, amended, exact_ports, filled, has_port, open_to, owner_of, rewritten, terms_of
from router.links import link_name

ACCEPT, DROP = Verdict("accept"), Verdict("drop")


def compile_egress(config: Config, facts: Facts) -> State:
    """m_egress, and the chain and map of each network. Chain `forward` (firewall.py) leads here."""
    rules: dict[str, list[EgressRule]] = {n.id: [] for n in config.networks}
    for rule in sorted(config.egress, key=lambda r: r.id):
        rules[rule.network].append(rule)
    links = {i.id: link_name(i, facts) for i in config.interfaces}
    sets: dict[str, NftSet] = {}
    chains: list[Chain] = []
    for network in config.networks:
        ports, screens = _exact(network, rules[network.id])
        wide = [r for r in rules[network.id] if exact_ports(r) is None]
        chains += [_chain(network, links[network.interface], ports, wide), *(s.chain for s in screens)]
        lists = [s for found in screens for s in found.sets] + [s for r in wide for s in _lists(network, r)]
        sets.update((s.name, s) for s in (*lists, ports) if s.elements)
    leads = {n.cidr: f"jump {chain_name(n)}" for n in config.networks}
    owners = {n.cidr: n.id for n in config.networks}
    sets["m_egress"] = NftSet("m_egress", "ipv4_addr", "verdict", True, leads, owners)
    if speaks_v6(config):
        v6 = {n.cidr6: n for n in config.networks if n.cidr6}
        leads = {cidr: f"jump {chain_name(n)}" for cidr, n in v6.items()}
        owners = {cidr: n.id for cidr, n in v6.items()}
        sets["m_egress6"] = NftSet("m_egress6", "ipv6_addr", "verdict", True, leads, owners)
    return State(ruleset=Ruleset(sets, tuple(chains)))


def revise_egress(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after these exceptions changed: their elements and rules, and nobody else's."""
    networks = {n.id: n for n in config.networks}
    before = [t.before for t in touched if isinstance(t.before, EgressRule)]
    after = [t.after for t in touched if isinstance(t.after, EgressRule)]
    ids = {t.id for t in touched}
    maps = {name: _ports_of(networks[name]) for name in {r.network for r in (*before, *after)}}
    found = ruleset
    for name, empty in maps.items():
        keys = {key for rule in (*before, *after) if rule.network == name for key in _keys(rule)}
        owners = ruleset.sets.get(empty.name, empty).owners
        # An element of one owner who is touched has nobody else: only the others must be searched for.
        shared = [key for key in keys if key in owners and owners[key] not in ids]
        others = _neighbours(config.egress, name, shared) if shared else ()
        groups = _grouped((*(r for r in after if r.network == name), *(r for r in others if r.id not in ids)))
        edits: dict[str, tuple[str | Screen, str] | None] = {}
        for key in keys:
            group = groups.get(key)
            edits[key] = (_open(networks[name], group), owner_of([r.id for r in group])) if group else None
        found = amended(found, {empty.name: edits} if edits else {}, {empty.name: empty})
    wide = {r.network: [w for w in after if w.network == r.network] for r in (*before, *after) if not _keys(r)}
    asked = {name for name, s in maps.items() if (s.name in found.sets) != (s.name in ruleset.sets)}
    changed = {chain_name(networks[name]): name for name in {*wide, *asked}}
    if not changed:
        return found
    chains = [(c, changed[c.name]) for c in found.chains if c.name in changed]
    return rewritten(
        found,
        [_revised(c, networks[n], found.sets.get(maps[n].name, maps[n]), ids, wide.get(n, [])) for c, n in chains],
    )


def _revised(chain: Chain, network: Network, ports: NftSet, ids: set[str], touched: Iterable[EgressRule]) -> Screen:
    """A network's chain, with what is now asked of the touched exceptions in place of what was."""
    link, *exceptions, default = chain.rules
    wide = [r for r in touched if not _keys(r)]
    kept = [r for r in exceptions if isinstance(r.statement, Verdict) and r.owner not in ids]
    rules = sorted((*kept, *(rule for r in wide for rule in _wide(network, r))), key=attrgetter("owner"))
    lists = tuple(s for r in wide for s in _lists(network, r))
    return Screen(Chain(chain.name, (link, *_by_port(network, ports), *rules, default)), lists)


def chain_name(network: Network) -> str:
    """An id fits as it is: nft's names take its dots and dashes, and 127 letters."""
    return f"egress_{network.id}"


def _exception(network: Network) -> Literal["accept", "drop"]:
    return "drop" if network.egress.default == "allow" else "accept"


def _ports_of(network: Network) -> NftSet:
    """The map of the exceptions that are elements, empty: it is there only while there are any."""
    return NftSet(f"m_{chain_name(network)}", "inet_proto . inet_service", "verdict")


def _keys(rule: EgressRule) -> Sequence[str]:
    return [f"{rule.protocol} . {port}" for port in exact_ports(rule) or ()]


def _grouped(rules: Iterable[EgressRule]) -> dict[str, list[EgressRule]]:
    groups: dict[str, list[EgressRule]] = {}
    for rule in rules:
        for key in _keys(rule):
            groups.setdefault(key, []).append(rule)
    return groups


def _neighbours(rules: Iterable[EgressRule], network: str, keys: Iterable[str]) -> list[EgressRule]:
    """The rules of a network that have one of the elements."""
    doors: dict[str | int, list[int]] = {}
    for key in keys:
        protocol, port = key.split(" . ")
        doors.setdefault(protocol, []).append(int(port))
    return [r for r in rules if r.network == network and (d := doors.get(r.protocol)) and has_port(r, d)]


def _open(network: Network, rules: Sequence[EgressRule]) -> str | Screen:
    return open_to(rules, _exception(network), "leave", "an exception", _families(network))


def _exact(network: Network, rules: list[EgressRule]) -> tuple[NftSet, list[Screen]]:
    """The map of the exceptions that are elements, and the chains it leads to."""
    groups = _grouped(rules)
    verdicts = {key: _open(network, group) for key, group in groups.items()}
    return filled(_ports_of(network), verdicts, groups), [v for v in verdicts.values() if isinstance(v, Screen)]


def _chain(network: Network, link: str, ports: NftSet, wide: list[EgressRule]) -> Chain:
    return Chain(chain_name(network), tuple(_rules(network, link, ports, wide)))


def _rules(network: Network, link: str, ports: NftSet, wide: list[EgressRule]) -> Iterator[FilterRule]:
    yield FilterRule((Match(("iifname",), (link,), negate=True),), DROP, "not from its network's link", network.id)
    yield from _by_port(network, ports)
    for rule in wide:
        yield from _wide(network, rule)
    default = ACCEPT if network.egress.default == "allow" else DROP
    why = "its ACL has judged" if network.acl else f"by default {network.egress.default}"
    yield FilterRule((), default, why, network.id, counter=default is DROP)


def _by_port(network: Network, ports: NftSet) -> Iterator[FilterRule]:
    if ports.elements:
        yield FilterRule((), VerdictMap(("meta l4proto", "th dport"), ports.name), "exceptions by port", network.id)


def _wide(network: Network, rule: EgressRule) -> Iterator[FilterRule]:
    for terms in terms_of(rule, _families(network)):
        yield FilterRule(terms.matches, Verdict(_exception(network)), "an exception", rule.id)


def _lists(network: Network, rule: EgressRule) -> list[NftSet]:
    return [s for terms in terms_of(rule, _families(network)) for s in terms.sets]


def _families(network: Network) -> bool | None:
    """Of which family its guests' packets are: both (None), or IPv4 alone (False)."""
    return None if network.cidr6 else False
