"""What changes on this machine, as the kernel tells it: links, addresses, routes, policy rules, the nft ruleset.

Two sockets that only listen (rtnetlink(7) groups, nfnetlink's group for nftables), read without decoding more than an
event needs. A filter in the kernel lets pass of nftables only the one message that ends each transaction, so that a
transaction of 10,000 elements is one event and fills no buffer. When a buffer overflows all the same, the event
"overrun" says: look at everything.

The filter comes late: as long as anybody listens, the kernel writes a message of 8 KiB for each element of a
transaction before it commits, all of them at once (nf_tables_api.c, nft_commit_notify): 10,000 take 80 MiB, which a
small router does not have. So nobody listens during a large one of our own (`unheard`).

Who did it: rtnetlink tells the port of the socket that asked (ours: `Netlink.port`; 0: the kernel itself), nftables the
generation that came of it (compare `Elements.generation()`), the process id and the process's name.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOBUFS
from typing import Literal

from appliance import rtnl, wire
from appliance.netlink import link_name
from appliance.nftelement import generation_told

Kind = Literal["link", "address", "route", "rule", "ruleset", "overrun"]

_GROUPS = 0x1 | 0x10 | 0x40 | 0x80  # RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE
_NFTABLES_GROUP = 1 << 7 - 1  # NFNLGRP_NFTABLES, as bind(2) takes it
_NEWGEN = 10 << 8 | 15
_RTNL_KINDS: dict[int, tuple[Kind, str]] = {
    rtnl.NEWLINK: ("link", "set"),
    rtnl.NEWLINK + 1: ("link", "removed"),
    rtnl.NEWADDR: ("address", "added"),
    rtnl.DELADDR: ("address", "removed"),
    rtnl.NEWROUTE: ("route", "added"),
    rtnl.DELROUTE: ("route", "removed"),
    rtnl.NEWRULE: ("rule", "added"),
    rtnl.DELRULE: ("rule", "removed"),
}
_BY_KERNEL = 2  # RTPROT_KERNEL
_RECEIVE_BUFFER = 1 << 20
_BUFFER = 65536
_AT_ONCE = 500  # datagrams in one reading, so that a storm does not hold the reader
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2
_NFNLGRP_NFTABLES = 7
_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed: `what` in words. Of nftables: the generation that came of it, and who asked for it.

    `port` is the rtnetlink socket that asked, 0 where the kernel acted by itself; `protocol` is a route's own.
    """

    kind: Kind
    what: str = ""
    generation: int = 0
    pid: int = 0  # as the host counts, not the appliance's pid namespace
    process: str = ""
    port: int = 0
    protocol: int = 0

    @property
    def by(self) -> str:
        """Who did it, "" where the kernel doesn't say."""
        return f"{self.process} (pid {self.pid})" if self.process else ""


class Events:
    """Listens from the moment it is made, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._rtnetlink = _listening(wire.ROUTE, _GROUPS)
        self._nftables = _listening(wire.NETFILTER, _NFTABLES_GROUP)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._missed = False
        self._poll = select.poll()
        for watched in (self._rtnetlink.fileno(), self._nftables.fileno(), self._wake):
            self._poll.register(watched, select.POLLIN)

    def close(self) -> None:
        """Only when nobody is in `read` (first `wake`)."""
        self._rtnetlink.close()
        self._nftables.close()
        os.close(self._wake)

    def wake(self) -> None:
        """Let a `read` in another thread return now."""
        os.eventfd_write(self._wake, 1)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Nothing of nftables is heard meanwhile, and the kernel writes no messages about it. In any thread."""
        self._nftables.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, _NFNLGRP_NFTABLES)
        try:
            yield
        finally:
            self._nftables.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)

    def miss(self) -> None:
        """Let `read` say that something was not heard."""
        self._missed = True
        self.wake()

    def read(self, seconds: float | None = None) -> list[Event]:
        """The events that have come, as soon as there are any; none after `seconds`, or when woken."""
        ready = {fd for fd, _ in self._poll.poll(None if seconds is None else max(0, int(seconds * 1000)))}
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        found: list[Event] = []
        if self._missed:
            self._missed = False
            found.append(Event("overrun", "something changed that was not heard"))
        if self._rtnetlink.fileno() in ready:
            found += _heard(self._rtnetlink, _rtnetlink_event)
        if self._nftables.fileno() in ready:
            found += _heard(self._nftables, _nftables_event)
        return found


