"""Load balancing of TCP and HTTP: one haproxy for all rules and pages of figures. UDP is spread.py's.

    /etc/narthex/balancer/haproxy.cfg    a section `listen` for each rule (lb-<id>) and page (stats-<id>)
                          <id>.crt-list  the certificates of a rule, the first for who asks for no name we have
                          <id>.pem       a certificate, its key, its chain
                          shape          a digest of what only a reload can change

A reload costs a second process for as long as the old one has connections, so what haproxy can be told while it runs is
told: the servers of a rule are a `Pool`. haproxy.cfg names them too, for the next start, but the unit is reloaded only
where `shape` changes: that is the configuration without its servers. Backup servers are in it (which of them is asked,
haproxy decides when it starts). A server that drains has weight 0: it keeps its sessions and who sticks to it, and gets
nobody new.

What a reload must not lose: connections, by the listening sockets that the old worker hands to the new (expose-fd
listeners), and by keep-alive connections that are closed only with an answer (idle-close-on-response); who sticks
where, by peers, as which the old worker teaches the new one its tables, and by cookies made of a server's address;
which server is down, by the server-state-file that the agent writes before each reload.

haproxy binds addresses that the router may not have yet, or not now (redundancy): net.ipv4.ip_nonlocal_bind. Its own
connections to backends are the router's own packets (README.md, 5): they have the router's address in the backend's
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TypeVar

from appliance.state import Facts, File, Pool, Sandbox, Server, State, Sysctl, Touched, Unit
from appliance.values import is_v6
from router.config import Config
from router.config_balancer import AppCookie, Backend, Balancer, Certificate, LbCookie, SourceBased, StatsPage
from router.door import Door
from router.layout import fill
from router.links import link_names, own_addresses

FOLDER = "/etc/narthex/balancer"
PEERS_PORT = 1024  # of 127.0.0.1
DESCRIPTORS = 524_288  # systemd's own ceiling
MOST_CONNECTIONS = 200_000  # of all rules: each has two descriptors
P = TypeVar("P", File, Unit)
WORDS = 32  # CIDRs in a line, which has 64 words


@dataclass(frozen=True, slots=True)
class Section:
    """A section `listen`: its lines, and those of its servers, of which `lasting` say what only a reload changes."""

    name: str
    lines: tuple[str, ...]
    servers: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()


def compile_balancer(config: Config, facts: Facts) -> State:
    """haproxy's files, its unit, its pools; nothing where no rule and no page wants it."""
    rules = sorted((r for r in config.balancers if r.protocol != "udp"), key=lambda r: r.id)
    if not rules and not config.stats_pages:
        return State()
    run = f"{facts.run_dir}/balancer"
    used = {name for rule in rules if rule.tls for name in rule.tls.certificates}
    certificates = [c for c in config.certificates if c.id in used]
    files = (*_configuration(rules, config.stats_pages, run), *_crt_lists(rules), *map(_pem, certificates))
    pools = tuple(_pool(rule, f"{run}/master.sock") for rule in rules)
    sysctls = (Sysctl("net.ipv4.ip_nonlocal_bind", "1"), Sysctl("net.ipv6.ip_nonlocal_bind", "1"))
    has_patterns = any(isinstance(r.stickiness, AppCookie) and r.stickiness.prefix for r in rules)
    return State(files=files, units=(_unit(files, run, has_patterns),), pools=pools, sysctls=sysctls)


def revise_balancer(state: State, config: Config, touched: Sequence[Touched], facts: Facts) -> State | None:
    """`state` after a change that touched rules and certificates only; None: compile the whole.

    Where a rule stays where it listens, nothing but haproxy's own parts can change.
    """
    if any(_stand(t.before) != _stand(t.after) for t in touched):
        return None
    part = compile_balancer(config, facts)
    return replace(
        state,
        files=_instead(state.files, part.files, lambda f: f.path.startswith(f"{FOLDER}/")),
        units=_instead(state.units, part.units, lambda u: u.apart == FOLDER),
        pools=part.pools,
    )


