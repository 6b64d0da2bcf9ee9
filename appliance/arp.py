"""ARP in our own hands: announcements, and the question who has an address, by packet sockets (packet(7)).

Raw frames pass no packet filter and wait for nobody: sending is one system call that does not block.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

ETH_P_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
# RFC 826 behind the Ethernet header: hardware 1, protocol IPv4, lengths 6 and 4, operation
_FRAME = struct.Struct("!6s6sH HHBBH 6s4s6s4s")
_ANNOUNCEMENTS = 2  # RFC 5227, 1.1: ANNOUNCE_NUM; its ANNOUNCE_INTERVAL of 2 s we don't wait for


def request(mac: str, sender: str, target: str) -> bytes:
    """An ARP request for `target` by the link with `mac`; `sender` "0.0.0.0" does not say who asks (RFC 5227, 1.1)."""
    own = bytes.fromhex(mac.replace(":", ""))
    addresses = (own, socket.inet_aton(sender), bytes(6), socket.inet_aton(target))
    return _FRAME.pack(_BROADCAST, own, ETH_P_ARP, 1, 0x0800, 6, 4, _REQUEST, *addresses)


def answers(frame: bytes) -> tuple[str, str] | None:
    """(address, MAC) that a frame says belong together, or None where it isn't an ARP reply."""
    if len(frame) < _FRAME.size:
        return None
    _, _, kind, _, _, _, _, operation, mac, address, _, _ = _FRAME.unpack_from(frame)
    return (socket.inet_ntoa(address), mac.hex(":")) if (kind, operation) == (ETH_P_ARP, _REPLY) else None


def open_socket(hear: bool = False) -> socket.socket:
    """A packet socket for ARP on all links; without `hear` the kernel hands it no packets. Raises OSError.

    Closing one costs some 10 ms (the kernel waits until no CPU looks at it): who announces often keeps it.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ARP) if hear else 0)


def announce(out: socket.socket, link: str, mac: str, address: str) -> bool:
    """Tell the link's neighbours that `address` is here (RFC 5227, 3). Never waits; False: nothing could go out."""
    frame = request(mac, address, address)
    try:
        return all(out.sendto(frame, (link, ETH_P_ARP)) for _ in range(_ANNOUNCEMENTS))
    except OSError:  # the link is down, gone, or its queue is full
        return False


def heard(listening: socket.socket) -> Iterator[tuple[str, str]]:
    """(address, MAC) of the replies that have come in."""
    while True:
        try:
            frame = listening.recv(256)
        except OSError:
            return
        if found := answers(frame):
            yield found
