"""Meaning across a document's objects: everything that is wrong with it, at once, each with its place and
remedy.

The models have judged each field by itself. Here objects meet: topology.py (interfaces, networks, routes),
claims.py (forwards, static NATs, firewall, egress, ACLs), residents.py (hosts, records). A document without
problems compiles, and the result is a ruleset that the kernel takes: whatever could make an overlap or a
duplicate there is refused here.

`revised` judges a change alone, given that the document before it was sound: the objects that were touched,
and those they might clash with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.state import Facts, Problem, Touched
from router.checks_advertise import advertise_problems
from router.checks_balancer import balancer_problems, port_problems
from router.checks_bandwidth import limit_problems
from router.checks_bgp import bgp_problems
from router.checks_ipsec import ipsec_forwards, ipsec_problems
from router.checks_metadata import metadata_problems, told_problems
from router.checks_redundancy import plugged_problems, redundancy_problems
from router.checks_tunnels import routed_twice, tunnel_problems
from router.checks_wireguard import forward_clashes, user_problems, user_twins, wireguard_problems
from router.claims import (
    acl_problems,
    clash_problems,
    egress_problems,
    firewall_problems,
    forward_problems,
    ingress_problems,
    static_nat_problems,
)
from router.config import Acl, Config, EgressRule, Firewall, Forward, Host, IngressRule
from router.config_wireguard import VpnUser
from router.residents import host_problems, record_problems, twin_problems
from router.topology import (
    Ground,
    interface_problems,
    listed,
    network_problems,
    route_problems,
    survey,
)

MOST_TOUCHED = 256  # more than this is checked whole
_LOCAL = frozenset({"forwards", "firewall", "egress", "ingress", "acls", "hosts", "vpn_users"}) | {
    *("balancers", "certificates", "limits"),
}
_COLLECTIONS = (
    "interfaces", "networks", "forwards", "static_nats", "firewall", "egress", "ingress", "acls", "routes",
    "hosts", "records", "wireguard", "vpn_users", "wireguard_sites", "balancers", "certificates", "stats_pages",
    "limits", "bgp_peers",
    "ipsec_sites", "ipsec_access", "ipsec_users",
)  # fmt: skip


def problems(config: Config, facts: Facts | None = None) -> list[Problem]:
    """All that is wrong with a document; with `facts`, also what does not fit the machine."""
    return list(_all(config, facts))


def _all(config: Config, facts: Facts | None) -> Iterator[Problem]:
    yield from _identities(config)
    yield from interface_problems(config)
    yield from redundancy_problems(config)
    if facts is not None:
        yield from plugged_problems(config, facts) if config.redundancy else _plugged(config, facts)
    ground = survey(config)
    yield from network_problems(config, ground)
    yield from advertise_problems(config)
    yield from route_problems(config)
    static = {n.address: n for n in config.static_nats}
    for forward in config.forwards:
        yield from forward_problems(forward, ground, static)
    yield from clash_problems(config.forwards)
    yield from static_nat_problems(config, ground)
    for rule in config.firewall:
        yield from firewall_problems(rule, ground)
    for exception in config.egress:
        yield from egress_problems(exception, ground)
    for entry in config.ingress:
        yield from ingress_problems(entry, ground)
    for acl in config.acls:
        yield from acl_problems(acl)
    for host in config.hosts:
        yield from host_problems(host, ground)
    yield from twin_problems(config.hosts)
    yield from record_problems(config, ground)
    yield from limit_problems(config)
    yield from tunnel_problems(config, ground)
    yield from routed_twice(config)
    yield from wireguard_problems(config, ground)
    yield from forward_clashes(config.forwards, config)
    yield from balancer_problems(config, ground)
    yield from metadata_problems(config)
    yield from ipsec_problems(config)
    yield from bgp_problems(config, ground)


def _identities(config: Config) -> Iterator[Problem]:
    for collection in _COLLECTIONS:
        ids = [o.id for o in getattr(config, collection)]
        if len(set(ids)) < len(ids):
            seen: set[str] = set()
            for ident in ids:
                if ident in seen:
                    told = f"there are two objects of this id in {collection}; give each its own"
                    yield Problem(f"config.{collection}[{ident}].id", told)
                seen.add(ident)


def _plugged(config: Config, facts: Facts) -> Iterator[Problem]:
    for interface in config.interfaces:
        path = f"config.interfaces[{interface.id}].mac"
        if interface.mac not in facts.links:
            told = f"no interface with MAC {interface.mac} is plugged; it has: {listed(sorted(facts.links))}"
            yield Problem(path, told)
        elif interface.use == "control" and facts.control and interface.mac != facts.control:
            told = f"the control interface of this machine is {facts.control} by its seed, not {interface.mac}"
            yield Problem(path, f"{told}; correct the MAC")


# --- a change alone -----------------------------------------------------------------------------------------


def revised(config: Config, touched: Sequence[Touched]) -> list[Problem] | None:
    """What a change made wrong in a document that was sound; None where the whole must be checked."""
    if len(touched) > MOST_TOUCHED or any(t.collection not in _LOCAL for t in touched):
        return None
    if any(t.collection == "acls" and t.after is None for t in touched):
        return None  # who names it must be asked
    ground = survey(config)
    after = [t.after for t in touched]
    return [
        *_revised_forwards(config, [f for f in after if isinstance(f, Forward)], ground),
        *(p for rule in after if isinstance(rule, Firewall) for p in firewall_problems(rule, ground)),
        *(p for rule in after if isinstance(rule, EgressRule) for p in egress_problems(rule, ground)),
        *(p for rule in after if isinstance(rule, IngressRule) for p in ingress_problems(rule, ground)),
        *(p for acl in after if isinstance(acl, Acl) for p in acl_problems(acl)),
        *_revised_hosts(config, [h for h in after if isinstance(h, Host)], ground),
        *_revised_users(config, [u for u in after if isinstance(u, VpnUser)]),
        *_revised_balancers(config, touched, ground),
        *_revised_limits(config, touched),
    ]


def _revised_limits(config: Config, touched: Sequence[Touched]) -> Iterator[Problem]:
    gone = {t.id for t in touched if t.collection == "hosts" and t.after is None}
    ids = {t.id for t in touched if t.collection == "limits" and t.after is not None}
    if gone:
        ids |= {one.id for one in config.limits if one.host in gone}
    if ids:
        yield from limit_problems(config, frozenset(ids))


def _revised_forwards(config: Config, forwards: list[Forward], ground: Ground) -> Iterator[Problem]:
    if not forwards:
        return
    static = {n.address: n for n in config.static_nats}
    for forward in forwards:
        yield from forward_problems(forward, ground, static)
    addresses = {f.address for f in forwards}
    low, high = min(f.ports.first for f in forwards), max(f.ports.last for f in forwards)
    near = [f for f in config.forwards if f.address in addresses and f.ports.first <= high and f.ports.last >= low]
    yield from clash_problems(near, frozenset(f.id for f in forwards))
    yield from forward_clashes(forwards, config)
    yield from ipsec_forwards(forwards, config)


def _revised_users(config: Config, users: list[VpnUser]) -> Iterator[Problem]:
    listeners = {w.id: w for w in config.wireguard}
    for user in users:
        yield from user_problems(user, listeners)
    if users:
        yield from user_twins(config, users)


def _revised_balancers(config: Config, touched: Sequence[Touched], ground: Ground) -> Iterator[Problem]:
    """Few, and what they say is soon said: all of them, where one was touched or a forward may take their port."""
    if any(t.collection in ("balancers", "certificates") for t in touched):
        yield from balancer_problems(config, ground)
    else:
        yield from port_problems(config, [t.after for t in touched if isinstance(t.after, Forward)])


def _revised_hosts(config: Config, hosts: list[Host], ground: Ground) -> Iterator[Problem]:
    if not hosts:
        return
    for host in hosts:
        yield from host_problems(host, ground)
    yield from told_problems(config, hosts)
    addresses, macs = {h.address for h in hosts}, {h.mac for h in hosts}
    names, v6 = {h.name.lower() for h in hosts}, {h.address6 for h in hosts if h.address6}
    near = [
        h
        for h in config.hosts
        if h.address in addresses or h.mac in macs or h.name.lower() in names or h.address6 in v6
    ]
    ids = {h.id for h in hosts}
    # The touched last, so that a clash is told at the one that was changed.
    yield from twin_problems(sorted(near, key=lambda h: h.id in ids))