def _stand(rule: object) -> tuple[str, int, str]:
    """Where a rule listens, and by what; the same for all that listen nowhere."""
    if isinstance(rule, Balancer):
        # UDP is the packet filter's: what is in such a rule changes that.
        return rule.address, rule.port, repr(rule) if rule.protocol == "udp" else ""
    return "", 0, ""


def _instead(parts: tuple[P, ...], new: tuple[P, ...], ours: Callable[[P], bool]) -> tuple[P, ...]:
    """`parts` with `new` in the place of ours; one that is equal stays the same object."""
    old = {p: p for p in parts if ours(p)}
    start = next((n for n, p in enumerate(parts) if ours(p)), len(parts))
    rest = tuple(p for p in parts[start:] if not ours(p))
    return parts[:start] + tuple(old.get(p, p) for p in new) + rest


def balancer_doors(config: Config, facts: Facts) -> Iterator[Door]:
    """Internal balancers: those on the router's own addresses in guest networks. A public one needs a firewall rule."""
    if not config.balancers and not config.stats_pages:
        return
    inner = link_names(config, facts, "guest")
    links = {a: link for link, i in inner.items() for v6 in (False, True) for a in own_addresses(i, v6)}
    rules: tuple[Balancer | StatsPage, ...] = (*config.balancers, *config.stats_pages)
    for rule in rules:
        is_udp = isinstance(rule, Balancer) and rule.protocol == "udp"  # translated before it would come in
        if not is_udp and (link := links.get(rule.address)):
            yield Door(link, rule.address, "tcp", rule.port, rule.id)


# --- files and the unit -------------------------------------------------------------------------------------


def _configuration(rules: Sequence[Balancer], pages: Iterable[StatsPage], run: str) -> tuple[File, File]:
    """haproxy.cfg, and the digest of what of it only a reload can change."""
    sections = [*map(_rule, rules), *(_page(p) for p in sorted(pages, key=lambda p: p.id))]
    has_tables = any(isinstance(r.stickiness, AppCookie | SourceBased) for r in rules)
    most = min(MOST_CONNECTIONS, sum(r.limits.connections for r in rules) + 100)
    values = {"run": run, "most": most, "has_tables": has_tables, "peers_port": PEERS_PORT}
    text = fill("haproxy.cfg", sections=sections, **values)
    bare = fill("haproxy.cfg", sections=[Section(s.name, (*s.lines, *s.lasting)) for s in sections], **values)
    shape = blake2b(bare.encode(), digest_size=16).hexdigest()
    is_secret = any(s.name.startswith("stats-") for s in sections)
    return (
        File(f"{FOLDER}/haproxy.cfg", text, 0o600, secret=is_secret),
        File(f"{FOLDER}/shape", f"{shape}\n"),
    )


def _crt_lists(rules: Iterable[Balancer]) -> Iterator[File]:
    for rule in rules:
        if rule.tls:
            text = "".join(f"{name}.pem\n" for name in rule.tls.certificates)
            yield File(f"{FOLDER}/{rule.id}.crt-list", text, owner=rule.id)


def _pem(one: Certificate) -> File:
    parts = (one.certificate, one.chain or "", one.key.reveal())
    text = "".join(part if part.endswith("\n") or not part else f"{part}\n" for part in parts)
    return File(f"{FOLDER}/{one.id}.pem", text, 0o600, secret=True, owner=one.id)


def _unit(files: tuple[File, ...], run: str, makes_code: bool) -> Unit:
    read = tuple(f.path for f in files if not f.path.endswith("/shape"))
    told = tuple(f.path for f in files if not f.path.endswith("/haproxy.cfg"))
    return Unit(
        name="balancer",
        # -C: names in the configuration are of files beside it, there as in the dry check.
        command=("haproxy", "-W", "-db", "-S", f"{run}/master.sock,mode,600", "-C", FOLDER, "-f", "haproxy.cfg"),
        reload="USR2",
        reload_on=told,
        check=("haproxy", "-c", "-C", f"{{{FOLDER}}}", "-f", "haproxy.cfg"),
        checks=read,
        directories=((FOLDER, 0o700, "root"), (run, 0o755, "root")),
        # Its master stays root and ends workers that have become haproxy. Ports below 1024, also of a later reload.
        sandbox=Sandbox(
            ("KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"),
            ("INET", "INET6"),
            (run,),
            descriptors=DESCRIPTORS,
            makes_code=makes_code,
        ),  # fmt: skip
        console=f"{run}/master.sock",
        apart=FOLDER,
    )


