"""Members: who is asked again and again whether he is well, and whose silence is a fact of the machine (Facts.down).

Nothing here waits: `tick` reads what came of the questions that are out and asks those whose time has come, by sockets
that do not block. A member of kind tcp is well where it accepts a connection within its `timeout`; one of kind udp
where nothing refuses a datagram: the host by ICMP (no such port), or the kernel (nobody has the address). A silent one
is well.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from errno import EINPROGRESS

from appliance.state import Member

_RECVERR = 11  # IP_RECVERR of linux/in.h


@dataclass(slots=True)
class _Asked:
    """A member, the question that is out (None: none is) and when it was asked."""

    member: Member
    sock: socket.socket | None = None
    at: float = -1e9
    is_down: bool = False
    against: int = 0  # answers in a row that say otherwise


class Members:
    """Asks members. `down` are those that are not well, by their key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._asked: dict[Member, _Asked] = {}

    @property
    def down(self) -> frozenset[str]:
        return frozenset(a.member.key for a in self._asked.values() if a.is_down)

    def tick(self, members: Iterable[Member]) -> None:
        """Go on with these members, and with no other."""
        wanted = dict.fromkeys(members)
        for gone in self._asked.keys() - wanted.keys():
            self._close(self._asked.pop(gone))
        now = self.clock()
        for member in wanted:
            asked = self._asked.setdefault(member, _Asked(member))
            if asked.sock is not None and (well := _answer(asked, now)) is not None:
                self._close(asked)
                self._told(asked, well)
            if asked.sock is None and now - asked.at >= member.interval:
                asked.at = now
                asked.sock = _ask(member)
                if asked.sock is None:
                    self._told(asked, False)

    def _told(self, asked: _Asked, well: bool) -> None:
        if well is not asked.is_down:
            asked.against = 0
            return
        asked.against += 1
        if asked.against >= (asked.member.rise if well else asked.member.fall):
            asked.is_down, asked.against = not well, 0

    def _close(self, asked: _Asked) -> None:
        if asked.sock is not None:
            asked.sock.close()
            asked.sock = None


def _ask(member: Member) -> socket.socket | None:
    """The question to a member, None where it cannot even be asked."""
    kind = socket.SOCK_STREAM if member.kind == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, _RECVERR, 1)  # else UDP keeps "host unreachable" to itself (udp(7))
    with suppress(OSError):
        if sock.connect_ex((member.address, member.port)) in (0, EINPROGRESS):
            if member.kind == "udp":
                sock.send(b"")
            return sock
    sock.close()
    return None


def _answer(asked: _Asked, now: float) -> bool | None:
    """Is it well? None while that is not known."""
    member, sock = asked.member, asked.sock
    assert sock is not None
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return False
    poll = select.poll()
    poll.register(sock, select.POLLOUT if member.kind == "tcp" else select.POLLIN)
    if poll.poll(0):
        return not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if member.kind == "tcp":
        return False if now - asked.at >= member.timeout else None
    return True if now - asked.at >= max(member.interval, UNHEARD_S) else None


UNHEARD_S = 3.5  # the kernel looks for who has an address for three seconds (neigh mcast_solicit) before it says nobody
