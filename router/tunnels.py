"""Tunnels: what is behind a link that the router makes itself, remote users (access) and other sites (site).

A feature (WireGuard, IPsec) says its `Device`s, the links, and its `Tunnel`s, which CIDRs are behind each; from that
the parts that know nothing of either make what README.md, 12, says:

    routing.py   the CIDRs onto the link, in main
    senders.py   m_sender: the CIDRs -> beyond_<device>; s_guest: the links, so that a stranger's source is dropped, and
                 users on their way to the internet get their uplink's mark (m_uplink_net)
    firewall.py  s_own: the router's own addresses there answer to ping
    forward      behind the ACLs' judges (acl.py), and beside the other ways to be accepted:
        s_tunnel                   the links of tunnels
        m_tunnel_in, m_tunnel_in6  a network's cidr -> tunnel_<network>: out by its link: accept
        s_tunnel_out, ...6         the cidrs of networks: from there to a tunnel
        s_transit, s_transit6      the CIDRs of tunnels that may reach each other
        s_internet, s_internet6    the CIDRs of users who may leave by an uplink; m_source_nat_<uplink> has them too

All of it is there only where the document has tunnels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Match, NftSet, Route, Ruleset, State, Sysctl, Verdict, VerdictMap
from appliance.values import is_v6, merged, subnet
from router.config import Config, Network
from router.door import Door
from router.family import speaks_v6, spoken, spoken_sets
from router.links import link_name

ACCEPT = Verdict("accept")
LONGEST = 15  # of a link's name (IFNAMSIZ)
# Of links that are still to be made: what links.py sets for those that are there.
_SETTINGS = (Sysctl("net.ipv4.conf.default.rp_filter", "0"), Sysctl("net.ipv4.conf.default.send_redirects", "0"))


@dataclass(frozen=True, slots=True)
class Device:
    """A link of tunnels: the id of the document's object that it is, its name, the router's own addresses there with
    their lengths, and where in the router who comes in by it may ask for names."""

    id: str
    link: str
    addresses: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The CIDRs, of both families, behind a device. `owner` is the id of the object that they come from.

    `internet`: the public address by which they may leave for the internet, None where they may not. `transit`: they
    reach, and are reached by, those of other tunnels with transit. `path` is that of the object in the document,
    `field` the one of its fields that has the CIDRs.
    """

    owner: str
    device: Device
    cidrs: tuple[str, ...]
    kind: Literal["site", "access"]
    path: str
    field: str
    internet: str | None = None
    transit: bool = False


def tunnel_link(prefix: str, ident: str) -> str:
    """The name of a link for the object with this id: `wg-road`, or a digest where that is too long."""
    name = f"{prefix}-{ident}"
    return name if len(name) <= LONGEST else f"{prefix}-{blake2b(ident.encode(), digest_size=5).hexdigest()}"


def wireguard_tunnels(config: Config) -> Iterator[Tunnel]:
    """A listener's users, one tunnel; each of its sites, another."""
    for listener in sorted(config.wireguard, key=lambda w: w.id):
        dns = asked_at(config, listener.dns)
        device = Device(listener.id, tunnel_link("wg", listener.id), listener.addresses, dns)
        cidrs = tuple(dict.fromkeys(map(subnet, listener.addresses)))
        path = f"config.wireguard[{listener.id}]"
        yield Tunnel(listener.id, device, cidrs, "access", path, "addresses", listener.internet, listener.transit)
        for site in sorted((s for s in config.wireguard_sites if s.wireguard == listener.id), key=lambda s: s.id):
            path = f"config.wireguard_sites[{site.id}]"
            yield Tunnel(site.id, device, site.networks, "site", path, "networks", None, listener.transit)


def ipsec_tunnels(config: Config) -> Iterator[Tunnel]:
    """A tunnel, with a link of its own, for each site; another for the users of each remote access."""
    for site in sorted(config.ipsec_sites, key=lambda s: s.id):
        device = Device(site.id, tunnel_link("ipsec", site.id))
        path = f"config.ipsec_sites[{site.id}]"
        yield Tunnel(site.id, device, site.peer_networks, "site", path, "peer_networks", None, site.transit)
    for access in sorted(config.ipsec_access, key=lambda a: a.id):
        device = Device(access.id, tunnel_link("ipsec", access.id), access.addresses, asked_at(config, access.dns))
        cidrs = tuple(dict.fromkeys(map(subnet, access.addresses)))
        path = f"config.ipsec_access[{access.id}]"
        yield Tunnel(access.id, device, cidrs, "access", path, "addresses", access.internet, access.transit)


def asked_at(config: Config, network: str | None) -> tuple[str, ...]:
    """The router's addresses in a network: where names are asked for."""
    named = next((n for n in config.networks if n.id == network), None)
    interface = next((i for i in config.interfaces if named and i.id == named.interface), None)
    if named is None or interface is None:
        return ()
    return tuple(a.partition("/")[0] for a in interface.addresses if subnet(a) in (named.cidr, named.cidr6))


FEATURES: tuple[Callable[[Config], Iterator[Tunnel]], ...] = (wireguard_tunnels, ipsec_tunnels)


