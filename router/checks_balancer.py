"""What load balancing rules are to each other and to the rest of a document: ports, places, certificates.

They leave nothing for haproxy to refuse: what it would say of a configuration is said here, of an object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Problem
from appliance.values import is_v6
from router.certificate import certificate_problem, key_problem
from router.config import Config, Forward
from router.config_balancer import Balancer, Health, StatsPage, Timeouts
from router.topology import Ground, listed, only


def balancer_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """All that is wrong with rules, certificates and pages of figures."""
    if not (config.balancers or config.certificates or config.stats_pages):
        return
    for rule in config.balancers:
        path = f"config.balancers[{rule.id}]"
        yield from _place(rule, ground, config, path)
        yield from _backends(rule, ground, path)
        yield from _fitting(rule, path)
        if rule.tls:
            known = [c.id for c in config.certificates]
            for name in rule.tls.certificates:
                if name not in known:
                    told = f"there is no certificate {name}; those are: {listed(known) or 'none'}"
                    yield Problem(f"{path}.tls.certificates", told)
    for page in config.stats_pages:
        yield from _place(page, ground, config, f"config.stats_pages[{page.id}]")
    yield from port_problems(config, config.forwards)
    yield from _certificates(config)


# --- where it listens ---------------------------------------------------------------------------------------


def _place(rule: Balancer | StatsPage, ground: Ground, config: Config, path: str) -> Iterator[Problem]:
    """Its address is a public one or the router's own in a network; and who may come can come in its family."""
    v6 = is_v6(rule.address)
    lots = (ground.lots6 if v6 else ground.lots).values()
    if rule.address not in ground.public and not any(rule.address in lot.own for lot in lots):
        own = sorted(a for lot in lots for a in lot.own)
        told = f"{rule.address} is neither a public address nor the router's own in a guest network"
        yield Problem(f"{path}.address", f"{told}; those are: {listed((*ground.public, *own)) or 'none'}")
    if rule.sources:
        yield from only(f"{path}.sources", rule.sources, v6)
    for nat in config.static_nats:
        if nat.address == rule.address:
            told = f"{rule.address} is static NAT {nat.id}'s whole; remove that, or take another address"
            yield Problem(f"{path}.address", told)
    for lot in lots:
        if rule.address in lot.own and rule.port == 53 and lot.network.dns:
            told = f"port 53 of {rule.address} is the DNS of network {lot.network.id}; take another port, or end that"
            yield Problem(f"{path}.port", told)
        if rule.address in lot.own and rule.port in (80, 8080) and lot.network.metadata and not v6:
            told = f"port {rule.port} of {rule.address} is the metadata of network {lot.network.id}; take another port"
            yield Problem(f"{path}.port", told)


def _transport(rule: Balancer | StatsPage) -> str:
    return "udp" if isinstance(rule, Balancer) and rule.protocol == "udp" else "tcp"


def port_problems(config: Config, those: Iterable[Forward]) -> Iterator[Problem]:
    """No two listen on one port, nor does one of those forwards lead it away."""
    if not (config.balancers or config.stats_pages):
        return
    forwards: dict[str, list[Forward]] = {}
    for forward in those:
        forwards.setdefault(forward.address, []).append(forward)
    seen: dict[tuple[str, int, str], str] = {}
    named = [(f"config.balancers[{r.id}]", f"balancer {r.id}", r) for r in config.balancers]
    named += [(f"config.stats_pages[{p.id}]", f"stats page {p.id}", p) for p in config.stats_pages]  # type: ignore[misc]
    for path, name, rule in named:
        transport = _transport(rule)
        other = seen.setdefault((rule.address, rule.port, transport), name)
        if other != name:
            told = f"port {rule.port}/{transport} of {rule.address} is {other}'s already; take another port"
            yield Problem(f"{path}.port", told)
        for forward in forwards.get(rule.address, ()):
            if forward.protocol == transport and forward.ports.first <= rule.port <= forward.ports.last:
                told = f"port {rule.port}/{transport} of {rule.address} is forwarded by {forward.id}; take another port"
                yield Problem(f"{path}.port", told)


# --- what is behind it --------------------------------------------------------------------------------------


