"""Members that become ill and well make the State anew, by the engine's own way, without another generation."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.state import File, Member, State
from tests.appliance import toy
from tests.appliance.rig import BASE, Rig, put_in

WELL = Member("m/1", "10.1.1.1", 53, "udp")


def compile(config: toy.Config, facts: Any) -> State:
    state = toy.compile(config, facts)
    files = (*state.files, File("/etc/toy/down", ",".join(sorted(facts.down))))
    return replace(state, files=files, members=(WELL,))


ROLE = SimpleNamespace(
    Config=toy.Config, problems=toy.problems, revised_problems=toy.revised_problems, trace=toy.trace,
    compile=compile, revise=lambda *given: None,
)  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    rig = Rig(tmp_path, role=ROLE)
    rig.settle(BASE)
    return rig


def down(rig: Rig, *keys: str) -> None:
    rig.host.known = replace(rig.host.known, down=frozenset(keys))
    rig.engine.ask_members()


def told(rig: Rig) -> str:
    return next(f.content for f in rig.host.machine.files if f.path == "/etc/toy/down")


def test_the_machine_follows_and_the_generation_stays(rig: Rig) -> None:
    for keys, text in ((("m/1",), "m/1"), ((), "")):
        down(rig, *keys)
        assert told(rig) == text
        assert rig.engine.current.number == 1
        assert rig.engine.heal("timer") is None


def test_nothing_is_done_where_nothing_changed(rig: Rig) -> None:
    done = len(rig.host.done)
    down(rig)
    assert len(rig.host.done) == done


def test_a_push_and_a_start_keep_to_it(rig: Rig) -> None:
    down(rig, "m/1")
    assert rig.patch(put_in("notes", id="hello", text="HELLO")).status == 200
    assert told(rig) == "m/1"
    rig.restart()
    assert told(rig) == "m/1"
    assert rig.engine.current.number == 2


def test_what_fails_is_undone_and_tried_again(rig: Rig) -> None:
    rig.host.fail_at = 0
    down(rig, "m/1")
    assert told(rig) == ""
    assert rig.engine.broken == ""
    rig.engine.ask_members()
    assert told(rig) == "m/1"


def test_not_while_a_confirmation_is_awaited(rig: Rig) -> None:
    assert rig.put({**BASE, "notes": []}, confirm={"seconds": 60}).status == 202
    down(rig, "m/1")
    assert told(rig) == ""
    assert rig.engine.confirm(2, "another").status == 200
    rig.engine.ask_members()
    assert told(rig) == "m/1"
