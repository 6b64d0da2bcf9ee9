"""DHCP: one dnsmasq for each interface with guests, for all networks behind it, without any DNS (that is dns.py's).

One for each interface, not for each network: a client's broadcast names no network, and of two servers on one link
each would refuse (NAK) the other's clients. Each is bound to its link (SO_BINDTODEVICE, dnsmasq does it by itself
where it has one interface), so that many of them share port 67.

**What is a lease?** A known host's address is what the document says, so nothing else may remember it: dnsmasq keeps a
lease until it ends, and while it does it refuses the address to whoever the document has given it to since ("not
using configured address ... because it is leased to ..."). So a known host's lease is let go as soon as it is given:
dnsmasq runs `release` on every new lease, and that sends the DHCPRELEASE back to it. What follows:

- the router has no memory that a rebuild could lose: a renewal is judged by the document (`dhcp-authoritative`: an
  ACK for a known host's own address, a NAK for any other, silence for who is not known);
- an address that goes from one host to another, or a MAC that changes, is right at the next packet;
- a reload costs the hosts, not hosts times leases (10,000 of each: 0.1 s instead of 1.5 s).

Only strangers, where a network has a range for them, have leases that last; theirs are in a file under `state_dir`.
A stranger's lease on an address that the document gives to somebody is let go too.

    <id>.conf     what is read once: link and ranges                         changed: restart
    <id>.hosts    a line for each host (dnsmasq(8) --dhcp-host)              changed: SIGHUP
    <id>.options  options (RFC 2132) by tag: of a network, of its hosts      changed: SIGHUP
                  that have no default here, of one host
    <id>.release  the script

A network's tag is on its range; the tag of a host is on its line, and its options win over the network's. A client that
asks for option 121 ignores option 3 (RFC 3442), so the default route stands in both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from netaddr import IPNetwork

from appliance.state import Facts, File, Sandbox, State, Touched, Unit
from appliance.values import bounds, is_v6
from router.config import Config, Host, Network
from router.layout import fill
from router.listing import Line, listing, relist
from router.places import Place, places

DIRECTORY = "/etc/narthex/dhcp"
ROUTER, DNS, HOSTNAME, DOMAIN, MTU, NTP, SEARCH, ROUTES = 3, 6, 12, 15, 26, 42, 119, 121
MOST_LEASES = 1 << 20
_ASIDE = "aside"  # the tag of every host whose way out is not here

# Names that dnsmasq would take for a lease time or a keyword in a host's line: they go by option 12 instead.
_NO_NAME = re.compile(r"\d+[wdhms]?|infinite|ignore", re.ASCII | re.IGNORECASE)


def compile_dhcp(config: Config, facts: Facts) -> State:
    """The files and units of DHCP. Raises LookupError as places() does."""
    hosts: dict[str, list[Host]] = defaultdict(list)
    for host in config.hosts:
        hosts[host.network].append(host)
    served = _by_interface(config, facts)
    return State(
        files=tuple(f for group in served for f in _files(group, hosts, config, facts)),
        units=tuple(_unit(group, facts) for group in served),
    )


def revise_dhcp(
    files: tuple[File, ...], config: Config, touched: Sequence[Touched], facts: Facts
) -> tuple[File, ...] | None:
    """`files` after a change that touched hosts only: what compile_dhcp makes of `config`. None: compile the whole."""
    served = {p.network.id: p for group in _by_interface(config, facts) for p in group}
    before = [line for t in touched for line in _lines(served, config, t.before)]
    after = [line for t in touched for line in _lines(served, config, t.after)]
    return relist(files, before, after)


def _lines(served: dict[str, Place], config: Config, host: object | None) -> list[Line]:
    if isinstance(host, Host) and (place := served.get(host.network)):
        own = _host_options(place, host, config)
        return [(_path(place, "hosts"), _line(host)), *((_path(place, "options"), o) for o in own)]
    return []


def _by_interface(config: Config, facts: Facts) -> list[tuple[Place, ...]]:
    """The networks that have DHCP, those of one interface together."""
    served = sorted((p for p in places(config, facts) if p.network.dhcp.enabled), key=lambda p: p.interface.id)
    return [tuple(group) for _, group in groupby(served, key=lambda p: p.interface.id)]


def _unit(group: tuple[Place, ...], facts: Facts) -> Unit:
    place = group[0]
    conf, leases = _path(place, "conf"), f"{facts.state_dir}/dhcp"
    return Unit(
        name=f"dhcp-{place.interface.id}",
        command=("dnsmasq", "--keep-in-foreground", f"--conf-file={conf}"),
        reload="HUP",
        reload_on=(_path(place, "hosts"), _path(place, "options")),
        restart_on=(conf,),
        check=("dnsmasq", "--test", f"--conf-file={{{conf}}}"),
        checks=(conf,),
        directories=(
            ("/etc/narthex", 0o755, "root"),
            (DIRECTORY, 0o755, "root"),  # it reads again as nobody
            (leases, 0o755, "root"),
        ),
        # Starts as root and becomes nobody. NET_ADMIN: the ARP entry by which a reply reaches who has no address yet.
        sandbox=Sandbox(
            ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID"), ("INET", "INET6", "NETLINK"), (leases,)
        ),
        owner=place.interface.id,
    )


def _files(group: tuple[Place, ...], hosts: dict[str, list[Host]], config: Config, facts: Facts) -> Iterator[File]:
    first = group[0]
    link, owner = first.link, first.interface.id
    strangers = any(p.network.dhcp.first for p in group)
    paths = {kind: _path(first, kind) for kind in ("hosts", "options", "release")}
    conf = fill(
        "dhcp.conf",
        link=link,
        interface=owner,
        ranges=[_range(p.network) for p in group],
        strangers=strangers,
        leases=f"{facts.state_dir}/dhcp/{owner}.leases",
        most=min(MOST_LEASES, sum(_size(p.network) for p in group)),
        **paths,
    )
    known = [(p, h) for p in group for h in hosts[p.network.id]]
    options = [o for p in group for o in _network_options(p, config)]
    options += [o for p, h in known for o in _host_options(p, h, config)]
    release = fill("dhcp.release", link=link, strangers=strangers, hosts=paths["hosts"])
    yield File(_path(first, "conf"), conf, owner=owner)
    yield File(paths["hosts"], listing(_line(h) for _, h in known), owner=owner)
    yield File(paths["options"], listing(options), owner=owner)
    yield File(paths["release"], release, 0o755, owner=owner)


def _path(place: Place, kind: str) -> str:
    return f"{DIRECTORY}/{place.interface.id}.{kind}"


def _size(network: Network) -> int:
    first, last = bounds(network.cidr)
    return last - first + 1


def _range(network: Network) -> str:
    """A network's range: its tag, where it starts and ends, its mask, its lease time (dnsmasq(8) --dhcp-range)."""
    net, dhcp = IPNetwork(network.cidr), network.dhcp
    where = f"{dhcp.first},{dhcp.last}" if dhcp.first and dhcp.last else f"{net.network},static"
    return f"set:{_tag(network)},{where},{net.netmask},{dhcp.lease or 'infinite'}"


