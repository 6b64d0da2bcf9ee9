"""The unit runners: who keeps a role's processes alive. The supervisor in a cell, systemd in a machine.

Both are told of a `Unit` and remember its `definition`, a digest of what its process was started from, so
that an agent that comes up later sees whether what runs is what it would start. Boot units (the agent itself,
sshd) are not in sight here: nothing stops or lists them by way of a runner.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from appliance.state import Unit

ANSWER_S = 15.0  # a stop may take 5 s until SIGKILL, and an answer waits for it
PREFIX = "narthex-"
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


def definition(unit: Unit) -> str:
    """A digest of what a unit's process is started from: not of its files, nor of when it is reloaded."""
    parts = [unit.name, unit.command, unit.reload, unit.directories]
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


Run = Callable[[tuple[str, ...]], tuple[int, str]]  # argv -> (exit status, output)


def _run(argv: tuple[str, ...]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


class SystemdRunner:
    """Units under systemd: /run/systemd/system/narthex-NAME.service, gone with the next boot."""

    def __init__(self, run: Run = _run, directory: Path = Path("/run/systemd/system")) -> None:
        self.run, self.directory = run, directory

    def observe(self) -> dict[str, UnitStatus]:
        names = [path.name.removeprefix(PREFIX)[: -len(".service")] for path in self._files()]
        names = sorted(name for name in names if name not in BOOT_UNITS)
        if not names:
            return {}
        shown = self._systemctl(
            "", "show", "--property=Id,ActiveState,MainPID,NRestarts", *(_service(name) for name in names)
        )
        states = [_properties(block) for block in shown.strip().split("\n\n")]
        by_id = {state.get("Id", ""): state for state in states}
        return {name: self._status(name, by_id.get(_service(name), {})) for name in names}

    def _files(self) -> list[Path]:
        return list(self.directory.glob(f"{PREFIX}*.service"))

    def _status(self, name: str, state: Mapping[str, str]) -> UnitStatus:
        return UnitStatus(
            name,
            state.get("ActiveState") in ("active", "reloading"),
            int(state.get("MainPID") or 0),
            self._definition(name),
            int(state.get("NRestarts") or 0),
        )

    def _definition(self, name: str) -> str:
        try:
            text = (self.directory / _service(name)).read_text()
        except OSError:
            return ""
        found = re.search(r"^X-Narthex-Definition=(\w+)$", text, re.MULTILINE)
        return found[1] if found else ""

    def start(self, unit: Unit) -> None:
        self._define(unit)
        self._systemctl(unit.name, "start", _service(unit.name))

    def stop(self, name: str) -> None:
        self._refuse_boot_unit(name)
        path = self.directory / _service(name)
        if not path.exists():
            return
        self._systemctl(name, "stop", _service(name))
        path.unlink(missing_ok=True)
        self._systemctl(name, "daemon-reload")

    def reload(self, unit: Unit) -> None:
        self._refuse_boot_unit(unit.name)
        if not unit.reload:
            raise UnitError(unit.name, "has no reload signal; restart it")
        self._systemctl(unit.name, "kill", "--kill-whom=main", f"--signal={unit.reload}", _service(unit.name))

    def restart(self, unit: Unit) -> None:
        self._define(unit)
        self._systemctl(unit.name, "restart", _service(unit.name))

    def _define(self, unit: Unit) -> None:
        self._refuse_boot_unit(unit.name)
        path, text = self.directory / _service(unit.name), service_text(unit)
        try:
            if path.exists() and path.read_text() == text:
                return
            self.directory.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_text(text)
            new.replace(path)
        except OSError as error:
            raise UnitError(unit.name, f"cannot write {path}: {error.strerror}") from None
        self._systemctl(unit.name, "daemon-reload")

    def _refuse_boot_unit(self, name: str) -> None:
        if name in BOOT_UNITS:
            raise UnitError(name, "is a boot unit, not a role's")

    def _systemctl(self, unit: str, *words: str) -> str:
        status, output = self.run(("systemctl", *words))
        if status:
            raise UnitError(unit, f"systemctl {words[0]} ended in {status}", output)
        return output


def service_text(unit: Unit) -> str:
    """The unit as a systemd service: restarted as the supervisor does it, ended as a group after 5 s."""
    lines = [
        "# Written by the Narthex agent; changes are lost.",
        "[Unit]",
        f"Description=Narthex: {unit.name}",
        f"X-Narthex-Definition={definition(unit)}",
        "StartLimitIntervalSec=0",
        "[Service]",
        "Type=exec",
        *(f"ExecStartPre=+/usr/bin/install -d -m {mode:o}{_owned(user)} {_word(path)}"
          for path, mode, user in unit.directories),
        f"ExecStart={' '.join(map(_word, unit.command))}",
        *([f"ExecReload=/bin/kill -{unit.reload} $MAINPID"] if unit.reload else []),
        "Restart=always",
        "RestartSec=100ms",
        "KillMode=control-group",
        "TimeoutStopSec=5",
        "SyslogIdentifier=" + PREFIX + unit.name,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _owned(user: str) -> str:
    return f" -o {user}" if user else ""


def _service(name: str) -> str:
    return f"{PREFIX}{name}.service"


def _word(word: str) -> str:
    """One word of a command line, quoted as in systemd.service(5): specifiers and variables too."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if text != word or not word or re.search(r"[\s;'{}]", word) else word


def _properties(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
