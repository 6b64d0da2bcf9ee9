"""What a router has to be well: who should answer whom, by the document. Asked by the agent (appliance/health.py).

    gateways    of public interfaces, and the next hops of static routes
    dns         each network's server for the router's own name, and the upstream servers for the root
    wireguard   sites that are to be kept alive
    dhcp        each network's server for one known host of it: it must be offered its own address
    forwards    a sample of them, in turn

What a document does not have is not asked. Those of DHCP stand last: they alone change with a host.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.state import Check, Facts, State
from appliance.values import is_v6
from router.config import Config, Host
from router.links import link_name
from router.places import places
from router.routing import subnets, towards
from router.tunnels import tunnel_link


def compile_health(config: Config, facts: Facts) -> State:
    """The checks, and nothing that a machine is."""
    return State(
        checks=(
            *_gateways(config, facts),
            *_dns(config, facts),
            *_forwards(config),
            *_sites(config),
            *_dhcp(config, facts),
        )
    )


def revise_health(checks: tuple[Check, ...], config: Config, facts: Facts) -> tuple[Check, ...]:
    """`checks` after a change that touched hosts only."""
    return (*(c for c in checks if c.kind != "dhcp"), *_dhcp(config, facts))


def _gateways(config: Config, facts: Facts) -> Iterator[Check]:
    seen = set()
    for interface in sorted(config.interfaces, key=lambda i: i.id):
        for gateway in (interface.gateway, interface.gateway6) if interface.use == "public" else ():
            if gateway:
                seen.add(gateway)
                yield Check("gateway", gateway, link=link_name(interface, facts), owner=interface.id)
    known = subnets(config.interfaces) if config.routes else ()
    for route in sorted(config.routes, key=lambda r: r.id):
        near = towards(route.via, known)
        if near and route.via not in seen:
            seen.add(route.via)
            yield Check("gateway", route.via, link=link_name(near.interface, facts), owner=route.id)


def _dns(config: Config, facts: Facts) -> Iterator[Check]:
    served = [p for p in places(config, facts) if p.network.dns]
    for place in served:
        name = f"{facts.name}.{place.network.domain}" if place.network.domain else facts.name
        if facts.name:
            yield Check("dns", place.router, name, place.router, owner=place.network.id)
    for place in served:
        for server in place.network.upstream:
            yield Check("dns", server, ".", owner=place.network.id)
    if any(not p.network.upstream for p in served):
        for server in config.upstream:
            yield Check("dns", server, ".")


def _forwards(config: Config) -> Iterator[Check]:
    if any(not is_v6(i.addresses[0]) for i in config.interfaces if i.use == "public" and i.addresses):
        yield Check("forwards")


def _sites(config: Config) -> Iterator[Check]:
    for site in sorted(config.wireguard_sites, key=lambda s: s.id):
        if site.keepalive:  # who keeps nothing alive may be silent for as long as he likes
            yield Check("wireguard", site.public_key, link=tunnel_link("wg", site.wireguard), owner=site.id)


def _dhcp(config: Config, facts: Facts) -> Iterator[Check]:
    first: dict[str, Host] = {}
    for host in config.hosts:
        if host.network not in first or host.id < first[host.network].id:
            first[host.network] = host
    for place in places(config, facts):
        network = place.network
        if network.dhcp.enabled and (known := first.get(network.id)):
            yield Check("dhcp", network.cidr, known.mac, known.address, link=place.link, owner=network.id)
