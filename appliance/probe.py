"""Evidence for confirm: do the gateways, a name server, the manager's side answer? By our own packets; no process.

A gateway is asked by ping and, where it is a neighbour, by ARP at the same time: one that lets no ping in still answers
ARP, which no packet filter on either side can hold up. All are asked in parallel, again and again until the time is up.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Literal

from appliance import arp
from appliance.netlink import Netlink, NetlinkError

How = Literal["ping", "arp", "dns", ""]

_ECHO, _ECHO_REPLY = 8, 0
_ICMP_FILTER = 1  # option of raw(7)
_AGAIN = 0.25  # seconds between two questions to who has not answered
_PREFER_PING = 0.5  # seconds in which a ping's answer may still come after ARP's
_ICMP = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence


@dataclass(frozen=True, slots=True)
class Evidence:
    """Whether `target` answers, by what it answered, after how many seconds, and all that in words."""

    target: str
    ok: bool
    how: How
    words: str
    seconds: float

    def __str__(self) -> str:
        return self.words


@dataclass(slots=True)
class _Question:
    """An address that is being asked. `near`: it is a neighbour on `link`, which has `mac`; we are `source` there."""

    address: str
    link: str
    mac: str
    source: str
    near: bool
    asked: float
    by_ping: float = 0.0  # when the answer came, 0: not yet
    by_arp: float = 0.0
    told: str = ""  # the MAC that answered


def probe_gateways(addresses: Iterable[str], seconds: float, netlink: Netlink | None = None) -> list[Evidence]:
    """Ask all `addresses` (IPv4) at once, for at most `seconds`: one Evidence each, in their order."""
    return _probe(list(dict.fromkeys(addresses)), seconds, netlink, ping=True)


def probe_management(address: str, seconds: float, netlink: Netlink | None = None) -> Evidence:
    """Does the way back to the manager stand: does `address`, or the gateway towards it, answer ARP?"""
    kept = netlink or Netlink()
    try:
        _, gateway, _ = kept.way(address)
        found = _probe([gateway or address], seconds, kept, ping=False)[0]
    except NetlinkError as error:
        return Evidence(address, False, "", f"{address}: {error.reason}", 0.0)
    finally:
        if netlink is None:
            kept.close()
    words = found.words if not gateway else f"{address} is reached through {found.words}"
    return Evidence(address, found.ok, found.how, words, found.seconds)


def probe_dns(server: str, name: str, seconds: float) -> Evidence:
    """Does the name server answer a question for `name`'s address? That there is no such name is an answer too."""
    import dns.exception  # 3 MiB that only this needs
    import dns.message
    import dns.query
    import dns.rcode

    start = time.monotonic()
    end = start + seconds
    reason = f"no answer within {seconds:g} s"
    while (left := end - time.monotonic()) > 0:
        try:
            answer = dns.query.udp(dns.message.make_query(name, "A"), server, timeout=min(left, max(0.5, seconds / 3)))
        except dns.exception.Timeout:
            continue
        except (dns.exception.DNSException, OSError) as error:
            reason = str(error) or type(error).__name__
            time.sleep(max(0.0, min(_AGAIN, end - time.monotonic())))
            continue
        took = time.monotonic() - start
        code = answer.rcode()
        ok = code in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        return Evidence(server, ok, "dns", f"{server} answers for {name}: {dns.rcode.to_text(code)}", took)
    return Evidence(server, False, "", f"{server} does not answer for {name}: {reason}", time.monotonic() - start)


def _probe(addresses: list[str], seconds: float, netlink: Netlink | None, ping: bool) -> list[Evidence]:
    start = time.monotonic()
    found: dict[str, Evidence] = {}
    questions: dict[str, _Question] = {}
    kept = netlink or Netlink()
    try:
        macs = {link.name: link.mac for link in kept.facts().values()}
        for address in addresses:
            if ":" in address:
                found[address] = Evidence(address, False, "", f"{address}: only IPv4 is asked", 0.0)
                continue
            try:
                link, gateway, source = kept.way(address)
            except NetlinkError as error:
                found[address] = Evidence(address, False, "", f"{address}: no way to it ({error.reason})", 0.0)
                continue
            near = not gateway and link in macs
            questions[address] = _Question(address, link, macs.get(link, ""), source, near, start)
    except NetlinkError as error:
        return [Evidence(a, False, "", f"{a} cannot be asked: {error}", 0.0) for a in addresses]
    finally:
        if netlink is None:
            kept.close()
    try:
        _ask_until(questions, start + seconds, ping)
    except OSError as error:
        return [found.get(a) or Evidence(a, False, "", f"{a} cannot be asked: {error}", 0.0) for a in addresses]
    return [found.get(a) or _evidence(questions[a], seconds) for a in addresses]


