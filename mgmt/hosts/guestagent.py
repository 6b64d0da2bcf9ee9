"""The QEMU guest agent, by its Unix socket: run a program in a machine that gives nobody a shell.

The protocol is one JSON object a line (qemu-ga's reference); a client that was cut leaves the stream anywhere, so each
conversation begins with guest-sync-delimited, whose answer follows a byte that is no part of any JSON.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgmt.hosts.driver import DriverError

POLL_S = 0.02
_MARK = b"\xff"


class GuestAgentError(DriverError):
    """The agent does not answer, or said no."""


class GuestAgent:
    """A conversation over one connection; used as a context manager. Raises GuestAgentError."""

    def __init__(self, path: Path, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._rest = b""
        try:
            self._socket.connect(str(path))
            self._sync()
        except OSError as error:
            self._socket.close()
            raise GuestAgentError(f"{path}: the guest agent does not answer: {error}") from None

    def __enter__(self) -> GuestAgent:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def _sync(self) -> None:
        number = secrets.randbelow(1 << 31)
        asked = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._socket.sendall(_MARK + json.dumps(asked).encode() + b"\n")
        while True:
            line = self._line()
            before, mark, after = line.rpartition(_MARK)
            if mark and json.loads(after).get("return") == number:
                return

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            some = self._socket.recv(1 << 16)
            if not some:
                raise GuestAgentError("the guest agent closed the connection")
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command's `return`."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = json.loads(self._line())
        except OSError as error:
            raise GuestAgentError(f"{command}: no answer: {error}") from None
        if "error" in answer:
            raise GuestAgentError(f"{command}: {answer['error'].get('desc', answer['error'])}")
        return answer.get("return")

    def run(self, argv: Sequence[str], seconds: float = 60.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as root to its end. Raises subprocess.TimeoutExpired too; the program then goes on."""
        options: dict[str, Any] = {"input-data": base64.b64encode(stdin.encode()).decode()} if stdin else {}
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        program = ["/usr/bin/env", "-i", path, "LANG=C.UTF-8", "HOME=/root", "TERM=dumb", *argv]
        asked = {"path": program[0], "arg": program[1:], "capture-output": True, **options}
        pid = self.ask("guest-exec", **asked)["pid"]
        deadline, pause = time.monotonic() + seconds, POLL_S
        while not (told := self.ask("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(argv, seconds)
            time.sleep(pause)
            pause = min(0.5, pause * 1.3)
        code = told.get("exitcode", -int(told.get("signal", 0)))
        return subprocess.CompletedProcess(list(argv), code, _text(told.get("out-data")), _text(told.get("err-data")))


def _text(data: str | None) -> str:
    return base64.b64decode(data).decode(errors="replace") if data else ""
