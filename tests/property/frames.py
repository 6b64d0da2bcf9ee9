"""Packets as bytes, each with a number in its payload by which it is known again wherever it comes out.

What is not under test is made so that the kernel takes it: checksums are right (connection tracking looks at them), TCP
starts with a SYN, GRE has a head. The source port, or ICMP's identifier, tells the flows of a burst apart.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from functools import lru_cache

from router.packet import Packet

MARK = b"NRTX"
SYN, SYN_ACK = 0x02, 0x12
# What stands before the payload; GRE's head is version 0 with IPv4 inside (RFC 2784).
_HEADS = {1: 8, 6: 20, 17: 8, 47: 4}
_GRE = b"\0\0\x08\0"
# ICMP: the answer's type by the question's; ICMPv6's are others.
ANSWERS = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}
_HEADS6 = {58: 8, 6: 20, 17: 8, 47: 4}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet as it came out: at which interface (its id, "" inside the router), and its addresses and ports there.

    `flow` is the source port or the ICMP identifier, 0 where the protocol has neither.
    """

    interface: str
    source: str
    destination: str
    flow: int
    destination_port: int | None

    @property
    def compared(self) -> tuple[object, ...]:
        """As packet.Outcome's."""
        verdict = "forwarded" if self.interface else "local"
        return (verdict, self.interface, self.source, self.destination, self.destination_port)


def written(packet: Packet, number: int, flow: int) -> bytes:
    """A question: the first packet of a flow, with its IP header. `flow` takes the place of its source port."""
    return _ip(packet, number, _inner(packet, number, flow, packet.destination_port, SYN))


def answered(packet: Packet, number: int, arrival: Arrival) -> bytes:
    """The answer of whoever got the packet as `arrival`."""
    kind = ANSWERS.get(packet.icmp_type, packet.icmp_type)
    back = Packet("", arrival.destination, arrival.source, packet.protocol, 0, 0, kind, packet.icmp_code)
    if packet.is_icmp:
        return _ip(back, number, _inner(back, number, arrival.flow, 0, 0))
    return _ip(back, number, _inner(back, number, arrival.destination_port or 0, arrival.flow, SYN_ACK))


def read(data: bytes, interface: str) -> tuple[int, Arrival] | None:
    """The number of a packet of ours and what it looks like now; None for any other."""
    if data[0] >> 4 == 6:
        return read6(data[6], data[8:24], data[24:40], data[40:], interface)
    protocol = data[9]
    start = 20 + _HEADS.get(protocol, 0)
    if data[start : start + 4] != MARK:
        return None
    if protocol == 1 and data[20] != data[start + 8]:
        return None  # the kernel's own answer to a question of ours: it gives the payload back
    flow, port = struct.unpack_from("!HH", data, 20) if protocol in (6, 17) else (0, None)
    if protocol == 1:
        (flow,) = struct.unpack_from("!H", data, 24)
    (number,) = struct.unpack_from("!I", data, start + 4)
    return number, Arrival(interface, socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20]), flow, port)


def read6(protocol: int, source: bytes, destination: bytes, data: bytes, interface: str) -> tuple[int, Arrival] | None:
    """The same of what follows an IPv6 header."""
    start = _HEADS6.get(protocol, 0)
    if data[start : start + 4] != MARK:
        return None
    if protocol == 58 and data[0] != data[start + 8]:
        return None
    flow, port = struct.unpack_from("!HH", data) if protocol in (6, 17) else (0, None)
    if protocol == 58:
        (flow,) = struct.unpack_from("!H", data, 4)
    (number,) = struct.unpack_from("!I", data, start + 4)
    ends = (socket.inet_ntop(socket.AF_INET6, end) for end in (source, destination))
    return number, Arrival(interface, *ends, flow, port)


def _ip(packet: Packet, number: int, inner: bytes) -> bytes:
    if packet.is_v6:
        ends = _packed(packet.source) + _packed(packet.destination)
        return struct.pack("!IHBB", 6 << 28, len(inner), packet.number, 64) + ends + inner
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), number & 0xFFFF, 0, 64, packet.number, 0)
    head += _packed(packet.source) + _packed(packet.destination)
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + inner


def _inner(packet: Packet, number: int, flow: int, port: int, flags: int) -> bytes:
    load = MARK + struct.pack("!I", number)
    if packet.is_icmp:
        load += bytes([packet.icmp_type])
        body = struct.pack("!BBHHH", packet.icmp_type, packet.icmp_code, 0, flow, 1) + load
        pseudo = _pseudo(packet, len(body)) if packet.is_v6 else b""
        return body[:2] + struct.pack("!H", _sum(pseudo + body)) + body[4:]
    if packet.number == 17:
        body = struct.pack("!HHHH", flow, port, 8 + len(load), 0) + load
        return body[:6] + struct.pack("!H", _sum(_pseudo(packet, len(body)) + body) or 0xFFFF) + body[8:]
    if packet.number == 6:
        body = struct.pack("!HHIIBBHHH", flow, port, 1, 2, 0x50, flags, 8192, 0, 0) + load
        return body[:16] + struct.pack("!H", _sum(_pseudo(packet, len(body)) + body)) + body[18:]
    return (_GRE if packet.number == 47 else b"") + load


def _pseudo(packet: Packet, length: int) -> bytes:
    """What a checksum covers of the IP header (RFC 9293, 3.1; RFC 8200, 8.1)."""
    ends = _packed(packet.source) + _packed(packet.destination)
    if packet.is_v6:
        return ends + struct.pack("!II", length, packet.number)
    return ends + struct.pack("!HH", packet.number, length)


@lru_cache(maxsize=4096)
def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address) if ":" in address else socket.inet_aton(address)


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) & 1:
        total += data[-1] << 8
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
