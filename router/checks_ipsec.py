"""What is wrong with the document's IPsec: sites, remote access and its users, and what of them would meet.

charon would take much of it and then open too little, or too much: two who are known by the same name, a cipher that is
broken. What all tunnels have in common is checks_tunnels.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Problem
from appliance.values import bounds, contains, is_v6, subnet
from router.config import Config, Forward
from router.config_ipsec import WEAK, IpsecAccess, IpsecSite, IpsecUser
from router.ipsec import is_address
from router.links import own_addresses

PORTS = (500, 4500)


def ipsec_problems(config: Config) -> Iterator[Problem]:
    """All that is wrong with ipsec_sites, ipsec_access and ipsec_users."""
    if not (config.ipsec_sites or config.ipsec_access or config.ipsec_users):
        return
    public = {a for i in config.interfaces if i.use == "public" for v6 in (False, True) for a in own_addresses(i, v6)}
    for site in config.ipsec_sites:
        yield from _site(site, public)
    yield from _twins(config.ipsec_sites)
    for access in config.ipsec_access:
        yield from _access(access, config, public)
    yield from _users(config)
    yield from _translated(config)


def _site(site: IpsecSite, public: set[str]) -> Iterator[Problem]:
    path = f"config.ipsec_sites[{site.id}]"
    yield from _public(path, site.address, public)
    by_certificate = [site.certificate, site.private_key, site.peer_ca]
    if (site.secret is None) == (None in by_certificate) or (site.secret and any(by_certificate)):
        told = "both ends prove who they are by one `secret`, or by `certificate`, `private_key` and `peer_ca`"
        yield Problem(path, f"{told}: give the one or the others")
    if site.certificate and not site.peer_id:
        told = "whoever has a certificate by peer_ca would be this site; say which name in it is the peer's"
        yield Problem(f"{path}.peer_id", told)
    if site.peer is None and not site.peer_id:
        told = "a peer that calls from anywhere is known by what it calls itself; give its peer_id"
        yield Problem(f"{path}.peer_id", told)
    if site.peer is None and site.secret and site.version == "ikev1":
        told = "IKEv1 finds a secret by the peer's address; give its address, or use ikev2"
        yield Problem(f"{path}.peer", told)
    if site.peer and is_address(site.peer) and is_v6(site.peer) != is_v6(site.address):
        yield Problem(f"{path}.peer", f"{site.peer} cannot be reached from {site.address}: one is IPv6, one IPv4")
    if {is_v6(c) for c in site.networks} != {is_v6(c) for c in site.peer_networks}:
        told = "networks and peer_networks must be of the same families: nothing of IPv4 can reach IPv6"
        yield Problem(f"{path}.peer_networks", told)
    yield from _ciphers(path, site)


def _ciphers(path: str, item: IpsecSite | IpsecAccess) -> Iterator[Problem]:
    for field, proposals in (("ike", item.ike), ("esp", item.esp)):
        for proposal in proposals:
            weak = sorted(WEAK.intersection(proposal.split("-")))
            if weak and not item.weak:
                told = (
                    f"{', '.join(weak)} is broken or nearly so; choose another, or say that you want it by weak: true"
                )
                yield Problem(f"{path}.{field}", f"{proposal}: {told}")


def _twins(sites: Iterable[IpsecSite]) -> Iterator[Problem]:
    """Two sites that charon could not tell apart."""
    seen: dict[tuple[str | None, ...], str] = {}
    for site in sites:
        key = (site.address, site.peer, site.peer_id or site.peer)
        if key in seen:
            told = f"{seen[key]} is the same peer at the same address; put all its networks into one site"
            yield Problem(f"config.ipsec_sites[{site.id}]", told)
        seen.setdefault(key, site.id)


def _access(access: IpsecAccess, config: Config, public: set[str]) -> Iterator[Problem]:
    path = f"config.ipsec_access[{access.id}]"
    yield from _public(path, access.address, public)
    yield from _ciphers(path, access)
    families = [is_v6(cidr) for cidr in access.addresses]
    if len(set(families)) < len(families):
        yield Problem(f"{path}.addresses", "there is one subnet of users for each family; join the two")
    for cidr in access.addresses:
        first, last = bounds(subnet(cidr))
        if last - first < 3:
            yield Problem(f"{path}.addresses", f"{cidr} has no room for users; take a /29 or shorter")
        elif not first < bounds(cidr.partition("/")[0])[0] < last:
            yield Problem(f"{path}.addresses", f"{cidr} is the subnet's first or last address; take one between")
    if access.dns is not None and access.dns not in {n.id for n in config.networks}:
        yield Problem(f"{path}.dns", f"there is no network {access.dns}; name one whose router answers names")
    for cidr in access.routes or ():
        if is_v6(cidr) not in families:
            told = f"users have no address of the family of {cidr}; add a subnet to addresses, or leave it out"
            yield Problem(f"{path}.routes", told)
    twins = [a.id for a in config.ipsec_access if a.address == access.address]
    if twins[0] != access.id:
        told = f"{twins[0]} is at {access.address} already, and IKE has one port; take another address"
        yield Problem(f"{path}.address", told)


def _users(config: Config) -> Iterator[Problem]:
    accesses = {a.id: a for a in config.ipsec_access}
    logins: dict[str, str] = {}
    for user in config.ipsec_users:
        path = f"config.ipsec_users[{user.id}]"
        access = accesses.get(user.access)
        if access is None:
            yield Problem(f"{path}.access", f"there is no remote access {user.access} in ipsec_access; name one")
        elif user.password is None and access.user_ca is None:
            told = f"no password, and {access.id} has no user_ca by which a certificate could be judged; give one"
            yield Problem(f"{path}.password", told)
        if (other := logins.setdefault(user.login.lower(), user.id)) != user.id:
            told = f"{other} logs in as {user.login} already (large and small letters are one); choose another"
            yield Problem(f"{path}.login", told)
    yield from _passwords(config.ipsec_users)


def _passwords(users: Iterable[IpsecUser]) -> Iterator[Problem]:
    """charon knows a password by its login, not by where it is used."""
    with_password = [u for u in users if u.password is not None]
    for user in with_password:
        if user.access != with_password[0].access:
            told = f"a password opens every remote access of a router, and {with_password[0].access} has such users"
            yield Problem(f"config.ipsec_users[{user.id}].access", f"{told}; use certificates for one of the two")


def ipsec_forwards(forwards: Iterable[Forward], config: Config) -> Iterator[Problem]:
    """Forwards that would take IKE's packets."""
    held = _addresses(config)
    for forward in forwards if held else ():
        taken = [port for port in PORTS if forward.ports.first <= port <= forward.ports.last]
        if taken and forward.protocol == "udp" and forward.address in held:
            told = f"port {taken[0]}/udp of {forward.address} is IKE's, of {held[forward.address]}; forward others"
            yield Problem(f"config.forwards[{forward.id}].ports", told)


