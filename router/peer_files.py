"""What follows: files of the primary, of which the other member keeps copies. A part of peer.py.

Each tells the other the digests of its copies; the primary sends what differs, in datagrams, and again while it does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

PART_BYTES = 1200  # of a file in a datagram
AGAIN_S = 1.0  # until a file that has not arrived is sent again

Json = dict[str, Any]


class Followed:
    """The files that `told` names (peer.json): leases by network, and the folder `given` ("": there is none)."""

    def __init__(self, told: Json) -> None:
        self.told = told
        self.kept = Path(told["kept"])
        self.parts: dict[str, dict[int, str]] = {}
        self.sent: dict[str, tuple[str, float]] = {}
        self.digests: dict[str, tuple[float, str]] = {}

    def copies(self) -> dict[str, str]:
        """The digest of each copy."""
        return {name: self._digest(self.kept / name) for name in self._followed()}

    def leases(self, network: str) -> list[str]:
        """The lines of the copy of a network's leases. Raises OSError where there is none."""
        return read(self.kept / f"{network}.leases").splitlines()

    def _followed(self) -> dict[str, Path]:
        found = {f"{lease['network']}.leases": Path(lease["path"]) for lease in self.told["leases"]}
        return {**found, "given": Path(self.told["given"])} if self.told["given"] else found

    def _digest(self, path: Path) -> str:
        """Of a file, or of a folder's files, "" where it is not there; read again where it changed."""
        try:
            changed = path.stat().st_mtime
            known = self.digests.get(str(path))
            if known is None or known[0] != changed:
                known = self.digests[str(path)] = changed, digest_of(read(path))
            return known[1]
        except OSError:
            return ""

    def send(self, theirs: Json, send: Callable[[Json], None]) -> None:
        """What the other has not: `theirs` are the digests of its copies."""
        for name, path in self._followed().items():
            digest, now = self._digest(path), time.monotonic()
            was, at = self.sent.get(name, ("", 0.0))
            if not digest or theirs.get(name) == digest or (was == digest and now - at < AGAIN_S):
                continue
            self.sent[name] = digest, now
            text = read(path)
            parts = [text[i : i + PART_BYTES] for i in range(0, len(text), PART_BYTES)] or [""]
            for number, part in enumerate(parts):
                send({"part": number, "of": len(parts), "file": name, "digest": digest, "text": part})

    def keep(self, told: Json) -> None:
        """A part of a file, as `send` sent it."""
        name = told["file"]
        if name not in self._followed():
            return
        parts = self.parts.setdefault(f"{name} {told['digest']}", {})
        parts[int(told["part"])] = str(told["text"])
        if len(parts) == told["of"]:
            text = "".join(parts[n] for n in sorted(parts))
            self.parts.clear()
            if digest_of(text) == told["digest"]:
                write(self.kept / name, text)
                if name == "given":
                    self._take_given(text)

    def _take_given(self, text: str) -> None:
        """The folder as the other has it, but for what is only here: who is gone is its own service's to know."""
        for line in text.splitlines():
            name, _, content = line.partition(" ")
            path = Path(self.told["given"]) / name
            if "/" not in name and not name.startswith(".") and (not path.exists() or read(path).strip() != content):
                write(path, f"{content}\n", f".{name}")


def read(path: Path) -> str:
    """A file, or a line for each file in a folder: its name, its text. Whatever a guest has called itself."""
    if not path.is_dir():
        return path.read_text(encoding="latin-1")
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    return "".join(f"{name} {read(path / name).strip()}\n" for name in names)


def digest_of(text: str) -> str:
    return blake2b(text.encode("latin-1"), digest_size=8).hexdigest()


def write(path: Path, text: str, through: str = "") -> None:
    new = path.with_name(through or f"{path.name}.new")
    new.write_text(text, encoding="latin-1")
    new.replace(path)
