"""Whether tunnels fit: among each other, and beside the router's interfaces. What is behind which is tunnels.py's."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.state import Problem
from appliance.values import bounds, is_v6
from router.config import Config
from router.routing import subnets
from router.topology import Ground, untranslated
from router.tunnels import tunnels

# Nobody is there, or everybody: no tunnel leads to them.
_NOWHERE = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8")


def tunnel_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """What all tunnels have in common: links of their own, CIDRs of their own, a way to the internet that there is."""
    interfaces = {i.id for i in config.interfaces}
    links: dict[str, str] = {}
    found = tunnels(config)
    for tunnel in found:
        device = tunnel.device
        if device.id in interfaces:
            told = f"there is an interface {device.id}, and packets are told of by where they came in; take another id"
            yield Problem(f"{tunnel.path}.id", told)
        if (other := links.setdefault(device.link, device.id)) != device.id:
            yield Problem(f"{tunnel.path}.id", f"{other} has the link {device.link} already; take another id")
        if tunnel.internet is not None:
            if is_v6(tunnel.internet):
                yield untranslated(f"{tunnel.path}.internet", tunnel.internet)
            else:
                yield from ground.not_public(f"{tunnel.path}.internet", tunnel.internet)
    yield from _overlaps(config)


def _overlaps(config: Config) -> Iterator[Problem]:
    """An address lives in one place: behind one tunnel, or one interface, or outside."""
    for v6 in (False, True):
        places = [(*bounds(c), c, "nowhere: nobody has such an address", "") for c in _NOWHERE if is_v6(c) is v6]
        places += [
            (s.first, s.last, s.cidr, f"the subnet of interface {s.interface.id}", "")
            for s in subnets(config.interfaces)
            if is_v6(s.cidr) is v6
        ]
        for tunnel in tunnels(config):
            mine = [c for c in dict.fromkeys(tunnel.cidrs) if is_v6(c) is v6]
            places += [(*bounds(c), c, f"behind tunnel {tunnel.owner}", f"{tunnel.path}.{tunnel.field}") for c in mine]
        reach = None
        for place in sorted(places, key=lambda p: (p[0], -p[1])):
            first, last, cidr, where, path = place
            if reach and first <= reach[1] and (path or reach[4]) and path != reach[4]:
                other, told = (reach, place) if path else (place, reach)
                yield Problem(told[4], f"{told[2]} overlaps {other[2]}, {other[3]}; give it addresses of its own")
            if reach is None or last > reach[1]:
                reach = place


def routed_twice(config: Config) -> Iterator[Problem]:
    """A static route to the very CIDR of a tunnel would stand in its place."""
    mine = {c: t.owner for t in tunnels(config) for c in t.cidrs}
    for route in config.routes:
        if route.destination in mine:
            told = f"{route.destination} is behind tunnel {mine[route.destination]}; remove the route"
            yield Problem(f"config.routes[{route.id}].destination", told)
