"""The guard of the unit tier: while it is up, this process starts no process and opens no socket.

It hangs on the interpreter's audit events, so that it makes no difference by which module or alias the deed
is tried, or in which thread. An audit hook can't be taken out again: there is one, and it looks at a flag.
"""

from __future__ import annotations

import _posixsubprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FORBIDDEN = frozenset(
    {
        "subprocess.Popen",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendmsg",
        "socket.sendto",
    }
)


class ForbiddenInUnitTestError(RuntimeError):
    """A unit test tried to leave its process. Use FakeHost, or move the test to another tier's directory."""


class Guard:
    """Up or down. Remembers what it refused, so that code which swallows the error is caught all the same."""

    def __init__(self) -> None:
        self.is_up = False
        self.refused: list[str] = []

    def watch(self) -> None:
        """Hang the guard into the interpreter; once per process."""
        sys.addaudithook(self._see)
        # The one way to a process without an audit event (multiprocessing's spawn takes it).
        fork_exec = _posixsubprocess.fork_exec

        def guarded_fork_exec(*args: Any, **kwargs: Any) -> Any:
            self._see("_posixsubprocess.fork_exec", args, always=True)
            return fork_exec(*args, **kwargs)

        _posixsubprocess.fork_exec = guarded_fork_exec

    @contextmanager
    def up(self) -> Iterator[None]:
        self.is_up = True
        try:
            yield
        finally:
            self.is_up = False

    def _see(self, event: str, args: tuple[Any, ...], always: bool = False) -> None:
        if self.is_up and (always or event in FORBIDDEN):
            self.refused.append(event)
            raise ForbiddenInUnitTestError(f"{event}{args[:2]!r:.200}")


guard = Guard()
