"""From a document to a State: the parts in order, put together. Pure.

`compile` makes the whole; `revise` makes the same State from the one before and what a change touched, at the
cost of the change, or says that the whole must be compiled. What `revise` leaves alone IS what it was:
plan.py skips it by identity.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from appliance.state import Chain, Facts, File, NftSet, Ruleset, State, Touched
from router.acl import compile_acl, revise_acls
from router.advertise import compile_advertise, revise_advertise
from router.balancer import compile_balancer, revise_balancer
from router.bandwidth import compile_bandwidth, revise_bandwidth
from router.bgp import compile_bgp
from router.config import Config
from router.dhcp import compile_dhcp, revise_dhcp
from router.dns import compile_dns, revise_dns
from router.egress import compile_egress, revise_egress
from router.firewall import compile_firewall, revise_firewall
from router.health import compile_health, revise_health
from router.ipsec import compile_ipsec
from router.links import compile_links
from router.metadata import compile_metadata, revise_metadata
from router.nat import compile_nat, revise_forwards, revise_static_nats
from router.redundancy import digest_of, paired, repaired, seated
from router.routed import compile_routed, revise_ingress
from router.routing import compile_routing
from router.senders import compile_senders
from router.spread import compile_spread
from router.tunnels import compile_tunnels
from router.usage import compile_usage, revise_usage
from router.wireguard import compile_wireguard, revise_users

MOST_TOUCHED = 256  # more than this is compiled whole: element by element would cost as much
_LOCAL = frozenset({"forwards", "static_nats", "firewall", "egress", "ingress", "acls", "hosts"}) | {
    *("vpn_users", "balancers", "certificates", "limits"),
}
_PARTS = (
    compile_links,
    compile_routing,
    compile_senders,
    compile_firewall,
    compile_egress,
    compile_acl,
    compile_routed,
    compile_tunnels,
    compile_wireguard,
    compile_nat,
    compile_spread,
    compile_dhcp,
    compile_advertise,
    compile_dns,
    compile_metadata,
    compile_ipsec,
    compile_usage,
    compile_balancer,
    compile_bgp,
    compile_bandwidth,  # the last with chains: it may make them anew (`revise_bandwidth`)
    compile_health,  # the last: its own last part is what `revise_health` makes anew
)


def compile(config: Config, facts: Facts) -> State:
    """What the machine shall be. The config passed the checks. Raises LookupError for an absent MAC."""
    mine, here = seated(config, facts)
    state = _together([part(mine, here) for part in _PARTS])
    return paired(state, mine, here, facts, digest_of(config)) if config.redundancy else state


def revise(state: State, config: Config, touched: tuple[Touched, ...], facts: Facts) -> State | None:
    """`compile(config, facts)`, made from `state` by what was touched; None: compile the whole."""
    by_collection: dict[str, list[Touched]] = {}
    for t in touched:
        by_collection.setdefault(t.collection, []).append(t)
    if not by_collection.keys() <= _LOCAL or len(touched) > MOST_TOUCHED:
        return None
    config, facts = seated(config, facts)
    ruleset = state.ruleset
    if found := by_collection.get("forwards"):
        ruleset = revise_forwards(ruleset, config, found)
    if found := by_collection.get("static_nats"):
        ruleset = revise_static_nats(ruleset, config, found, facts)
    if found := by_collection.get("firewall"):
        ruleset = revise_firewall(ruleset, config, found)
    if found := by_collection.get("egress"):
        ruleset = revise_egress(ruleset, config, found)
    if found := by_collection.get("ingress"):
        ruleset = revise_ingress(ruleset, config, found)
    if found := by_collection.get("acls"):
        ruleset = revise_acls(ruleset, config, found)
    files: tuple[File, ...] | None = state.files
    checks = state.checks
    meters = state.meters
    if found := by_collection.get("hosts"):
        meters = revise_usage(meters, found)
        files = revise_dhcp(state.files, config, found, facts)
        files = files if files is None else revise_advertise(files, config, found, facts)
        files = files if files is None else revise_dns(files, config, found, facts)
        files = files if files is None else revise_metadata(files, config, found, facts)
        checks = revise_health(checks, config, facts)
    peers = state.peers
    if found := by_collection.get("vpn_users"):
        peers = revise_users(state, found)
    if files is None:
        return None
    state = replace(state, files=files, ruleset=ruleset, meters=meters, checks=checks, peers=peers)
    state = revise_bandwidth(state, config, by_collection, facts)
    if found := [*by_collection.get("balancers", ()), *by_collection.get("certificates", ())]:
        revised = revise_balancer(state, config, found, facts)
        if revised is None:
            return None
        state = revised
    return repaired(state, config, touched) if config.redundancy else state


def _together(parts: list[State]) -> State:
    """The parts one behind the other, and one ruleset: hooked chains first, the helpers by name."""
    sets: dict[str, NftSet] = {}
    hooked: list[Chain] = []
    helpers: dict[str, Chain] = {}
    for part in parts:
        sets.update(part.ruleset.sets)
        for chain in part.ruleset.chains:
            if chain.hook is None:
                helpers[chain.name] = chain
            else:
                hooked.append(chain)
    chains = (*hooked, *sorted(helpers.values(), key=attrgetter("name")))
    return State(
        files=tuple(f for p in parts for f in p.files),
        units=tuple(u for p in parts for u in p.units),
        pools=tuple(x for p in parts for x in p.pools),
        members=tuple(x for p in parts for x in p.members),
        sysctls=tuple(s for p in parts for s in p.sysctls),
        links=tuple(x for p in parts for x in p.links),
        wireguards=tuple(x for p in parts for x in p.wireguards),
        peers=tuple(x for p in parts for x in p.peers),
        addresses=tuple(a for p in parts for a in p.addresses),
        routes=tuple(r for p in parts for r in p.routes),
        rules=tuple(r for p in parts for r in p.rules),
        ruleset=Ruleset(sets, chains),
        shapers=tuple(s for p in parts for s in p.shapers),
        meters=next((p.meters for p in parts if p.meters.chains), Ruleset()),
        adverts=tuple(a for p in parts for a in p.adverts),
        entries=tuple(e for p in parts for e in p.entries),
        probes=tuple(dict.fromkeys(x for p in parts for x in p.probes)),
        checks=tuple(c for p in parts for c in p.checks),
    )
