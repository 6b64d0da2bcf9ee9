"""A guest: a machine at the end of a bridge, as a namespace; what it does goes through the kernel as a VM's would.

Its sockets are this process' own, made inside; only its DHCP client and ping are programs. Whoever runs a router can
ask it what it sees: demos and tests.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.name
import dns.resolver
import dns.reversename

from mgmt.hosts.namespace import HOST, Ground, Namespace, configure

SCRIPT = Path(__file__).with_name("lease.sh")


class NoAnswer(Exception):
    """Nothing came back in time: what a dropped packet looks like."""


class NoLease(Exception):
    """The DHCP client gave up; the message is its own."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What DHCP gave: address with prefix length, router, name servers, search list, seconds."""

    address: str
    router: str
    dns: tuple[str, ...]
    search: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Who answered a connection, and the source address that it saw."""

    name: str
    seen: str
    seconds: float


class Guest(Namespace):
    """A machine with one link, eth0. Its services tell who they are and whom they see."""

    def __init__(self, name: str, label: str = "") -> None:
        super().__init__(name)
        self.label = label or name
        self.lease_held: Lease | None = None
        self._servers: list[socket.socket] = []

    def destroy(self) -> None:
        for server in self._servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            server.close()
        self._servers.clear()
        super().destroy()

    # --- its link

    def take_lease(self, bridge: str, mac: str, ground: Ground = HOST, attempts: int = 8) -> Lease:
        """Plug in, ask by DHCP with a real client, and configure eth0 with the answer. Raises NoLease."""
        self.plug(bridge, mac, ground=ground)
        return self.renew(attempts)

    def renew(self, attempts: int = 8) -> Lease:
        """Ask by DHCP on eth0 and configure it with the answer. Raises NoLease."""
        client = ("udhcpc", "-f", "-q", "-n", "-i", "eth0", "-t", str(attempts), "-T", "1", "-s", str(SCRIPT))
        ran = self.run(client, timeout_s=attempts + 15.0, check=False)
        told = dict(line.partition("=")[::2] for line in ran.stdout.splitlines() if "=" in line)
        if ran.returncode or not told.get("ip"):
            raise NoLease(f"{self.label}: {(ran.stderr.strip().splitlines() or ['no answer'])[-1]}")
        lease = Lease(
            address=f"{told['ip']}/{told['mask']}",
            router=told["router"].partition(" ")[0],
            dns=tuple(told["dns"].split()),
            search=tuple((told["search"] or told["domain"]).split()),
            seconds=int(told["lease"] or 0),
        )
        configure(self, "eth0", (lease.address,), {"default": lease.router} if lease.router else {})
        self.lease_held = lease
        return lease

    # --- what it serves

    def serve(self, *ports: int) -> None:
        """Answer TCP and UDP on these ports with our name and the source address that we see."""
        for port in ports:
            with self.entered():
                stream = socket.create_server(("0.0.0.0", port), backlog=16)
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                datagrams.bind(("0.0.0.0", port))
            self._servers += (stream, datagrams)
            threading.Thread(target=self._answer_streams, args=(stream,), daemon=True).start()
            threading.Thread(target=self._answer_datagrams, args=(datagrams,), daemon=True).start()

    def _answer_streams(self, server: socket.socket) -> None:
        with suppress(OSError):  # closed: that is the end
            while True:
                client, (source, _) = server.accept()
                with suppress(OSError), client:
                    client.sendall(self._greeting(source))

    def _answer_datagrams(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                _, client = server.recvfrom(2048)
                if client is None:  # shut down
                    return
                server.sendto(self._greeting(client[0]), client)

    def _greeting(self, source: str) -> bytes:
        return f"{self.label} {source}\n".encode()

    # --- what it asks

    def ask(self, address: str, port: int, protocol: str = "tcp", source: str = "", seconds: float = 2.0) -> Reply:
        """Ask the service at address:port who it is, from `source` of our addresses.

        Raises NoAnswer where nothing came back in time, OSError where the answer was no.
        """
        started = time.monotonic()
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with self.entered():
            client = socket.socket(socket.AF_INET, kind)
        with closing(client):
            client.settimeout(seconds)
            if source:
                client.bind((source, 0))
            try:
                client.connect((address, port))
                if protocol == "udp":
                    client.send(b"?")
                told = client.recv(2048).decode()
            except TimeoutError:
                raise NoAnswer(f"{self.label}: {address} port {port}/{protocol} did not answer") from None
        name, _, seen = told.strip().partition(" ")
        return Reply(name, seen, time.monotonic() - started)

    def fetch(
        self, address: str, path: str, headers: Mapping[str, str] | None = None, port: int = 80, seconds: float = 2.0
    ) -> tuple[int, bytes]:
        """Ask by HTTP: (status, body), (0, b"") where nobody answers."""
        lines = [f"GET {path} HTTP/1.0", f"Host: {address}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        told = b""
        with suppress(OSError), self.connect(address, port, seconds) as sock:
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            while some := sock.recv(65536):
                told += some
        head, _, body = told.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        return (int(words[1]), body) if len(words) == 3 else (0, b"")

    def pings(self, address: str) -> bool:
        """Whether one echo request is answered within a second."""
        return self.run(("ping", "-c", "1", "-W", "1", address), check=False).returncode == 0

    def resolve(self, name: str, kind: str = "A") -> tuple[str, ...]:
        """The answers to a name (or, for PTR, an address), by the name servers and the search list of our lease."""
        wanted = dns.reversename.from_address(name) if kind == "PTR" else name
        resolver = self._resolver()
        with self.entered():
            try:
                found = resolver.resolve(wanted, kind, search=kind != "PTR")
            except dns.resolver.NXDOMAIN:
                return ()
            except dns.exception.DNSException as error:
                raise NoAnswer(f"{self.label}: {name}: {error}") from None
        return tuple(str(record).rstrip(".") for record in found)

    def _resolver(self) -> dns.resolver.Resolver:
        lease = self.lease_held
        if lease is None or not lease.dns:
            raise NoAnswer(f"{self.label}: no name server; take a lease first")
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = list(lease.dns)
        resolver.search = [dns.name.from_text(domain) for domain in lease.search]
        resolver.lifetime = 3.0
        return resolver
