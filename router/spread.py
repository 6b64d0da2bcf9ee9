"""Load balancing of UDP, by the packet filter: haproxy cannot do it, and a datagram needs no more than a translation.

    m_balanced        address . protocol . port -> the chain of the rule that listens there
    spread_<digest>   a translation to one of the backends: the next one (numgen) or the source's (jhash)

Asked in dstnat and dstnat_own behind forwards, where there is such a rule. The chain is named by what it says: so a
backend that goes takes its flows along, as a forward does (appliance/plan.py), while those of one that drains go on. A
backend stands as often as it weighs, its places spread over the turn. Backups are asked where no other is left. A flow
of who is down, as the agent finds by asking (State.members, Facts.down), goes to another; else it
keeps its backend for as long as connection tracking knows it (30 s of silence, 120 s once answered). A rule at the
router's own address in a network serves who comes in by that link, and nobody from anywhere else.

Who answers whom: the answer goes back through the router, as with a forward; from the same network that is the hairpin.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Match, Member, Nat, NftSet, Ruleset, State
from router.config import Config
from router.config_balancer import Backend, Balancer
from router.gate import INLINE_CIDRS, among, cidr_set, digest, distinct
from router.links import link_names, own_addresses

NAME = "m_balanced"
PORT_KEY = "ipv4_addr . inet_proto . inet_service"
MOST_PLACES = 1024  # of a turn: beyond it weights are rounded


def balanced(config: Config) -> tuple[Balancer, ...]:
    """The rules that are the packet filter's, by id."""
    return tuple(sorted((r for r in config.balancers if r.protocol == "udp"), key=lambda r: r.id))


def compile_spread(config: Config, facts: Facts) -> State:
    """The map of UDP rules and their chains; nothing where there is no such rule."""
    rules = balanced(config)
    if not rules:
        return State()
    inner = {a: link for link, i in link_names(config, facts, "guest").items() for a in own_addresses(i)}
    chains = {rule.id: _chain(rule, inner.get(rule.address, ""), facts.down) for rule in rules}
    keys = {rule.id: f"{rule.address} . udp . {rule.port}" for rule in rules}
    elements = {keys[ident]: f"jump {chain.name}" for ident, chain in chains.items()}
    owners = {key: ident for ident, key in keys.items()}
    lists = (cidr_set(s) for rule in rules if len(s := distinct(rule.sources)) > INLINE_CIDRS)
    sets = (NftSet(NAME, PORT_KEY, "verdict", elements=elements, owners=owners), *lists)
    members = tuple(m for rule in rules for m in _members(rule))
    return State(ruleset=Ruleset({s.name: s for s in sets}, tuple(chains.values())), members=members)


def _members(rule: Balancer) -> Iterator[Member]:
    """Who is asked whether he is well: none of a rule that does not want it."""
    health, kind = rule.health, rule.asked_by
    if kind in ("tcp", "udp"):
        for b in sorted(rule.backends, key=lambda b: b.id):
            times = health.interval, health.timeout, health.rise, health.fall
            yield Member(f"{rule.id}/{b.id}", b.address, health.port or b.port, kind, *times, owner=rule.id)


def _chain(rule: Balancer, link: str, down: frozenset[str]) -> Chain:
    live = living(rule, down)
    resting = (b for b in rule.backends if b not in live and f"{rule.id}/{b.id}" not in down)
    keeps = tuple(sorted(map(_target, resting)))  # flows to who is down end: their next packet finds another
    kind = Nat("dnat", spread=_BY[rule.algorithm], targets=tuple(_places(live)), keeps=keeps)
    sources = distinct(rule.sources)
    matches = (Match(("meta l4proto",), ("udp",)), *among("saddr", sources))
    if link:
        matches = (Match(("iifname",), (link,)), *matches)
    rules = (FilterRule(matches, kind, "one of its backends", rule.id),) if live else ()
    name = digest(repr((rule.id, kind, sources, link)))
    return Chain(f"spread_{name}", rules)


_BY: dict[str, Literal["turn", "source"]] = {"roundrobin": "turn", "leastconn": "turn", "source": "source"}


def living(rule: Balancer, down: frozenset[str] = frozenset()) -> list[Backend]:
    """The backends that new flows go to, by id. Where none is well, all: nobody does better."""
    willing = sorted((b for b in rule.backends if not b.drain), key=lambda b: b.id)
    well = [b for b in willing if f"{rule.id}/{b.id}" not in down] or willing
    return [b for b in well if not b.backup] or well


def _places(backends: list[Backend]) -> Iterator[str]:
    """A turn: each backend as often as it weighs, as evenly as may be."""
    weights = [b.weight for b in backends]
    part = gcd(*weights)
    total = sum(weights) // part if part else 0
    scale = min(1.0, MOST_PLACES / total) if total else 1.0
    counts = [max(1, round(w // part * scale)) for w in weights]
    spots = [((k + 0.5) / n, i) for i, n in enumerate(counts) for k in range(n)]
    return (_target(backends[i]) for _, i in sorted(spots))


def _target(backend: Backend) -> str:
    return f"{backend.address} . {backend.port}"
