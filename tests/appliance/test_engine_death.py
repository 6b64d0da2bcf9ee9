"""The agent dies at any moment; the next one finds the machine whole: the last kept generation, never a mixture.

A `Fate` counts the moments: before and after each step on the machine, and before, in the middle of and after each
write to the disk. A death is an exception that nothing may catch; what follows it is a new engine over the same journal
and the same machine.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import appliance.store
from appliance.fake import FakeHost, facts
from appliance.plan import Step
from appliance.state import State
from tests.appliance import toy
from tests.appliance.rig import BASE, MACS, RICH, Rig, document, put_in, remove
from tests.trials import trials


class Death(BaseException):
    """The process is gone."""


class Fate:
    """Dies at moment number `at` (-1: never); `moments` is how many there were."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.moments = at, 0

    def moment(self) -> None:
        self.moments += 1
        if self.moments - 1 == self.at:
            raise Death


class MortalHost(FakeHost):
    fate = Fate()

    def commit(self, step: Step) -> None:
        self.fate.moment()
        super().commit(step)
        self.fate.moment()


REAL_WRITE, REAL_RENAME = os.write, os.rename


@contextmanager
def mortal(host: MortalHost, fate: Fate) -> Iterator[None]:
    """Steps, writes and renames are moments of `fate`; a write that is cut leaves its first half on the disk."""

    def write(fd: int, data: bytes) -> int:
        fate.moment()
        half = len(data) // 2
        REAL_WRITE(fd, bytes(data[:half]))
        fate.moment()
        REAL_WRITE(fd, bytes(data[half:]))
        fate.moment()
        return len(data)

    def rename(old: Any, new: Any) -> None:
        fate.moment()
        REAL_RENAME(old, new)
        fate.moment()

    host.fate = fate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        patch.setattr(os, "rename", rename)
        patch.setattr(os, "fsync", lambda fd: None)
        patch.setattr(os, "fdatasync", lambda fd: None)
        yield
    host.fate = Fate()


def compiled(config: Any, host: FakeHost) -> State:
    return toy.compile(toy.Config.model_validate_json(json.dumps(config)), host.known)


def rig_at(folder: Path, config: Any) -> tuple[Rig, MortalHost]:
    host = MortalHost(facts(*MACS))
    with mortal(host, Fate()):
        rig = Rig(folder, host)
        rig.settle(config)
    return rig, host


def push_and_confirm(rig: Rig, body: bytes) -> None:
    if rig.engine.put(body, "a").status == 202:
        rig.engine.confirm(rig.engine.current.number, "b")


def deaths(folder: Path, start: Any, end: Any, fail_at: int = -1) -> Iterator[tuple[int, Rig, MortalHost]]:
    """For each moment of a push from `start` to `end`: the rig whose agent died then."""
    at = 0
    while True:
        rig, host = rig_at(folder / str(at), start)
        host.fail_at = fail_at
        fate = Fate(at)
        try:
            with mortal(host, fate):
                push_and_confirm(rig, document(end, 2))
        except Death:
            yield at, rig, host
        else:
            assert at > 20, "a push has more moments than that"
            return
        at += 1


@pytest.mark.parametrize(("start", "end"), [(BASE, RICH), (RICH, BASE)])
def test_death_at_each_moment_of_a_push(tmp_path: Path, start: Any, end: Any) -> None:
    found = set()
    for at, rig, host in deaths(tmp_path, start, end):
        with mortal(host, Fate()):
            rig.restart()
        number = rig.engine.current.number
        assert number in (1, 2)
        assert not rig.is_now(compiled(start if number == 1 else end, host)), f"moment {at}"
        assert rig.engine.broken == ""
        assert rig.store.unreadable == 0
        assert not rig.store.open_ended()
        found.add(number)
        with mortal(host, Fate()):
            assert rig.settle(BASE) == rig.engine.current.state  # and it lives on
    assert found == {1, 2}


def test_death_at_each_moment_of_an_undo(tmp_path: Path) -> None:
    for at, rig, host in deaths(tmp_path, BASE, RICH, fail_at=14):
        host.fail_at = -1
        with mortal(host, Fate()):
            rig.restart()
        assert rig.engine.current.number == 1
        assert not rig.is_now(compiled(BASE, host)), f"moment {at}"


def test_death_while_a_confirmation_is_awaited(tmp_path: Path) -> None:
    rig, host = rig_at(tmp_path, BASE)
    with mortal(host, Fate()):
        assert rig.put(RICH).status == 202
        rig.restart()
    assert rig.engine.current.number == 1
    assert not rig.is_now(compiled(BASE, host))


def test_death_again_at_each_moment_of_the_start(tmp_path: Path) -> None:
    """The one that picks up the pieces dies too."""
    first = 40
    at = 0
    while True:
        rig, host = rig_at(tmp_path / str(at), BASE)
        with pytest.raises(Death), mortal(host, Fate(first)):
            push_and_confirm(rig, document(RICH, 2))
        try:
            with mortal(host, Fate(at)):
                rig.restart()
        except Death:
            with mortal(host, Fate()):
                rig.restart()
        else:
            break
        assert rig.engine.current.number == 1
        assert not rig.is_now(compiled(BASE, host)), f"moment {at}"
        at += 1
    assert at > 10


def random_config(chance: random.Random) -> dict[str, Any]:
    ports = chance.sample(range(1, 9), chance.randint(0, 4))
    return {
        **chance.choice((BASE, RICH)),
        "doors": [
            {"id": f"d{p}", "port": p, "target": f"10.1.1.{chance.randint(1, 3)}", "guarded": chance.random() < 0.4}
            for p in ports
        ],
        "notes": [{"id": f"n{i}", "text": chance.choice("abc")} for i in chance.sample(range(4), chance.randint(0, 3))],
    }


def random_push(rig: Rig, chance: random.Random) -> None:
    """Whatever a manager may do next: a document, a change, a rollback, with or without a step that fails."""
    if chance.random() < 0.3:
        rig.host.fail_at = chance.randint(0, 12)  # type: ignore[misc]
    deed = chance.random()
    if deed < 0.5:
        push_and_confirm(rig, document(random_config(chance), rig.next))
    elif deed < 0.85:
        ident = f"n{chance.randint(0, 3)}"
        change = put_in("notes", id=ident, text=chance.choice("abc"))
        rig.patch(remove("notes", ident) if chance.random() < 0.4 else change)
    else:
        rig.engine.rollback(chance.choice(list(rig.store.records)), "a")
        rig.engine.confirm(rig.engine.current.number, "b")


@pytest.mark.soak("router")
def test_death_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 4)
    monkeypatch.setattr(appliance.store, "WHOLE_EVERY", 5)
    for seed in range(trials(100)):
        chance = random.Random(seed)
        rig, host = rig_at(tmp_path / str(seed), BASE)
        for _ in range(3):
            before = rig.engine.current
            try:
                with mortal(host, Fate(chance.randint(0, 400))):
                    while True:
                        before = rig.engine.current
                        random_push(rig, chance)
            except Death:
                host.fail_at, host.fail_for = -1, 1
            with mortal(host, Fate()):
                rig.restart()
            current = rig.engine.current
            assert rig.engine.broken == "", seed
            assert current.number >= before.number or before.record is None or before.record.status != "kept", seed
            assert not rig.is_now(current.state), seed
            assert current.record is rig.store.head()
            read = json.loads(rig.engine.document(current.number))["config"]
            assert not rig.is_now(compiled(read, host)), seed
