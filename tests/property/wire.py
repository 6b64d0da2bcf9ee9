"""A real kernel to try packets on: a router's namespace, and one wire from each of its interfaces to the outside.

`Bed.send` puts packets on the wires as raw frames, thousands in one burst, and tells of each where it came out: at
another wire, or delivered inside the router; what came out nowhere was dropped. `Bed.converse` has whoever got a packet
answer it, too. Everything is synchronous: a sentinel that follows the packets through the same queue of the kernel
says when all of them have arrived, so that nothing waits for a timeout.

The wires have no ARP (IFF_NOARP): every neighbour is there. Namespaces have no names, only descriptors: they go with
this process, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.netlink import Netlink
from appliance.nft import Nft
from appliance.ruleset import delta, whole
from appliance.state import State
from router.packet import Packet
from tests.property.frames import Arrival, answered, read, read6, written

Conversation = tuple[Arrival | None, Arrival | None]

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNET = 0x40000000
_IGNORE_OUTGOING = 23  # PACKET_IGNORE_OUTGOING, packet(7)
_IPV4, _IPV6 = 0x0800, 0x86DD
_DHCP_SERVERS = "ff02::1:2"
_OUR_MAC = b"\2\0\0\0\0\xfe"
_SENTINEL = 0x88B5  # an EtherType for local experiments (IEEE 802)
_ALL = 3  # ETH_P_ALL, which Python 3.11 does not name
_BUFFER = 64 << 20
_PATIENCE_S = 20.0  # for a sentinel, on a busy machine
_BURST = 4000  # packets; what they leave in the receive buffers stays below a third of them
_FIRST_PORT = 20000


# --- namespaces ---


def new_namespace() -> int:
    """A network namespace that lives as long as the descriptor."""
    with _home():
        _check(_LIBC.unshare(_NEWNET))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread, and the processes and sockets it makes, in that namespace."""
    with _home():
        _check(_LIBC.setns(namespace, _NEWNET))
        yield


@contextmanager
def _home() -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _check(_LIBC.setns(home, _NEWNET))
        os.close(home)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(*argv: str, text: str = "") -> str:
    return subprocess.run(argv, input=text, check=True, capture_output=True, text=True).stdout


# --- the bed ---


