"""The journal: what is on the disk before a step is taken, and what a new process reads from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import appliance.store
from appliance.store import Record, Store, StoreError, write_durably


def record(generation: int, **fields: object) -> Record:
    return Record(generation, 1000.0 + generation, "put", f"digest-{generation}", **fields)  # type: ignore[arg-type]


def kept(store: Store, generation: int, document: bytes | None, **fields: object) -> Record:
    found = record(generation, **fields)
    store.begin(found, document)
    store.note(found, status="kept")
    return found


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.folder)


def test_an_empty_journal(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert (store.head(), store.last(), store.open_ended()) == (None, 0, [])
    assert (tmp_path / "a" / "b" / "journal").stat().st_mode & 0o777 == 0o600


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept(store, 1, b"one")
    tried = record(2, plan=[{"kind": "file"}])
    store.begin(tried, b"two")
    store = reopened(store)
    head = store.head()
    assert head is not None
    assert (head.generation, head.status, head.document) == (1, "kept", "1.json")
    assert [r.generation for r in store.open_ended()] == [2]
    assert store.last() == 2
    assert store.records[2].plan == [{"kind": "file"}]
    store.note(store.records[2], status="undone", why="it would not")
    store = reopened(store)
    assert (store.last(), store.open_ended(), store.records[2].why) == (1, [], "it would not")


def test_a_document_is_its_owner_s_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept(store, 1, b"secret")
    assert (tmp_path / "documents" / "1.json").stat().st_mode & 0o777 == 0o600


def test_way_to_a_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept(store, 1, b"one")
    kept(store, 2, None, base=1, operations=["b"])
    kept(store, 3, None, base=2)  # a number alone
    kept(store, 5, None, base=3, operations=["c", "d"])
    assert reopened(store).way_to(5) == (b"one", [["b"], ["c", "d"]])
    with pytest.raises(KeyError):
        store.way_to(4)


def test_a_number_that_was_undone_is_used_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = record(1)
    store.begin(first, b"wrong")
    store.note(first, status="undone")
    kept(store, 1, b"right")
    store = reopened(store)
    assert store.records[1].status == "kept"
    assert store.way_to(1) == (b"right", [])


def test_changes_since_a_whole_document_are_counted_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appliance.store, "WHOLE_EVERY", 3)
    store = Store(tmp_path)
    kept(store, 1, b"one")
    for generation in (2, 3, 4):
        assert not store.wants_whole()
        kept(store, generation, None, base=generation - 1, operations=["x"])
        store = reopened(store)
    assert store.wants_whole()
    kept(store, 5, b"five")
    assert not store.wants_whole()


def test_pruning_keeps_what_the_kept_stand_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 3)
    store = Store(tmp_path)
    kept(store, 1, b"gone")
    kept(store, 2, b"base")
    for generation in range(3, 9):
        kept(store, generation, None, base=generation - 1, operations=[generation])
    undone = record(9)
    store.begin(undone, b"nine")
    store.note(undone, status="undone")
    store.prune()
    store = reopened(store)
    assert sorted(store.records) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert store.way_to(8) == (b"base", [[n] for n in range(3, 9)])
    assert sorted(p.name for p in (tmp_path / "documents").iterdir()) == ["2.json", "9.json"]
    kept(store, 10, None, base=8, operations=[10])
    assert reopened(store).way_to(10)[1][-1] == [10]


def test_pruning_costs_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 5)
    store = Store(tmp_path)
    kept(store, 1, b"base")
    written = []
    real = appliance.store.write_durably
    monkeypatch.setattr(appliance.store, "write_durably", lambda *a, **k: (written.append(a[0].name), real(*a, **k)))
    for generation in range(2, 42):  # one long chain: nothing of it can go
        kept(store, generation, None, base=generation - 1, operations=[generation])
        store.prune()
    assert len(store.records) == 41
    assert written.count("journal") <= 8


def test_a_refused_note_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    tried = record(1)
    store.begin(tried, b"one")
    size = (tmp_path / "journal").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(StoreError, match="generation 1: Input/output error"):
            store.note(tried, status="kept")
    assert tried.status == "begun"
    assert (tmp_path / "journal").stat().st_size == size
    assert reopened(store).head() is None


def test_a_refused_pruning_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 1)
    store = Store(tmp_path)
    for generation in (1, 2, 3):
        kept(store, generation, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda old, new: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        with pytest.raises(StoreError, match="Read-only"):
            store.prune()
    assert sorted(store.records) == [1, 2, 3]
    kept(store, 4, b"y")
    store = reopened(store)
    assert sorted(store.records) == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_after_a_pruning_nothing_is_written_to_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 1)
    store = Store(tmp_path)
    for generation in (1, 2, 3):
        kept(store, generation, b"x")
    store.prune()
    kept(store, 4, b"y")
    assert sorted(reopened(store).records) == [3, 4]


def test_a_journal_of_a_later_release(tmp_path: Path) -> None:
    line = {"event": "begin", "record": {**{n: getattr(record(1), n) for n in Record.__slots__}, "mood": "fine"}}
    (tmp_path / "journal").write_text(json.dumps(line) + "\n")
    assert Store(tmp_path).records[1].digest == "digest-1"


def test_write_durably_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_durably(path, b"old", 0o640)
    assert path.stat().st_mode & 0o777 == 0o640
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_large_changes_are_kept_on_the_disk_and_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 5)
    store = Store(tmp_path)
    kept(store, 1, b"one")
    operations = {
        n: [{"op": "put", "n": n, "data": "x" * (appliance.store.LARGE if n % 2 else 10)}] for n in range(2, 20)
    }
    for n, those in operations.items():
        kept(store, n, None, base=n - 1, operations=list(those))
        store.prune()
        in_memory = [r.generation for r in store.records.values() if r.operations]
        assert not [g for g in in_memory if g % 2], "the large ones"
        for now in (store, Store(tmp_path, writes=False)):
            assert now.way_to(n) == (b"one", [operations[m] for m in range(2, n + 1)])
            now is store or now.close()
    store = reopened(store)
    assert store.way_to(19)[1][-1] == operations[19]
    assert not store.records[19].operations
    assert store.unreadable == 0