def _evidence(question: _Question, seconds: float) -> Evidence:
    address, link = question.address, question.link
    if question.by_ping:
        took = question.by_ping - question.asked
        return Evidence(address, True, "ping", f"{address} answers ping on {link} ({took * 1000:.1f} ms)", took)
    if question.by_arp:
        took = question.by_arp - question.asked
        words = f"{address} answers ARP on {link} ({question.told}, {took * 1000:.1f} ms)"
        return Evidence(address, True, "arp", words, took)
    return Evidence(address, False, "", f"{address} on {link}: no answer within {seconds:g} s", seconds)


def _ask_until(questions: dict[str, _Question], end: float, ping: bool) -> None:
    """Ask and listen until everybody has answered or the time is up; the answers are in the questions."""
    identifier = os.getpid() & 0xFFFF
    with ExitStack() as stack:
        poll = select.poll()
        echo = stack.enter_context(_echo_socket()) if ping else None
        neighbours = stack.enter_context(arp.open_socket(hear=True))
        for opened in (echo, neighbours):
            if opened is not None:
                poll.register(opened, select.POLLIN)
        sequence, again = 0, 0.0
        while open_questions := [q for q in questions.values() if not _is_answered(q, ping)]:
            now = time.monotonic()
            if now >= end:
                return
            if now >= again:
                sequence, again = sequence + 1, now + _AGAIN
                for question in open_questions:
                    _ask(question, echo, neighbours, identifier, sequence)
            poll.poll(max(1, int((min(again, end) - now) * 1000)))
            if echo is not None:
                _hear_echoes(echo, identifier, questions)
            for address, mac in arp.heard(neighbours):
                asked = questions.get(address)
                if asked is not None and asked.near and not asked.by_arp:
                    asked.by_arp, asked.told = time.monotonic(), mac


def _is_answered(question: _Question, ping: bool) -> bool:
    """A ping's answer says more than ARP's: it is waited for a little longer."""
    if question.by_ping:
        return True
    return bool(question.by_arp) and (not ping or time.monotonic() >= question.by_arp + _PREFER_PING)


def _ask(question: _Question, echo: socket.socket | None, out: socket.socket, identifier: int, sequence: int) -> None:
    if echo is not None and not question.by_ping:
        with suppress(OSError):  # no way just now, a full queue, a packet filter: asked again later
            echo.sendto(_echo_request(identifier, sequence), (question.address, 0))
    if question.near and not question.by_arp:
        with suppress(OSError):
            frame = arp.request(question.mac, question.source or "0.0.0.0", question.address)
            out.sendto(frame, (question.link, arp.ETH_P_ARP))


def _echo_socket() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    opened = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
    only_replies = ~(1 << _ECHO_REPLY) & 0xFFFFFFFF
    opened.setsockopt(
        socket.SOL_RAW if hasattr(socket, "SOL_RAW") else 255, _ICMP_FILTER, struct.pack("=I", only_replies)
    )
    return opened


def _echo_request(identifier: int, sequence: int) -> bytes:
    """RFC 792. Without data the checksum is over five numbers of 16 bits."""
    total = (_ECHO << 8) + identifier + sequence
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return _ICMP.pack(_ECHO, 0, checksum, identifier, sequence)


def _hear_echoes(echo: socket.socket, identifier: int, questions: dict[str, _Question]) -> None:
    while True:
        try:
            packet, (address, _) = echo.recvfrom(2048)
        except OSError:
            return
        header = (packet[0] & 0xF) * 4
        if len(packet) < header + _ICMP.size:
            continue
        kind, _, _, told, _ = _ICMP.unpack_from(packet, header)
        question = questions.get(address)
        if (kind, told) == (_ECHO_REPLY, identifier) and question is not None and not question.by_ping:
            question.by_ping = time.monotonic()
