"""IPsec: one charon (strongSwan) for all sites and users; each object is an entry of its own (Entry).

    strongswan.conf   what it reads once                                     changed: restart
    link ipsec-<id>   an XFRM interface for each site and each remote access, by its if_id: what is routed into it
                      leaves by that tunnel or not at all, and what comes out of it has come by that tunnel. So ACLs,
                      senders and routes know it as any link (tunnels.py); nothing depends on the kernel's policies
    connection        site.<id>; access.<id> for all users with a password, user.<id> for each with a certificate
    secret, key       of sites and users; of sites and remote access
    pool              the addresses for users: named by what it holds, so that another one does not disturb who has one

A site's tunnel is begun when it is told and whenever somebody sends into it (`trap`), but not where the peer has a
name: to look that up may take long, so charon is only asked to begin and goes on by itself. It never is tried in a
push: whether the peer answers is no part of the machine's state.

Who comes with a password has told no name when charon chooses a connection, so that all of them have one, and each a
secret of his own: that which goes, or becomes another, ends the sessions of who logged in by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from zlib import crc32

from appliance.state import Address, Check, Entry, Facts, File, Link, Sandbox, State, Unit
from appliance.values import SecretPem, address, address_text, bounds, is_v6, subnet
from router.config import Config
from router.config_ipsec import AEADS, IpsecAccess, IpsecSite, IpsecUser
from router.door import Door
from router.layout import fill
from router.links import link_names
from router.tunnels import asked_at, tunnel_link

DIRECTORY = "/etc/narthex/ipsec"
UNIT = "ipsec"
MOST_USERS = 65_536  # of an IPv6 pool: as many as anybody has, and charon counts them in 32 bits
IKE, NATT, ESP = "500", "4500", "50"
DOMAIN = "25"  # INTERNAL_DNS_DOMAIN (RFC 8598)
DPD_USER_S = 60
END = "-----END CERTIFICATE-----"
# A charon that was killed leaves its keys and policies in the kernel, and the next one does not know them.
_FLUSH = "ip xfrm policy flush; ip xfrm state flush;"


def compile_ipsec(config: Config, facts: Facts) -> State:
    """The daemon, what it is told, and the links of its tunnels; nothing where nobody needs it."""
    sites, accesses = _by_id(config.ipsec_sites), _by_id(config.ipsec_access)
    both: tuple[IpsecSite | IpsecAccess, ...] = (*sites, *accesses)
    if not both:
        return State()
    ids = if_ids(config)
    conf, folder = f"{DIRECTORY}/strongswan.conf", f"{facts.run_dir}/ipsec"
    told = [*_pools(config, accesses), *_keys(sites, accesses), *_secrets(config), *_connections(config, ids)]
    path = f"{folder}/vici"
    return State(
        files=(File(conf, fill("strongswan.conf", socket=path)),),
        units=(
            Unit(
                UNIT,
                ("sh", "-c", f"{_FLUSH} STRONGSWAN_CONF={conf} exec charon-systemd"),
                restart_on=(conf,),
                directories=((folder, 0o700, "root"),),
                # NET_ADMIN: the kernel's policies and keys (XFRM). NET_BIND_SERVICE: port 500. What else it has it lays
                # down by itself, and ends where it may not (capset: SETPCAP).
                sandbox=Sandbox(("NET_ADMIN", "NET_BIND_SERVICE", "SETPCAP"), ("INET", "INET6", "NETLINK"), (folder,)),
            ),
        ),
        links=tuple(Link(link_of(o), "", o.mtu, kind="xfrm", if_id=ids[o.id], owner=o.id) for o in both),
        addresses=tuple(
            Address(link_of(a), cidr, connected=False, announce=False, owner=a.id)
            for a in accesses
            for cidr in a.addresses
        ),
        entries=tuple(Entry(UNIT, path, *part) for part in told),
        # Who waits for a call cannot say that it should have come.
        checks=tuple(Check("ipsec", path, f"site.{s.id}", owner=s.id) for s in sites if not is_passive(s)),
    )


def link_of(item: IpsecSite | IpsecAccess) -> str:
    """The name of an object's XFRM interface."""
    return tunnel_link("ipsec", item.id)


def if_ids(config: Config) -> dict[str, int]:
    """The if_id of each site and remote access: from its id, so that a session outlives what comes beside it."""
    found: dict[str, int] = {}
    for ident in sorted((*(s.id for s in config.ipsec_sites), *(a.id for a in config.ipsec_access))):
        number = crc32(ident.encode()) >> 1 or 1
        while number in found.values():
            number += 1
        found[ident] = number
    return found


