"""The packets of the program beside keepalived: renewals, announcements, advertisements. A part of peer.py."""

from __future__ import annotations

import socket
import struct


def renewal(mac: str, address: str) -> bytes:
    """A DHCPREQUEST as a guest sends it that renews (RFC 2131, 4.3.2): its address in ciaddr, no option 50 or 54."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    if len(hardware) != 6:
        raise ValueError(mac)
    head = struct.pack("!BBBBIHH4s4s4s4s16s", 1, 1, 6, 0, 0x6E780001, 0, 0, socket.inet_aton(address), b"", b"", b"",
                       hardware)  # fmt: skip
    return head + bytes(192) + b"\x63\x82\x53\x63" + b"\x35\x01\x03" + b"\xff" + bytes(60)


def gratuitous(mac: bytes, address: str) -> bytes:
    """An Ethernet frame: an ARP request of an address for itself."""
    own = socket.inet_aton(address)
    return b"\xff" * 6 + mac + struct.pack("!HHHBBH6s4s6s4s", 0x0806, 1, 0x0800, 6, 4, 1, mac, own, b"", own)


def advertised(mac: bytes, address: str) -> bytes:
    """An Ethernet frame: an unsolicited neighbour advertisement of a router, which overrides what is known."""
    own, everyone = (socket.inet_pton(socket.AF_INET6, a) for a in (address, "ff02::1"))
    body = struct.pack("!BBHI16sBB6s", 136, 0, 0, 0xA0000000, own, 2, 1, mac)
    words = struct.unpack("!36H", own + everyone + struct.pack("!II", len(body), 58) + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255)
    return b"\x33\x33\0\0\0\x01" + mac + b"\x86\xdd" + head + own + everyone + body


def link_local(mac: bytes) -> bytes:
    """The address that a kernel gives itself on a link (RFC 4291, A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))


def advertisement(mac: bytes, router: bytes, lifetime_s: int, managed: bool) -> bytes:
    """An Ethernet frame: a router's advertisement to all, which says only for how long it is a way out."""
    everyone = socket.inet_pton(socket.AF_INET6, "ff02::1")
    body = struct.pack("!BBHBBHII", 134, 0, 0, 0, 0x80 if managed else 0, lifetime_s, 0, 0)
    words = struct.unpack("!28H", router + everyone + struct.pack("!II", len(body), 58) + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255)
    return b"\x33\x33\0\0\0\x01" + mac + b"\x86\xdd" + head + router + everyone + body


def number(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address))