class Bed:
    """One router. `interfaces` are a document's interfaces: id, name of the link, MAC."""

    def __init__(self, interfaces: Sequence[tuple[str, str, str]]) -> None:
        self.ids = {name: ident for ident, name, _ in interfaces}
        self._names = {ident: name for name, ident in self.ids.items()}
        self.router, self.outside = new_namespace(), new_namespace()
        self._lay_wires([(name, mac) for _, name, mac in interfaces])
        with inside(self.router):
            self.netlink = Netlink()
            self._watch = _packet_socket(_SENTINEL)
            self._flows = _Flows()
            self._member = _member_of(_DHCP_SERVERS, self._names.values())
        with inside(self.outside):
            self._far = _packet_socket(_ALL)
        self._macs = {name: bytes.fromhex(mac.replace(":", "")) for _, name, mac in interfaces}
        self._near: dict[str, socket.socket] = {}  # one to put packets on each wire
        self._own: dict[str, socket.socket] = {}  # the router's own, by source address
        self._taken: dict[tuple[int, bool], socket.socket] = {}  # what is delivered in the router, by protocol, family
        for name in self._names.values():
            with inside(self.outside):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind((f"far-{name}", 0))
            self._near[name] = sock
        self._loaded = State()

    def close(self) -> None:
        self.netlink.close()
        self._flows.close()
        many = (self._near, self._own, self._taken)
        for sock in [self._watch, self._far, self._member, *(s for some in many for s in some.values())]:
            sock.close()
        os.close(self.router)
        os.close(self.outside)

    def _lay_wires(self, links: Sequence[tuple[str, str]]) -> None:
        far = f"/proc/{os.getpid()}/fd/{self.outside}"
        here = [f"link add {n} address {mac} arp off type veth peer name far-{n} netns {far}" for n, mac in links]
        with inside(self.outside):
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        with inside(self.router):
            Path("/proc/sys/net/ipv6/conf/default/router_solicitations").write_text("0")
            run("ip", "-batch", "-", text="\n".join([*here, "link set lo up", *(f"link set {n} up" for n, _ in links)]))
            # The router's own answers would come out of the wires among the packets that are tried. Flows of protocols
            # without ports are told apart by addresses alone: each is forgotten at once, so that the next is new.
            Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("1")
            Path("/proc/sys/net/ipv6/icmp/echo_ignore_all").write_text("1")
            for kind in ("generic", "gre"):
                Path(f"/proc/sys/net/netfilter/nf_conntrack_{kind}_timeout").write_text("0")
        with inside(self.outside):
            run("ip", "-batch", "-", text="\n".join(f"link set far-{n} arp off up" for n, _ in links))

    # --- the document ---

    def load(self, state: State, by_delta: bool = False) -> None:
        """Make the namespace this State: settings, addresses, routes, rules, packet filter.

        `by_delta`: change what differs in the packet filter, where there is a way to, instead of replacing it.
        """
        before = self._loaded
        change = delta(before.ruleset, state.ruleset) if by_delta else None
        text = whole(state.ruleset) if change is None else change.text
        with inside(self.router):
            if before.sysctls != state.sysctls:
                for setting in state.sysctls:
                    _setting(setting.key).write_text(setting.value)
            if (before.addresses, before.routes, before.rules) != (state.addresses, state.routes, state.rules):
                self._settle(before, state)
            if text:
                Nft(_started).apply(text)
        self._loaded = state

    def _settle(self, before: State, after: State) -> None:
        """Addresses, routes and rules, from nothing: what order could do to them is another test's."""
        for rule in before.rules:
            self.netlink.remove_rule(rule)
        for route in before.routes:
            self.netlink.remove_route(route)
        for address in before.addresses:
            self.netlink.remove_address(address)
        for address in after.addresses:
            self.netlink.add_address(address)
        for route in after.routes:
            self.netlink.add_route(route)
        for rule in after.rules:
            self.netlink.add_rule(rule)

    # --- packets ---

    def send(self, packets: Sequence[Packet]) -> list[Arrival | None]:
        """Where each packet came out, None where nowhere. Each is the first of its flow, whatever was sent before."""
        return [came for came, _ in self.converse(packets, answer=False)]

    def converse(self, packets: Sequence[Packet], answer: bool = True) -> list[Conversation]:
        """Where each packet came out, and where the answer of whoever got it did.

        Not answered are protocols without ports (they are forgotten at once), what was sent to all, and TCP to the
        router itself, whose kernel has answered.
        """
        found: list[Conversation] = []
        for start in range(0, len(packets), _BURST):
            burst = list(enumerate(packets[start : start + _BURST]))
            self._flows.forget()
            came = self._exchange([(p, written(p, i, _FIRST_PORT + i)) for i, p in burst])
            back: dict[int, Arrival] = {}
            if answer:
                heard = [(i, packet, came[i]) for i, packet in burst if i in came and is_answered(packet, came[i])]
                back = self._exchange([(_sender(p, where), answered(p, i, where)) for i, p, where in heard])
            found += [(came.get(i), back.get(i)) for i, _ in burst]
        return found

    def _exchange(self, packets: list[tuple[Packet, bytes]]) -> dict[int, Arrival]:
        """Send all; what came out, by number. Of a packet to be sent only interface, addresses and protocol count."""
        for kind in {(p.number, p.is_v6) for p, _ in packets}:
            if kind not in self._taken:
                with inside(self.router):
                    self._taken[kind] = _raw_socket(*kind)
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})  # the kernel's queue of received packets is one per processor
        try:
            for packet, data in packets:
                self._put(packet, data)
            self._drain()
        finally:
            os.sched_setaffinity(0, cpus)
        # From all sockets, so that nothing is left for the next exchange to find.
        seen = [
            read(data[14:], self.ids[came_by.removeprefix("far-")])
            for data, came_by, kind in _arrived(self._far, until=_SENTINEL)
            if kind in (_IPV4, _IPV6)
        ]
        for (number, v6), sock in self._taken.items():
            seen += _delivered6(sock, number) if v6 else [read(data, "") for data, _, _ in _arrived(sock)]
        found: dict[int, Arrival] = {}
        for number, arrival in filter(None, seen):
            assert number not in found, f"came out twice: {found[number]} and {arrival}"
            found[number] = arrival
        return found

    def _put(self, packet: Packet, data: bytes) -> None:
        if packet.in_interface:
            name = self._names[packet.in_interface]
            kind = _IPV6 if packet.is_v6 else _IPV4
            self._near[name].send(self._macs[name] + _OUR_MAC + struct.pack("!H", kind) + data)
        else:
            with suppress(OSError):  # the kernel's own word for a packet it won't send
                self._own_socket(packet.source).sendto(data, (packet.destination, 0))

    def _own_socket(self, source: str) -> socket.socket:
        """A socket that sends whole packets from one of the router's addresses."""
        if source not in self._own:
            with inside(self.router):
                family = socket.AF_INET6 if ":" in source else socket.AF_INET
                sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            # IP_FREEBIND and its like: addresses come and go with documents
            sock.setsockopt(*((socket.IPPROTO_IPV6, 78) if ":" in source else (socket.SOL_IP, 15)), 1)
            sock.bind((source, 0))
            self._own[source] = sock
        return self._own[source]

    def _drain(self) -> None:
        """Follow the last packet into the router, wait there, and go out behind what the router has sent."""
        name = next(iter(self._near))
        frame = b"\xff" * 6 + _OUR_MAC + struct.pack("!H", _SENTINEL)
        for _ in range(2):  # what comes out at lo comes in again
            self._near[name].send(frame)
            self._watch.settimeout(_PATIENCE_S)
            self._watch.recv(64)
        with inside(self.router):
            back = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with back:
            back.bind((name, 0))
            back.send(frame)


