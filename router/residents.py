"""Who lives in the networks: hosts (leases and names) and the extra DNS records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from appliance.state import Problem
from appliance.values import address, is_v6
from router.checks_dhcp import option_problems
from router.config import Config, Host, Record
from router.topology import Ground, listed, only

_HOSTNAME = re.compile(
    r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*"
)


def host_problems(host: Host, ground: Ground) -> Iterator[Problem]:
    """One host by itself."""
    if is_v6(host.address):
        told = f"{host.address} is IPv6; write it as address6, and here the guest's IPv4 address"
        yield Problem(f"config.hosts[{host.id}].address", told)
    elif (lot := ground.lots.get(host.network)) is None:
        known = listed(ground.lots) or "none"
        told = f"there is no network {host.network}; the networks are: {known}"
        yield Problem(f"config.hosts[{host.id}].network", told)
    elif why := lot.why_not(host.address):
        yield Problem(f"config.hosts[{host.id}].address", f"{why}; give a free address of the network")
    if host.dns or host.routers:
        yield from only(f"config.hosts[{host.id}].dns", host.dns or ())
        yield from only(f"config.hosts[{host.id}].routers", host.routers or ())
    yield from option_problems(host.options, f"config.hosts[{host.id}].options")
    if host.address6 and host.network in ground.lots and (why := _why_not6(host, host.address6, ground)):
        yield Problem(f"config.hosts[{host.id}].address6", f"{why}; give a free address of the network")


def _why_not6(host: Host, address: str, ground: Ground) -> str:
    if not is_v6(address):
        return f"{address} is IPv4"
    if (lot := ground.lots6.get(host.network)) is None:
        return f"network {host.network} has no cidr6"
    return lot.why_not(address)


def twin_problems(hosts: Iterable[Host]) -> Iterator[Problem]:
    """Two hosts of one network with one address, MAC or name. Names: case is nothing (RFC 4343)."""
    seen: dict[tuple[str, str, str], str] = {}
    for host in hosts:
        v6 = (("address6", host.address6),) if host.address6 else ()
        for field, value in (("address", host.address), ("mac", host.mac), ("name", host.name.lower()), *v6):
            other = seen.setdefault((host.network, field, value), host.id)
            if other != host.id:
                yield twin(host, other, field, value)


def twin(host: Host, other: str, field: str, value: str) -> Problem:
    """The problem of a host whose `field` is that of the host with id `other` too."""
    told = f"host {other} of network {host.network} has the {field} {value} too; each host has its own"
    return Problem(f"config.hosts[{host.id}].{field}", told)


# --- records ------------------------------------------------------------------------------------------------


def record_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """Each record's value fits its type; a CNAME stands alone under its name (RFC 1034, 3.6.2)."""
    others: dict[tuple[str | None, str], str] = {}
    for record in config.records:
        yield from _record(record, ground, f"config.records[{record.id}]")
        if record.type != "CNAME":
            others.setdefault(_place(record), record.id)
    aliases: dict[tuple[str | None, str], str] = {}
    for record in config.records:
        if record.type == "CNAME":
            other = others.get(_place(record)) or aliases.setdefault(_place(record), record.id)
            if other != record.id:
                told = f"record {other} is named {record.name} too, and a CNAME stands alone; remove one of them"
                yield Problem(f"config.records[{record.id}].name", told)


def _place(record: Record) -> tuple[str | None, str]:
    """Where a record is answered, and under which name."""
    return record.network, record.name.lower()


def _record(record: Record, ground: Ground, path: str) -> Iterator[Problem]:
    if record.network is not None and record.network not in ground.lots:
        known = listed(ground.lots) or "none"
        told = f"there is no network {record.network}; the networks are: {known}, or null for all"
        yield Problem(f"{path}.network", told)
    what, fits = _VALUES[record.type]
    if not fits(record.value):
        yield Problem(f"{path}.value", f"{record.value!r} is not {what}; a record of type {record.type} needs one")
    for field, types in (("priority", ("MX", "SRV")), ("weight", ("SRV",)), ("port", ("SRV",))):
        if getattr(record, field) and record.type not in types:
            yield Problem(f"{path}.{field}", f"only {' and '.join(types)} records have a {field}; remove it")
    if record.type == "SRV" and not record.port:
        yield Problem(f"{path}.port", "an SRV record needs the port of its service; add it")


def _is_address(v6: bool) -> Callable[[str], bool]:
    def fits(text: str) -> bool:
        try:
            return is_v6(address(text)) is v6
        except ValueError:
            return False

    return fits


def _is_name(text: str) -> bool:
    return len(text) <= 253 and _HOSTNAME.fullmatch(text) is not None


_VALUES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "A": ("an IPv4 address", _is_address(v6=False)),
    "AAAA": ("an IPv6 address", _is_address(v6=True)),
    "CNAME": ("a host's name", _is_name),
    "MX": ("a host's name", _is_name),
    "SRV": ("a host's name", _is_name),
    "TXT": ("a text", lambda text: True),
}
