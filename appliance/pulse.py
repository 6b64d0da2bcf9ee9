"""Can the processes of our units act? By /proc/PID/stat, without starting one, so that it may be asked every second.

A process that was stopped (SIGSTOP) is there, is active in the eyes of whoever keeps it alive, and answers nobody.
So is one that sleeps and cannot be woken; but every process does so for moments, and a disk may be slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ASLEEP_S = 10.0  # uninterruptible at every look for so long

Stat = Callable[[int], tuple[str, int]]  # pid -> (its state as in proc(5), its parent); "" where it is gone


def stat(pid: int) -> tuple[str, int]:
    """The state of a process, a letter, and its parent; ("", 0) where there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", 0
    return words[0].decode(), int(words[1])


def children(pid: int) -> tuple[int, ...]:
    """The children of a process's first thread."""
    try:
        return tuple(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split())
    except OSError:
        return ()


class Pulse:
    """Remembers since when processes sleep, and which units could not act at the last look."""

    def __init__(self, clock: Callable[[], float], read: Stat = stat) -> None:
        self.clock, self.read = clock, read
        self._asleep: dict[int, float] = {}  # pid: since when
        self._stuck: frozenset[int] = frozenset()

    def look(self, processes: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """The units that have a process that cannot act, and why, in words. `processes` are all there are."""
        states = {pid: self.read(pid)[0] for pids in processes.values() for pid in pids}
        now = self.clock()
        self._asleep = {pid: self._asleep.get(pid, now) for pid, state in states.items() if state == "D"}
        found, stuck = {}, set[int]()
        for name, pids in processes.items():
            for pid in pids:
                if why := self._why(pid, states[pid], now):
                    found[name] = why
                    stuck.update(pids)
        self._stuck = frozenset(stuck)
        return found

    def _why(self, pid: int, state: str, now: float) -> str:
        if state == "T":
            return f"process {pid} is stopped"
        if state == "D" and now - self._asleep[pid] >= ASLEEP_S:
            return f"process {pid} sleeps and cannot be woken"
        return ""

    def is_stuck(self, pid: int) -> bool:
        """Was it, or another of its unit, found stuck at the last look; or is it stopped now?"""
        return pid in self._stuck or self.read(pid)[0] == "T"