def is_answered(packet: Packet, arrival: Arrival) -> bool:
    """Does whoever got a packet answer it here?"""
    if not (packet.has_ports or packet.is_icmp) or (arrival.interface == "" and packet.number == 6):
        return False
    if packet.is_v6:
        of_a_link = arrival.source.startswith("fe") or arrival.destination.startswith("ff")
        return arrival.interface != "" or not of_a_link
    return arrival.interface != "" or not arrival.destination.endswith((".255", "224.0.0.1"))


def _sender(packet: Packet, arrival: Arrival) -> Packet:
    """Who answers whom."""
    return Packet(arrival.interface, arrival.destination, arrival.source, packet.protocol)


# --- sockets ---


def _packet_socket(kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    sock.setsockopt(263, _IGNORE_OUTGOING, 1)  # SOL_PACKET
    sock.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
    return sock


def _raw_socket(protocol: int, v6: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    if v6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)
    return sock


def _member_of(group: str, links: Iterable[str]) -> socket.socket:
    """A socket that joins a group on each link, as the server does that would be there."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for link in links:
        where = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", socket.if_nametoindex(link))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, where)
    return sock


def _delivered6(sock: socket.socket, protocol: int) -> Iterator[tuple[int, Arrival] | None]:
    """What a raw socket of IPv6 has got; it gives no header, but says whose it was and to whom."""
    sock.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            data, told, _, where = sock.recvmsg(2048, 64)
            source = socket.inet_pton(socket.AF_INET6, where[0].partition("%")[0])
            yield read6(protocol, source, told[0][2][:16], data, "")


def _arrived(sock: socket.socket, until: int = 0) -> Iterator[tuple[bytes, str, int]]:
    """All that has arrived: the data, and the link's name and EtherType where the socket knows them.

    `until` is the EtherType to wait for, 0 to wait for nothing.
    """
    sock.settimeout(_PATIENCE_S if until else 0)
    while True:
        try:
            data, where = sock.recvfrom(2048)
        except BlockingIOError:
            return
        link, kind = (where[0], where[1]) if len(where) > 2 else ("", 0)
        if until and kind == until:
            return
        yield data, link, kind


class _Flows:
    """The connection tracking of the namespace this is made in."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER

    def close(self) -> None:
        self._sock.close()

    def forget(self) -> None:
        """Remove every flow: IPCTNL_MSG_CT_DELETE (2) of subsystem 1, which names none and so means all."""
        self._sock.send(struct.pack("=IHHII", 20, 1 << 8 | 2, 5, 1, 0) + struct.pack("!BBH", 0, 0, 0))
        (error,) = struct.unpack_from("=i", self._sock.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))


def _started(argv: tuple[str, ...], data: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    done = subprocess.run(argv, input=data, capture_output=True, timeout=seconds, check=False)
    return done.returncode, done.stdout, done.stderr


def _setting(key: str) -> Path:
    """Where a setting is: net.ipv4.conf.eth0/100.rp_filter is of the link eth0.100 (sysctl(8))."""
    return Path("/proc/sys", *(part.replace("/", ".") for part in key.split(".")))