def _listening(family: int, groups: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        if family == wire.NETFILTER:
            _let_pass(opened, _NEWGEN)
        opened.bind((0, groups))
    except OSError:
        opened.close()
        raise
    return opened


def _let_pass(listening: socket.socket, kind: int) -> None:
    """A filter in the kernel (socket(7), SO_ATTACH_FILTER): only datagrams whose first message is of this type.

    BPF reads big-endian, the header is in the host's order.
    """
    as_bpf_reads = int.from_bytes(struct.pack("=H", kind))
    program = b"".join(
        struct.pack("=HBBI", code, on_true, on_false, operand)
        for code, on_true, on_false, operand in (
            (0x28, 0, 0, 4),  # load the half word at 4: nlmsg_type
            (0x15, 0, 1, as_bpf_reads),  # equal: next; else: skip one
            (0x06, 0, 0, 0xFFFFFFFF),  # pass all of it
            (0x06, 0, 0, 0),  # drop it
        )
    )
    held = ctypes.create_string_buffer(program)
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def _heard(listening: socket.socket, read: Callable[[int, int, bytes], Event | None]) -> Iterator[Event]:
    """The events of all datagrams that wait, at most some hundreds."""
    for _ in range(_AT_ONCE):
        try:
            datagram = listening.recv(_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            yield Event("overrun", "more changed than could be heard")
            continue
        for kind, port, body in wire.messages(datagram):
            if event := read(kind, port, body):
                yield event


def _nftables_event(kind: int, port: int, body: bytes) -> Event | None:
    if kind != _NEWGEN:
        return None
    told = generation_told(body)
    return Event("ruleset", f"generation {told.id}", told.id, told.pid, told.process, port)


def _rtnetlink_event(kind: int, port: int, body: bytes) -> Event | None:
    if kind not in _RTNL_KINDS:
        return None
    thing, verb = _RTNL_KINDS[kind]
    what, protocol = _READERS[thing](body)
    if thing == "route" and protocol == _BY_KERNEL:
        return None  # it follows an address that came or went, which is an event itself
    return Event(thing, f"{what} {verb}", port=port, protocol=protocol)


def _link(body: bytes) -> tuple[str, int]:
    name = wire.attributes(body, 16).get(3, b"").rstrip(b"\0").decode(errors="replace")
    return name, 0


def _address(body: bytes) -> tuple[str, int]:
    found = wire.attributes(body, 8)
    raw = found.get(2) or found.get(1) or bytes(4)
    return f"{_text(raw)}/{body[1]} on {link_name(_U32.unpack_from(body, 4)[0])}", 0


def _route(body: bytes) -> tuple[str, int]:
    found = wire.attributes(body, 12)
    destination = _text(found[1]) if 1 in found else "default"
    table = _U32.unpack(found[15])[0] if 15 in found else body[4]
    return f"{destination}/{body[1]} table {table}" if 1 in found else f"default table {table}", body[5]


def _rule(body: bytes) -> tuple[str, int]:
    found = wire.attributes(body, 12)
    priority, table = (_U32.unpack(found.get(kind, bytes(4)))[0] for kind in (6, 15))
    return f"{priority} to table {table}", found.get(21, b"\0")[0]


_READERS: dict[str, Callable[[bytes], tuple[str, int]]] = {
    "link": _link,
    "address": _address,
    "route": _route,
    "rule": _rule,
}


def _text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
