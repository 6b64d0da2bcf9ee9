"""How guests get IPv6: router advertisements and DHCPv6, one dnsmasq for each interface with networks that have them.

A process of its own beside DHCP's (dhcp.py), so that neither waits for the other; one for each interface, because an
advertisement is the router's word to a whole link. What it says:

    slaac       choose an address in the prefix; DNS here and, for who asks so, by stateless DHCPv6 (RFC 8106, 8415)
    stateful    addresses come by DHCPv6: each host's `address6`, known by its MAC; strangers get none
    default     the router is a way out, for half an hour from each advertisement on; else it is none

A host with `default` False is told no name servers by DHCPv6. That the router is a way out it hears all the same: an
advertisement has no addressee. Where no guest shall hear it, the network says so (`advertise.default`).

Nothing outlives what it comes from. Addresses hold for a day, so that guests survive a router that is away for hours,
and dnsmasq forgets a lease as soon as it is given, as dhcp.py's does and why: a host that is installed anew has another
DUID, an address goes from one host to another. What is taken out of the document is taken back from the guests too: the
State's `adverts` (appliance/adverts.py).

    <id>.conf     what is read once: link, prefixes, what is told           changed: restart, and a new advertisement
    <id>.hosts    a line for each host                                      changed: SIGHUP
    <id>.release  the script by which a lease is let go
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from appliance.state import Advert, Facts, File, Sandbox, State, Touched, Unit
from appliance.values import is_v6
from router.config import Config, Host
from router.layout import fill
from router.listing import Line, listing, relist
from router.places import Place, places

DIRECTORY = "/etc/narthex/advertise"
LIFETIME_S = 86_400  # of addresses and of what is told; a host's or a network's own lease may be another
INTERVAL_S, ROUTER_S = 600, 1800  # RFC 4861, 6.2.1: MaxRtrAdvInterval, AdvDefaultLifetime
_ASIDE = "aside"  # the tag of every host whose way out is not here


def compile_advertise(config: Config, facts: Facts) -> State:
    """The files, units and adverts of the interfaces that tell guests of IPv6. Raises LookupError as places() does."""
    if not any(n.cidr6 for n in config.networks):
        return State()
    hosts: dict[str, list[Host]] = defaultdict(list)
    for host in config.hosts:
        if host.address6:
            hosts[host.network].append(host)
    served = _by_interface(config, facts)
    return State(
        files=tuple(f for group in served for f in _files(group, hosts, config, facts)),
        units=tuple(_unit(group) for group in served),
        adverts=tuple(a for group in served for a in _adverts(group, config)),
    )


def revise_advertise(
    files: tuple[File, ...], config: Config, touched: Sequence[Touched], facts: Facts
) -> tuple[File, ...] | None:
    """`files` after a change that touched hosts only: what compile_advertise makes of `config`. None: compile the
    whole."""
    if not any(isinstance(h, Host) and h.address6 for t in touched for h in (t.before, t.after)):
        return files
    served = {p.network.id: p for group in _by_interface(config, facts) for p in group}
    before = [line for t in touched for line in _lines(served, t.before)]
    after = [line for t in touched for line in _lines(served, t.after)]
    return relist(files, before, after)


def _lines(served: dict[str, Place], host: object | None) -> list[Line]:
    if isinstance(host, Host) and host.address6 and (place := served.get(host.network)) and _is_stateful(place):
        return [(_path(place, "hosts"), _line(place, host))]
    return []


def _by_interface(config: Config, facts: Facts) -> list[tuple[Place, ...]]:
    """The networks whose guests are told, those of one interface together."""
    told = (p for p in places(config, facts) if p.router6 and p.network.advertise.addresses != "off")
    served = sorted(told, key=lambda p: p.interface.id)
    return [tuple(group) for _, group in groupby(served, key=lambda p: p.interface.id)]


def _is_stateful(place: Place) -> bool:
    return place.network.advertise.addresses == "stateful"


def _unit(group: tuple[Place, ...]) -> Unit:
    place = group[0]
    conf = _path(place, "conf")
    return Unit(
        name=f"advertise-{place.interface.id}",
        command=("dnsmasq", "--keep-in-foreground", f"--conf-file={conf}"),
        reload="HUP",
        reload_on=(_path(place, "hosts"),),
        restart_on=(conf, _path(place, "release")),
        check=("dnsmasq", "--test", f"--conf-file={{{conf}}}"),
        checks=(conf,),
        directories=(("/etc/narthex", 0o755, "root"), (DIRECTORY, 0o755, "root")),  # it reads again as nobody
        # Starts as root and becomes nobody; its script stays root, for a client's port and a neighbour's entry.
        sandbox=Sandbox(("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID"), ("INET", "INET6", "NETLINK")),
        owner=place.interface.id,
    )


def _files(group: tuple[Place, ...], hosts: dict[str, list[Host]], config: Config, facts: Facts) -> Iterator[File]:
    first = group[0]
    link, owner = first.link, first.interface.id
    paths = {kind: _path(first, kind) for kind in ("hosts", "release")}
    conf = fill(
        "advertise.conf",
        link=link,
        interface=owner,
        mac=first.interface.mac,
        interval=INTERVAL_S,
        lifetime=_router_s(group),
        ranges=[_range(p) for p in group],
        stateful=[_tag(p) for p in group if _is_stateful(p)],
        options=[*_advertised(group, config), *(o for p in group for o in _options(p, config))],
        **paths,
    )
    yield File(_path(first, "conf"), conf, owner=owner)
    known = [_line(p, h) for p in group if _is_stateful(p) for h in hosts[p.network.id]]
    yield File(paths["hosts"], listing(known), owner=owner)
    yield File(paths["release"], fill("advertise.release", link=link, mac=first.interface.mac), 0o755, owner=owner)


def _path(place: Place, kind: str) -> str:
    return f"{DIRECTORY}/{place.interface.id}.{kind}"


def _router_s(group: Sequence[Place]) -> int:
    """For how many seconds the router is a way out. The networks of one interface agree (checks.py)."""
    return ROUTER_S if group[0].network.advertise.default else 0


def _tag(place: Place) -> str:
    return f"network.{place.network.id}"  # never the name of a link, nor dnsmasq's own "known"


def _range(place: Place) -> str:
    """A network's prefix: its tag, its first address, its mode, its length, its lifetime (dnsmasq(8) --dhcp-range)."""
    first, _, length = str(place.network.cidr6).partition("/")
    mode = "static" if _is_stateful(place) else "ra-stateless"
    lifetime = (place.network.dhcp.lease if _is_stateful(place) else None) or LIFETIME_S
    return f"set:{_tag(place)},{first},{mode},{length},{lifetime}"


