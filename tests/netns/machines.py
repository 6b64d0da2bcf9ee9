"""Machines around a router: namespaces that tell every caller who they are, and whom they see, by which link.

One thread answers for all of them, in both address families. A TCP connection or a UDP source is greeted with one line,
"label source link", and gets everything that it sends later back: a live flow is one that is still echoed. A raw packet
of a protocol by number that begins with `?` is answered with the greeting. What the kernel answers itself is only
overheard.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from mgmt.hosts.namespace import Ground, Namespace

PORTS = (22, 25, 80, 1053, 5000, 5001, 5002, 6000, 6001, 6002, 7000)
PROTOCOLS = (47, 99)  # GRE, and one that the kernel knows nothing about ("any private encryption scheme")
_BUFFER = 8 << 20
_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo, ip(7)
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo, ipv6(7)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_BIND_TO_DEVICE = socket.SO_BINDTODEVICE
_BUFFER_FORCE = 33  # SO_RCVBUFFORCE, socket(7)
_IP_PKTINFO = 8


class Machine(Namespace):
    """A namespace with a name of its own. `links` maps its links to (bridge, MAC, addresses with their length)."""

    def __init__(self, name: str, label: str) -> None:
        super().__init__(name)
        self.label = label
        self.icmp: list[socket.socket] = []  # one for each family
        self.macs: dict[str, str] = {}

    def settle(
        self, ground: Ground, links: Sequence[tuple[str, str, Sequence[str]]], routes: Iterable[tuple[str, str]]
    ) -> None:
        """Plug in the links, each (bridge, MAC, addresses), as eth0, eth1, ...; then the routes (to, gateway)."""
        for number, (bridge, mac, addresses) in enumerate(links):
            self.plug(f"nx-{bridge}", mac, addresses, {}, ground, name=f"eth{number}")
            self.macs[f"eth{number}"] = mac
        for to, gateway in routes:
            self.run(("ip", "route", "add", to, "via", gateway))
        with self.entered():
            for version in ("ipv4/icmp_", "ipv6/icmp/"):  # else a test's silence may be the machine's
                Path(f"/proc/sys/net/{version}ratelimit").write_text("0")

    def neighbour(self, address: str) -> str:
        """The MAC that it takes an address to be at, "" for none."""
        words = self.run(("ip", "neigh", "show", address)).stdout.split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""


class Services:
    """What answers in the machines. `heard` has, by the key of each datagram, who got it and its source address."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: None)
        self._thread = threading.Thread(target=self._run, name="services", daemon=True)
        self._ends = False
        self._machines: list[Machine] = []
        self._lock = threading.Lock()
        self._echoes: dict[int, tuple[str, str]] = {}
        self.heard: dict[bytes, tuple[str, str]] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends = True
        self._wake.send(b"!")
        self._thread.join()
        for sock in (*self._open, self._wake, self._woken):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._ends:
            for key, _ in self._selector.select():
                with suppress(OSError):
                    key.data()

    def serve(self, machine: Machine) -> None:
        """Answer in a machine that has its links. Before `start`."""
        self._machines.append(machine)
        links = list(machine.macs)
        with machine.entered():
            for family in _FAMILIES:
                for port in PORTS:
                    for link in links:
                        self._listen(machine, family, port, link)
                    self._take_datagrams(machine, family, port, dict(enumerate_links(links)))
            for number in PROTOCOLS:
                self._take_protocol(machine, number)
                self._take_protocol6(machine, number)
            machine.icmp = [
                socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
                socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
            ]
        for sock in machine.icmp:
            sock.setblocking(False)
        self._open += machine.icmp

    # --- each kind

    def _listen(self, machine: Machine, family: socket.AddressFamily, port: int, link: str) -> None:
        server = _of(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, link.encode())
        server.bind(("", port))
        server.listen(64)
        self._watch(server, lambda: self._accept(server, machine, link))

    def _accept(self, server: socket.socket, machine: Machine, link: str) -> None:
        client, (source, *_) = server.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(f"{machine.label} {source} {link}\n".encode())
        self._watch(client, lambda: self._echo(client))

    def _echo(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            client.sendall(data)
            return
        self._selector.unregister(client)
        self._open.remove(client)
        client.close()

    def _take_datagrams(self, machine: Machine, family: socket.AddressFamily, port: int, links: dict[int, str]) -> None:
        server = _of(family, socket.SOCK_DGRAM)
        server.bind(("", port))
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._watch(server, lambda: self._answer_datagram6(server, machine, links))
            return
        server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._watch(server, lambda: self._answer_datagram(server, machine, links))

    def _answer_datagram(self, server: socket.socket, machine: Machine, links: dict[int, str]) -> None:
        data, extra, _, source = server.recvmsg(2048, 256)
        index, _, to = _PKTINFO.unpack_from(next(d for level, kind, d in extra if (level, kind) == (0, _IP_PKTINFO)))
        self.heard[data] = machine.label, source[0]
        greeting = f"{machine.label} {source[0]} {links.get(index, '')}\n".encode()
        answer = greeting if data.startswith(b"?") else data
        # From the address that was asked, whatever the way back is.
        server.sendmsg([answer], [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, to, bytes(4)))], 0, source)

    def _answer_datagram6(self, server: socket.socket, machine: Machine, links: dict[int, str]) -> None:
        data, extra, _, source = server.recvmsg(2048, 256)
        to, index = _PKTINFO6.unpack(extra[0][2])
        self.heard[data] = machine.label, source[0]
        greeting = f"{machine.label} {source[0]} {links.get(index, '')}\n".encode()
        way = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(to, 0))]
        server.sendmsg([greeting if data.startswith(b"?") else data], way, 0, source)

    def _take_protocol6(self, machine: Machine, number: int) -> None:
        """IPv6's raw sockets have no header in what they give."""
        server = _of(socket.AF_INET6, socket.SOCK_RAW, number)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._watch(server, lambda: self._answer_raw6(server, machine, number))

    def _answer_raw6(self, server: socket.socket, machine: Machine, number: int) -> None:
        packet, extra, _, source = server.recvmsg(2048, 256)
        question = packet[len(head_of(number)) :]
        if question.startswith(b"?"):
            answer = head_of(number) + b"!" + question[1:] + f" {machine.label} {source[0]}\n".encode()
            way = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(extra[0][2][:16], 0))]
            server.sendmsg([answer], way, 0, (source[0], 0))

    def _take_protocol(self, machine: Machine, number: int) -> None:
        server = socket.socket(socket.AF_INET, socket.SOCK_RAW, number)
        server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._watch(server, lambda: self._answer_raw(server, machine, number))

    def _answer_raw(self, server: socket.socket, machine: Machine, number: int) -> None:
        packet, extra, _, source = server.recvmsg(2048, 256)
        question = packet[20 + len(head_of(number)) :]
        if not question.startswith(b"?"):
            return
        to = _PKTINFO.unpack_from(next(d for level, kind, d in extra if (level, kind) == (0, _IP_PKTINFO)))[2]
        answer = head_of(number) + b"!" + question[1:] + f" {machine.label} {source[0]}\n".encode()
        way = [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, to, bytes(4)))]
        server.sendmsg([answer], way, 0, (source[0], 0))

    def _watch(self, sock: socket.socket, deed: Callable[[], None]) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCE, _BUFFER)
        self._open.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, deed)

    # --- what was overheard

    def who_was_asked(self, ident: int) -> tuple[str, str]:
        """Which machine got the ICMP question with this identifier, and from which source; ("", "") where none did."""
        with self._lock:
            for machine in self._machines:
                for sock in machine.icmp:
                    with suppress(BlockingIOError):
                        while True:
                            packet, (source, *_) = sock.recvfrom(2048)
                            message = packet[20:] if sock.family == socket.AF_INET else packet
                            if message[0] in (8, 13, 15, 17, 128):
                                found = struct.unpack_from("!H", message, 4)[0]
                                self._echoes[found] = machine.label, source
            return self._echoes.get(ident, ("", ""))


def _of(family: socket.AddressFamily, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of one family alone."""
    made = socket.socket(family, kind, protocol)
    if family == socket.AF_INET6 and kind != socket.SOCK_RAW:  # which has never the other
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def enumerate_links(links: Iterable[str]) -> list[tuple[int, str]]:
    """(index, name) of links in the namespace that the thread is in."""
    return [(socket.if_nametoindex(link), link) for link in links]


def head_of(number: int) -> bytes:
    """What a packet of that protocol must begin with so that the kernel's connection tracking takes it."""
    return b"\0\0\x08\0" if number == 47 else b""  # RFC 2784: version 0, IPv4 inside
