"""What stands apart and is refused holds up nothing else: it stays as it was, and the answer, health and state say so.

The role is the toy, whose keyd stands apart here.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.plan import Step
from appliance.state import File, State
from tests.appliance import toy
from tests.appliance.rig import BASE, Rig, put_in

FOLDER = "/etc/toy/apart"


def compile(config: toy.Config, facts: Any) -> State:
    state = toy.compile(config, facts)
    files = tuple(replace(f, path=f"{FOLDER}/accounts") if f.path == "/etc/toy/accounts" else f for f in state.files)
    units = tuple(
        replace(u, restart_on=(f"{FOLDER}/accounts",), apart=FOLDER) if u.name == "keyd" else u for u in state.units
    )
    return replace(state, files=files, units=units)


def revise(state: State, config: toy.Config, touched: Any, facts: Any) -> State | None:
    notes = all(t.collection == "notes" for t in touched)
    return replace(state, files=compile(config, facts).files, units=compile(config, facts).units) if notes else None


ROLE = SimpleNamespace(
    Config=toy.Config, problems=toy.problems, revised_problems=toy.revised_problems, trace=toy.trace,
    compile=compile, revise=revise,
)  # fmt: skip
NO = {"path": "unit keyd", "message": "line 1: no", "folder": FOLDER}
TOLD = [{"path": "unit keyd", "message": "line 1: no"}]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, role=ROLE)
    rig.settle({**BASE, "accounts": [account("old")]})
    return rig


def account(password: str) -> dict[str, str]:
    return {"id": "anna", "password": password}


def accounts(rig: Rig) -> str:
    return next((f.content for f in rig.host.machine.files if f.path == f"{FOLDER}/accounts"), "")


def note(rig: Rig) -> str:
    return next(f.content for f in rig.host.machine.files if f.path.startswith("/etc/toy/notes/"))


LOUD = put_in("notes", id="hello", text="HELLO")
WRONG = put_in("accounts", **account("wrong"))


def test_refused_by_its_dry_check(rig: Rig) -> None:
    rig.host.refuse = [NO]
    answer = rig.patch(LOUD, WRONG)
    assert (answer.status, answer.body["refused"]) == (200, TOLD)
    assert (note(rig), accounts(rig)) == ("HELLO\n", "anna old\n")
    assert rig.engine.broken == ""
    assert rig.engine.heal("timer") is None
    health = rig.app().test_client().get("/v1/health")
    assert (health.status_code, health.json["refused"]) == (503, ["unit keyd: line 1: no"])  # type: ignore[index]


def test_the_rest_of_a_later_change_is_made_too_and_it_is_asked_again(rig: Rig) -> None:
    rig.host.refuse = [NO]
    rig.patch(WRONG)
    answer = rig.patch(LOUD)
    assert (answer.status, answer.body["refused"]) == (200, TOLD)
    assert (note(rig), accounts(rig)) == ("HELLO\n", "anna old\n")
    rig.host.refuse = []
    answer = rig.patch(put_in("notes", id="hello", text="Hello"))
    assert "refused" not in answer.body
    assert (note(rig), accounts(rig)) == ("Hello\n", "anna wrong\n")
    assert rig.engine.current.refused == []


def test_a_start_makes_what_stands(rig: Rig) -> None:
    rig.host.refuse = [NO]
    rig.patch(LOUD, WRONG)
    rig.patch(put_in("notes", id="hello", text="Hello"))
    before = rig.host.machine
    rig.restart()
    assert rig.host.machine == before
    assert rig.engine.broken == ""
    assert rig.engine.current.refused


def test_something_else_refused_is_the_whole_refused(rig: Rig) -> None:
    rig.host.refuse = [NO, {"path": "unit toyd", "message": "no"}]
    answer = rig.patch(LOUD, WRONG)
    assert answer.status == 422
    assert len(answer.body["problems"]) == 2
    assert (note(rig), accounts(rig)) == ("hello\n", "anna old\n")


def test_a_plan_tells_it_and_touches_nothing(rig: Rig) -> None:
    rig.host.refuse = [NO]
    told = rig.engine.plan(rig.change(WRONG, LOUD))
    assert (told.status, told.body["refused"]) == (200, TOLD)
    assert [s["kind"] for s in told.body["steps"]] == ["file", "unit", "entry"]  # vpnd's, which is not apart
    assert rig.patch(WRONG, LOUD, plan=told.body["plan"]).status == 200


@pytest.mark.parametrize("kind", ["file", "unit"])
def test_a_step_of_it_fails(rig: Rig, kind: str) -> None:
    def once(step: Step) -> None:
        if (kind == "unit" and step.name == "keyd" and "wrong" in accounts(rig)) or (
            kind == "file" and isinstance(step.after, File) and "wrong" in step.after.content
        ):
            rig.host.fail_at = 0

    rig.host.on_commit = once
    answer = rig.patch(LOUD, WRONG)
    assert answer.status == 200, answer.body
    assert "broken on purpose" in answer.body["refused"][0]["message"] or "evidence" in str(answer.body["refused"])
    assert (note(rig), accounts(rig)) == ("HELLO\n", "anna old\n")
    assert rig.engine.heal("timer") is None
    rig.host.on_commit = None
    rig.restart()
    assert accounts(rig) == "anna old\n"


def test_one_that_never_was_stays_away(tmp_path: Path) -> None:
    rig = Rig(tmp_path, role=ROLE)
    rig.settle(BASE)
    rig.host.refuse = [NO]
    answer = rig.patch(LOUD, WRONG)
    assert (answer.status, answer.body["refused"]) == (200, TOLD)
    assert (note(rig), accounts(rig)) == ("HELLO\n", "")
    assert {u.name for u in rig.host.machine.units} == {"toyd", "vpnd"}
    assert rig.put({**BASE, "notes": [{"id": "hello", "text": "x"}]}).body.get("refused") is None