# --- hosts and their tags -----------------------------------------------------------------------------------


def _tag(network: Network) -> str:
    return f"network.{network.id}"  # never the name of a link, nor dnsmasq's own "known"


def _host_tag(host: Host) -> str:
    """The tag whose options a host has in place of its network's, "" where it has its network's."""
    if host.dns is not None or host.routers is not None or host.options or _NO_NAME.fullmatch(host.name):
        return f"host.{host.id}"
    return "" if host.default else f"plain.{host.network}"


def _line(host: Host) -> str:
    """A host's line: MAC, address, tags, name, lease time. A comma follows the address: `release` counts on it."""
    text = f"{host.mac},{host.address}"
    if tag := _host_tag(host):
        text += f",set:{tag}"
    if not host.default:
        text += f",set:{_ASIDE}"
    if not _NO_NAME.fullmatch(host.name):
        text += f",{host.name}"
    return text if host.lease is None else f"{text},{host.lease}"


# --- options ------------------------------------------------------------------------------------------------


def _network_options(place: Place, config: Config) -> Iterator[str]:
    """What every guest of a network is told, and what is withheld from those whose way out it isn't."""
    network, dhcp, tag = place.network, place.network.dhcp, _tag(place.network)
    yield from _way_out(network, tag, _routers(place), _servers(place, config), network.domain)
    yield from _way_out(network, f"plain.{network.id}", (), (), None)
    if dhcp.search:
        yield _option(f"{tag},tag:!{_ASIDE}", SEARCH, dhcp.search)  # said empty it would be sent, empty
    if dhcp.mtu:
        yield _option(tag, MTU, (str(dhcp.mtu),))
    if dhcp.ntp:
        yield _option(tag, NTP, dhcp.ntp)
    for option in dhcp.options:
        yield _option(tag, option.code, option.values)
    if dhcp.boot:
        yield f"tag:{tag},option:bootfile-name,{dhcp.boot.file}"
        yield f"tag:{tag},option:server-ip-address,{dhcp.boot.server or place.router}"


def _host_options(place: Place, host: Host, config: Config) -> list[str]:
    """What one host is told in place of what its network tells; nothing for nearly all of them."""
    tag = _host_tag(host)
    if not tag.startswith("host."):
        return []
    routers = host.routers if host.routers is not None else _routers(place) if host.default else ()
    servers = host.dns if host.dns is not None else _servers(place, config) if host.default else ()
    found = list(_way_out(place.network, tag, routers, servers, place.network.domain if host.default else None))
    if _NO_NAME.fullmatch(host.name):
        found.append(_option(tag, HOSTNAME, (host.name,)))
    return found + [_option(tag, option.code, option.values) for option in host.options]


def _routers(place: Place) -> tuple[str, ...]:
    own = place.network.dhcp.routers
    return (place.router,) if own is None else own


def _servers(place: Place, config: Config) -> tuple[str, ...]:
    """The name servers of a network's guests: those it names, else the router, else those the router would ask."""
    network = place.network
    if network.dhcp.dns is not None:
        return network.dhcp.dns
    return (place.router,) if network.dns else tuple(s for s in network.upstream or config.upstream if not is_v6(s))


def _way_out(
    network: Network, tag: str, routers: tuple[str, ...], servers: tuple[str, ...], domain: str | None
) -> Iterator[str]:
    """The options by which a guest finds what is outside of its network."""
    yield _option(tag, ROUTER, routers)  # said empty, or dnsmasq would name itself
    yield _option(tag, DNS, servers)
    yield _option(tag, DOMAIN, (domain,) if domain else ())
    if network.dhcp.routes:
        ways = [f"{r.destination},{r.via}" for r in network.dhcp.routes]
        yield _option(tag, ROUTES, (*ways, *(f"0.0.0.0/0,{r}" for r in routers[:1])))


def _option(tag: str, code: int, values: Iterable[str]) -> str:
    """A line of dnsmasq's options file; without values the option is not sent."""
    return ",".join((f"tag:{tag}", str(code), *values))
