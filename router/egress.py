"""What guests may reach outside: one chain per network, egress_<network>, found by the guest's source
address.

    m_egress              the network's cidr -> its chain; a source in no network meets the policy, drop
    egress_<network>      a source that came in by another link: drop
                          m_egress_<network>: protocol . port -> the exception's verdict, or a chain that asks
                          on the exceptions that are no elements: icmp, whole protocols, wide ranges the
                          network's default

An exception's verdict is the opposite of the default, so their order means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Ruleset, State, Verdict, VerdictMap
from router.config import Config, EgressRule, Network
from router.gate import Screen, exact_ports, open_to, terms_of, verdict_map
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
        lists = [s for found in screens for s in found.sets] + [s for r in wide for s in terms_of(r).sets]
        sets.update((s.name, s) for s in (*lists, ports) if s.elements)
    leads = {n.cidr: f"jump {chain_name(n)}" for n in config.networks}
    owners = {n.cidr: n.id for n in config.networks}
    sets["m_egress"] = NftSet("m_egress", "ipv4_addr", "verdict", True, leads, owners)
    return State(ruleset=Ruleset(sets, tuple(chains)))


def chain_name(network: Network) -> str:
    """An id fits as it is: nft's names take its dots and dashes, and 127 letters."""
    return f"egress_{network.id}"


def _exception(network: Network) -> Literal["accept", "drop"]:
    return "drop" if network.egress.default == "allow" else "accept"


def _exact(network: Network, rules: list[EgressRule]) -> tuple[NftSet, list[Screen]]:
    """The map of the exceptions that are elements, and the chains it leads to."""
    groups: dict[str, list[EgressRule]] = {}
    for rule in rules:
        for port in exact_ports(rule) or ():
            groups.setdefault(f"{rule.protocol} . {port}", []).append(rule)
    kind = _exception(network)
    verdicts = {key: open_to(group, kind, "leave", "an exception") for key, group in groups.items()}
    found = verdict_map(f"m_{chain_name(network)}", "inet_proto . inet_service", verdicts, groups)
    return found, [v for v in verdicts.values() if isinstance(v, Screen)]


def _chain(network: Network, link: str, ports: NftSet, wide: list[EgressRule]) -> Chain:
    return Chain(chain_name(network), tuple(_rules(network, link, ports, wide)))


def _rules(network: Network, link: str, ports: NftSet, wide: list[EgressRule]) -> Iterator[FilterRule]:
    yield FilterRule((Match(("iifname",), (link,), negate=True),), DROP, "not from its network's link", network.id)
    if ports.elements:
        yield FilterRule((), VerdictMap(("meta l4proto", "th dport"), ports.name), "exceptions by port", network.id)
    for rule in wide:
        yield FilterRule(terms_of(rule).matches, Verdict(_exception(network)), "an exception", rule.id)
    default = ACCEPT if network.egress.default == "allow" else DROP
    yield FilterRule((), default, f"by default {network.egress.default}", network.id, counter=default is DROP)