def _translated(config: Config) -> Iterator[Problem]:
    """What would take the packets of IKE and ESP: a static NAT, which has all of its address, and another listener."""
    held = _addresses(config)
    for nat in config.static_nats:
        if nat.address in held:
            told = f"{nat.address} is where IPsec's {held[nat.address]} is asked; take another address for one of them"
            yield Problem(f"config.static_nats[{nat.id}].address", told)
    for listener in config.wireguard:
        if listener.port in PORTS:
            yield Problem(f"config.wireguard[{listener.id}].port", f"{listener.port} is IPsec's; take another")
    for site in config.ipsec_sites:
        for cidr in site.peer_networks:
            if site.peer and is_address(site.peer) and contains(cidr, site.peer):
                told = f"the peer {site.peer} is in {cidr}, and would be sought behind the tunnel to it; split {cidr}"
                yield Problem(f"config.ipsec_sites[{site.id}].peer_networks", told)
    yield from ipsec_forwards(config.forwards, config)


def _addresses(config: Config) -> dict[str, str]:
    """The addresses that IPsec is asked at, each with whose it is."""
    return {a.address: a.id for a in config.ipsec_access} | {s.address: s.id for s in config.ipsec_sites}


def _public(path: str, address: str, public: set[str]) -> Iterator[Problem]:
    if address not in public:
        told = f"{address} is no address of a public interface; add it to one, or choose another"
        yield Problem(f"{path}.address", told)