# --- a rule -------------------------------------------------------------------------------------------------


def _rule(rule: Balancer) -> Section:
    servers = tuple(_server_line(rule, b) for b in sorted(rule.backends, key=lambda b: b.id))
    lasting = tuple(_server_line(rule, b) for b in sorted(rule.backends, key=lambda b: b.id) if b.backup)
    return Section(f"lb-{rule.id}", tuple(_lines(rule)), servers, (" ".join(_options(rule)), *lasting))


def _lines(rule: Balancer) -> Iterator[str]:
    limits, timeouts = rule.limits, rule.timeouts
    yield f"bind {_socket(rule.address, rule.port)}{' accept-proxy' if rule.accept_proxy else ''}{_tls(rule)}"
    yield f"mode {rule.protocol}"
    yield f"maxconn {limits.connections}"
    yield from _sources(rule.sources)
    for name in ("connect", "client", "server", "queue", "tunnel"):
        if (seconds := getattr(timeouts, name)) is not None:
            yield f"timeout {name} {seconds}s"
    yield f"balance {rule.algorithm}"
    if rule.algorithm == "source":
        yield "hash-type consistent"  # the other kind takes no server while it runs, and moves everybody
    if rule.protocol == "http":
        yield f"timeout http-request {timeouts.request}s"
        yield f"timeout http-keep-alive {timeouts.keep_alive}s"
        yield "option forwardfor"
        yield f"http-request set-header X-Forwarded-Proto {'https' if rule.tls else 'http'}"
        yield "http-request set-header X-Forwarded-Port %[dst_port]"
        yield "option idle-close-on-response"
        if not rule.keep_alive:
            yield "option httpclose"
    if isinstance(rule.stickiness, LbCookie):
        yield from _lb_cookie(rule.stickiness, rule.id)
    elif isinstance(rule.stickiness, AppCookie):
        yield from _app_cookie(rule.stickiness)
    elif isinstance(rule.stickiness, SourceBased):
        kind = "ipv6" if is_v6(rule.address) else "ip"
        yield f"stick-table type {kind} size {rule.stickiness.entries} expire {rule.stickiness.expire}s peers narthex"
        yield "stick on src"
    yield from _check(rule)


def _tls(rule: Balancer) -> str:
    if rule.tls is None:
        return ""
    offered = "h2,http/1.1" if rule.tls.http2 else "http/1.1"
    alpn = f" alpn {offered}" if rule.protocol == "http" else ""
    return f" ssl crt-list {rule.id}.crt-list ssl-min-ver TLSv{rule.tls.minimum}{alpn}"


def _sources(sources: Sequence[str]) -> Iterator[str]:
    """Who may connect: judged as the connection comes, before a byte of it is read."""
    if sources:
        for start in range(0, len(sources), WORDS):
            yield f"acl allowed src {' '.join(sources[start : start + WORDS])}"
        yield "tcp-request connection reject if !allowed"


def _check(rule: Balancer) -> Iterator[str]:
    health = rule.health
    if rule.asked_by != "off":
        yield f"timeout check {health.timeout}s"
    if rule.asked_by == "http":
        host = f" ver HTTP/1.1 hdr Host {health.host}" if health.host else " ver HTTP/1.0"
        yield "option httpchk"
        yield f"http-check send meth {health.method} uri {health.path}{host}"
        yield f"http-check expect status {health.codes}"


def _socket(address: str, port: int) -> str:
    return f"ipv6@{address}:{port}" if is_v6(address) else f"{address}:{port}"


# --- stickiness ---------------------------------------------------------------------------------------------


