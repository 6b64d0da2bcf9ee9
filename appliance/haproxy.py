"""A running haproxy by the socket of its master: what its servers are, how they change without a reload, its counts.

The master (haproxy -W -S SOCKET) hands a command that begins with `@1` to its current worker, with `@!PID` to that
one: so a question never meets a worker that is on its way out, as it might on the worker's own socket. Facts of
haproxy 2.6 and 3.0: a server is added in maintenance, without its health check, and without its cookie, which is made
when the backend's key is set; one that still has connections cannot be deleted, so it stays in maintenance, where it
gets nothing new, and is deleted at a later look. A reload that fails leaves the old worker, and the master counts it.
"""

from __future__ import annotations

import csv
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.machine import HaproxyError
from appliance.state import Pool, Server

ANSWER_S = 5.0
READY_S = 20.0  # from a start or a reload until a worker of the new configuration runs
_MAINTENANCE = 0x01  # srv_admin_state, forced by the CLI (management.txt, "show servers state")
_SERVER_STATE_FIELDS = 19


@dataclass(frozen=True, slots=True)
class Workers:
    """What a master has: how often it was told to reload, how many times in a row that failed, and its workers' pids.

    `current` is 0 while none runs what was read last.
    """

    reloads: int
    failed: int
    current: int
    old: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Live:
    """A server as it runs; `leaving` where it is in maintenance, and so no server of a pool any more."""

    server: Server
    leaving: bool


