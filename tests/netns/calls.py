"""Calls: packets that machines send, and what comes back. Many at once, so that a silence costs one wait for all.

`heard` sends and collects; `met` says who answered each; `silent` says that nobody did. A refusal (a TCP reset, an
ICMP error) is an answer too: by "refused" or "unreachable".
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ECONNREFUSED, EHOSTUNREACH, ENETUNREACH
from typing import Protocol

from mgmt.hosts.namespace import Ground
from tests.netns.machines import Services, head_of

PATIENCE_S = 6.0  # for what must come, on a busy machine
SILENCE_S = 0.5  # for what must not
LINE = 512
idents = itertools.count(0x1001)


@dataclass(frozen=True, slots=True)
class Call:
    """`by` asks `to`. `protocol` tcp, udp, icmp or a number; `source` of its addresses; `link` it must go and come by.

    `icmp` is type and code; ICMPv6's own where `to` is IPv6.
    """

    by: Ground
    to: str
    port: int = 0
    protocol: str | int = "tcp"
    source: str = ""
    link: str = ""
    icmp: tuple[int, int] = (8, 0)

    def __str__(self) -> str:
        name = getattr(self.by, "label", "the router")
        what = f"{self.protocol} {self.icmp}" if self.protocol == "icmp" else f"{self.protocol} {self.port or ''}"
        return f"{name} ({self.source or 'any'}, {self.link or 'any link'}) -> {self.to} {what.strip()}"


@dataclass(frozen=True, slots=True)
class Reply:
    """Who answered, the source address that it saw, and the link it saw it on (TCP and UDP)."""

    name: str
    seen: str = ""
    link: str = ""


def tcp(by: Ground, to: str, port: int, source: str = "", link: str = "") -> Call:
    return Call(by, to, port, "tcp", source, link)


def udp(by: Ground, to: str, port: int, source: str = "", link: str = "") -> Call:
    return Call(by, to, port, "udp", source, link)


def both(by: Ground, to: str, port: int, source: str = "", link: str = "") -> tuple[Call, Call]:
    """TCP and UDP."""
    return tcp(by, to, port, source, link), udp(by, to, port, source, link)


def echo(by: Ground, to: str, source: str = "", link: str = "", icmp: tuple[int, int] | None = None) -> Call:
    return Call(by, to, 0, "icmp", source, link, icmp or ((128, 0) if ":" in to else (8, 0)))


def raw(by: Ground, to: str, number: int, source: str = "") -> Call:
    return Call(by, to, 0, number, source)


# --- asking -----------------------------------------------------------------------------------------------------------


class _Question(Protocol):
    socket: socket.socket

    def read(self) -> Reply | None: ...


def heard(services: Services, calls: Sequence[Call], seconds: float) -> list[Reply | None]:
    """The reply to each call, None where none came within `seconds`."""
    questions: list[_Question | Reply | None] = [_asked(services, call) for call in calls]
    replies: list[Reply | None] = [q if isinstance(q, Reply) else None for q in questions]
    waiting = {q.socket.fileno(): (n, q) for n, q in enumerate(questions) if q and not isinstance(q, Reply)}
    poll = select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN)
    deadline = time.monotonic() + seconds
    try:
        while waiting and (left := deadline - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                place, question = waiting[number]
                if reply := _read(question):
                    replies[place] = reply
                    poll.unregister(number)
                    del waiting[number]
                    question.socket.close()
    finally:
        for _, question in waiting.values():
            question.socket.close()
    return replies


def met(services: Services, calls: Sequence[Call]) -> list[Reply]:
    """The replies to all calls; each must come."""
    replies = heard(services, calls, PATIENCE_S)
    missing = [str(call) for call, reply in zip(calls, replies, strict=True) if reply is None]
    assert not missing, f"not answered: {missing}"
    return [reply for reply in replies if reply]


def silent(services: Services, calls: Sequence[Call]) -> None:
    """Nothing comes back, neither an answer nor a refusal."""
    replies = heard(services, calls, SILENCE_S)
    found = [f"{call}: {reply}" for call, reply in zip(calls, replies, strict=True) if reply]
    assert not found, f"answered, and should not be: {found}"


def _asked(services: Services, call: Call) -> _Question | Reply | None:
    try:
        if isinstance(call.protocol, int):
            return _Raw(call)
        if call.protocol == "icmp":
            return _Echo(call, services)
        return _Stream(call) if call.protocol == "tcp" else _Datagram(call)
    except OSError as error:
        if error.errno in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH):
            return Reply("unreachable")
        raise


def _read(question: _Question) -> Reply | None:
    try:
        return question.read()
    except BlockingIOError:
        return None
    except ConnectionError:
        return Reply("refused")
    except OSError as error:
        if error.errno in (EHOSTUNREACH, ENETUNREACH):
            return Reply("unreachable")
        raise


def opened(call: Call, kind: int, protocol: int = 0) -> socket.socket:
    """A socket for a call where it is made, bound as it says; not blocking."""
    with call.by.entered():
        made = socket.socket(socket.AF_INET6 if ":" in call.to else socket.AF_INET, kind, protocol)
    try:
        made.setblocking(False)
        if call.link:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, call.link.encode())
        if call.source:
            made.bind((call.source, 0))
    except BaseException:
        made.close()
        raise
    return made


def greeting(data: bytes) -> Reply | None:
    return Reply(*data.decode().split()) if data.endswith(b"\n") else None


class _Stream:
    def __init__(self, call: Call) -> None:
        self.socket = opened(call, socket.SOCK_STREAM)
        error = self.socket.connect_ex((call.to, call.port))
        if error in (ECONNREFUSED, EHOSTUNREACH, ENETUNREACH):
            self.socket.close()
            raise OSError(error, "")

    def read(self) -> Reply | None:
        data = self.socket.recv(LINE)
        if not data:
            raise ConnectionError
        return greeting(data)


class _Datagram:
    def __init__(self, call: Call) -> None:
        self.socket = opened(call, socket.SOCK_DGRAM)
        self.socket.connect((call.to, call.port))
        self.socket.send(b"?%d" % next(idents))

    def read(self) -> Reply | None:
        return greeting(self.socket.recv(LINE))


class _Raw:
    def __init__(self, call: Call) -> None:
        assert isinstance(call.protocol, int)
        self.socket = opened(call, socket.SOCK_RAW, call.protocol)
        self.head = head_of(call.protocol)
        self.token = b"%d" % next(idents)
        self.socket.sendto(self.head + b"?" + self.token, (call.to, 0))

    def read(self) -> Reply | None:
        packet = self.socket.recv(LINE)[_before(self.socket) + len(self.head) :]
        found = packet.startswith(b"!" + self.token + b" ")
        return greeting(packet.partition(b" ")[2]) if found else None


class _Echo:
    """Any ICMP question: its answer has the type that belongs to it, and its identifier."""

    _ANSWERS = {8: 0, 13: 14, 128: 129}

    def __init__(self, call: Call, services: Services) -> None:
        self.ident, self.services = next(idents) & 0xFFFF, services
        kind, code = call.icmp
        self.answer = self._ANSWERS[kind]
        body = struct.pack("!HH12s", self.ident, 1, b"narthex test")
        summed = checksum(struct.pack("!BBH", kind, code, 0) + body)
        number = socket.IPPROTO_ICMPV6 if ":" in call.to else socket.IPPROTO_ICMP  # whose checksum the kernel makes
        self.socket = opened(call, socket.SOCK_RAW, number)
        self.socket.sendto(struct.pack("!BBH", kind, code, summed) + body, (call.to, 0))

    def read(self) -> Reply | None:
        message = self.socket.recv(LINE)[_before(self.socket) :]
        kind, ident = message[0], struct.unpack_from("!H", message, 4)[0]
        refused, asked = (1, 52) if self.socket.family == socket.AF_INET6 else (3, 32)  # where the question's is
        if kind == refused and struct.unpack_from("!H", message, asked)[0] == self.ident:
            return Reply("unreachable")
        if (kind, ident) != (self.answer, self.ident):
            return None
        name, seen = self.services.who_was_asked(self.ident)
        return Reply(name or "router", seen)


def _before(raw: socket.socket) -> int:
    """What a raw socket gives before the packet's own: a header, in IPv4 alone."""
    return 0 if raw.family == socket.AF_INET6 else 20


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
