"""Small files that are on the disk, whole, when they are said to be. Of the image, beside release.py: stdlib only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is none."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def write(path: Path, text: str) -> None:
    """Make a file hold `text`: after a crash it is the old one or the new. Raises OSError."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync(2) of a file or a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """The same of a folder and of all that is below it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
