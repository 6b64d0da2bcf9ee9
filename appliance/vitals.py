"""What an appliance lives on: room on its disks, memory, a clock. Looked at, in words; nothing is done about it.

Only what makes the next push fail is `grave`: that is a full disk below what a push writes to. The rest is said while
there is time to see to it. All thresholds are here. In a cell memory, disks and clock are the host's, and so is the
clock's keeping: there it is not asked whether it is kept.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.metrics import Metrics
from appliance.settings import Settings

FULL_BYTES, FULL_INODES = 4 << 20, 16  # less, and a large document may not go down whole
FULL = 0.02  # of a disk so small that that is less
NEARLY = 0.1  # of a disk, but never more than
NEARLY_BYTES, NEARLY_INODES = 256 << 20, 1000
SHORT_MEMORY = 0.05  # of all memory, but never more than
SHORT_BYTES = 64 << 20
STALLED = 10.0  # percent of the last minute in which nothing could run for want of memory
SLACK_S = 60.0  # a clock may be so much behind what was written with another
STA_UNSYNC = 0x40  # adjtimex(2)

Disk = Callable[[str], os.statvfs_result]


@dataclass(frozen=True, slots=True)
class Trouble:
    """`what` as in `disk /var/log`, `words` with the remedy. `grave`: the next push is bound to fail."""

    what: str
    words: str
    grave: bool = False


class Vitals:
    """Looks at the machine below `root`, and keeps the figures of it in `metrics`."""

    def __init__(
        self, settings: Settings, metrics: Metrics, root: Path = Path("/"), now: Callable[[], float] = time.time,
        disk: Disk = os.statvfs, kernel_clock: Callable[[], int | None] | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.metrics = settings, metrics
        self.root, self.now, self.disk = root, now, disk
        self.kernel_clock = kernel_clock or clock_status

    def look(self, newest: float) -> tuple[Trouble, ...]:
        """All that is wrong now. `newest` is when the newest generation was pushed, 0 for never."""
        found = (*self._disks(), *self._memory(), *self._clock(newest))
        self.metrics.set("narthex_troubles", len(found))
        return found

    # --- disks

    def _disks(self) -> list[Trouble]:
        """A file system that holds two of the folders is one disk, named by the first."""
        found, seen = [], set[int]()
        folders = {f"{self.settings.state_dir}/store": True, "/etc/narthex": True, "/var/log": False}
        for folder, matters in folders.items():
            path = self.root / folder.lstrip("/")
            try:
                device, room = path.stat().st_dev, self.disk(str(path))
            except OSError:
                continue  # not there: a folder is no disk
            if device in seen:
                continue
            seen.add(device)
            self.metrics.set("narthex_disk_free_bytes", room.f_bavail * room.f_frsize, f'path="{folder}"')
            if words := _room(room):
                found.append(Trouble(f"disk {folder}", words, matters and _is_full(room)))
        return found

    # --- memory

    def _memory(self) -> list[Trouble]:
        numbers = self._meminfo()
        total, free = numbers.get("MemTotal", 0), numbers.get("MemAvailable", 0)
        if not total:
            return []
        self.metrics.set("narthex_memory_available_bytes", free)
        if free < min(SHORT_MEMORY * total, SHORT_BYTES):
            words = f"{_size(free)} of {_size(total)} are left: give the machine more"
            return [Trouble("memory", words)]
        if (stalled := self._stalled()) > STALLED:
            words = f"for {stalled:.0f} % of the last minute everything waited for memory: give the machine more"
            return [Trouble("memory", words)]
        return []

    def _meminfo(self) -> Mapping[str, int]:
        """Bytes by the names of /proc/meminfo."""
        found = {}
        for line in _text(self.root / "proc/meminfo").splitlines():
            name, _, words = line.partition(":")
            if (number := words.split()[:1]) and number[0].isdigit():
                found[name] = int(number[0]) * 1024
        return found

    def _stalled(self) -> float:
        """avg60 of the line `full` in /proc/pressure/memory; 0 where the kernel does not keep it."""
        for line in _text(self.root / "proc/pressure/memory").splitlines():
            words = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            if line.startswith("full"):
                return float(words.get("avg60", "0"))
        return 0.0

    # --- the clock

    def _clock(self, newest: float) -> list[Trouble]:
        now, made = self.now(), _made()
        if now < newest - SLACK_S:
            words = f"it is {_date(now)}, before the newest generation was pushed ({_date(newest)}): set the clock"
            return [Trouble("clock", words)]
        if now < made - SLACK_S:
            words = f"it is {_date(now)}, before this release was installed ({_date(made)}): set the clock"
            return [Trouble("clock", words)]
        if self.settings.runner == "systemd":
            is_kept = self._is_kept()
            self.metrics.set("narthex_clock_kept", 1 if is_kept else 0)
            if is_kept is False:
                return [Trouble("clock", "nothing keeps it right: name NTP servers that answer in the seed")]
        return []

    def _is_kept(self) -> bool | None:
        """By what systemd-timesyncd says, or the kernel; None where neither can be known."""
        if (self.root / "run/systemd/timesync/synchronized").exists():
            return True
        status = self.kernel_clock()
        return None if status is None else not status & STA_UNSYNC


def clock_status() -> int | None:
    """`status` of adjtimex(2), which only looks here; None where that is not allowed (ProtectClock=)."""
    buffer = (ctypes.c_uint8 * 256)()  # struct timex: modes 0 is a question, and 208 bytes hold the answer
    libc = ctypes.CDLL(None)
    if libc.adjtimex(ctypes.byref(buffer)) < 0:
        return None
    return int.from_bytes(bytes(buffer[_STATUS : _STATUS + 4]), "little")


_STATUS = 40  # of `status` in struct timex with longs of 8 bytes: modes, offset, freq, maxerror, esterror, status


def _is_full(room: os.statvfs_result) -> bool:
    """For root, who may use what is kept back for it. A disk that counts no inodes (f_files 0) has no want of them."""
    few = min(FULL_BYTES, FULL * room.f_blocks * room.f_frsize)
    return room.f_bfree * room.f_frsize < few or room.f_files > 0 and room.f_ffree < FULL_INODES


def _room(room: os.statvfs_result) -> str:
    """What is wrong with a disk, "" for nothing."""
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    no_bytes = free < min(NEARLY * size, NEARLY_BYTES)
    no_files = room.f_files > 0 and room.f_favail < min(NEARLY * room.f_files, NEARLY_INODES)
    if not (no_bytes or no_files or _is_full(room)):
        return ""
    full = "full" if _is_full(room) else "nearly full"
    files = no_files and not no_bytes
    left = f"{room.f_favail} of {room.f_files} files" if files else f"{_size(free)} of {_size(size)}"
    return f"{full}: {left} are left; remove something, or make it larger"


def _made() -> float:
    """When this release was installed, by its own file."""
    try:
        return Path(__file__).stat().st_mtime
    except OSError:
        return 0.0


def _size(number: float) -> str:
    return f"{number / (1 << 20):.0f} MiB"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
