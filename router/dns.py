"""DNS: one dnsmasq for each network, bound to the router's addresses in it, that knows this network's names alone.

A process of its own is what keeps two networks apart that use the same names, and gives each its own upstream servers:
a guest can't get an answer that isn't its network's, for the process it asks doesn't have one. (It is bound to an
address, and Linux would take a packet to that address on any link; that a guest reaches only the addresses of its own
interface is the firewall's.) Names come from the document, never from what a DHCP client says of itself: DHCP is
another process (dhcp.py).

    <id>.conf     what is read once: address, zones, CNAME TXT MX SRV   changed: restart
    <id>.hosts    a line for each host, and the router's own            changed: SIGHUP
    <id>.records  extra A and AAAA                                      changed: SIGHUP
    <id>.servers  whom to ask for what we don't know                    changed: SIGHUP

On SIGHUP dnsmasq reads again between two queries (dnsmasq(8), NOTES); what comes meanwhile waits in its socket.

A name without a dot (or a service's, _sip._tcp) has two forms, in the network's domain and bare; both are answered.
The domain and the network's reverse zones are ours alone: what is not in them is answered with NXDOMAIN and asked of
nobody. Without upstream servers everything else is REFUSED, so that a guest's resolver goes on to its next server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from appliance.state import Facts, File, Sandbox, State, Touched, Unit
from appliance.values import address
from router.config import Config, Host, Record
from router.layout import fill
from router.listing import Line, listing, relist
from router.places import Place, places

DIRECTORY = "/etc/narthex/dns"
DATA_SERVER = "data-server"  # the name by which a guest finds its metadata


def compile_dns(config: Config, facts: Facts) -> State:
    """The files and units of DNS. Raises LookupError as places() does."""
    hosts: dict[str, list[Host]] = defaultdict(list)
    for host in config.hosts:
        hosts[host.network].append(host)
    served = [p for p in places(config, facts) if p.network.dns]
    return State(
        files=tuple(f for p in served for f in _files(p, hosts[p.network.id], config, facts)),
        units=tuple(_unit(p) for p in served),
    )


def revise_dns(
    files: tuple[File, ...], config: Config, touched: Sequence[Touched], facts: Facts
) -> tuple[File, ...] | None:
    """`files` after a change that touched hosts only: what compile_dns makes of `config`. None: compile the whole."""
    served = {p.network.id: p for p in places(config, facts) if p.network.dns}
    before = [line for t in touched for line in _lines(served, t.before)]
    after = [line for t in touched for line in _lines(served, t.after)]
    return relist(files, before, after)


def _lines(served: dict[str, Place], host: object | None) -> list[Line]:
    if isinstance(host, Host) and (place := served.get(host.network)):
        return [(_path(place, "hosts"), line) for line in _names(place, host)]
    return []


def _names(place: Place, host: Host) -> Iterator[str]:
    """A host's lines: one for each of its addresses."""
    yield _line(host.address, (host.name,), place.network.domain)
    if host.address6:
        yield _line(host.address6, (host.name,), place.network.domain)


def _unit(place: Place) -> Unit:
    conf = _path(place, "conf")
    return Unit(
        name=f"dns-{place.network.id}",
        command=("dnsmasq", "--keep-in-foreground", f"--conf-file={conf}"),
        reload="HUP",
        reload_on=tuple(_path(place, kind) for kind in ("hosts", "records", "servers")),
        restart_on=(conf,),
        check=("dnsmasq", "--test", f"--conf-file={{{conf}}}"),
        checks=(conf,),
        directories=(("/etc/narthex", 0o755, "root"), (DIRECTORY, 0o755, "root")),  # it reads again as nobody
        # Starts as root and becomes nobody; binds an address that may come, or come back, later.
        sandbox=Sandbox(("NET_BIND_SERVICE", "SETGID", "SETUID"), ("INET", "INET6", "NETLINK")),
        owner=place.network.id,
    )


def _files(place: Place, hosts: list[Host], config: Config, facts: Facts) -> Iterator[File]:
    network = place.network
    records = sorted((r for r in config.records if r.network in (None, network.id)), key=lambda r: r.id)
    upstream = network.upstream or config.upstream
    conf = fill(
        "dns.conf",
        network=network.id,
        addresses=[a for a in (place.router, place.router6) if a],
        domain=network.domain,
        reverses=[c for c in (network.cidr, network.cidr6) if c],
        extra=[line for r in records for line in _extra(r, network.domain)],
        **{kind: _path(place, kind) for kind in ("hosts", "records", "servers")},
    )
    lines = [_line(place.router, (facts.name, DATA_SERVER), network.domain)]
    if place.router6:
        lines.append(_line(place.router6, (facts.name,), network.domain))
    lines += [line for host in hosts for line in _names(place, host)]
    yield File(_path(place, "conf"), conf, owner=network.id)
    yield File(_path(place, "hosts"), listing(lines), owner=network.id)
    yield File(_path(place, "records"), listing(_addresses(records, network.domain)), owner=network.id)
    yield File(_path(place, "servers"), "".join(f"server={s}\n" for s in upstream), owner=network.id)


def _path(place: Place, kind: str) -> str:
    return f"{DIRECTORY}/{place.network.id}.{kind}"


def _line(at: str, names: Iterable[str], domain: str | None) -> str:
    """A line of a hosts(5) file; the first name is the one that the reverse gives."""
    return " ".join((at, *(form for name in names if name for form in _forms(name, domain))))


def _forms(name: str, domain: str | None) -> tuple[str, ...]:
    """What a name is answered as, in full first. A name that ends in a service's label has no domain yet (RFC 2782)."""
    _, dot, last = name.rpartition(".")
    full = domain is None or (dot and not last.startswith("_"))
    return (name,) if full else (f"{name}.{domain}", name)


def _addresses(records: Iterable[Record], domain: str | None) -> Iterator[str]:
    for record in records:
        if record.type in ("A", "AAAA"):
            yield _line(address(record.value), (record.name,), domain)


def _extra(record: Record, domain: str | None) -> Iterator[str]:
    """The lines of dnsmasq's configuration for a record that a hosts file can't hold (dnsmasq(8))."""
    for name in _forms(record.name, domain):
        match record.type:
            case "CNAME":
                yield f"cname={name},{_target(record.value, domain)}"
            case "TXT":
                yield f'txt-record={name},"{record.value}"'
            case "MX":
                yield f"mx-host={name},{_target(record.value, domain)},{record.priority}"
            case "SRV":
                target = _target(record.value, domain)
                yield f"srv-host={name},{target},{record.port},{record.priority},{record.weight}"


def _target(name: str, domain: str | None) -> str:
    """The full form of a name that a record points to."""
    return _forms(name, domain)[0]
