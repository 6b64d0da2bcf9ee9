"""A guest that gets its IPv6 by itself: from advertisements by its kernel, from DHCPv6 by a real client (dhclient).

It hears every advertisement on its link, too, by a raw socket: `heard` takes them apart (RFC 4861, 4.2; RFC 8106, 5).
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.reversename
import dns.rrset

from mgmt.hosts.namespace import Ground, Namespace
from tests.bed import wait_for

_SOLICITATION = struct.pack("!BBHI", 133, 0, 0, 0)
_SCRIPT = """#!/bin/sh
case "$reason" in BOUND6 | RENEW6 | REBIND6) ip -6 address replace "$new_ip6_address/128" dev "$interface" nodad ;; esac
{ echo "reason=$reason"; env; } > "%s.new"; mv "%s.new" "%s"
"""


@dataclass
class Heard:
    """One router advertisement. Lifetimes are in seconds; `prefixes` by prefix: flags, valid, preferred."""

    router_s: int
    managed: bool
    other: bool
    prefixes: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    servers: dict[str, int] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    mtu: int = 0


class Surfer(Namespace):
    """Its link is eth0, on a bridge in `ground`. Used as a context manager."""

    def __init__(self, name: str, bridge: str, mac: str, ground: Ground, folder: Path) -> None:
        super().__init__(name)
        self.mac, self._bridge, self._ground = mac, bridge, ground
        self._folder = folder
        self._seen = folder / f"{name}.seen"

    def create(self) -> Surfer:
        super().create()
        with self.entered():
            for key in ("router_solicitation_delay", "dad_transmits"):  # a test need not wait for either
                Path(f"/proc/sys/net/ipv6/conf/default/{key}").write_text("0")
            self._ears = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._ears.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        self.plug(f"nx-{self._bridge}", self.mac, ground=self._ground)
        wait_for(lambda: "fe80:" in self.run(("ip", "-6", "address", "show", "dev", "eth0", "-tentative")).stdout)
        return self

    def destroy(self) -> None:
        if hasattr(self, "_ears"):
            self._ears.close()
        super().destroy()

    # --- what the kernel makes of advertisements

    def addresses(self) -> dict[str, int]:
        """Its global addresses, each with the seconds for which it is preferred."""
        told = json.loads(self.run(("ip", "-6", "-j", "address", "show", "dev", "eth0", "scope", "global")).stdout)
        found = (a for link in told for a in link.get("addr_info", ()) if a.get("local") and not a.get("tentative"))
        return {a["local"]: a["preferred_life_time"] for a in found}

    def has_way_out(self) -> bool:
        return bool(self.run(("ip", "-6", "route", "show", "default")).stdout.strip())

    def ask_routers(self) -> None:
        with self.entered():
            self._ears.sendto(_SOLICITATION, ("ff02::2", 0, 0, socket.if_nametoindex("eth0")))

    def heard(self, what: Callable[[Heard], Any] = lambda heard: True, seconds: float = 8.0) -> Heard:
        """The next advertisement of which `what` is so; asks for one."""
        self.forget()
        self.ask_routers()
        return self.hears(what, seconds)

    def hears(self, what: Callable[[Heard], Any], seconds: float = 8.0) -> Heard:
        """The same, without asking."""
        end = time.monotonic() + seconds
        last = None
        while (left := end - time.monotonic()) > 0:
            self._ears.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data = self._ears.recv(2048)
                if data[0] == 134:
                    last = _parsed(data)
                    if what(last):
                        return last
        raise AssertionError(f"not heard in {seconds} s; the last: {last}")

    def forget(self) -> None:
        """Drop what has been heard so far."""
        self._ears.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._ears.recv(2048)

    # --- DHCPv6

    def lease(self, stateless: bool = False, seconds: float = 8.0) -> dict[str, str] | None:
        """What dhclient is given by a new request with a new DUID (its variables), None where nothing comes. The
        address stays on eth0."""
        self.run(("ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"))
        self._seen.unlink(missing_ok=True)
        script = self._folder / f"{self.name}.sh"
        script.write_text(_SCRIPT % ((self._seen,) * 3))
        script.chmod(0o755)
        leases, pid = (self._folder / f"{self.name}.{kind}" for kind in ("leases", "pid"))
        leases.unlink(missing_ok=True)  # the DUID is in it
        leases.touch()
        kind = ("-S",) if stateless else ()
        argv = ("dhclient", "-6", *kind, "-1", "-d", "-lf", leases, "-pf", pid, "-sf", script, "eth0")
        client = self.popen([str(word) for word in argv], stdin=-3, stdout=-3, stderr=-3)
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                ended = client.poll() is not None
                found = self._told()
                if found.get("reason") in ("BOUND6", "RENEW6") and (stateless or found.get("new_ip6_address")):
                    return found
                if ended:
                    break
                time.sleep(0.02)
        finally:
            client.terminate()  # it goes without releasing what it has
            client.wait(5)
        return None

    def _told(self) -> dict[str, str]:
        if not self._seen.exists():
            return {}
        pairs = (line.partition("=") for line in self._seen.read_text().splitlines())
        return {key: value for key, _, value in pairs}

    # --- DNS

    def answers(self, server: str, name: str, kind: str) -> list[str]:
        """The texts of an answer's records, sorted; where there are none, what it says instead."""
        query = dns.message.make_query(dns.reversename.from_address(name) if kind == "PTR" else name, kind)
        with self.entered():
            reply = dns.query.udp(query, server, timeout=5.0)
        found = sorted(str(record) for group in reply.answer for record in group)
        return found or [dns.rcode.to_text(reply.rcode())]