def ipsec_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """IKE, and ESP with and without UDP around it, at the public addresses in use."""
    links = {
        cidr.partition("/")[0]: name for name, i in link_names(config, facts, "public").items() for cidr in i.addresses
    }
    owners: dict[str, str] = {}
    both: tuple[IpsecSite | IpsecAccess, ...] = (*config.ipsec_sites, *config.ipsec_access)
    for item in both:
        owners.setdefault(item.address, item.id)
    for at, owner in owners.items():
        if at in links:
            for port in (IKE, NATT):
                yield Door(links[at], at, "udp", int(port), owner, public=True)
            yield Door(links[at], at, ESP, 0, owner, public=True)


# --- what charon is told ----------------------------------------------------------------------------------------------

Item = TypeVar("Item", IpsecSite, IpsecAccess, IpsecUser)
Part = tuple[Any, str, str, bool, str]  # kind, name, content, secret, owner: an Entry without its unit


def _part(kind: str, name: str, content: object, owner: str) -> Part:
    return kind, name, json.dumps(content, sort_keys=True), kind in ("secret", "key"), owner


def _pools(config: Config, accesses: Iterable[IpsecAccess]) -> Iterator[Part]:
    for access in accesses:
        for cidr in access.addresses:
            content: dict[str, Any] = {"addrs": _span(cidr)}
            if servers := [a for a in asked_at(config, access.dns) if is_v6(a) is is_v6(cidr)]:
                content["dns"] = servers
            if access.search and not is_v6(cidr):
                content[DOMAIN] = ["0x" + name.encode().hex() for name in access.search]
            yield _part("pool", _pool(access, cidr), content, access.id)


def _pool(access: IpsecAccess, cidr: str) -> str:
    return f"{access.id} {_span(cidr)}"


def _span(cidr: str) -> str:
    """The addresses that users may have: of the subnet behind the router's own one, or before it where that is more."""
    own = bounds(cidr.partition("/")[0])[0]
    first, last = bounds(subnet(cidr))
    low, high = (own + 1, last - 1) if last - own > own - first else (first + 1, own - 1)
    high = min(high, low + MOST_USERS - 1)
    return f"{address_text(low, is_v6(cidr))}-{address_text(high, is_v6(cidr))}"


def _keys(sites: Iterable[IpsecSite], accesses: Iterable[IpsecAccess]) -> Iterator[Part]:
    for site in sites:
        if site.private_key:
            yield _key(f"site.{site.id}", site.private_key, site.id)
    for access in accesses:
        yield _key(f"access.{access.id}", access.private_key, access.id)


def _key(name: str, key: SecretPem, owner: str) -> Part:
    return _part("key", name, {"type": "any", "data": key.reveal()}, owner)


def _secrets(config: Config) -> Iterator[Part]:
    for site in _by_id(config.ipsec_sites):
        if site.secret:
            # Another secret ends nothing: it is for the next time that both prove who they are.
            yield _secret(f"site.{site.id}", "IKE", site.secret.reveal(), [_peer_id(site)], [], site.id)
    for user in _by_id(config.ipsec_users):
        if user.password and user.enabled:
            ends = [f"access.{user.access}", user.login]
            yield _secret(f"user.{user.id}", "EAP", user.password.reveal(), [user.login], ends, user.id)


def _secret(name: str, kind: str, data: str, owners: list[str], ends: list[str], owner: str) -> Part:
    return _part("secret", name, {"type": kind, "data": data, "owners": owners, "ends": ends}, owner)


def _peer_id(site: IpsecSite) -> str:
    return site.peer_id or site.peer or ""


def _connections(config: Config, ids: dict[str, int]) -> Iterator[Part]:
    for site in _by_id(config.ipsec_sites):
        children = {name: _child(site, ours, theirs) for name, ours, theirs in _pairs(site)}
        content = {
            "config": {**_site(site), "children": children, **_if_id(ids[site.id])},
            "initiate": [] if is_passive(site) else list(children),
        }
        yield _part("connection", f"site.{site.id}", content, site.id)
    for access in _by_id(config.ipsec_access):
        with_password: dict[str, Any] = {"auth": "eap-mschapv2", "eap_id": "%any", "id": "%any"}
        comers = {f"access.{access.id}": (with_password, access.id)}
        for user in _by_id(config.ipsec_users):
            if user.access == access.id and user.enabled and not user.password:
                certified = {"auth": "pubkey", "id": user.login, "cacerts": blocks(access.user_ca or "")}
                comers[f"user.{user.id}"] = (certified, user.id)
        for name, (remote, owner) in comers.items():
            whole = {**_access(access, config), "remote": remote, **_if_id(ids[access.id])}
            yield _part("connection", name, {"config": whole, "initiate": []}, owner)


