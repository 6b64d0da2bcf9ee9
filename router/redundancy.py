"""A router of two: both members get one document, one of them is the router, the other follows and takes over.

**Who is who.** `seated` turns document and facts so that this machine's interfaces stand under the document's MACs:
all other features compile as ever, and what they derive from a MAC (an uplink's mark) is the same on both members, so
that a flow means the same to both kernels.

**Who has the addresses.** `paired` is the last step of compile. It marks what only one of the two may have as floating
(appliance/state.py): the shared addresses, and the routes that prefer one of them as source. keepalived adds and
removes those, by VRRP; State and trace say what is so on the primary. The rules are the same on both: where the
addresses are not, no packet arrives. A daemon that answers broadcasts (DHCP) is silent where its network's address is
missing, which dnsmasq looks at for each packet: no switch to flip, and none that a crash could leave as it was.
Therefore no address that stays with a member may lie in a guest network (checks_redundancy.py).

**Who knows the flows.** conntrackd tells them to the other member as they change; on take-over they are committed.

**Who is current.** `peer.py`, a program of its own beside them, tells the other member every interval which role and
which document it has; with another document than its peer's a member takes over from nobody who is alive. It commits
the flows, carries strangers' leases over, and says what it sees in a report.

    keepalived.conf   conntrackd.conf   peer.json        what each of the three is told
    run/roles         keepalived -> peer: which role it has now (a FIFO)
    run/hold          peer -> keepalived: added to the priority; -254 is a fault
    run/report        peer -> health

The document's digest is a sum over its objects, so that a change costs what it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from appliance.state import Check, Facts, File, Route, Sandbox, State, Sysctl, Touched, Unit
from appliance.values import is_v6
from router.config import Config, Interface
from router.config_redundancy import Member, Redundancy
from router.door import Door
from router.layout import fill
from router.links import link_name, own_addresses
from router.places import places

DIRECTORY = "/etc/narthex/redundancy"
KEEPALIVED, CONNTRACKD, PEER, PROGRAM = (
    f"{DIRECTORY}/{name}" for name in ("keepalived.conf", "conntrackd.conf", "peer.json", "peer")
)
_SOURCES = ("__init__", "peer", "peer_files", "peer_packets")
_START = "import sys\n\nfrom router.peer import main\n\nsys.exit(main(sys.argv[1:]))\n"
VRRP, VRRP_GROUP = "112", "224.0.0.18"  # RFC 9568, 5.1.1
FLOWS_PORT, PEER_PORT = 3780, 3781
_DIGEST_BITS = 128
_NONLOCAL = (Sysctl("net.ipv4.ip_nonlocal_bind", "1"), Sysctl("net.ipv6.ip_nonlocal_bind", "1"))


# --- who this machine is ------------------------------------------------------------------------------------


def seated(config: Config, facts: Facts) -> tuple[Config, Facts]:
    """A redundant document and the facts as this member sees them: itself first of the members, its own addresses on
    its interfaces, its links under the document's MACs. Raises LookupError where the machine is neither member."""
    redundancy = config.redundancy
    if redundancy is None:
        return config, facts
    me = member_of(config, facts)
    if me is None:
        told = "; ".join(f"{m.id} would have {control_mac(config, m)}" for m in redundancy.members)
        raise LookupError(f"this machine is neither member of the router by its control interface: {told}")
    others = tuple(m for m in redundancy.members if m is not me)
    links, interfaces = {}, []
    for interface in config.interfaces:
        mac = mac_of(interface, me)
        if fact := facts.links.get(mac):
            links[interface.mac] = replace(fact, mac=interface.mac)
        stays = addresses_of(interface, me)
        if interface.use == "control":
            interfaces.append(interface.model_copy(update={"addresses": stays or interface.addresses}))
        else:
            interfaces.append(interface.model_copy(update={"addresses": (*interface.addresses, *stays)}))
    control = next((i.mac for i in config.interfaces if mac_of(i, me) == facts.control), facts.control)
    update = {
        "interfaces": tuple(interfaces),
        "redundancy": redundancy.model_copy(update={"members": (me, *others)}),
    }
    return config.model_copy(update=update), replace(facts, links=links, control=control)


