"""Metadata: what guests learn about themselves by HTTP, from one small service for all networks that have it.

    /etc/narthex/metadata/service.json   where to listen                                      changed: restart
    /etc/narthex/metadata/program/       the service itself (metadata_service.py)             changed: restart
    <run_dir>/metadata/<address>         what one guest is told (metadata_guest.py)           changed: nothing
    <state_dir>/metadata/<host id>       the password that it acknowledged (metadata_given.py), the service's own

A guest is a file of its own, in memory and readable by the service's account alone. So one more costs one file, user
data of a megabyte is no other guest's burden, and a guest that goes takes all that was told to it along: removing the
file is a step of the plan. The service has no list of guests to be told of.

It listens at the router's address in each network, port 80 and, for passwords as CloudStack's guests fetch them, 8080;
and at 169.254.169.254, port 80, where EC2's clients ask. That address is given to every link that has such a network:
a guest may reach it through the router or as a neighbour. The doors (doors.py) open these for that network alone; the
senders' rule keeps any other link's packets out, and what is told is chosen by the sender's address and MAC.

IPv4 alone: every network has it, and a guest that chose its IPv6 address itself is known by its MAC alone. No TLS:
there is no name that a certificate could be for, CloudStack's is signed by itself, and no client of it checks.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from appliance.state import Address, Check, Facts, File, Sandbox, State, Touched, Unit
from router.config import Config, Host
from router.config_metadata import Metadata
from router.door import Door
from router.places import Place, places

DIRECTORY = "/etc/narthex/metadata"
CONF, PROGRAM = f"{DIRECTORY}/service.json", f"{DIRECTORY}/program"
ACCOUNT = "www-data"  # Debian's, for web servers; nothing else in an appliance uses it
WELL_KNOWN = "169.254.169.254"
HTTP, PASSWORDS = 80, 8080
_SOURCES = ("__init__", "metadata_given", "metadata_guest", "metadata_service")
_START = "import sys\n\nfrom router.metadata_service import main\n\nsys.exit(main(sys.argv))\n"


def compile_metadata(config: Config, facts: Facts) -> State:
    """The service, its files and the well-known address; nothing where no network has metadata."""
    served = _served(config, facts)
    if not served:
        return State()
    by_id = {p.network.id: p for p in served}
    told = sorted((h for h in config.hosts if h.metadata and h.network in by_id), key=lambda h: _path(h, facts))
    links = {p.link: p for p in reversed(served)}
    return State(
        files=(*_programs(), _conf(served, facts), *(_file(h, by_id[h.network], facts) for h in told)),
        units=(_unit(facts),),
        addresses=tuple(
            Address(link, f"{WELL_KNOWN}/32", announce=False, owner=links[link].interface.id) for link in sorted(links)
        ),
        checks=tuple(Check("tcp", p.router, str(HTTP), here=p.router, owner=p.network.id) for p in served),
    )


def revise_metadata(
    files: tuple[File, ...], config: Config, touched: Sequence[Touched], facts: Facts
) -> tuple[File, ...] | None:
    """`files` after a change that touched hosts only: what compile_metadata makes of `config`. None: the whole."""
    if all(getattr(h, "metadata", None) is None for t in touched for h in (t.before, t.after)):
        return files
    served = {p.network.id: p for p in _served(config, facts)}
    before, after = ({f.path: f for f in _files((getattr(t, s) for t in touched), served, facts)} for s in _SIDES)
    if before == after:
        return files
    start = next((n for n, f in enumerate(files) if f.path == CONF), None)
    if start is None:
        return None
    # Ours are the files behind CONF, sorted by path.
    folder, end = f"{_folder(facts)}/", start + 1
    while end < len(files) and files[end].path.startswith(folder):
        end += 1
    ours = [f for f in files[start + 1 : end] if f.path not in before]
    paths = [f.path for f in ours]
    for path in sorted(after):
        at = bisect_left(paths, path)
        paths.insert(at, path)
        ours.insert(at, after[path])
    return (*files[: start + 1], *ours, *files[end:])


_SIDES = ("before", "after")


def metadata_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """Where the guests of each network may ask."""
    for place in _served(config, facts):
        for address, port, _ in _asked_at(place):
            yield Door(place.link, address, "tcp", port, place.network.id)


def _served(config: Config, facts: Facts) -> list[Place]:
    if not any(n.metadata for n in config.networks):
        return []
    return [p for p in places(config, facts) if p.network.metadata]


def _asked_at(place: Place) -> tuple[tuple[str, int, str], ...]:
    """Address, port and what for."""
    return (place.router, HTTP, "meta"), (place.router, PASSWORDS, "password"), (WELL_KNOWN, HTTP, "meta")


# --- the service ----------------------------------------------------------------------------------------------


def _unit(facts: Facts) -> Unit:
    given = f"{facts.state_dir}/metadata"
    programs = tuple(f.path for f in _programs())
    return Unit(
        name="metadata",
        command=("python3", "-I", "-S", "-B", PROGRAM, CONF),
        restart_on=(*programs, CONF),
        directories=(
            (facts.run_dir, 0o755, "root"),
            (_folder(facts), 0o750, f"root:{ACCOUNT}"),
            (given, 0o770, f"root:{ACCOUNT}"),  # written by the service, and by root where a router of two copies it
        ),
        # Starts as root for its ports, and becomes its account. NETLINK: at which MAC an address is.
        sandbox=Sandbox(("NET_BIND_SERVICE", "SETGID", "SETUID"), ("INET", "NETLINK"), (given,)),
    )


@cache
def _programs() -> tuple[File, ...]:
    here = Path(__file__).parent
    sources = [File(f"{PROGRAM}/router/{name}.py", (here / f"{name}.py").read_text()) for name in _SOURCES]
    return (File(f"{PROGRAM}/__main__.py", _START), *sources)


def _conf(served: list[Place], facts: Facts) -> File:
    listen = sorted({door for place in served for door in _asked_at(place)})
    told = {
        "account": ACCOUNT,
        "guests": _folder(facts),
        "given": f"{facts.state_dir}/metadata",
        "listen": listen,
    }
    return File(CONF, json.dumps(told, indent=1) + "\n")


# --- guests ---------------------------------------------------------------------------------------------------


def _folder(facts: Facts) -> str:
    return f"{facts.run_dir}/metadata"


def _path(host: Host, facts: Facts) -> str:
    return f"{_folder(facts)}/{host.address}"


def _files(hosts: Iterator[object], served: dict[str, Place], facts: Facts) -> Iterator[File]:
    for host in hosts:
        if isinstance(host, Host) and host.metadata and (place := served.get(host.network)):
            yield _file(host, place, facts)


def _file(host: Host, place: Place, facts: Facts) -> File:
    """The file of a host that has metadata."""
    metadata = host.metadata or Metadata()
    own = {"instance-id": host.id, "local-hostname": host.name, "local-ipv4": host.address, "mac": host.mac}
    told = {
        "id": host.id,
        "mac": host.mac,
        "link": place.link,
        "values": {**own, **metadata.values},
        "keys": metadata.ssh_keys,
        "data": metadata.user_data is not None,
    }
    if metadata.password:
        told |= {"password": metadata.password.value.reveal(), "password_id": metadata.password.id}
    text = f"{json.dumps(told)}\n{metadata.user_data or ''}"
    return File(_path(host, facts), text, 0o640, secret=True, group=ACCOUNT, owner=host.id)
