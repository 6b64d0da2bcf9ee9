"""What the router's load balancing may be asked to be: rules, their certificates, the pages that show their figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from appliance.document import Model
from appliance.values import Address, Cidr, Hostname, Identifier, Pem, Port, Secret, SecretPem

Seconds = Annotated[int, Field(ge=1, le=86_400)]
Times = Annotated[int, Field(ge=1, le=100)]
Connections = Annotated[int, Field(ge=1, le=1_000_000)]
# No blank, quote, backslash, # and $: they mean something to haproxy's configuration.
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9/._~?&=%+:@,;!*()-]*$", max_length=255)]
Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=64)]
Codes = Annotated[
    str, StringConstraints(pattern=r"^[1-5][0-9][0-9](-[1-5][0-9][0-9])?(,[1-5][0-9][0-9](-[1-5][0-9][0-9])?)*$")
]


class Backend(Model):
    """One server of a rule. `drain`: it keeps what it has and what sticks to it, and gets nothing new. `backup`: it is
    asked only while no other is up."""

    id: Identifier
    address: Address
    port: Port
    weight: Annotated[int, Field(ge=1, le=256)] = 1
    backup: bool = False
    drain: bool = False


class Health(Model):
    """How backends are asked whether they are well, each `interval` seconds: by a connection (tcp), by a request that
    is answered with one of `codes` (http), or not (off). `fall` failures in a row end it, `rise` successes bring it
    back. `port` None: the backend's own. Of a UDP rule: by a datagram that nothing refuses (udp), or by a connection.
    `kind` None: udp for UDP, else tcp."""

    kind: Literal["tcp", "http", "udp", "off"] | None = None
    interval: Seconds = 2
    timeout: Seconds = 2
    rise: Times = 2
    fall: Times = 3
    port: Port | None = None
    method: Literal["GET", "HEAD", "OPTIONS"] = "GET"
    path: UrlPath = "/"
    host: Hostname | None = None
    codes: Codes = "200-399"


class LbCookie(Model):
    """A cookie of the balancer's own names the server: it is inserted, takes the place of the application's value of
    that name (rewrite), or stands before it (prefix)."""

    kind: Literal["lb_cookie"]
    name: Token = "SRVID"
    mode: Literal["insert", "rewrite", "prefix"] = "insert"
    indirect: bool = False
    nocache: bool = False
    postonly: bool = False
    domains: tuple[Hostname, ...] = ()

    @model_validator(mode="after")
    def fitting(self) -> LbCookie:
        if self.mode != "insert" and self.postonly:
            raise ValueError("postonly goes with mode insert; remove one of them")
        if self.mode == "rewrite" and self.indirect:
            raise ValueError("indirect goes with modes insert and prefix; remove one of them")
        return self


class AppCookie(Model):
    """The application's own session, by the cookie `name`: whoever brings it goes where it was set. `length` are the
    characters that count, `hold` how many seconds it is remembered. `request_learn`: one that is brought and not known
    is learned. `prefix`: any cookie whose name begins so. `mode`: it may stand in the URL too, as ;name=value or in the
    query."""

    kind: Literal["app_cookie"]
    name: Token
    length: Annotated[int, Field(ge=1, le=1024)] = 52
    hold: Seconds = 10_800
    request_learn: bool = False
    prefix: bool = False
    mode: Literal["cookie", "path_parameters", "query_string"] = "cookie"


class SourceBased(Model):
    """A source goes where it went before; `entries` sources are remembered, for `expire` seconds each."""

    kind: Literal["source"]
    entries: Annotated[int, Field(ge=1, le=10_000_000)] = 200_000
    expire: Seconds = 1800


Stickiness = Annotated[LbCookie | AppCookie | SourceBased, Field(discriminator="kind")]


class Tls(Model):
    """TLS ends here. Of the `certificates` each client gets the one that has the name it asked for (SNI), else the
    first. `http2`: offered beside HTTP/1.1, where the rule speaks HTTP."""

    certificates: Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=1000)]
    minimum: Literal["1.2", "1.3"] = "1.2"
    http2: bool = True


class Timeouts(Model):
    """In seconds: to reach a backend, of a silent client and server, in the queue, of a request's head, between two
    requests of a connection; of a tunnel (tcp, or a WebSocket) in place of client and server, where it is given."""

    connect: Seconds = 5
    client: Seconds = 50
    server: Seconds = 50
    queue: Seconds = 30
    request: Seconds = 10
    keep_alive: Seconds = 10
    tunnel: Seconds | None = None


class Limits(Model):
    """`connections` of the whole rule; more wait to be accepted. Of each backend `backend_connections`; more wait in
    the queue, of which `queue` may wait for the same one (None: without limit)."""

    connections: Connections = 4096
    backend_connections: Connections | None = None
    queue: Connections | None = None


class Balancer(Model):
    """A load balancing rule: who connects to `address`:`port` is served by one of `backends`. The address is a public
    one, whose firewall must allow the port, or the router's own in a guest network (an internal balancer).

    `protocol` tcp hands bytes on (TLS, too: passthrough), http reads requests and adds X-Forwarded headers; udp is done
    by the packet filter, of IPv4. `sources` may connect (empty: anyone). `proxy_protocol`: backends are told of the
    client by PROXY, version 1 or 2; `accept_proxy`: clients tell it us. Without `keep_alive` each request has its own
    connection.
    """

    id: Identifier
    address: Address
    port: Port
    protocol: Literal["tcp", "http", "udp"]
    algorithm: Literal["roundrobin", "leastconn", "source"] = "roundrobin"
    backends: Annotated[tuple[Backend, ...], Field(max_length=1000)] = ()
    sources: tuple[Cidr, ...] = ()
    stickiness: Stickiness | None = None
    health: Health = Health()
    tls: Tls | None = None
    proxy_protocol: Literal["v1", "v2"] | None = None
    accept_proxy: bool = False
    keep_alive: bool = True
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()

    @property
    def asked_by(self) -> Literal["tcp", "http", "udp", "off"]:
        """How its backends are asked whether they are well."""
        return self.health.kind or ("udp" if self.protocol == "udp" else "tcp")


class Certificate(Model):
    """A certificate that ends TLS here: it, its private key (not encrypted), and the chain up to the root."""

    id: Identifier
    certificate: Pem
    key: SecretPem
    chain: Pem | None = None


class StatsPage(Model):
    """haproxy's page of figures, at `path`, for `user` with `password`. An address as a Balancer's."""

    id: Identifier
    address: Address
    port: Port = 8081
    path: UrlPath = "/stats"
    user: Token
    password: Secret
    sources: tuple[Cidr, ...] = ()
