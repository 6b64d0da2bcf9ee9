"""Whether WireGuard's listeners, users and sites fit: keys, ports and addresses, each of one owner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from appliance.state import Problem
from appliance.values import bounds, contains, is_v6, number, subnet
from router.config import Config, Forward
from router.config_wireguard import VpnUser, Wireguard, WireguardSite
from router.topology import Ground, listed, not_a_host
from router.tunnels import tunnels
from router.wireguard import listening

# UDP ports on which the router itself may listen, and a listener would stand on all its addresses.
_TAKEN = {53: "DNS", 67: "DHCP", 123: "NTP", 500: "IKE", 547: "DHCPv6", 1701: "L2TP", 4500: "IKE", 3780: "conntrackd"}


def wireguard_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """All of it."""
    ports: dict[int, str] = {}
    for listener in config.wireguard:
        yield from _listener(listener, config, ground)
        if (other := ports.setdefault(listener.port, listener.id)) != listener.id:
            path = f"config.wireguard[{listener.id}].port"
            yield Problem(path, f"listener {other} has port {listener.port} already, at every address; take another")
    yield from static_problems(config)
    listeners = {w.id: w for w in config.wireguard}
    for user in config.vpn_users:
        yield from user_problems(user, listeners)
    yield from user_twins(config, config.vpn_users)
    for site in config.wireguard_sites:
        yield from _site(site, listeners, config)


def _listener(listener: Wireguard, config: Config, ground: Ground) -> Iterator[Problem]:
    path = f"config.wireguard[{listener.id}]"
    yield from ground.not_public(f"{path}.address", listener.address)
    if (what := _TAKEN.get(listener.port)) is not None:
        yield Problem(f"{path}.port", f"{listener.port} is the port of {what}; take another, as 51820")
    for cidr in listener.addresses:
        if why := not_a_host(cidr):
            yield Problem(f"{path}.addresses", f"{cidr} {why}; give the router an address of its own")
    if listener.internet is not None and not listener.addresses:
        yield Problem(f"{path}.internet", "a listener without addresses has no users; add addresses, or remove this")
    if listener.dns is not None:
        named = next((n for n in config.networks if n.id == listener.dns), None)
        if named is None:
            known = listed(n.id for n in config.networks) or "none"
            yield Problem(f"{path}.dns", f"there is no network {listener.dns}; the networks are: {known}")
        elif not named.dns:
            yield Problem(f"{path}.dns", f"network {named.id} has no DNS; give it dns, or name another")


def static_problems(config: Config) -> Iterator[Problem]:
    """A static NAT has all of its address, and a listener wants a port of it."""
    held = {address: w.id for w, address, _ in listening(config)}
    for nat in config.static_nats:
        if nat.address in held:
            told = f"WireGuard listener {held[nat.address]} is reached at {nat.address}; take another address"
            yield Problem(f"config.static_nats[{nat.id}].address", told)


def forward_clashes(forwards: Iterable[Forward], config: Config) -> Iterator[Problem]:
    """Forwards that would take a listener's packets."""
    held = {(address, port): w.id for w, address, port in listening(config)}
    for forward in forwards if held else ():
        for (address, port), ident in held.items():
            is_there = (forward.protocol, forward.address) == ("udp", address)
            if is_there and forward.ports.first <= port <= forward.ports.last:
                told = f"port {port}/udp of {address} is WireGuard listener {ident}'s; forward others"
                yield Problem(f"config.forwards[{forward.id}].ports", told)


# --- peers ---------------------------------------------------------------------------------------------------


def user_problems(user: VpnUser, listeners: dict[str, Wireguard]) -> Iterator[Problem]:
    """One user by itself."""
    path = f"config.vpn_users[{user.id}]"
    listener = listeners.get(user.wireguard)
    if listener is None:
        yield _no_listener(f"{path}.wireguard", user.wireguard, listeners)
        return
    if len({is_v6(a) for a in user.addresses}) < len(user.addresses):
        yield Problem(f"{path}.addresses", "a user has one address of a family; remove one")
    for address in user.addresses:
        yield from _place(address, listener, f"{path}.addresses")


def _place(address: str, listener: Wireguard, path: str) -> Iterator[Problem]:
    own = next((c for c in listener.addresses if contains(subnet(c), address)), None)
    if own is None:
        known = listed(map(subnet, listener.addresses)) or "none"
        yield Problem(path, f"{address} is in no subnet of listener {listener.id}; those are: {known}")
        return
    first, last = bounds(own)
    if address == own.partition("/")[0]:
        yield Problem(path, f"{address} is the router's own address; give another of {subnet(own)}")
    elif last - first > 1 and (number(address) == first or (number(address) == last and not is_v6(address))):
        yield Problem(path, f"{address} is the network or broadcast address of {subnet(own)}; give another")


def user_twins(config: Config, users: Sequence[VpnUser]) -> Iterator[Problem]:
    """`users` that share a key or an address with another peer; told at the later of two users."""
    wanted = {a for u in users for a in u.addresses} | {(u.wireguard, u.public_key) for u in users}
    ids = {u.id for u in users}
    sites = {(s.wireguard, s.public_key): s.id for s in config.wireguard_sites}
    names = {s.id for s in config.wireguard_sites}
    seen: dict[str | tuple[str, str], str] = {}
    # The touched last, so that a clash is told at the one that was changed.
    for user in sorted(config.vpn_users, key=lambda u: u.id in ids):
        path, key = f"config.vpn_users[{user.id}]", (user.wireguard, user.public_key)
        if user.id in names:
            yield Problem(f"{path}.id", f"there is a site {user.id}; give the user another id")
        if key in sites:
            yield Problem(f"{path}.public_key", f"site {sites[key]} has this key already; each peer has its own")
        if key in wanted and (other := seen.setdefault(key, user.id)) != user.id:
            yield Problem(f"{path}.public_key", f"user {other} has this key already; each peer has its own")
        for address in user.addresses:
            if address in wanted and (other := seen.setdefault(address, user.id)) != user.id:
                yield Problem(f"{path}.addresses", f"{address} is user {other}'s already; give another")


def _site(site: WireguardSite, listeners: dict[str, Wireguard], config: Config) -> Iterator[Problem]:
    path = f"config.wireguard_sites[{site.id}]"
    if site.wireguard not in listeners:
        yield _no_listener(f"{path}.wireguard", site.wireguard, listeners)
    for other in config.wireguard_sites:
        if other.id < site.id and (other.wireguard, other.public_key) == (site.wireguard, site.public_key):
            yield Problem(f"{path}.public_key", f"site {other.id} has this key already; each peer has its own")
    if site.id in listeners:
        yield Problem(f"{path}.id", f"there is a listener {site.id}; give the site another id")
    if site.endpoint is not None:
        for tunnel in tunnels(config):
            if any(contains(cidr, site.endpoint) for cidr in tunnel.cidrs):
                told = f"{site.endpoint} is behind tunnel {tunnel.owner}, and nothing calls through itself"
                yield Problem(f"{path}.endpoint", f"{told}; correct it, or the networks")


def _no_listener(path: str, name: str, listeners: Iterable[str]) -> Problem:
    return Problem(path, f"there is no WireGuard listener {name}; those are: {listed(sorted(listeners)) or 'none'}")
