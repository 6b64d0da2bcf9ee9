"""What is wrong with a document's BGP: peers that cannot be reached, and routes that must not pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Problem
from appliance.values import bounds, contains, is_v6
from router.config import Config
from router.config_bgp import BgpPeer
from router.routing import Subnet, subnets, towards
from router.topology import Ground, listed

_RESERVED = {23456: "AS_TRANS (RFC 6793)", 65535: "reserved (RFC 7300)"}
_DEFAULTS = ("0.0.0.0/0", "::/0")


def bgp_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """All that is wrong with `bgp` and `bgp_peers`."""
    if config.bgp is None:
        if config.bgp_peers:
            yield Problem("config.bgp", "there are peers, and no AS number of our own; add bgp with its asn")
        return
    yield from _speaker(config)
    known = subnets(config.interfaces)
    seen: dict[str, str] = {}
    for peer in config.bgp_peers:
        path = f"config.bgp_peers[{peer.id}]"
        yield from _reserved(peer.asn, f"{path}.asn")
        yield from _reached(peer, path, known, config)
        yield from _told(peer, path, ground, config)
        yield from _taken(peer, path, known, config)
        if peer.password is not None and " " in peer.password.reveal():
            yield Problem(f"{path}.password", "a password of BGP has no spaces; choose another")
        if (other := seen.setdefault(peer.address, peer.id)) != peer.id:
            yield Problem(f"{path}.address", f"peer {other} has this address; two sessions of one address are one")


def _speaker(config: Config) -> Iterator[Problem]:
    assert config.bgp is not None
    yield from _reserved(config.bgp.asn, "config.bgp.asn")
    if config.bgp.router_id is None:
        if not any(not is_v6(a) for i in config.interfaces if i.use == "public" for a in i.addresses):
            yield Problem("config.bgp.router_id", "no public interface has an IPv4 address to be the id; name one")
    elif is_v6(config.bgp.router_id):
        yield Problem("config.bgp.router_id", "a router id is written as an IPv4 address (RFC 6286)")


def _reserved(asn: int, path: str) -> Iterator[Problem]:
    if asn in _RESERVED:
        yield Problem(path, f"{asn} is {_RESERVED[asn]}; give the number that was assigned, or a private one")


def _reached(peer: BgpPeer, path: str, known: tuple[Subnet, ...], config: Config) -> Iterator[Problem]:
    own = {a.partition("/")[0]: i.id for i in config.interfaces for a in i.addresses}
    near = towards(peer.address, known)
    if peer.address in own:
        told = f"{peer.address} is the router's own address on {own[peer.address]}; give the peer's"
        yield Problem(f"{path}.address", told)
    elif near is not None and near.interface.use == "control":
        yield Problem(f"{path}.address", f"{peer.address} is on the control interface, where nothing is routed")
    elif near is None and peer.multihop is None:
        told = listed(s.cidr for s in known if is_v6(s.cidr) is is_v6(peer.address)) or "none"
        yield Problem(f"{path}.address", f"{peer.address} is in no subnet of an interface ({told}); give it a multihop")
    elif near is None and not any(is_v6(a) is is_v6(peer.address) for a in own):
        yield Problem(f"{path}.address", f"the router has no address of the family of {peer.address}; add one")


def _told(peer: BgpPeer, path: str, ground: Ground, config: Config) -> Iterator[Problem]:
    v6 = is_v6(peer.address)
    networks = {n.id: n for n in config.networks}
    for name in peer.networks:
        network = networks.get(name)
        if network is None:
            yield Problem(f"{path}.networks", f"there is no network {name}; there are: {listed(networks) or 'none'}")
        elif v6 and not network.cidr6:
            yield Problem(
                f"{path}.networks", f"network {name} has no cidr6; remove it here, or tell an IPv4 peer of it"
            )
        elif not v6 and not network.routed:
            told = f"network {name} is translated: nobody reaches its guests by {network.cidr}; make it routed"
            yield Problem(f"{path}.networks", f"{told}, or remove it here")
    yield from _of_family(f"{path}.prefixes", peer.prefixes, v6)
    for prefix in peer.prefixes:
        if prefix in _DEFAULTS:
            yield Problem(f"{path}.prefixes", f"{prefix} is the default route; this router tells nobody of one")


def _taken(peer: BgpPeer, path: str, known: tuple[Subnet, ...], config: Config) -> Iterator[Problem]:
    v6 = is_v6(peer.address)
    yield from _of_family(f"{path}.accept", (a.cidr for a in peer.accept), v6)
    own = [s for s in known if is_v6(s.cidr) is v6]
    public = [i for i in config.interfaces if i.use == "public"]
    fixed = next((i for i in public if i.gateway6), None) if v6 else next((i for i in public[:1] if i.gateway), None)
    if peer.default and fixed is not None:
        told = f"the gateway of public interface {fixed.id} is the default, and comes before a learned one"
        yield Problem(f"{path}.default", f"{told}; remove that gateway, or take no default here")
    for accept in peer.accept:
        length = int(accept.cidr.partition("/")[2])
        if accept.longest is not None and not length <= accept.longest <= (128 if v6 else 32):
            told = f"longest ({accept.longest}) is a prefix length from {length} to {128 if v6 else 32}"
            yield Problem(f"{path}.accept", f"{accept.cidr}: {told}")
        if accept.cidr in _DEFAULTS and accept.longest is None:
            yield Problem(f"{path}.accept", f"{accept.cidr} is the default route; say default: true to take it")
        for subnet in own:
            if contains(subnet.cidr, accept.cidr) and bounds(accept.cidr) != (0, 0):
                told = f"{accept.cidr} lies in {subnet.cidr}, the subnet of interface {subnet.interface.id}"
                yield Problem(f"{path}.accept", f"{told}: routes into it are never taken; remove it")
                break


def _of_family(path: str, cidrs: Iterable[str], v6: bool) -> Iterator[Problem]:
    for cidr in cidrs:
        if is_v6(cidr) is not v6:
            yield Problem(path, f"{cidr} is of another family than the peer; that needs a peer of its own")