def member_of(config: Config, facts: Facts) -> Member | None:
    """Which member this machine is: the one whose control interface it has."""
    members = config.redundancy.members if config.redundancy else ()
    return next((m for m in members if control_mac(config, m) in facts.links), None)


def control_mac(config: Config, member: Member) -> str:
    return next((mac_of(i, member) for i in config.interfaces if i.use == "control"), "")


def mac_of(interface: Interface, member: Member) -> str:
    return next((s.mac for s in member.interfaces if s.interface == interface.id), interface.mac)


def addresses_of(interface: Interface, member: Member) -> tuple[str, ...]:
    """The addresses on an interface that stay with a member."""
    return next((s.addresses for s in member.interfaces if s.interface == interface.id), ())


def meeting(config: Config, member: Member) -> str:
    """The address by which a member is reached by the other. Raises LookupError where it has none."""
    assert config.redundancy
    shared = next(i for i in config.interfaces if i.id == config.redundancy.interface)
    for cidr in addresses_of(shared, member):
        if not is_v6(cidr):
            return cidr.partition("/")[0]
    raise LookupError(f"member {member.id} has no IPv4 address of its own on {shared.id}")


# --- what both have beside the router -----------------------------------------------------------------------


def paired(state: State, config: Config, facts: Facts, real: Facts, digest: str) -> State:
    """The State of a member: `state` is the router's, as `seated` made it; `real` are the machine's own facts."""
    redundancy = config.redundancy
    if redundancy is None:
        return state
    macs = {found.name: mac for mac, found in real.links.items()}
    stays, shared_links = _stays(config, facts), {link_name(i, facts) for i in config.interfaces}
    addresses = tuple(
        a if (a.link, a.cidr) in stays or a.link not in shared_links else replace(a, floating=True)
        for a in state.addresses
    )
    shared = {a.cidr.partition("/")[0] for a in addresses if a.floating}
    routes = tuple(replace(r, floating=True) if r.source in shared else r for r in state.routes)
    floating = replace(state, addresses=addresses, routes=routes)
    return replace(
        floating,
        links=tuple(replace(link, mac=macs.get(link.name, link.mac)) for link in state.links),
        files=(*state.files, *_files(floating, config, redundancy, facts, digest)),
        checks=(Check("report", f"{_run(facts)}/report", "30"), *_asked(state.checks, redundancy)),
        units=(*state.units, *redundancy_units(facts, _given(config, facts))),
        # Daemons bind to addresses that are the other member's now, and may be ours in a second.
        sysctls=tuple(dict.fromkeys((*state.sysctls, *_NONLOCAL))),
    )


def _asked(checks: Iterable[Check], redundancy: Redundancy) -> Iterator[Check]:
    """What is asked of the router is asked of the primary."""
    for check in checks:
        yield check if check.kind == "report" else replace(check, here=sign_of(redundancy))


def repaired(state: State, config: Config, touched: Iterable[Touched]) -> State:
    """The State of a member after a change: its peer shall know that it has another document."""
    place, file = next((n, f) for n, f in enumerate(state.files) if f.path == PEER)
    told = json.loads(file.content)
    told["document"] = redigest(told["document"], touched)
    files = (*state.files[:place], replace(file, content=_json(told)), *state.files[place + 1 :])
    assert config.redundancy
    return replace(state, files=files, checks=tuple(_asked(state.checks, config.redundancy)))


def _stays(config: Config, facts: Facts) -> set[tuple[str, str]]:
    """(link, address) of what stays with this member."""
    assert config.redundancy
    me = config.redundancy.members[0]
    return {
        (link_name(i, facts), cidr)
        for i in config.interfaces
        for cidr in (i.addresses if i.use == "control" else addresses_of(i, me))
    }


