"""The code that a cell runs is this very program's: where it is, and what of it must be bound into the cell."""

from __future__ import annotations

import compileall
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from mgmt.hosts.cellfiles import SEARCH, Programs
from mgmt.hosts.cellroot import HIDDEN
from mgmt.hosts.driver import DriverError

HOUSE = Path(__file__).resolve().parents[2]


def programs() -> Programs:
    """Where this very program's code is."""
    sshd = shutil.which("sshd", path=SEARCH)
    if not sshd or not shutil.which("nsenter", path=SEARCH):
        raise DriverError("sshd or nsenter is not installed; `apt-get install openssh-server util-linux`")
    python = Path(os.path.realpath(sys.prefix)) / "bin" / Path(sys.executable).name
    return Programs(HOUSE, python, Path(os.path.realpath(sys.executable)), Path(sshd))


def code_folders() -> list[Path]:
    """What must be bound into a cell: code that lies where the cell's root does not show it."""
    candidates = [HOUSE, *(Path(os.path.realpath(p)) for p in (sys.prefix, sys.base_prefix, "/usr", "/opt"))]
    root = os.stat("/").st_dev
    found: list[Path] = []
    for path in candidates:
        if not path.is_dir() or any(path.is_relative_to(seen) and _same(path, seen) for seen in found):
            continue
        hidden = any(path.is_relative_to(place) for place in HIDDEN)
        if path == HOUSE or hidden or os.stat(path).st_dev != root:
            found.append(path)
    return found


def _same(path: Path, other: Path) -> bool:
    return os.stat(path).st_dev == os.stat(other).st_dev


def compile_for(role: str) -> None:
    """Compile what a cell will import: its house is read-only, and compiling takes longer than all the rest."""
    for package in ("appliance", role):
        with suppress(OSError):
            compileall.compile_dir(HOUSE / package, quiet=2)
