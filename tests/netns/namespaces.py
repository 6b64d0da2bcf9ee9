"""Fresh network namespaces that this thread enters; they go when nobody is in them and nobody holds them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace of its own with its loopback up, held by a descriptor."""

    def __init__(self) -> None:
        here = _current()
        try:
            _checked(_libc.unshare(_CLONE_NEWNET))
            self.fd = _current()
            tool("ip link set lo up")
        finally:
            _checked(_libc.setns(here, _CLONE_NEWNET))
            os.close(here)

    @property
    def path(self) -> str:
        """As `ip link set NAME netns PATH` takes it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        os.close(self.fd)

    @contextmanager
    def entered(self) -> Iterator[Namespace]:
        """This thread, and the processes that it starts, are in the namespace."""
        here = _current()
        _checked(_libc.setns(self.fd, _CLONE_NEWNET))
        try:
            yield self
        finally:
            _checked(_libc.setns(here, _CLONE_NEWNET))
            os.close(here)


@contextmanager
def fresh_namespace() -> Iterator[Namespace]:
    """A new namespace, entered by this thread, closed afterwards."""
    made = Namespace()
    try:
        with made.entered():
            yield made
    finally:
        made.close()


def tool(command: str, stdin: str = "") -> str:
    """What a tool prints; AssertionError with its words where it fails."""
    done = subprocess.run(command.split(), input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
