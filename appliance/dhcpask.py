"""Is a known host offered its address? Asked of the DHCP server of this very machine, bound to a guest link.

A server that is bound to a link hears only what comes in by it. A broadcast of our own comes in by the link that it
leaves by (the kernel hands a copy back, ip_output.c: ip_mc_output), as a packet of whoever it says that it is from. So
a DISCOVER is sent with the host's own MAC and address. It makes no lease (a REQUEST would), and the offer, asked for as
a broadcast, changes no ARP entry; the host lets it pass, for it bears a number that it did not choose. The offer is
seen as it leaves: a packet socket is shown that too.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack

_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, socket(7)
_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s192x4s")  # RFC 2131, 2: op to giaddr, chaddr, sname and file, cookie
_COOKIE = b"\x63\x82\x53\x63"
_BROADCAST_FLAG = 0x8000
_KIND, _DISCOVER, _OFFER, _END = 53, 1, 2, 255
_AGAIN_S = 0.7

# tcpdump -dd 'ip and udp src port 67 and dst port 68', for frames with an Ethernet header
_ONLY_ANSWERS: Sequence[tuple[int, int, int, int]] = (
    (0x28, 0, 0, 12), (0x15, 0, 10, _ETH_P_IP), (0x30, 0, 0, 23), (0x15, 0, 8, 17), (0x28, 0, 0, 20),
    (0x45, 6, 0, 0x1FFF), (0xB1, 0, 0, 14), (0x48, 0, 0, 14), (0x15, 0, 3, 67), (0x48, 0, 0, 16), (0x15, 0, 1, 68),
    (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0),
)  # fmt: skip


def offered(link: str, mac: str, address: str, seconds: float) -> tuple[bool, str]:
    """(is the host with `mac` offered `address` on `link`, what was seen in words). Raises OSError."""
    number = int.from_bytes(os.urandom(4))
    with ExitStack() as stack:
        ear = stack.enter_context(_ear(link))
        mouth = stack.enter_context(_mouth(link))
        end, again = time.monotonic() + seconds, 0.0
        packet = _packet(number, mac, address)
        while (now := time.monotonic()) < end:
            if now >= again:
                mouth.sendto(packet, ("255.255.255.255", 0))
                again = now + _AGAIN_S
            if not select.select([ear], [], [], max(0.0, min(again, end) - now))[0]:
                continue
            given = _offer(ear.recv(2048), number)
            if given:
                words = f"{mac} is offered {given} on {link}"
                return given == address, words if given == address else f"{words}, not {address}"
    return False, f"{mac} is offered nothing on {link} within {seconds:g} s"


def _ear(link: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _ONLY_ANSWERS)
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("@HP", len(_ONLY_ANSWERS), ctypes.addressof(buffer))
        opened.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
        opened.bind((link, _ETH_P_ALL))
    except OSError:
        opened.close()
        raise
    return opened


def _mouth(link: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    except OSError:
        opened.close()
        raise
    return opened


def _packet(number: int, mac: str, source: str) -> bytes:
    """IPv4, UDP (without a checksum: RFC 768) and the DISCOVER. The kernel fills in IP's own checksum (raw(7))."""
    none = bytes(4)
    hardware = bytes.fromhex(mac.replace(":", "")).ljust(16, b"\0")
    head = _HEAD.pack(1, 1, 6, 0, number, 0, _BROADCAST_FLAG, none, none, none, none, hardware, _COOKIE)
    payload = (head + bytes((_KIND, 1, _DISCOVER, _END))).ljust(300, b"\0")  # RFC 951: no shorter than that
    udp = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0)
    whole = 20 + len(udp) + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, whole, 0, 0, 64, 17, 0, socket.inet_aton(source), b"\xff" * 4)
    return ip + udp + payload


def _offer(frame: bytes, number: int) -> str:
    """The address of an OFFER of this number in an Ethernet frame, "" where it is none."""
    start = 14 + (frame[14] & 0xF) * 4 + 8
    if len(frame) < start + _HEAD.size:
        return ""
    _, _, _, _, said, _, _, _, given, _, _, _, cookie = _HEAD.unpack_from(frame, start)
    options = frame[start + _HEAD.size :]
    is_offer = bytes((_KIND, 1, _OFFER)) in options
    return socket.inet_ntoa(given) if (said, cookie, is_offer) == (number, _COOKIE, True) else ""