def is_passive(site: IpsecSite) -> bool:
    """Do we wait for the peer to call?"""
    return site.passive or site.peer is None


def _site(site: IpsecSite) -> dict[str, Any]:
    local: dict[str, Any] = {"auth": "psk", "id": site.local_id or site.address}
    remote: dict[str, Any] = {"auth": "psk", "id": _peer_id(site)}
    if site.certificate and site.peer_ca:
        local = {"auth": "pubkey", "certs": blocks(site.certificate)} | ({"id": site.local_id} if site.local_id else {})
        # A certificate that signed itself is its own authority, and the only one of it.
        remote = {"auth": "pubkey", "id": site.peer_id or "%any", "cacerts": blocks(site.peer_ca)}
    return {
        "version": {"ikev1": "1", "ikev2": "2", "any": "0"}[site.version],
        "local_addrs": [site.address],
        "remote_addrs": [site.peer or "%any"],
        "proposals": ike_words(site.ike),
        "rekey_time": f"{site.ike_lifetime}s",
        "keyingtries": "0",
        "unique": "replace",
        "mobike": "no",
        "encap": "yes" if site.encapsulation else "no",
        "dpd_delay": f"{site.dpd}s",
        "dpd_timeout": f"{site.dpd * 4}s",  # of IKEv1; in IKEv2 it is an unanswered request's
        "local": local,
        "remote": remote,
    }


def _pairs(site: IpsecSite) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The child SAs: name, our networks, theirs. IKEv1 has one network a side (RFC 2409, 5.5)."""
    if not site.split and site.version == "ikev2":
        yield "all", site.networks, site.peer_networks
        return
    for ours in site.networks:
        for theirs in site.peer_networks:
            if is_v6(ours) is is_v6(theirs):
                yield f"{ours} {theirs}", (ours,), (theirs,)


def _child(site: IpsecSite, ours: tuple[str, ...], theirs: tuple[str, ...]) -> dict[str, Any]:
    waits, is_named = is_passive(site), site.peer is not None and not is_address(site.peer)
    return {
        "mode": "tunnel",
        "local_ts": list(ours),
        "remote_ts": list(theirs),
        "esp_proposals": list(site.esp),
        "rekey_time": f"{site.esp_lifetime}s",
        "start_action": "none" if waits or is_named else "trap",
        "dpd_action": "clear" if waits else "restart",
        "close_action": "none" if waits or not is_named else "start",
    }


def is_address(text: str) -> bool:
    """Is it an address, and not a name that must be looked up?"""
    try:
        address(text)
    except ValueError:
        return False
    return True


def _access(access: IpsecAccess, config: Config) -> dict[str, Any]:
    child = {
        "mode": "tunnel",
        "local_ts": list(led_in(config, access)),
        "esp_proposals": list(access.esp),
        "dpd_action": "clear",
    }
    return {
        "version": "2",
        "local_addrs": [access.address],
        "remote_addrs": ["%any"],
        "proposals": ike_words(access.ike),
        "unique": "never",  # a user has more than one device
        "send_cert": "always",
        "dpd_delay": f"{DPD_USER_S}s",
        "pools": [_pool(access, cidr) for cidr in access.addresses],
        "local": {"auth": "pubkey", "id": access.name, "certs": blocks(access.certificate)},
        "children": {"all": child},
    }


def led_in(config: Config, access: IpsecAccess) -> tuple[str, ...]:
    """What users send into the tunnel, of the families that they have addresses of."""
    families = {is_v6(cidr) for cidr in access.addresses}
    if access.internet is not None:
        return tuple(everything for everything in ("0.0.0.0/0", "::/0") if is_v6(everything) in families)
    guests = tuple(c for n in config.networks for c in (n.cidr, n.cidr6) if c)
    return tuple(c for c in (guests if access.routes is None else access.routes) if is_v6(c) in families)


def blocks(pem: str) -> list[str]:
    """The certificates of a chain, each for itself."""
    return [f"{block}{END}\n" for block in pem.replace(f"{END}\n", END).split(END) if block]


def _if_id(number: int) -> dict[str, str]:
    return {"if_id_in": str(number), "if_id_out": str(number)}


def ike_words(proposals: Iterable[str]) -> list[str]:
    """Proposals for IKE in charon's words: with an AEAD the integrity is the key derivation's (prf)."""
    found = []
    for text in proposals:
        encryption, integrity, group = text.split("-")
        found.append(f"{encryption}-{'prf' if encryption in AEADS else ''}{integrity}-{group}")
    return found


def _by_id(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.id)