def _files(state: State, config: Config, redundancy: Redundancy, facts: Facts, digest: str) -> Iterator[File]:
    me, other = redundancy.members
    own, peer = meeting(config, me), meeting(config, other)
    links = {i.id: link_name(i, facts) for i in config.interfaces}
    run, link = _run(facts), links[redundancy.interface]
    keepalived = fill(
        "keepalived.conf",
        member=me.id,
        sign=sign_of(redundancy),
        run=run,
        link=link,
        group=redundancy.group,
        priority=me.priority,
        interval=f"{redundancy.interval:.2f}",
        preempt=redundancy.preempt_after if redundancy.preempt else 0,
        own=own,
        peer=peer if redundancy.unicast else "",
        tracks=[_track(links[t.interface], t.weight) for t in sorted(redundancy.track, key=lambda t: t.interface)],
        addresses=[
            f"{a.cidr} dev {a.link}{'' if a.connected else ' noprefixroute'}" for a in state.addresses if a.floating
        ],
        routes=[_route(r) for r in state.routes if r.floating],
    )
    ignored = ("127.0.0.1", own, peer, *(a for i in config.interfaces if i.use == "control" for a in own_addresses(i)))
    conntrackd = fill(
        "conntrackd.conf",
        own=own,
        peer=peer,
        port=FLOWS_PORT,
        link=link,
        run=run,
        ignored=[f"IPv4_address {a}" for a in ignored] + ["IPv6_address ::1"],
    )
    yield File(KEEPALIVED, keepalived)
    yield File(CONNTRACKD, conntrackd)
    told = _told(config, redundancy, facts, link, digest)
    if ways := list(_ways(state, config, other, facts)):
        told["ways"] = ways
    told["shared"] = [[a.link, a.cidr.partition("/")[0]] for a in state.addresses if a.floating]
    yield File(PEER, _json(told))
    yield from programs()


def _told(config: Config, redundancy: Redundancy, facts: Facts, link: str, digest: str) -> dict[str, Any]:
    """What the program is told."""
    me, other = redundancy.members
    return {
        "member": me.id,
        "peer": other.id,
        "stronger": me.priority > other.priority,
        "document": digest,
        "interval": redundancy.interval,
        "link": link,
        "own": meeting(config, me),
        "other": meeting(config, other),
        "port": PEER_PORT,
        "sign": sign_of(redundancy),
        "run": _run(facts),
        "flows": ["conntrackd", "-C", CONNTRACKD],
        "leases": list(_leases(config, facts)),
        "given": _given(config, facts),
        "kept": f"{facts.state_dir}/redundancy",
    }


def _ways(state: State, config: Config, other: Member, facts: Facts) -> Iterator[dict[str, Any]]:
    """The links whose guests hear that the router is a way out in IPv6 (advertise.py), and the other's MAC there."""
    macs = {link_name(i, facts): mac_of(i, other) for i in config.interfaces}
    for advert in state.adverts:
        if advert.kind == "router":
            mac = macs[advert.link].replace(":", "")
            yield {"link": advert.link, "other": mac, "lifetime": advert.lifetime_s, "managed": advert.managed}


def _leases(config: Config, facts: Facts) -> Iterator[dict[str, Any]]:
    """The files of strangers' leases (dhcp.py), and at which address their server is."""
    for place in places(config, facts):
        dhcp = place.network.dhcp
        if dhcp.enabled and dhcp.first and dhcp.last:
            yield {
                "network": place.network.id,
                "path": f"{facts.state_dir}/dhcp/{place.interface.id}.leases",
                "link": place.link,
                "server": place.router,
                "first": dhcp.first,
                "last": dhcp.last,
            }


def _given(config: Config, facts: Facts) -> str:
    """Where it is kept who has acknowledged a password (metadata.py), "" where nobody is told one."""
    return f"{facts.state_dir}/metadata" if any(n.metadata for n in config.networks) else ""


def sign_of(redundancy: Redundancy) -> str:
    """The address that VRRP carries, on loopback: it means nothing but `primary`."""
    return f"127.112.0.{redundancy.group}"


def _track(link: str, weight: int) -> str:
    return f"{link} weight -{weight}" if weight else link


def _route(route: Route) -> str:
    """A route in keepalived's words, which are ip-route(8)'s."""
    via = f" via {route.via} onlink" if route.via else ""
    metric = f" metric {route.metric}" if route.metric else ""
    return f"src {route.source} {route.destination}{via} dev {route.link} table {route.table}{metric}"


def _run(facts: Facts) -> str:
    return f"{facts.run_dir}/redundancy"