def tunnels(config: Config) -> tuple[Tunnel, ...]:
    """The tunnels of all features. A device whose tunnels have no CIDR is a tunnel too, of none."""
    return tuple(tunnel for feature in FEATURES for tunnel in feature(config))


def devices(config: Config) -> dict[str, Device]:
    """The links of tunnels by their ids."""
    return {t.device.id: t.device for t in tunnels(config)}


def behind(found: Iterable[Tunnel], v6: bool) -> dict[str, Tunnel]:
    """The CIDRs of a family as sets write them, each with its tunnel."""
    return {c: t for t in found for c in merged(tuple(c for c in t.cidrs if is_v6(c) is v6))}


# --- for the other parts -------------------------------------------------------------------------------------


def tunnel_routes(config: Config) -> Iterator[Route]:
    """What routing.py puts into main."""
    for tunnel in tunnels(config):
        for cidr in dict.fromkeys(tunnel.cidrs):
            yield Route(cidr, tunnel.device.link, owner=tunnel.owner)


def tunnel_doors(config: Config, _: Facts) -> Iterator[Door]:
    """Where who comes in by a tunnel asks for names."""
    for device in devices(config).values():
        for address in device.dns:
            yield Door(device.link, address, "udp", 53, device.id)
            yield Door(device.link, address, "tcp", 53, device.id)


def compile_tunnels(config: Config, facts: Facts) -> State:
    """The sets and chains that chain `forward` asks."""
    found = tunnels(config)
    if not found:
        return State()
    links = {i.id: link_name(i, facts) for i in config.interfaces}
    owners = {t.device.link: t.device.id for t in found}
    sets = [NftSet("s_tunnel", "ifname", elements=dict.fromkeys(owners, ""), owners=owners)]
    for v6, suffix, key in ((False, "", "ipv4_addr"), (True, "6", "ipv6_addr")):
        cidrs = {c: n for n in config.networks for c in (n.cidr, n.cidr6) if c and is_v6(c) is v6}
        leads = {c: f"jump {_name(n)}" for c, n in cidrs.items()}
        sets.append(NftSet(f"m_tunnel_in{suffix}", key, "verdict", True, leads, {c: n.id for c, n in cidrs.items()}))
        sets.append(_cidrs(f"s_tunnel_out{suffix}", key, {c: n.id for c, n in cidrs.items()}))
        sets.append(_cidrs(f"s_transit{suffix}", key, _owned(t for t in found if t.transit)[v6]))
        sets.append(_cidrs(f"s_internet{suffix}", key, _owned(t for t in found if t.internet)[v6]))
    chains = tuple(_chain(n, links[n.interface]) for n in config.networks)
    return State(sysctls=_SETTINGS, ruleset=Ruleset(spoken_sets(sets, speaks_v6(config)), chains))


def _owned(found: Iterable[Tunnel]) -> tuple[dict[str, str], dict[str, str]]:
    """The CIDRs of IPv4 and those of IPv6, with their owners."""
    kept = tuple(found)
    v4, v6 = ({c: t.owner for c, t in behind(kept, family).items()} for family in (False, True))
    return v4, v6


def _cidrs(name: str, key: str, owners: dict[str, str]) -> NftSet:
    return NftSet(name, key, "", True, dict.fromkeys(owners, ""), owners)


def _name(network: Network) -> str:
    return f"tunnel_{network.id}"


def _chain(network: Network, link: str) -> Chain:
    return Chain(_name(network), (FilterRule((Match(("oifname",), (link,)),), ACCEPT, "from a tunnel", network.id),))


def through(config: Config) -> tuple[FilterRule, ...]:
    """What chain `forward` accepts, after the judges."""
    if not tunnels(config):
        return ()
    came, goes = Match(("iifname",), set="s_tunnel"), Match(("oifname",), set="s_tunnel")
    outwards = Match(("oifname",), set="s_uplink")
    rules = (
        FilterRule((came,), VerdictMap(("ip daddr",), "m_tunnel_in"), "from a tunnel to guests"),
        FilterRule((came,), VerdictMap(("ip6 daddr",), "m_tunnel_in6"), "from a tunnel to guests"),
        FilterRule((goes, Match(("ip saddr",), set="s_tunnel_out")), ACCEPT, "guests to a tunnel"),
        FilterRule((goes, Match(("ip6 saddr",), set="s_tunnel_out6")), ACCEPT, "guests to a tunnel"),
        FilterRule(
            (came, goes, Match(("ip saddr",), set="s_transit"), Match(("ip daddr",), set="s_transit")),
            ACCEPT,
            "from tunnel to tunnel",
        ),
        FilterRule(
            (came, goes, Match(("ip6 saddr",), set="s_transit6"), Match(("ip6 daddr",), set="s_transit6")),
            ACCEPT,
            "from tunnel to tunnel",
        ),
        FilterRule((came, outwards, Match(("ip saddr",), set="s_internet")), ACCEPT, "users to the internet"),
        FilterRule((came, outwards, Match(("ip6 saddr",), set="s_internet6")), ACCEPT, "users to the internet"),
    )
    return spoken(rules, speaks_v6(config))