def _backends(rule: Balancer, ground: Ground, path: str) -> Iterator[Problem]:
    ids: set[str] = set()
    places: dict[tuple[str, int], str] = {}
    for backend in rule.backends:
        at = f"{path}.backends[{backend.id}]"
        if backend.id in ids:
            yield Problem(f"{at}.id", "there are two backends of this id in the rule; give each its own")
        ids.add(backend.id)
        other = places.setdefault((backend.address, backend.port), backend.id)
        if other != backend.id:
            yield Problem(at, f"backend {other} is {backend.address} port {backend.port} too; remove one of them")
        if not is_v6(backend.address):
            yield from ground.no_guest(f"{at}.address", backend.address)
        elif rule.protocol != "udp":
            yield from _no_guest6(f"{at}.address", backend.address, ground)


def _no_guest6(path: str, address: str, ground: Ground) -> Iterator[Problem]:
    whys = [lot.why_not(address) for lot in ground.lots6.values()]
    if "" in whys:
        return
    known = listed(f"{lot.network.id} ({lot.cidr})" for lot in ground.lots6.values()) or "none"
    yield Problem(path, f"{address} is no guest's of an IPv6 network; the networks are: {known}")


# --- what goes together -------------------------------------------------------------------------------------


def _fitting(rule: Balancer, path: str) -> Iterator[Problem]:
    """What a rule of its protocol cannot do."""
    health, sticky = rule.health, rule.stickiness
    if rule.protocol == "udp":
        yield from _fitting_udp(rule, path)
        return
    if health.kind == "udp":
        yield Problem(f"{path}.health.kind", f"udp asks backends of UDP, and this rule is {rule.protocol}; say tcp")
    if rule.protocol == "tcp":
        if sticky and sticky.kind != "source":
            told = f"a {sticky.kind} is in requests, and tcp reads none; say http, or stick by source"
            yield Problem(f"{path}.stickiness.kind", told)
        if not rule.keep_alive:
            yield Problem(f"{path}.keep_alive", "only http knows where a request ends; say http, or remove this")
    if rule.asked_by != "http":
        plain = Health(kind=health.kind)
        for name in ("method", "path", "host", "codes"):
            if getattr(health, name) != getattr(plain, name):
                yield Problem(
                    f"{path}.health.{name}", f"a {rule.asked_by} check asks no page; say http, or remove this"
                )


def _fitting_udp(rule: Balancer, path: str) -> Iterator[Problem]:
    if is_v6(rule.address):
        told = "UDP is balanced by translation, and IPv6 is not translated"
        yield Problem(f"{path}.address", f"{rule.address} is IPv6, and {told}; give an IPv4 address")
    for backend in rule.backends:
        if is_v6(backend.address):
            yield from only(f"{path}.backends[{backend.id}].address", (backend.address,))
    plain = Balancer(id=rule.id, address=rule.address, port=rule.port, protocol="udp")
    for name in ("tls", "proxy_protocol", "accept_proxy", "keep_alive", "limits"):
        if getattr(rule, name) != getattr(plain, name):
            yield Problem(f"{path}.{name}", "is nothing that datagrams have; remove it, or say tcp")
    if rule.timeouts != Timeouts():
        yield Problem(f"{path}.timeouts", "are of connections, and datagrams have none; remove them")
    if rule.stickiness:
        told = 'datagrams stick by the algorithm "source"; say that, and remove this'
        yield Problem(f"{path}.stickiness", told)
    if rule.algorithm == "leastconn":
        yield Problem(f"{path}.algorithm", "datagrams have no connections to count; say roundrobin or source")
    if rule.health.kind == "http":
        yield Problem(f"{path}.health.kind", "http asks backends of TCP; say udp, tcp (with a port) or off")


# --- certificates -------------------------------------------------------------------------------------------


def _certificates(config: Config) -> Iterator[Problem]:
    for one in config.certificates:
        path = f"config.certificates[{one.id}]"
        if why := certificate_problem(one.certificate):
            yield Problem(f"{path}.certificate", why)
        elif why := key_problem(one.key.reveal(), one.certificate):
            yield Problem(f"{path}.key", why)
        if one.chain is not None and (why := certificate_problem(one.chain)):
            yield Problem(f"{path}.chain", why)
