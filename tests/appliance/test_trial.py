"""The trial of a release: it makes the State that the running agent has, reads the journal, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

import appliance.__main__
from appliance import settings, trial
from appliance.engine import Engine
from appliance.log import Log
from appliance.metrics import Metrics
from appliance.plan import lines
from appliance.roles import Role
from appliance.store import Store
from tests.appliance import toy
from tests.appliance.rig import BASE, Rig, put_in


@pytest.fixture(name="rig")
def _rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A running agent, whose journal and machine the trial gets to see."""
    rig = Rig(tmp_path / "store")

    def make_engine(facts: Any, role: Any, log: Log, metrics: Metrics, writes: bool) -> Engine:
        return Engine(cast(Role, toy), rig.host, Store(rig.folder, writes), rig.settings, log, metrics)

    monkeypatch.setattr(settings, "load", lambda: rig.settings)
    monkeypatch.setattr(appliance.__main__, "make_engine", make_engine)
    return rig


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_makes_what_the_agent_makes(rig: Rig) -> None:
    assert (trial.tried()["generation"], trial.tried()["lines"]) == (0, list(lines(rig.engine.current.state)))
    rig.settle(BASE)
    rig.patch(put_in("notes", id="hello", text="HELLO"))
    told = trial.tried()
    assert (told["generation"], told["lines"]) == (2, list(lines(rig.engine.current.state)))
    assert any("HELLO" in line for line in told["lines"])


def test_it_writes_nothing_not_even_what_the_agent_would_put_right(rig: Rig) -> None:
    rig.settle(BASE)
    with (rig.folder / "journal").open("ab") as journal:
        journal.write(b'{"event": "begin", "rec')  # the agent is at it
    before = content(rig.folder)
    assert trial.tried()["generation"] == 1
    assert content(rig.folder) == before
    rig.restart()
    assert content(rig.folder) != before, "a torn line that nobody writes any more is cut off"


def test_a_document_that_it_cannot_make(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.settle(BASE)
    monkeypatch.setattr(toy, "compile", lambda config, facts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.tried()
