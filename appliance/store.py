"""Generations and journal on disk: one append-only file of JSON lines, and one file per whole document.

The journal decides after a crash: a generation that was begun and not kept never was. Every line is on the disk before
the step it speaks of is taken. A last line that is torn was never relied upon and is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

KEEP = 100  # generations kept for rollback
WHOLE_EVERY = 200  # changes after which a whole document is stored anew, so that reading back stays short
LARGE = 1 << 16  # bytes of a line whose operations are left on the disk: user data of a guest may have a megabyte


class StoreError(Exception):
    """The disk refused: full, read-only or broken. Nothing was recorded."""


@dataclass(slots=True)
class Record:
    """One generation. `document` names a file with the whole; a change has `base` and `operations` instead."""

    generation: int
    at: float  # seconds since the epoch
    kind: Literal["put", "patch", "rollback", "same"]
    digest: str
    document: str = ""
    base: int = 0
    operations: list[Any] = field(default_factory=list)
    status: Literal["begun", "awaiting", "kept", "undone"] = "begun"
    deadline: float = 0.0
    why: str = ""
    plan: list[Any] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    refused: list[Any] = field(default_factory=list)  # what stands apart and was refused: {folder, path, message}
    stands: int = 0  # the generation whose parts stand in their place


class Store:
    """The journal under `folder`. One process at a time: the agent. Others may read it, with `writes` false."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.folder, self._writes = folder, writes
        self.records: dict[int, Record] = {}
        self.unreadable = 0  # lines of the journal that say nothing: a disk that lies
        self._changes = 0  # since the last whole document
        self._pruned = 0  # records left by the last pruning
        self._large: dict[int, tuple[int, int]] = {}  # of generations: where in the journal their line is
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "documents").mkdir(exist_ok=True)
        self._path = folder / "journal"
        self._fd = self._open()
        self._read()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _open(self) -> int:
        how = os.O_RDWR | os.O_CREAT | os.O_APPEND if self._writes else os.O_RDONLY
        return os.open(self._path, how | os.O_CLOEXEC, 0o600)

    # --- reading

    def _read(self) -> None:
        raw = self._path.read_bytes()
        lines = raw.splitlines(keepends=True)
        if lines and _event(lines[-1]) is None:
            torn = lines.pop()  # or, for who only reads, not written to its end yet
            if self._writes:
                os.ftruncate(self._fd, len(raw) - len(torn))
        start = 0
        for line in lines:
            event = _event(line)
            if event is None:
                self.unreadable += 1
            elif event["event"] == "begin":
                record = _record(event["record"])
                self.records[record.generation] = record
                self._lighten(record, start, len(line))
            elif known := self.records.get(event["generation"]):
                for key, value in event["set"].items():
                    setattr(known, key, value)
            start += len(line)
        self._changes = self._changes_since_whole()

    def _lighten(self, record: Record, start: int, size: int) -> None:
        """Keep the operations of a large line on the disk alone."""
        self._large.pop(record.generation, None)
        if size > LARGE and record.operations:
            self._large[record.generation] = start, size
            record.operations = []

    def _operations(self, record: Record) -> list[Any]:
        """A record's operations, from wherever they are. Raises OSError."""
        if record.generation not in self._large:
            return record.operations
        if self._fd < 0:
            self._fd = self._open()
        start, size = self._large[record.generation]
        event = _event(os.pread(self._fd, size, start))
        return list(event["record"]["operations"]) if event else []

    def _changes_since_whole(self) -> int:
        count, record = 0, self.head()
        while record is not None and not record.document:
            count, record = count + 1, self.records.get(record.base)
        return count

    def head(self) -> Record | None:
        """The last generation that was kept: what the machine shall be after a crash."""
        kept = [r for r in self.records.values() if r.status == "kept"]
        return max(kept, key=lambda r: r.generation, default=None)

    def open_ended(self) -> list[Record]:
        """Generations begun and neither kept nor undone: at start they are undone."""
        return [r for r in self.records.values() if r.status in ("begun", "awaiting")]

    def last(self) -> int:
        """The highest generation ever begun and not undone."""
        return max((r.generation for r in self.records.values() if r.status != "undone"), default=0)

    def way_to(self, generation: int) -> tuple[bytes, list[list[Any]]]:
        """(the whole document's bytes, the operations of each change since) that make `generation`.

        Raises KeyError where it is not kept any more.
        """
        changes: list[list[Any]] = []
        record = self.records[generation]
        while not record.document:
            if operations := self._operations(record):
                changes.append(operations)
            record = self.records[record.base]
        return (self.folder / "documents" / record.document).read_bytes(), changes[::-1]

    # --- writing

    def begin(self, record: Record, document: bytes | None) -> None:
        """Record that `record` will be tried. Raises StoreError with nothing recorded."""
        try:
            if document is not None:
                record.document = f"{record.generation}.json"
                write_durably(self.folder / "documents" / record.document, document)
            written = self._append({"event": "begin", "record": _plain(record)})
        except OSError as error:
            if document is not None:  # on a full disk every byte counts
                (self.folder / "documents" / record.document).unlink(missing_ok=True)
            raise StoreError(f"cannot journal generation {record.generation}: {error.strerror}") from None
        self.records[record.generation] = record
        self._lighten(record, *written)
        self._changes = 0 if document is not None else self._changes + 1

    def note(self, record: Record, **changes: Any) -> None:
        """Record what became of `record`. Raises StoreError; the record in memory is then unchanged."""
        try:
            self._append({"event": "note", "generation": record.generation, "set": changes})
        except OSError as error:
            raise StoreError(f"cannot journal generation {record.generation}: {error.strerror}") from None
        for key, value in changes.items():
            setattr(record, key, value)

    def wants_whole(self) -> bool:
        """True when the next change should be stored as a whole document."""
        return self._changes >= WHOLE_EVERY

    def _append(self, event: dict[str, Any]) -> tuple[int, int]:
        """Write a line. Returns where it starts and its length."""
        line = _line(event)
        if self._fd < 0:
            self._fd = self._open()
        end = os.fstat(self._fd).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, end)  # half a line must not stand before the next one
            raise
        return end, len(line)

    def prune(self) -> None:
        """Forget all but the last KEEP generations and what they stand on. Rewrites the journal, atomically.

        Once in KEEP generations, so that a push does not pay for it. Raises StoreError; then all is as it was.
        """
        if len(self.records) <= max(2 * KEEP, self._pruned + KEEP):
            return
        keep = self._needed()
        large: dict[int, tuple[int, int]] = {}
        try:
            write_durably(self._path, self._lines(keep, large))
        except OSError as error:
            raise StoreError(f"cannot prune the journal: {error.strerror}") from None
        finally:
            self.close()  # whatever happened, what is appended next goes to the file that now has the name
        self.records, self._pruned, self._large = keep, len(keep), large
        for path in self._documents():
            if int(path.stem) not in keep:
                path.unlink(missing_ok=True)

    def _lines(self, keep: Mapping[int, Record], large: dict[int, tuple[int, int]]) -> Iterator[bytes]:
        """The journal of these records; `large` is told where the large ones are in it. Raises OSError."""
        start = 0
        for generation, record in keep.items():
            line = _line({"event": "begin", "record": {**_plain(record), "operations": self._operations(record)}})
            if generation in self._large:
                large[generation] = start, len(line)
            start += len(line)
            yield line

    def _needed(self) -> dict[int, Record]:
        """The last KEEP kept generations with those they are changes of, and of the same time the undone ones."""
        needed: set[int] = set()
        last = sorted(g for g, r in self.records.items() if r.status == "kept")[-KEEP:]
        for kept in (*last, *{r.stands for g in last if (r := self.records[g]).stands in self.records}):
            generation = kept
            while generation not in needed:
                needed.add(generation)
                if self.records[generation].document:
                    break
                generation = self.records[generation].base
        recent = set(sorted(self.records)[-KEEP:])
        return {g: r for g, r in sorted(self.records.items()) if g in needed or (g in recent and r.status == "undone")}

    def _documents(self) -> Iterator[Path]:
        return (p for p in (self.folder / "documents").iterdir() if p.suffix == ".json" and p.stem.isdigit())


def _plain(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__slots__}


def _record(raw: dict[str, Any]) -> Record:
    """A record as it was written, by this release or by one that knew more of it."""
    return Record(**{name: raw[name] for name in Record.__slots__ if name in raw})


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def _event(line: bytes) -> dict[str, Any] | None:
    """One line of the journal; None for what was never wholly written."""
    try:
        event = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("event") in ("begin", "note") else None


def write_durably(path: Path, content: bytes | Iterable[bytes], mode: int = 0o600, group: int = -1) -> None:
    """Write so that after a crash there is the old content or the new, whole. Raises OSError with the old in place.

    Content may come in pieces. `group` is the number of the group that it belongs to, -1 for the process' own.
    """
    new = path.with_name(f".{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode if group < 0 else 0o600)
    try:
        try:
            if group >= 0:
                os.fchown(fd, -1, group)
            os.fchmod(fd, mode)
            for piece in (content,) if isinstance(content, bytes) else content:
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
