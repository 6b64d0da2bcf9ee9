"""A scan of every port of an address, TCP and UDP, by frames sent straight to a MAC: whatever comes back counts.

nmap waits for each silent port; here everything is sent at an even pace and every frame that comes from the MAC is
read meanwhile, so that a full scan takes seconds and no answer of any kind is missed: not a reset, not an ICMP error.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from mgmt.hosts.namespace import Ground

RATES = (12_000, 6_000, 3_000)  # packets a second: an emulated machine takes twice the first, a busy one less
SETTLE_S = 2.0
SOURCE_PORT = 40_001
EVERY = 1024  # ports after which the open one is asked again, so that a machine that fell behind is noticed
ALL = 65536


@dataclass(frozen=True, slots=True)
class Found:
    """What came back: ports that took a connection, ports that refused one, and all else in words."""

    open: frozenset[int]
    refused: frozenset[int]
    others: tuple[str, ...]


def scan(ground: Ground, link: str, mac: str, source: str, to: str, known: int = 0) -> Found:
    """Ask every TCP and UDP port of `to` at `mac`, over `link` of the ground, from address `source`.

    `known`: a TCP port that is known to be open; it must have answered each time, else the scan is worth nothing, and
    is made anew at half the pace.
    """
    for rate in RATES:
        found, asked, answered = _scan(ground, link, mac, source, to, known, rate)
        if answered >= asked * 0.9:
            return found
    raise AssertionError(f"of {asked} questions to port {known}, {answered} were answered, at {rate} a second")


def _scan(ground: Ground, link: str, mac: str, source: str, to: str, known: int, rate: int) -> tuple[Found, int, int]:
    """One scan: what it found, how often the known port was asked, and how often it answered."""
    with ground.entered():
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        out.bind((link, 0))
        out.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    own = out.getsockname()[4]
    ethernet = bytes.fromhex(mac.replace(":", "")) + own + b"\x08\x00"
    reader = _Reader(out, bytes.fromhex(mac.replace(":", "")))
    reader.start()
    asked = 0
    due = time.monotonic()
    for port, protocol in _questions(known):
        packet = _tcp(source, to, port) if protocol == 6 else _udp(source, to, port)
        out.send(ethernet + packet)
        asked += port == known and protocol == 6
        due += 1 / rate
        if (pause := due - time.monotonic()) > 0.002:
            time.sleep(pause)
    time.sleep(SETTLE_S)
    reader.ends.set()
    reader.join()
    out.close()
    found = Found(frozenset(reader.open), frozenset(reader.refused), tuple(sorted(reader.others)))
    return found, asked, reader.greeted


def _questions(known: int) -> Iterator[tuple[int, int]]:
    for port in range(1, ALL):
        yield port, 6
        yield port, 17
        if known and port % EVERY == 0:
            yield known, 6


class _Reader(threading.Thread):
    """Reads what comes from one MAC until `ends`."""

    def __init__(self, sock: socket.socket, mac: bytes) -> None:
        super().__init__(daemon=True)
        self.socket, self.mac = sock, mac
        self.ends = threading.Event()
        self.open: set[int] = set()
        self.refused: set[int] = set()
        self.others: set[str] = set()
        self.greeted = 0
        sock.settimeout(0.2)

    def run(self) -> None:
        while not self.ends.is_set():
            try:
                frame = self.socket.recv(2048)
            except TimeoutError:
                continue
            if frame[6:12] == self.mac:
                self._take(frame[14:])

    def _take(self, packet: bytes) -> None:
        head, protocol = (packet[0] & 15) * 4, packet[9]
        if protocol == 6:
            port, to = struct.unpack_from("!HH", packet, head)
            if to != SOURCE_PORT:
                return
            if packet[head + 13] & 4:
                self.refused.add(port)
            else:
                self.open.add(port)
                self.greeted += 1
        elif protocol == 17:
            port, to = struct.unpack_from("!HH", packet, head)
            if to == SOURCE_PORT:
                self.others.add(f"udp {port}")
        elif protocol == 1:
            self.others.add(f"icmp type {packet[head]} code {packet[head + 1]}")
        else:
            self.others.add(f"protocol {protocol}")


def _ip(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0,
        IPv4Address(source).packed, IPv4Address(to).packed,
    )  # fmt: skip
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + payload


def _tcp(source: str, to: str, port: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", SOURCE_PORT, port, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = IPv4Address(source).packed + IPv4Address(to).packed + struct.pack("!BBH", 0, 6, 20)
    return _ip(source, to, 6, segment[:16] + struct.pack("!H", _sum(pseudo + segment)) + segment[18:])


def _udp(source: str, to: str, port: int) -> bytes:
    return _ip(source, to, 17, struct.pack("!HHHH", SOURCE_PORT, port, 8, 0))  # no checksum (RFC 768)


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
