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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.machine import HaproxyError
from appliance.state import Pool, Server

ANSWER_S = 5.0
READY_S = 10.0  # from a start or a reload until a worker of the new configuration runs
_MAINTENANCE = 0x01  # srv_admin_state, forced by the CLI (management.txt, "show servers state")
_SERVER_STATE_FIELDS = 19
SLOTS = 64  # more workers than there ever are at once


@dataclass(frozen=True, slots=True)
class Workers:
    """What a master has: how often it was told to reload, how many times in a row that failed, and its workers: `ages`
    says by pid before how many reloads each was made. `current` is 0 while none runs what was read last.
    """

    reloads: int
    failed: int
    current: int
    ages: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Live:
    """A server as it runs; `leaving` where it is in maintenance, and so no server of a pool any more."""

    server: Server
    leaving: bool


@dataclass(frozen=True, slots=True)
class Count:
    """What one worker counted of one pool (`server` "") or of one server of it: bytes of clients in and out, their
    connections, their requests. `slot` names the worker among those there are; `epoch` is another for each."""

    pool: str
    server: str
    slot: int
    epoch: str
    values: tuple[int, int, int, int]


class Haproxy:
    """One haproxy. Every method may raise HaproxyError; a connection for each command.

    An old worker is gone with its last connection, and what it counted too. So before each reload we connect to the
    worker that will be old and say nothing: it stays until what it counted at last was read.
    """

    def __init__(self, console: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self._held: dict[int, socket.socket] = {}  # by the pid of the worker

    # --- its workers

    def workers(self) -> Workers:
        return workers_of(self._ask("show proc"))

    def wait_ready(self, reloads: int = -1) -> None:
        """Until a worker of what was read last runs: after a start, or after the reload that makes `reloads` more."""
        end, found = self.clock() + READY_S, Workers(-1, 0, 0, {})
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
        before = self.workers()
        self._hold(before.current)
        states.write_text(self._tell("show servers state").strip() + "\n")
        try:
            tell()
            self.wait_ready(before.reloads)
        except HaproxyError:
            self._let_go(before.current)
            raise
        finally:
            states.write_text("1\n")

    def _hold(self, pid: int) -> None:
        with suppress(OSError):  # then it is gone when it is gone
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(ANSWER_S)
            sock.connect(str(Path(self.console).with_name("haproxy.sock")))
            sock.sendall(b"prompt\n")
            sock.recv(64)
            self._held[pid] = sock

    def _let_go(self, pid: int) -> None:
        if sock := self._held.pop(pid, None):
            sock.close()

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

    def counts(self) -> list[Count]:
        """What all workers counted. Of an old one without connections it is the last, and it goes."""
        found, told = self.workers(), list[Count]()
        for pid, age in found.ages.items():
            rows = rows_of(self._ask(f"@!{pid} show stat"))
            told += counts_of(rows, (found.reloads - age) % SLOTS, f"{pid} {_start_of(pid)}")
            if age and all(row["scur"] in ("", "0") for row in rows if row["pxname"].startswith("lb-")):
                self._let_go(pid)
        for pid in self._held.keys() - found.ages.keys():
            self._let_go(pid)
        return told

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
    ages: dict[int, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or not words[0].isdigit():
            continue
        if words[1] == "master":
            reloads = int(words[2])
            failed = int(words[4].rstrip("]")) if words[3:4] == ["[failed:"] else 0
        elif words[1] == "worker":
            ages[int(words[0])] = int(words[2])
            current = current if int(words[2]) else int(words[0])
    return Workers(reloads, failed, current, ages)


def rows_of(text: str) -> list[dict[str, str]]:
    """The answer to `show stat`, by the names of its columns."""
    return list(csv.DictReader(text.strip().removeprefix("# ").splitlines()))


def counts_of(rows: Iterable[Mapping[str, str]], slot: int, epoch: str) -> Iterator[Count]:
    """Of our rules: their frontends (type 0) and servers (2); haproxy counts 64 bits."""
    for row in rows:
        if row["pxname"].startswith("lb-") and row["type"] in ("0", "2"):
            is_server = row["type"] == "2"
            requests = row.get("req_tot") or "0"
            numbers = (row["bin"], row["bout"], row["stot"], requests)
            a, b, c, d = (int(n or 0) for n in numbers)
            yield Count(row["pxname"], row["svname"] if is_server else "", slot, epoch, (a, b, c, d))


def _start_of(pid: int) -> str:
    """When a process began, in the kernel's ticks (proc(5), stat)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


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