def _line(place: Place, host: Host) -> str:
    """A host's line (dnsmasq(8) --dhcp-host): MAC, address, tag, lease time."""
    text = f"{host.mac},[{host.address6}]"
    if not host.default:
        text += f",set:{_ASIDE}"
    return text if host.lease is None else f"{text},{host.lease}"


# --- what is told --------------------------------------------------------------------------------------------


def servers(place: Place, config: Config) -> tuple[str, ...]:
    """The name servers that IPv6 guests are told: those that the network names, else the router, else those that the
    router would ask."""
    network = place.network
    if network.advertise.dns is not None:
        return network.advertise.dns
    return (place.router6,) if network.dns else tuple(filter(is_v6, network.upstream or config.upstream))


def _search(place: Place) -> tuple[str, ...]:
    network = place.network
    return network.advertise.search or ((network.domain,) if network.domain else ())


def _options(place: Place, config: Config) -> Iterator[str]:
    """What DHCPv6 tells a network's guests, as dnsmasq(8) --dhcp-option has it; it tags a question of DHCPv6 so."""
    return _said(f"tag:dhcpv6,tag:{_tag(place)},tag:!{_ASIDE}", servers(place, config), _search(place))


def _advertised(group: tuple[Place, ...], config: Config) -> Iterator[str]:
    """What an advertisement tells: what all networks of the link would."""
    names, domains = (s for p in group for s in servers(p, config)), (d for p in group for d in _search(p))
    return _said("tag:!dhcpv6", dict.fromkeys(names), dict.fromkeys(domains))


def _said(tag: str, names: Iterable[str], domains: Iterable[str]) -> Iterator[str]:
    if found := ",".join(f"[{s}]" for s in names):
        yield f"{tag},option6:dns-server,{found}"
    if found := ",".join(domains):
        yield f"{tag},option6:domain-search,{found}"


def _adverts(group: tuple[Place, ...], config: Config) -> Iterator[Advert]:
    """What guests have heard on a link; the router last, for the others' withdrawal says that it is still there."""
    link, lifetime, managed = group[0].link, _router_s(group), any(map(_is_stateful, group))
    for place in group:
        cidr, owner = str(place.network.cidr6), place.network.id
        if not _is_stateful(place):
            yield Advert(link, "prefix", cidr, lifetime, managed, owner)
        yield Advert(link, "onlink", cidr, lifetime, managed, owner)
    told = {("server", s): p.network.id for p in group for s in servers(p, config)}
    told |= {("domain", d): p.network.id for p in group for d in _search(p)}
    for (kind, value), owner in told.items():
        yield Advert(link, "server" if kind == "server" else "domain", value, lifetime, managed, owner)
    if lifetime:
        yield Advert(link, "router", "", lifetime, managed, group[0].interface.id)
