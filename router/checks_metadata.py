"""The checks of metadata: who is told, and how much a router holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Problem
from router.config import Config, Host
from router.metadata import WELL_KNOWN

MOST_TOGETHER = 8 << 20  # characters of user data in one document: it is sent whole (16 MiB), and kept in memory


def metadata_problems(config: Config) -> Iterator[Problem]:
    """All of a document."""
    if any(n.metadata for n in config.networks):
        for interface in config.interfaces:
            if any(a.partition("/")[0] == WELL_KNOWN for a in interface.addresses):
                told = f"{WELL_KNOWN} is where guests ask for metadata; give the interface another address"
                yield Problem(f"config.interfaces[{interface.id}].addresses", told)
    yield from told_problems(config, config.hosts)


def told_problems(config: Config, hosts: Iterable[Host]) -> Iterator[Problem]:
    """Of these hosts."""
    having = [h for h in hosts if h.metadata]
    if not having:
        return
    served = {n.id: n.metadata for n in config.networks}
    for host in having:
        if not served.get(host.network, True):
            told = f"network {host.network} has no metadata; set its metadata to true, or remove this"
            yield Problem(f"config.hosts[{host.id}].metadata", told)
    if any(map(_size, having)) and (together := sum(map(_size, config.hosts))) > MOST_TOGETHER:
        largest = max(having, key=_size)
        told = f"the user data of all hosts is {together} characters, and a router takes {MOST_TOGETHER}"
        yield Problem(f"config.hosts[{largest.id}].metadata.user_data", f"{told}; let guests fetch it from elsewhere")


def _size(host: Host) -> int:
    return len(host.metadata.user_data or "") if host.metadata else 0
