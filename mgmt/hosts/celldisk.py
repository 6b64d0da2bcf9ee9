"""Where cells are kept: their definitions, which outlive them, and the records of those that run.

    STATE/cells/NAME/{cell.json, host_key, state/, log/}    STATE is NARTHEX_STATE, or /var/lib/narthex
    /run/narthex/cells/NAME/{run.json, root/}, NAME.lock

A definition comes into being and goes by one rename, so that it is there whole or not at all; what stands beside under
`.new-NAME` or `.gone-NAME` was left by somebody who was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from mgmt.hosts.driver import DriverError, Nic, Seed
from mgmt.hosts.processes import Process

STATE_VARIABLE, STATE_ROOT, RUN_ROOT = "NARTHEX_STATE", "/var/lib/narthex", "/run/narthex"
CONTROL = ".control"  # the lock of what the cells of a host share
BUSY_S = 60.0
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)


def state_root() -> Path:
    return Path(os.environ.get(STATE_VARIABLE) or STATE_ROOT)


@dataclass(frozen=True, slots=True)
class Definition:
    """What cell.json says. `ground` names the namespace that its links go to, "" for the host's own."""

    seed: Seed
    nics: tuple[Nic, ...]
    ground: str

    @property
    def name(self) -> str:
        return self.seed.name

    @property
    def control_mac(self) -> str:
        """Locally administered, and always the same for a name."""
        digest = sha256(self.seed.name.encode()).hexdigest()
        return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


class CellDisk:
    """The two places. Methods that change a cell are called with its lock held."""

    def __init__(self, state: Path, run: Path) -> None:
        self.cells, self.running = state / "cells", run / "cells"

    def folder(self, name: str) -> Path:
        """Where a cell's definition and state are. Raises DriverError for what is no name."""
        if not NAME.fullmatch(name):
            raise DriverError(f"{name!r} is no cell's name; it has a-z 0-9 - and at most 32 characters")
        return self.cells / name

    def names(self) -> list[str]:
        return sorted(p.parent.name for p in self.cells.glob("*/cell.json") if NAME.fullmatch(p.parent.name))

    @contextmanager
    def locked(self, name: str, last: bool = False) -> Iterator[None]:
        """One command at a time for a cell. `last`: the lock's file goes too. Raises DriverError after a minute."""
        if name != CONTROL:
            self.folder(name)
        for place in (self.cells, self.running):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.running / f"{name}.lock"
        fd = _lock(path, name)
        try:
            yield
        finally:
            if last:
                path.unlink(missing_ok=True)
            os.close(fd)

    # --- definitions

    def add(self, definition: Definition) -> None:
        folder = self.folder(definition.name)
        if folder.exists():
            raise DriverError(f"{definition.name}: there is a cell of this name; destroy it first")
        new = self.cells / f".new-{definition.name}"
        shutil.rmtree(new, ignore_errors=True)
        for name in ("state", "log"):
            (new / name).mkdir(parents=True, mode=0o700)
        _write(new / "host_key", definition.seed.host_private)
        _write(new / "cell.json", _told(definition))
        new.rename(folder)

    def change(self, definition: Definition) -> None:
        _write(self.folder(definition.name) / "cell.json", _told(definition))

    def remove(self, name: str) -> None:
        gone = self.cells / f".gone-{name}"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.folder(name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(self.cells / f".new-{name}", ignore_errors=True)

    def definition(self, name: str) -> Definition:
        path = self.folder(name) / "cell.json"
        try:
            raw = json.loads(path.read_text())
            private = (path.parent / "host_key").read_text()
            raw["seed"]["time_servers"] = tuple(raw["seed"]["time_servers"])
            seed = Seed(**raw["seed"], host_private=private)
            return Definition(seed, tuple(Nic(**nic) for nic in raw["nics"]), raw["ground"])
        except FileNotFoundError:
            raise DriverError(f"{name}: there is no such cell; `narthex cell list` shows them") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DriverError(f"{path}: cannot be used: {error}; destroy the cell") from None

    def left_over(self) -> list[tuple[Path, str]]:
        """What killed commands have left, with the name of its cell."""
        return sorted((p, p.name.partition("-")[2]) for kind in ("new", "gone") for p in self.cells.glob(f".{kind}-*"))

    # --- records of what runs

    def record(self, name: str) -> Process | None:
        """The process that is on record as a cell's process 1, whether or not it still is."""
        try:
            return Process(**json.loads((self.running / name / "run.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def forget(self, name: str) -> None:
        shutil.rmtree(self.running / name, ignore_errors=True)

    def recorded(self) -> list[str]:
        return sorted(p.name for p in self.running.glob("*") if p.is_dir() and NAME.fullmatch(p.name))

    # --- logs

    def log(self, name: str, unit: str) -> Path:
        """The log of a unit of a cell. Raises DriverError, with those that there are."""
        self.definition(name)
        folder = self.folder(name) / "log"
        known = sorted({path.name.removesuffix(".1").removesuffix(".log") for path in folder.iterdir()})
        if unit not in known:
            raise DriverError(f"{name}: no log of a unit {unit}; there are: {', '.join(known) or 'none yet'}")
        return folder / f"{unit}.log"


def lines(log: Path, follow: bool) -> Iterator[str]:
    """The lines of a log and of the one before it, oldest first; with `follow`, those to come, without end."""
    for each in (log.with_name(log.name + ".1"), log):
        with suppress(FileNotFoundError):
            yield from each.read_text(errors="replace").splitlines()
    at = log.stat().st_size if follow else 0
    while follow:
        yield from _lines_until_rotated(log, at)
        at = 0


def _lines_until_rotated(log: Path, at: int) -> Iterator[str]:
    with open(log, errors="replace") as file:
        file.seek(at)
        rotated = False
        while True:
            line = file.readline()
            if line:
                yield line.rstrip("\n")
            elif rotated:
                return
            else:
                time.sleep(0.1)
                with suppress(FileNotFoundError):
                    rotated = os.stat(log).st_ino != os.fstat(file.fileno()).st_ino


def _told(definition: Definition) -> str:
    raw = asdict(definition)
    del raw["seed"]["host_private"]
    return json.dumps(raw, indent=1) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also after a power cut."""
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _lock(path: Path, name: str) -> int:
    deadline = time.monotonic() + BUSY_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # its last holder may have removed it
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise DriverError(f"{name}: another command has been at work on it for {BUSY_S:g} s") from None
            time.sleep(0.01)
        os.close(fd)