def _parsed(data: bytes) -> Heard:
    """An advertisement, taken apart."""
    _, _, _, _, flags, router_s, _, _ = struct.unpack_from("!BBHBBHII", data)
    found = Heard(router_s, bool(flags & 0x80), bool(flags & 0x40))
    for kind, body in _options(data[16:]):
        if kind == 3:
            length, bits, valid, preferred = struct.unpack_from("!BBII", body)
            named = "".join(letter for letter, bit in (("L", 0x80), ("A", 0x40)) if bits & bit)
            prefix = socket.inet_ntop(socket.AF_INET6, body[14:30])
            found.prefixes[f"{prefix}/{length}"] = named, valid, preferred
        elif kind == 5:
            (found.mtu,) = struct.unpack_from("!2xI", body)
        elif kind == 25:
            (seconds,) = struct.unpack_from("!2xI", body)
            for at in range(6, len(body), 16):
                found.servers[socket.inet_ntop(socket.AF_INET6, body[at : at + 16])] = seconds
        elif kind == 31:
            (seconds,) = struct.unpack_from("!2xI", body)
            found.domains.update(dict.fromkeys(_names(body[6:]), seconds))
    return found


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 8:
        kind, length = data[0], data[1] * 8
        yield kind, data[2:length]
        data = data[length:]


def _names(data: bytes) -> Iterator[str]:
    labels: list[str] = []
    while data and data[0]:
        labels.append(data[1 : 1 + data[0]].decode())
        data = data[1 + data[0] :]
        if not data or not data[0]:
            yield ".".join(labels)
            labels, data = [], data[1:]


@contextmanager
def answering(ground: Ground, address: str, answer: str) -> Iterator[list[str]]:
    """A name server at `address` that says `answer` (an AAAA) to everything; gives the names that it was asked."""
    with ground.entered():
        served = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    served.bind((address, 53))
    asked: list[str] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, who = served.recvfrom(2048)
                query = dns.message.from_wire(data)
                asked.append(str(query.question[0].name))
                reply = dns.message.make_response(query)
                reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "AAAA", answer))
                served.sendto(reply.to_wire(), who)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        served.close()