def redundancy_units(facts: Facts, given: str = "") -> tuple[Unit, ...]:
    run, kept = _run(facts), f"{facts.state_dir}/redundancy"
    followed = (given,) if given else ()
    folders = (("/etc/narthex", 0o755, "root"), (DIRECTORY, 0o755, "root"), (run, 0o700, "root"))
    return (
        Unit(
            name="conntrackd",
            # A lock that is left over would keep it from starting.
            command=("/bin/sh", "-c", f"rm -f {run}/conntrackd.lock; exec conntrackd -C {CONNTRACKD}"),
            restart_on=(CONNTRACKD,),
            directories=folders,
            sandbox=Sandbox(("NET_ADMIN",), ("INET", "INET6", "NETLINK"), (run,)),
        ),
        Unit(
            name="peer",
            command=("python3", "-I", "-S", "-B", PROGRAM, PEER),
            reload="HUP",
            reload_on=(PEER,),
            restart_on=tuple(file.path for file in programs()),
            directories=(*folders, (kept, 0o700, "root")),
            sandbox=Sandbox(("NET_RAW",), ("INET", "INET6", "PACKET"), (run, kept, *followed)),
        ),
        Unit(
            name="keepalived",
            command=(
                "/bin/sh",
                "-c",
                f"rm -f {run}/*.pid; exec keepalived --dont-fork --log-console --vrrp --use-file={KEEPALIVED}"
                f" --pid={run}/keepalived.pid --vrrp_pid={run}/vrrp.pid",
            ),
            reload="HUP",
            reload_on=(KEEPALIVED,),
            # The folder of a tracked file must be there, or keepalived 2.3 refuses what names it.
            check=(
                "/bin/sh",
                "-c",
                f'mkdir -p -m 700 {run} && exec keepalived --config-test --vrrp --use-file="$1"',
                "sh",
                f"{{{KEEPALIVED}}}",
            ),
            checks=(KEEPALIVED,),
            directories=folders,
            sandbox=Sandbox(("NET_ADMIN", "NET_RAW"), ("INET", "INET6", "NETLINK", "PACKET"), (run,)),
        ),
    )


@cache
def programs() -> tuple[File, ...]:
    """peer.py and its parts: it runs by itself, in a machine that may have another release of it soon."""
    here = Path(__file__).parent
    sources = [File(f"{PROGRAM}/router/{name}.py", (here / f"{name}.py").read_text()) for name in _SOURCES]
    return (File(f"{PROGRAM}/__main__.py", _START), *sources)


# --- where they may be asked --------------------------------------------------------------------------------


def redundancy_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """What the other member says: VRRP, its flows, and its peer.py's word."""
    if config.redundancy is None:
        return
    at = next(i for i in config.interfaces if i.id == config.redundancy.interface)
    link, own = link_name(at, facts), meeting(config, config.redundancy.members[0])
    for address in (own, *(() if config.redundancy.unicast else (VRRP_GROUP,))):
        yield Door(link, address, VRRP, 0, at.id)
    for port in (FLOWS_PORT, PEER_PORT):
        yield Door(link, own, "udp", port, at.id)


# --- which document -----------------------------------------------------------------------------------------


def digest_of(config: Config) -> str:
    """A document's digest: equal where the documents are, whatever way led to them."""
    total = 0
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, tuple) and value and hasattr(value[0], "id"):
            total += sum(_hash(name, one) for one in value)
            if name == "interfaces":  # whose order means something
                total += _hash(name, [i.id for i in value])
        else:
            total += _hash(name, value)
    return _hex(total)


def redigest(digest: str, touched: Iterable[Touched]) -> str:
    """The digest after a change."""
    total = int(digest, 16)
    for t in touched:
        total -= _hash(t.collection, t.before) if t.before is not None else 0
        total += _hash(t.collection, t.after) if t.after is not None else 0
    return _hex(total)


def _hash(name: str, value: object) -> int:
    found = blake2b(name.encode() + b"\0" + to_json(value), digest_size=_DIGEST_BITS // 8)
    return int.from_bytes(found.digest())


def _hex(total: int) -> str:
    return f"{total % (1 << _DIGEST_BITS):0{_DIGEST_BITS // 4}x}"


def _json(told: object) -> str:
    return json.dumps(told, indent=1, sort_keys=True) + "\n"
