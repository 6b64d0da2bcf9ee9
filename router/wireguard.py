"""WireGuard: a link for each listener, its key and port, and a peer for each user and site.

What is behind the link, and who may go there, is tunnels.py's; this file makes the link, the router's addresses on it,
its peers and its public door. A peer may send from its own addresses alone (WireGuard's allowed IPs): a user from the
addresses that the document gives, a site from its networks.

A user more or less is one peer, and nothing else of the State: the subnet of all users is on the link anyway
(`revise_users`). Who is removed, or not `enabled`, is no peer any more, and no packet of it is understood.

The kernel clamps a private key (RFC 7748, 5) and gives it back clamped, so that the State has it clamped too. What a
listener sends by itself carries the mark of its uplink (routing.py).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from appliance.state import Address, Facts, Link, Peer, State, Touched, Wireguard
from appliance.values import is_v6
from router.config import Config
from router.config_wireguard import VpnUser, WireguardSite
from router.config_wireguard import Wireguard as Listener
from router.door import Door
from router.links import link_name, own_addresses
from router.routing import uplinks
from router.tunnels import tunnel_link


def compile_wireguard(config: Config, facts: Facts) -> State:
    """Links, keys, peers and addresses of all listeners."""
    listeners = sorted(config.wireguard, key=lambda w: w.id)
    if not listeners:
        return State()
    marks = {a: u.mark for u in uplinks(config, facts) for v6 in (False, True) for a in own_addresses(u.interface, v6)}
    links = {w.id: tunnel_link("wg", w.id) for w in listeners}
    return State(
        links=tuple(Link(links[w.id], "", w.mtu, kind="wireguard", owner=w.id) for w in listeners),
        wireguards=tuple(
            Wireguard(links[w.id], clamped(w.private_key.reveal()), w.port, marks.get(w.address, 0), w.id)
            for w in listeners
        ),
        peers=_by_owner(
            (
                *(_site(s, links[s.wireguard]) for s in config.wireguard_sites),
                *(_user(u, links[u.wireguard]) for u in config.vpn_users if u.enabled),
            )
        ),
        addresses=tuple(
            Address(links[w.id], cidr, connected=False, announce=False, owner=w.id)
            for w in listeners
            for cidr in w.addresses
        ),
    )


def revise_users(state: State, touched: Sequence[Touched]) -> tuple[Peer, ...]:
    """The peers after these users changed; the others are the same objects. (No site has a user's id: checks.)"""
    ids = {t.id for t in touched}
    links = {w.owner: w.link for w in state.wireguards}
    after = [t.after for t in touched if isinstance(t.after, VpnUser) and t.after.enabled]
    kept = (p for p in state.peers if p.owner not in ids)
    return _by_owner((*kept, *(_user(u, links[u.wireguard]) for u in after)))


def _by_owner(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    return tuple(sorted(peers, key=attrgetter("owner")))


def clamped(private_key: str) -> str:
    """A private key as the kernel holds it: five bits of it are fixed (RFC 7748, 5)."""
    raw = bytearray(b64decode(private_key))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return b64encode(raw).decode()


def _user(user: VpnUser, link: str) -> Peer:
    networks = (f"{a}/{128 if is_v6(a) else 32}" for a in user.addresses)
    secret = user.preshared_key.reveal() if user.preshared_key else ""
    return Peer(link, user.public_key, tuple(sorted(networks)), secret, owner=user.id, counted="vpn_users")


def _site(site: WireguardSite, link: str) -> Peer:
    secret = site.preshared_key.reveal() if site.preshared_key else ""
    endpoint = ""
    if site.endpoint:
        endpoint = f"[{site.endpoint}]" if is_v6(site.endpoint) else site.endpoint
        endpoint = f"{endpoint}:{site.endpoint_port}"
    networks = tuple(sorted(set(site.networks)))
    return Peer(link, site.public_key, networks, secret, endpoint, site.keepalive, site.id, "vpn_sites")


def listening(config: Config) -> Iterator[tuple[Listener, str, int]]:
    """(listener, address, port) of where each is asked: its address, and the first of that interface in each family
    where it calls sites, for from there it calls."""
    callers = {site.wireguard for site in config.wireguard_sites if site.endpoint}
    for listener in config.wireguard:
        for interface in config.interfaces:
            own = (*own_addresses(interface), *own_addresses(interface, v6=True))
            if interface.use == "public" and listener.address in own:
                first = [found[0] for v6 in (False, True) if (found := own_addresses(interface, v6))]
                for address in dict.fromkeys((listener.address, *(first if listener.id in callers else ()))):
                    yield listener, address, listener.port


def wireguard_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """The ports of the listeners, which no firewall rule need allow."""
    links = {a: link_name(u, facts) for u in config.interfaces for v6 in (False, True) for a in own_addresses(u, v6)}
    for listener, address, port in listening(config):
        yield Door(links[address], address, "udp", port, listener.id, public=True)