def _lb_cookie(cookie: LbCookie, rule: str) -> Iterator[str]:
    flags = [name for name in ("indirect", "nocache", "postonly") if getattr(cookie, name)]
    domains = [f"domain {name}" for name in cookie.domains]
    yield f"cookie {' '.join((cookie.name, cookie.mode, *flags, *domains, 'dynamic'))}"
    yield f"dynamic-cookie-key {_cookie_key(rule)}"
    if cookie.nocache:  # haproxy's own word for it is heeded only where it has a cache itself (2.6)
        yield f"http-after-response set-header Cache-Control private if {{ res.cook({cookie.name}) -m found }}"


def _cookie_key(rule: str) -> str:
    """What a server's cookie is made from, beside its address: the same after every start."""
    return blake2b(rule.encode(), digest_size=8).hexdigest()


def _app_cookie(cookie: AppCookie) -> Iterator[str]:
    yield f"stick-table type string len {cookie.length} size 200k expire {cookie.hold}s peers narthex"
    asked, answered = _cookie_samples(cookie)
    yield f"stick store-response {answered}"
    found = [asked]
    if cookie.mode == "path_parameters":
        found.append(f"urlp({cookie.name},;)")
    elif cookie.mode == "query_string":
        found.append(f"urlp({cookie.name})")
    for sample in found:
        yield f"stick match {sample}"
        if cookie.request_learn:
            yield f"stick store-request {sample}"


def _cookie_samples(cookie: AppCookie) -> tuple[str, str]:
    """The session in a request and in an answer. By a prefix: what follows it, its name's rest and its value."""
    if not cookie.prefix:
        return f"req.cook({cookie.name})", f"res.cook({cookie.name})"
    name = cookie.name.replace(".", "[.]")
    rest = f"regsub('^(.*[; ])?{name}',''),field(1,;)"
    asked, answered = f"req.fhdr(cookie),{rest}", f"res.fhdr(set-cookie),{rest}"
    return (
        f'"{asked}" if {{ req.fhdr(cookie) -m reg "(^|[; ]){name}" }}',
        f'"{answered}" if {{ res.fhdr(set-cookie) -m beg {cookie.name} }}',
    )


# --- servers ------------------------------------------------------------------------------------------------


def _pool(rule: Balancer, console: str) -> Pool:
    servers = tuple(_server(rule, b) for b in sorted(rule.backends, key=lambda b: b.id))
    key = _cookie_key(rule.id) if isinstance(rule.stickiness, LbCookie) else ""
    return Pool(console, f"lb-{rule.id}", servers, key, rule.id)


def _server(rule: Balancer, backend: Backend) -> Server:
    weight = 0 if backend.drain else backend.weight
    options = (*_options(rule), *(("backup",) if backend.backup else ()))
    return Server(backend.id, backend.address, backend.port, weight, options)


def _server_line(rule: Balancer, backend: Backend) -> str:
    server = _server(rule, backend)
    words = (_socket(server.address, server.port), f"weight {server.weight}", *server.options)
    return f"server {server.name} {' '.join(words)}"


def _options(rule: Balancer) -> Iterator[str]:
    """What all servers of a rule are."""
    health, limits = rule.health, rule.limits
    if rule.asked_by != "off":
        yield "check"
        yield from (f"inter {health.interval}s", f"rise {health.rise}", f"fall {health.fall}")
        if health.port:
            yield f"port {health.port}"
    if limits.backend_connections:
        yield f"maxconn {limits.backend_connections}"
    if limits.queue:
        yield f"maxqueue {limits.queue}"
    if rule.proxy_protocol:
        yield {"v1": "send-proxy", "v2": "send-proxy-v2"}[rule.proxy_protocol]


# --- pages of figures ---------------------------------------------------------------------------------------


def _page(page: StatsPage) -> Section:
    lines = (
        f"bind {_socket(page.address, page.port)}",
        "mode http",
        "maxconn 64",
        *_sources(page.sources),
        *(f"timeout {name} 10s" for name in ("connect", "client", "server", "http-request")),
        "stats enable",
        "stats hide-version",
        f"stats uri {page.path}",
        "stats realm Narthex",
        f'stats auth "{page.user}:{page.password.reveal()}"',
    )
    return Section(f"stats-{page.id}", lines)