class Haproxy:
    """One haproxy. Every method may raise HaproxyError; a connection for each command."""

    def __init__(self, console: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock

    # --- its workers

    def workers(self) -> Workers:
        return workers_of(self._ask("show proc"))

    def wait_ready(self, reloads: int = -1) -> None:
        """Until a worker of what was read last runs: after a start, or after the reload that makes `reloads` more."""
        end, found = self.clock() + READY_S, Workers(-1, 0, 0, ())
        while self.clock() < end:
            with suppress(HaproxyError):  # while it begins, or begins anew, nobody answers
                found = self.workers()
            if found.reloads > reloads and found.current:
                return
            if found.reloads > reloads and found.failed:
                raise HaproxyError("haproxy refused what it was to read and goes on with what it had; its log says why")
            time.sleep(0.01)
        raise HaproxyError(f"haproxy has no worker after {READY_S:g} s")

    def reload(self, tell: Callable[[], None]) -> None:
        """`tell` it to read its files anew, and wait until it has. What is up and what is down, the new worker takes
        over from the old one, by a file that lies there for as long."""
        states = Path(self.console).with_name("servers")
        reloads = self.workers().reloads
        states.write_text(self._tell("show servers state").strip() + "\n")
        try:
            tell()
            self.wait_ready(reloads)
        finally:
            states.write_text("1\n")

    # --- pools

    def pools(self) -> dict[str, dict[str, Live]]:
        """Every server of every pool, by their names."""
        return servers_of(self._tell("show servers state"))

    def make(self, pool: Pool) -> None:
        """Make a pool's servers those it shall have: first come, then change, then go."""
        live = self.pools().get(pool.name)
        if live is None:
            raise HaproxyError(f"{pool.name}: it knows no such backend")
        wanted = {s.name: s for s in pool.servers}
        for server in pool.servers:
            self._make(pool, server, live.get(server.name))
        for name, found in live.items():
            if name not in wanted:
                self._leave(pool.name, name, found.leaving)

    def tidied(self, wished: Iterable[Pool]) -> dict[str, dict[str, Live]]:
        """Every server of every pool; those that left and have no connections any more are deleted."""
        kept = {p.name: {s.name for s in p.servers} for p in wished}
        found = self.pools()
        for name, live in found.items():
            for server, one in live.items():
                if one.leaving and server not in kept.get(name, {server}):
                    self._tell(f"del server {name}/{server}")
        return found

    def _make(self, pool: Pool, server: Server, found: Live | None) -> None:
        place = f"{pool.name}/{server.name}"
        if found and not found.leaving and found.server == server:
            return
        if found is None:
            words = " ".join(
                (f"{_bracketed(server.address)}:{server.port}", f"weight {server.weight}", *server.options)
            )
            self._expect(f"add server {place} {words}", "New server registered")
        else:
            if (found.server.address, found.server.port) != (server.address, server.port):
                self._tell(f"set server {place} addr {server.address} port {server.port}")
            if found.server.weight != server.weight:
                self._silently(f"set server {place} weight {server.weight}")
        if pool.cookie_key:
            self._silently(f"set dynamic-cookie-key backend {pool.name} {pool.cookie_key}")
        if found is None or found.leaving:
            if "check" in server.options:
                self._silently(f"enable health {place}")
            self._silently(f"set server {place} state ready")

    def _leave(self, pool: str, name: str, leaving: bool) -> None:
        if not leaving:
            self._silently(f"set server {pool}/{name} state maint")
        self._tell(f"del server {pool}/{name}")  # one with connections says no: tidy

    # --- what it counts

    def counted(self, pid: int) -> list[Mapping[str, str]]:
        """The rows of `show stat` of one worker, by the names of its columns."""
        text = self._ask(f"@!{pid} show stat").strip().removeprefix("# ")
        return list(csv.DictReader(text.splitlines()))

    # --- the socket

    def _expect(self, command: str, answer: str) -> None:
        told = self._tell(command)
        if answer not in told:
            raise HaproxyError(f"{command}: {told.strip()}")

    def _silently(self, command: str) -> None:
        if told := self._tell(command).strip():
            raise HaproxyError(f"{command}: {told}")

    def _tell(self, command: str) -> str:
        return self._ask(f"@1 {command}")

    def _ask(self, command: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(ANSWER_S)
                sock.connect(self.console)
                sock.sendall(command.encode() + b"\n")
                sock.shutdown(socket.SHUT_WR)
                answer = b""
                while some := sock.recv(65536):
                    answer += some
        except OSError as error:
            raise HaproxyError(f"haproxy does not answer on {self.console}: {error.strerror or error}") from None
        return answer.decode(errors="replace")


def _bracketed(address: str) -> str:
    return f"ipv6@{address}" if ":" in address else address


def workers_of(text: str) -> Workers:
    """The answer to `show proc`: lines of pid, type, reloads (since it was made), and of the master what failed."""
    reloads = failed = current = 0
    old = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or not words[0].isdigit():
            continue
        if words[1] == "master":
            reloads = int(words[2])
            failed = int(words[4].rstrip("]")) if words[3:4] == ["[failed:"] else 0
        elif words[1] == "worker" and words[2] == "0":
            current = int(words[0])
        elif words[1] == "worker":
            old.append(int(words[0]))
    return Workers(reloads, failed, current, tuple(old))


def servers_of(text: str) -> dict[str, dict[str, Live]]:
    """The answer to `show servers state` (its version 1)."""
    found: dict[str, dict[str, Live]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < _SERVER_STATE_FIELDS or not words[0].isdigit():
            continue
        server = Server(words[3], words[4], int(words[18]), int(words[7]))
        found.setdefault(words[1], {})[words[3]] = Live(server, bool(int(words[6]) & _MAINTENANCE))
    return found


def as_wished(live: Mapping[str, dict[str, Live]], wished: Sequence[Pool]) -> tuple[Pool, ...]:
    """The pools as they run: one that is as wished IS the wished one; one that haproxy does not know is left out."""
    found = []
    for pool in wished:
        if pool.name in live:
            servers = tuple(sorted((s.server for s in live[pool.name].values() if not s.leaving), key=lambda s: s.name))
            same = servers == pool.servers
            found.append(pool if same else Pool(pool.console, pool.name, servers, pool.cookie_key, pool.owner))
    return tuple(found)
