"""The unit runners: who keeps a role's processes alive. The supervisor in a cell, systemd in a machine (systemd.py).

Both are told of a `Unit` and remember its `definition`, a digest of what its process was started from, so
that an agent that comes up later sees whether what runs is what it would start. Of the boot units (the agent itself,
sshd) a runner tells the processes and can start one anew; nothing stops or defines them by way of it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from appliance.pulse import children
from appliance.state import Unit

ANSWER_S = 15.0  # a stop may take 5 s until SIGKILL, and an answer waits for it
BOOT_UNITS = frozenset({"agent", "sshd"})


class UnitError(Exception):
    """What a unit could not be brought to; `output` is what it, or its runner, said."""

    def __init__(self, unit: str, message: str, output: str = "") -> None:
        self.unit, self.message, self.output = unit, message, output
        super().__init__(f"{unit}: {message}" if unit and not message.startswith(f"{unit}:") else message)


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """A unit as it is. `pid` is 0 where it has no process; `definition` is "" where it is not known."""

    name: str
    active: bool
    pid: int
    definition: str
    restarts: int


class UnitRunner(Protocol):
    """Every method may raise UnitError. Each returns when the deed is done, not when it was asked for."""

    def observe(self) -> dict[str, UnitStatus]:
        """The role's units that are there, by name."""

    def start(self, unit: Unit) -> None:
        """Make it run as defined. One that runs so already is left alone."""

    def stop(self, name: str) -> None:
        """End it and forget it. One that is not there is no error."""

    def reload(self, unit: Unit) -> None: ...
    def restart(self, unit: Unit) -> None: ...

    def processes(self) -> dict[str, tuple[int, ...]]:
        """The pids of every unit that has a process; of a boot unit the main one's. Starts none itself."""

    def renew(self, name: str) -> None:
        """Start a boot unit anew."""


def definition(unit: Unit) -> str:
    """A digest of what a unit's process is started from: not of its files, nor of when it is reloaded."""
    box = unit.sandbox
    parts: list[Any] = [
        unit.name,
        unit.command,
        unit.reload,
        unit.directories,
        box.capabilities,
        box.families,
        box.writable,
    ]
    if box.descriptors or box.makes_code:
        parts += [box.descriptors, box.makes_code]
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


class SupervisorRunner:
    """Units under a cell's process 1 (supervisor.py), by its socket. A connection for each request."""

    def __init__(self, socket_path: Path | str) -> None:
        self.path = str(socket_path)

    def observe(self) -> dict[str, UnitStatus]:
        found = self._ask("", {"verb": "status"})["units"]
        return {
            name: UnitStatus(name, s["active"], s["pid"], s["digest"], s["restarts"])
            for name, s in found.items()
            if not s["boot"]
        }

    def start(self, unit: Unit) -> None:
        self._ask(unit.name, {"verb": "start", "unit": _told(unit)})

    def stop(self, name: str) -> None:
        self._ask(name, {"verb": "stop", "name": name})

    def reload(self, unit: Unit) -> None:
        self._ask(unit.name, {"verb": "reload", "name": unit.name})

    def restart(self, unit: Unit) -> None:
        self._ask(unit.name, {"verb": "restart", "unit": _told(unit)})

    def processes(self) -> dict[str, tuple[int, ...]]:
        found = self._ask("", {"verb": "status"})["units"]
        running = {name: s["pid"] for name, s in found.items() if s["pid"]}
        return {name: (pid,) if name in BOOT_UNITS else (pid, *children(pid)) for name, pid in running.items()}

    def renew(self, name: str) -> None:
        self._ask("", {"verb": "restart", "unit": _told(Unit(name, ("its", "own")))})

    def _ask(self, unit: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if unit in BOOT_UNITS:
            raise UnitError(unit, "is a boot unit, not a role's")
        deadline = time.monotonic() + ANSWER_S
        try:
            line = self._exchange(json.dumps(request).encode() + b"\n", deadline)
        except TimeoutError:
            raise UnitError(unit, f"the supervisor did not answer within {ANSWER_S:g} s") from None
        except OSError as error:
            raise UnitError(unit, f"the supervisor does not answer on {self.path}: {error.strerror or error}") from None
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise UnitError(unit, answer["error"], answer.get("output", ""))
        return answer

    def _connect(self, sock: socket.socket, deadline: float) -> None:
        """Connect; a Unix socket whose queue is full says EAGAIN at once (connect(2)), so it is asked again."""
        while True:
            sock.settimeout(ANSWER_S)
            try:
                sock.connect(self.path)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _exchange(self, request: bytes, deadline: float) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            self._connect(sock, deadline)
            sock.sendall(request)
            answer = b""
            while not answer.endswith(b"\n"):
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                some = sock.recv(65536)
                if not some:
                    raise ConnectionResetError("it closed the connection")
                answer += some
            return answer


def _told(unit: Unit) -> dict[str, Any]:
    return {
        "name": unit.name,
        "command": unit.command,
        "reload": unit.reload,
        "directories": unit.directories,
        "digest": definition(unit),
    }
