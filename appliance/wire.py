"""Netlink as it goes over the socket: messages, attributes, and a channel that is kept.

Nothing here knows what a message means. The layouts are netlink(7)'s and those of the kernel's
include/uapi/linux/netlink.h: integers in the host's byte order, everything padded to four bytes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

ROUTE, NETFILTER = 0, 12  # netlink families
REQUEST, ACK, REPLACE, EXCL, CREATE, DUMP = 0x01, 0x04, 0x100, 0x200, 0x400, 0x300
NESTED = 0x8000
TYPE_MASK = 0x3FFF  # an attribute's type without its flags

_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED, _ACK_TLVS = 0x10, 0x200
_ERROR_SENTENCE = 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_HEADER = struct.Struct("=IHHII")  # length with this header, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length with this header, type
_NUMBER = struct.Struct("=i")
_BUFFER = 65536  # the kernel puts at most 32 KiB into a datagram of a dump
_TRIES, _PAUSE = 8, 0.01  # of a dump that was overtaken by a change; seconds between them
_AT_ONCE = 64  # requests in one datagram: their answers fit the socket's default buffer

T = TypeVar("T")
Message = tuple[int, bytes]  # type, all behind the header


class KernelError(Exception):
    """The kernel refused. `words`: the error's name and, where the kernel gives one, the kernel's own sentence."""

    def __init__(self, number: int, sentence: str = "") -> None:
        self.errno = number
        self.words = f"{errno.errorcode.get(number, number)}: {sentence or os.strerror(number)}"
        super().__init__(self.words)


class NetlinkError(Exception):
    """The kernel did not do, or not tell, `what`; `reason` is its error's name and words."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what}: {reason}")


def words(error: Exception) -> str:
    """The reason of an error that a Channel raised."""
    return error.words if isinstance(error, KernelError) else f"{type(error).__name__}: {error}"


class Channel:
    """A netlink socket that stays open; one question at a time, from any thread.

    It is opened anew when it dies or when an answer is lost (ENOBUFS, or nothing within `seconds`), and the question
    is asked once more. A new socket is of the network namespace of the thread that asks.
    """

    def __init__(self, family: int, strict: bool = False, seconds: float = 5.0) -> None:
        self._family = family
        self._strict = strict
        self._seconds = seconds
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = self._open()

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    @property
    def port(self) -> int:
        """The number that events caused by this channel carry; another one after a new opening."""
        return int(self._socket.getsockname()[0])

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Send one request, wait for its acknowledgement: the answers before it. Raises KernelError, OSError."""
        with self._lock:
            return self._alive(lambda: self._exchange(kind, body, flags | REQUEST | ACK))

    def dump(self, kind: int, body: bytes, turn_away: Callable[[bytes], bool] | None = None) -> list[Message]:
        """Everything that a dump request lists, from one moment. Raises KernelError (EINTR: it never stood still).

        What `turn_away` says yes to is not kept; after a disturbance it is asked again of what it has seen.
        """
        with self._lock:
            for _ in range(_TRIES):
                try:
                    return self._alive(lambda: self._exchange(kind, body, REQUEST | DUMP, turn_away))
                except KernelError as refusal:
                    if refusal.errno != errno.EINTR:
                        raise
                    time.sleep(_PAUSE)
            raise KernelError(errno.EINTR, "it changed each time while it was being listed")

    def tell(self, requests: Sequence[Message], flags: int = 0) -> list[int]:
        """Send many requests with these flags, dozens in a datagram: the errno of each, 0 where it was done."""
        with self._lock:
            found: list[int] = []
            for start in range(0, len(requests), _AT_ONCE):
                found += self._alive(partial(self._tell, requests[start : start + _AT_ONCE], flags))
            return found

    def _tell(self, requests: Sequence[Message], flags: int) -> list[int]:
        first = self._sequence + 1
        self._socket.send(b"".join(self._pack(kind, body, flags | REQUEST | ACK) for kind, body in requests))
        found: dict[int, int] = {}
        while len(found) < len(requests):
            for kind, _, sequence, start, _ in _walk(datagram := self._socket.recv(_BUFFER)):
                if kind == _ERROR and 0 <= sequence - first < len(requests):
                    found[sequence - first] = -_NUMBER.unpack_from(datagram, start)[0]
        return [found[i] for i in range(len(requests))]

    def _alive(self, deed: Callable[[], T]) -> T:
        """Do it; on a new socket once more where this one has died or swallowed an answer."""
        try:
            return deed()
        except OSError:
            with suppress(OSError):
                self._socket.close()
            self._socket = self._open()
            return deed()

    def _exchange(
        self, kind: int, body: bytes, flags: int, turn_away: Callable[[bytes], bool] | None = None
    ) -> list[Message]:
        self._socket.send(self._pack(kind, body, flags))
        answers: list[Message] = []
        interrupted = 0
        while True:
            datagram = self._socket.recv(_BUFFER)
            for answer, marks, sequence, start, stop in _walk(datagram):
                if sequence != self._sequence:
                    continue  # late, of a question that was given up
                interrupted |= marks & _DUMP_INTERRUPTED
                if answer in (_ERROR, _DONE):
                    number = errno.EINTR if interrupted else -_NUMBER.unpack_from(datagram, start)[0]
                    if number:
                        raise KernelError(number, _sentence(datagram, answer, marks, start, stop))
                    return answers
                told = datagram[start:stop]
                if turn_away is None or not turn_away(told):
                    answers.append((answer, told))

    def _pack(self, kind: int, body: bytes, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return _HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._family)
        opened.bind((0, 0))
        opened.settimeout(self._seconds)
        for option in (_CAP_ACK, _EXT_ACK, *((_STRICT,) if self._strict else ())):
            opened.setsockopt(_SOL_NETLINK, option, 1)
        return opened


def _walk(datagram: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, flags, sequence, start, stop) of each message; start and stop enclose what is behind its header."""
    at, end = 0, len(datagram)
    while at + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        if length < 16:
            return
        yield kind, flags, sequence, at + 16, at + length
        at += (length + 3) & ~3


def _sentence(datagram: bytes, kind: int, flags: int, start: int, stop: int) -> str:
    """What the kernel says about an error in words, "" mostly. The failed request's header stands before it."""
    if not flags & _ACK_TLVS:
        return ""
    said = attributes(datagram, start + (20 if kind == _ERROR else 4), stop).get(_ERROR_SENTENCE, b"")
    return said.rstrip(b"\0").decode(errors="replace")


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, port of the socket that caused it, body) of each message of an event's datagram."""
    for kind, _, _, start, stop in _walk(datagram):
        yield kind, _HEADER.unpack_from(datagram, start - 16)[4], datagram[start:stop]


# --- attributes ------------------------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) & 3)


def nest(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(inner))


def each_attribute(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(type, start, stop) of the payload of each attribute between `start` and `stop`."""
    while start + 4 <= stop:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def attributes(data: bytes, start: int = 0, stop: int | None = None) -> dict[int, bytes]:
    """The payload of each attribute, by its type; of equal types the last."""
    end = len(data) if stop is None else stop
    return {kind: data[a:b] for kind, a, b in each_attribute(data, start, end)}
