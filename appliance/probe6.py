"""Does a neighbour answer in IPv6: by ping, or, as one that lets none in must, by neighbour discovery.

The kernel asks for the neighbour's MAC before the ping can leave (RFC 4861), and remembers that it was told: so an
address that is reachable in its table, after a ping of ours, answered just now.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Mapping

from appliance import wire

_REQUEST, _REPLY = 128, 129  # RFC 4443, 4
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum (the kernel's), identifier, sequence
_GETNEIGH = 30
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # ndmsg: family, padding, link, state, flags, type
_DST = 1  # NDA_DST
_REACHABLE = 0x02 | 0x08 | 0x10  # NUD_REACHABLE, and NUD_DELAY and NUD_PROBE, which follow on it
_AGAIN_S = 0.4


def probe_neighbours(links: Mapping[str, str], seconds: float) -> dict[str, tuple[bool, str]]:
    """(does it answer, what was seen in words) of each address; `links` says by which link each is. Raises OSError."""
    asked = time.monotonic()
    found: dict[str, tuple[bool, str]] = {}
    identifier, sequence, again, end = os.getpid() & 0xFFFF, 0, 0.0, asked + seconds
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6) as echo:
        while len(found) < len(links) and (now := time.monotonic()) < end:
            if now >= again:
                sequence, again = sequence + 1, now + _AGAIN_S
                for address in links.keys() - found.keys():
                    _ask(echo, address, links[address], _ECHO.pack(_REQUEST, 0, 0, identifier, sequence))
            select.select([echo], [], [], max(0.0, min(again, end) - now))
            for address in _heard(echo, identifier) & (links.keys() - found.keys()):
                took = (time.monotonic() - asked) * 1000
                found[address] = True, f"{address} answers ping on {links[address]} ({took:.1f} ms)"
    near = reachable() if len(found) < len(links) else frozenset()
    for address in links.keys() - found.keys():
        words = "answers neighbour discovery, and no ping" if address in near else f"no answer within {seconds:g} s"
        found[address] = address in near, f"{address} on {links[address]}: {words}"
    return found


def reachable() -> frozenset[str]:
    """The IPv6 neighbours that have shown a moment ago that they are there."""
    channel = wire.Channel(wire.ROUTE)
    try:
        listed = channel.dump(_GETNEIGH, _NEIGHBOUR.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0))
    except wire.KernelError:
        return frozenset()
    finally:
        channel.close()
    near = (body for _, body in listed if _NEIGHBOUR.unpack_from(body)[4] & _REACHABLE)
    addresses = (wire.attributes(body, _NEIGHBOUR.size).get(_DST, b"") for body in near)
    return frozenset(socket.inet_ntop(socket.AF_INET6, raw) for raw in addresses if len(raw) == 16)


def _ask(echo: socket.socket, address: str, link: str, packet: bytes) -> None:
    try:
        index = socket.if_nametoindex(link) if address.startswith("fe80:") else 0
        echo.sendto(packet, (address, 0, 0, index))
    except OSError:  # no way to it, no link: asked again later
        return


def _heard(echo: socket.socket, identifier: int) -> set[str]:
    heard = set[str]()
    while True:
        try:
            packet, peer = echo.recvfrom(2048)
        except OSError:
            return heard
        if len(packet) >= _ECHO.size and packet[0] == _REPLY and _ECHO.unpack_from(packet)[3] == identifier:
            heard.add(peer[0].partition("%")[0])
