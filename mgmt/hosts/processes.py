"""Processes as the kernel knows them, told apart by start time, and ended by descriptor so that no pid is mistaken.

The start time is the kernel's, in ticks since boot (proc(5), stat, field 22): with the pid and the boot's id it names
a process for good.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process that was: `began` in ticks since boot, `boot` the id of that boot."""

    pid: int
    began: int
    boot: str

    @property
    def alive(self) -> bool:
        """It still is the one that it was; a zombie is dead."""
        return self.pid > 0 and self.boot == boot_id() and _began(self.pid) == self.began


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process(pid: int) -> Process | None:
    """The process that has this pid now; None for none."""
    began = _began(pid)
    return Process(pid, began, boot_id()) if began else None


def _began(pid: int) -> int:
    """The start time; 0 where there is no such process, or only its zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(fields[18])


def end(found: Process, patience_s: float = 0.0) -> None:
    """End it: SIGTERM and `patience_s` seconds, then SIGKILL. Back when it is dead; a stranger is not touched."""
    try:
        fd = os.pidfd_open(found.pid)
    except OSError:
        return
    try:
        if not found.alive:  # looked at after the open: from here on `fd` is the one
            return
        if patience_s and _signal(fd, signal.SIGTERM) and _wait(fd, patience_s):
            return
        if _signal(fd, signal.SIGKILL):
            _wait(fd, 10.0)
    finally:
        os.close(fd)


def _signal(fd: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, number)
        return True
    return False


def _wait(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def inside(namespace: tuple[int, int]) -> Iterator[Process]:
    """The processes in a network namespace, given as (st_dev, st_ino) of its file."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with suppress(OSError):
            info = os.stat(f"/proc/{name}/ns/net")
            if (info.st_dev, info.st_ino) == namespace and (found := process(int(name))):
                yield found


def end_inside(namespace: tuple[int, int], patience_s: float = 1.0) -> None:
    """End whatever runs in a network namespace, and what it starts while we are at it."""
    deadline = time.monotonic() + patience_s
    mine = os.getpid()
    while found := [p for p in inside(namespace) if p.pid != mine]:
        for one in found:
            end(one, max(0.0, deadline - time.monotonic()) / len(found))
