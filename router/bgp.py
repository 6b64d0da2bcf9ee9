"""BGP: FRR's zebra and bgpd, and what passes between the router and its peers.

bgpd speaks to the peers; zebra puts what it has taken into the kernel's main table, with a protocol number of its own
(so drift never takes it for ours). There it meets routing.py's rule 100: a learned route wins over the uplinks, and a
learned default is asked last, when no uplink has a gateway.

    zebra.conf   that a next hop may lie behind a default route, as that of a peer some hops away does
    bgpd.conf    the speaker, the peers, what passes           changed: frr-reload.py, which tells bgpd the difference:
                                                               no session that the difference is not about ends

**What passes.** Nothing that a document does not name, in either direction, and never a default route outwards: each
peer has a list of what it is told (exactly those prefixes) and of what is taken from it, and both begin with what is
refused whatever the document says:

    out-<peer>   deny the default; permit the prefixes of its networks, and `prefixes`
    in-<peer>    deny the default (or permit it); deny whatever lies in a subnet of the router's own, its control
                 network too, or behind a tunnel: a longer prefix would lead the manager, a network's guests, or what
                 is to be encrypted elsewhere; permit `accept`

The lists stand in route maps: FRR applies a changed list to a standing session by itself, by route refresh, only there.

FRR 10 (Debian 13) has a third daemon, mgmtd, without which zebra does nothing but complain; FRR 8 (Debian 12) has none,
and that unit sleeps. mgmtd and zebra become FRR's account, and insist on capabilities on their way there that they
never use (privs.c). bgpd does without by `-S`: it stays root, who alone reads the passwords, and may use a socket of
FRR's account; it waits for that socket, for without zebra it knows no interface, asks anew only after ten seconds, and
throws away what it is told in IPv6 meanwhile. The dry check is vtysh's: to `bgpd -C` (8.4, 10.3) an unknown command is
no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.state import Check, Facts, File, Route, Sandbox, State, Unit
from appliance.values import is_v6
from router.config import Config
from router.config_bgp import BgpPeer
from router.door import Door
from router.layout import fill
from router.links import link_name, own_addresses
from router.routing import Subnet, subnets, towards
from router.tunnels import tunnels

PORT = 179
_ZEBRA, _BGPD = "/etc/narthex/zebra/zebra.conf", "/etc/narthex/bgp/bgpd.conf"
_RUN = "/run/frr"
_QUIET = ("-A", "127.0.0.1", "-P", "0", "--log", "stdout")  # no port of their own for people
_FAMILIES = ("INET", "INET6", "NETLINK", "PACKET")
# What it does is told in full, passwords too, at any lower level; so are its notes, in the folder of the file.
_RELOAD = (
    "/usr/lib/frr/frr-reload.py", "--reload", "--stdout", "--log-level", "error", "--daemon", "bgpd",
    "--rundir", "/etc/narthex/bgp", _BGPD,
)  # fmt: skip


def compile_bgp(config: Config, facts: Facts) -> State:
    """The files and units of BGP, and each session as a check."""
    if config.bgp is None:
        return State()
    return State(
        files=(
            File(_ZEBRA, "ip nht resolve-via-default\nipv6 nht resolve-via-default\n"),
            File(_BGPD, _bgpd(config, facts), 0o600, secret=True),
        ),
        units=_daemons(),
        routes=tuple(_next_hops(config, facts)),
        checks=tuple(Check("bgp", p.address, owner=p.id) for p in _peers(config)),
    )


def _daemons() -> tuple[Unit, ...]:
    run = (_RUN, 0o755, "frr")
    insists = ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SETGID", "SETUID", "SYS_ADMIN")
    needs = ("DAC_OVERRIDE", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW")
    bgpd = " ".join(("/usr/lib/frr/bgpd", "-S", *_QUIET, "-f", _BGPD))
    mgmtd = " ".join(("/usr/lib/frr/mgmtd", *_QUIET))
    return (
        Unit(
            name="mgmtd",
            command=("/bin/sh", "-c", f"test -x /usr/lib/frr/mgmtd && exec {mgmtd}; exec sleep infinity"),
            directories=(run,),
            sandbox=Sandbox(insists, _FAMILIES, (_RUN,)),
        ),
        Unit(
            name="zebra",
            command=("/usr/lib/frr/zebra", *_QUIET, "-f", _ZEBRA),
            restart_on=(_ZEBRA,),
            directories=(*_folders(_ZEBRA, 0o755), run),
            sandbox=Sandbox(insists, _FAMILIES, (_RUN,)),
        ),
        Unit(
            name="bgpd",
            command=("/bin/sh", "-c", f"until test -S {_RUN}/zserv.api; do sleep 0.1; done; exec {bgpd}"),
            reload_by=_RELOAD,
            reload_on=(_BGPD,),
            check=("vtysh", "-C", "-f", f"{{{_BGPD}}}"),
            checks=(_BGPD,),
            directories=(*_folders(_BGPD, 0o700), run),
            sandbox=Sandbox(needs, _FAMILIES, (_RUN,)),
        ),
    )


def _folders(path: str, mode: int) -> tuple[tuple[str, int, str], ...]:
    return ("/etc/narthex", 0o755, "root"), (path.rpartition("/")[0], mode, "root")


def bgp_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """Each peer may open the session as well as we, and nobody else."""
    for peer in _peers(config) if config.bgp else ():
        for subnet in _met_at(config, peer):
            link, is_public = link_name(subnet.interface, facts), subnet.interface.use == "public"
            for address in own_addresses(subnet.interface, is_v6(peer.address)):
                yield Door(link, address, "tcp", PORT, peer.id, is_public, source=peer.address)


def _met_at(config: Config, peer: BgpPeer) -> list[Subnet]:
    """The interfaces by which a peer comes in, one subnet of each: where it is a neighbour, else any uplink."""
    known = [s for s in subnets(config.interfaces) if is_v6(s.cidr) is is_v6(peer.address)]
    if near := towards(peer.address, known):
        return [near]
    uplinks = {s.interface.id: s for s in known if s.interface.use == "public"}
    return [uplinks[name] for name in sorted(uplinks)]


def _next_hops(config: Config, facts: Facts) -> Iterator[Route]:
    """The IPv6 subnets by which peers come in, in main: the kernel asks there, whatever the rules say, whether a next
    hop is a neighbour (net/ipv6/route.c: ip6_route_check_nh), and an uplink's subnets are in its own table alone."""
    met = {s.cidr: s for p in _peers(config) if is_v6(p.address) for s in _met_at(config, p)}
    for cidr, at in sorted(met.items()):
        if at.interface.use == "public" and is_v6(cidr) and at.first < at.last:
            yield Route(cidr, link_name(at.interface, facts), source=at.address, owner=at.interface.id)


