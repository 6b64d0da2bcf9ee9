"""Announcements of IPv6 addresses: neighbour advertisements nobody asked for (RFC 4861, 7.2.6), by packet sockets.

The router's addresses take no duplicate address detection: they shall answer at once, and whose they are the document
has said. So the kernel announces none of them, and we do.
"""

from __future__ import annotations

import socket
import struct

ETH_P_IPV6 = 0x86DD
_ALL_NODES, _ALL_NODES_MAC = socket.inet_pton(socket.AF_INET6, "ff02::1"), bytes.fromhex("333300000001")
_ADVERTISEMENT, _ICMPV6, _NEAR = 136, 58, 255  # a hop limit of 255: it has passed no router (RFC 4861, 11.2)
_ROUTER, _OVERRIDE = 1 << 31, 1 << 29
_LINK_ADDRESS = 2  # option: target's link-layer address, 8 bytes with its head


def advertisement(mac: str, address: str) -> bytes:
    """The frame that tells all nodes of a link: the router `address` is at `mac`."""
    own, target = bytes.fromhex(mac.replace(":", "")), socket.inet_pton(socket.AF_INET6, address)
    told = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _ROUTER | _OVERRIDE) + target
    told += struct.pack("!BB", _LINK_ADDRESS, 1) + own
    ends = target + _ALL_NODES
    checksum = _checksum(ends + struct.pack("!II", len(told), _ICMPV6) + told)
    told = told[:2] + struct.pack("!H", checksum) + told[4:]
    head = struct.pack("!IHBB", 6 << 28, len(told), _ICMPV6, _NEAR)
    return _ALL_NODES_MAC + own + struct.pack("!H", ETH_P_IPV6) + head + ends + told


def announce(out: socket.socket, link: str, mac: str, address: str) -> bool:
    """Tell the link's neighbours that `address` is here, by any packet socket. Never waits; False: nothing went out."""
    try:
        return bool(out.sendto(advertisement(mac, address), (link, ETH_P_IPV6)))
    except OSError:  # the link is down, gone, or its queue is full
        return False


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