def _peers(config: Config) -> list[BgpPeer]:
    return sorted(config.bgp_peers, key=lambda p: p.id)


def _bgpd(config: Config, facts: Facts) -> str:
    assert config.bgp is not None
    public = sorted((i for i in config.interfaces if i.use == "public"), key=lambda i: i.id)
    first = next((a for i in public for a in own_addresses(i)), "")
    peers = [_told(config, peer) for peer in _peers(config)]
    families = {
        name: {
            "peers": [p for p in peers if p["v6"] is v6],
            "networks": sorted({cidr for p in peers if p["v6"] is v6 for cidr in p["out"]}),
        }
        for name, v6 in (("ipv4", False), ("ipv6", True))
    }
    return fill(
        "bgpd.conf",
        name=facts.name,
        asn=config.bgp.asn,
        id=config.bgp.router_id or first,
        peers=peers,
        families=families,
    )


def _told(config: Config, peer: BgpPeer) -> dict[str, Any]:
    """A peer in the words of FRR's configuration."""
    v6 = is_v6(peer.address)
    default, deepest = ("::/0", 128) if v6 else ("0.0.0.0/0", 32)
    named = [n.cidr6 if v6 else n.cidr for n in config.networks if n.id in peer.networks]
    taken = [f"{'permit' if peer.default else 'deny'} {default}"]
    own = {s.cidr for s in subnets(config.interfaces)} | {c for t in tunnels(config) for c in t.cidrs}
    taken += [_deny(cidr, deepest) for cidr in sorted(own) if is_v6(cidr) is v6]
    taken += [f"permit {_span(a.cidr, a.longest)}" for a in peer.accept]
    return {
        "v6": v6, "family": "ipv6" if v6 else "ip", "id": peer.id, "address": peer.address, "asn": peer.asn,
        "password": peer.password.reveal() if peer.password else "", "multihop": peer.multihop,
        "keepalive": peer.keepalive, "hold": peer.hold, "limit": peer.limit, "in": taken,
        "out": sorted({cidr for cidr in (*named, *peer.prefixes) if cidr}), "default": default,
    }  # fmt: skip


def _deny(cidr: str, deepest: int) -> str:
    return f"deny {_span(cidr, deepest)}"


def _span(cidr: str, longest: int | None) -> str:
    """A prefix and those inside it up to a length; FRR takes no `le` that is not longer than the prefix."""
    return cidr if longest in (None, int(cidr.partition("/")[2])) else f"{cidr} le {longest}"
