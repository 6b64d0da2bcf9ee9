"""The engine's promises: the machine is the generation before or the one pushed, and the answer says why."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import appliance.store
from appliance.engine import Engine
from appliance.fake import FakeHost, facts
from appliance.plan import Step, plan
from appliance.state import Problem, State
from tests.appliance import toy
from tests.appliance.rig import BASE, MACS, RICH, Rig, document, put_in, remove


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the disk is for the netns and vm tiers; here the order of the writes is what counts."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """At generation 1, BASE, confirmed."""
    rig = Rig(tmp_path)
    rig.settle(BASE)
    return rig


DOOR = put_in("doors", id="web", port=80, target="10.1.1.99")
LOUD = put_in("notes", id="hello", text="HELLO")


# --- start ---


def test_a_fresh_machine_is_closed_and_keeps_its_way_in(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert not rig.is_now(rig.engine.current.state)
    assert rig.engine.current.number == 0
    assert [c.hook.policy for c in rig.host.machine.ruleset.chains if c.hook] == ["drop", "drop"]
    assert [a.cidr for a in rig.host.machine.addresses] == ["169.254.2.10/24"]


def test_restart_changes_nothing(rig: Rig) -> None:
    state, done = rig.engine.current.state, len(rig.host.done)
    rig.restart()
    assert rig.engine.current.number == 1
    assert rig.engine.current.state == state
    assert rig.host.done[done:] == []


def test_a_document_that_cannot_be_made_any_more_leaves_the_machine_closed(rig: Rig) -> None:
    rig.host.known = facts(MACS[0])  # the outside wire is unplugged while the agent is down
    rig.restart()
    assert rig.engine.current.number == 0
    assert "generation 1 cannot be made" in rig.engine.broken
    assert rig.host.machine.ruleset == rig.engine.current.state.ruleset
    rig.host.known = facts(*MACS)
    assert rig.engine.heal("timer") is not None
    assert (rig.engine.broken, rig.engine.current.number) == ("", 1)
    assert not rig.is_now(toy.compile(toy.Config.model_validate_json(json.dumps(BASE)), facts(*MACS)))


def test_a_machine_that_cannot_be_observed_still_gets_an_agent(rig: Rig) -> None:
    rig.host.blind = True
    rig.restart()
    assert "cannot observe" in rig.engine.broken
    rig.host.blind = False
    rig.engine.heal("timer")
    assert rig.engine.broken == ""


# --- what a push is answered ---


def test_put_applies(rig: Rig) -> None:
    answer = rig.put({**BASE, "notes": []})
    assert answer.status == 200
    assert answer.body["result"] == "applied"
    assert answer.body["generation"] == 2
    assert set(answer.body["timings"]) >= {"decode", "plan", "check", "journal", "verify", "keep"}
    assert not rig.is_now(rig.engine.current.state)
    assert [f.path for f in rig.host.machine.files] == ["/etc/toy/doors"]


def test_same_document_is_unchanged(rig: Rig) -> None:
    done = len(rig.host.done)
    assert rig.put(BASE, 1).body["result"] == "unchanged"
    assert rig.engine.current.number == 1
    assert rig.put(BASE, 7).body == {"generation": 7, "result": "unchanged", "timings": {"decode": 0.0}}
    assert rig.engine.current.number == 7
    assert len(rig.host.done) == done
    rig.restart()
    assert rig.engine.current.number == 7
    assert rig.put(BASE, 6).status == 409


def test_same_document_in_other_words_is_unchanged(rig: Rig) -> None:
    rig.patch(LOUD)
    loud = {**BASE, "notes": [{"text": "HELLO", "id": "hello"}]}
    assert rig.put(loud, 2).body["result"] == "unchanged"
    assert rig.put(loud, 3).body["result"] == "unchanged"


def test_change_without_effect_is_unchanged(rig: Rig) -> None:
    answer = rig.patch(put_in("notes", id="hello", text="hello"))
    assert (answer.status, answer.body["result"], rig.engine.current.number) == (200, "unchanged", 2)


def test_stale_generation(rig: Rig) -> None:
    rig.settle({**BASE, "notes": []})
    answer = rig.put({**BASE, "doors": []}, 1)
    assert answer.status == 409
    assert answer.body["current"] == 2
    assert "use 3 or higher" in answer.body["error"]


def test_equal_generation_of_another_document(rig: Rig) -> None:
    assert rig.put({**BASE, "doors": []}, 1).status == 409
    assert not rig.is_now(rig.engine.current.state)


def test_undone_generation_may_be_used_again(rig: Rig) -> None:
    rig.host.fail_at = 0
    assert rig.put({**BASE, "notes": []}, 2).status == 500
    assert rig.put({**BASE, "doors": []}, 2).status == 200
    rig.restart()
    assert rig.engine.current.number == 2
    assert rig.engine.current.config.doors == ()  # type: ignore[union-attr]


def test_change_against_another_base(rig: Rig) -> None:
    rig.patch(LOUD)
    answer = rig.patch(DOOR, base=1, generation=3)
    assert answer.status == 409
    assert "made against generation 1; the machine is at 2" in answer.body["error"]


def test_change_before_any_document(tmp_path: Path) -> None:
    answer = Rig(tmp_path).patch(DOOR, base=0)
    assert answer.status == 409
    assert "whole" in answer.body["error"]


def test_document_for_another_role(rig: Rig) -> None:
    for push in (document(BASE, 2, role="ssvm"), rig.change(DOOR, role="ssvm")):
        answer = rig.engine.put(push) if b"config" in push else rig.engine.patch(push)
        assert (answer.status, answer.body["problems"][0]["path"]) == (422, "role")


def test_demanded_plan(rig: Rig) -> None:
    wanted = {**BASE, "notes": []}
    plan_told = rig.engine.plan(document(wanted, 2)).body
    rig.host.known = facts(*MACS)
    assert rig.patch(DOOR).status == 200  # another manager was quicker
    answer = rig.put(wanted, 3, plan=plan_told["plan"])
    assert answer.status == 412
    assert answer.body["plan"] == rig.engine.plan(document(wanted, 3)).body["plan"]
    assert rig.put(wanted, 3, plan=answer.body["plan"]).status == 200


def test_plan_tells_and_touches_nothing(rig: Rig) -> None:
    done, records = len(rig.host.done), len(rig.store.records)
    told = rig.engine.plan(document(RICH, 2)).body
    assert told["confirm"] is True  # it changes policy rules
    assert told["units"] == ["reload toyd", "start keyd"]
    assert told["flows"] == [{"owner": "outside", "flow": "of outside, web"}]
    assert "+address 10.1.1.1/24 on eth2" in told["diff"]
    assert rig.engine.plan(document(BASE, 9)).body["steps"] == []
    assert rig.engine.plan(rig.change(LOUD)).body["units"] == ["reload toyd"]
    assert (rig.engine.current.number, len(rig.host.done), len(rig.store.records)) == (1, done, records)


def test_every_problem_with_its_path_in_one_answer(rig: Rig) -> None:
    wires = [{"id": "a", "mac": "02:00:00:00:00:99"}, {"id": "b", "mac": "02:00:00:00:00:98"}]
    ways = [{"id": "w", "wire": "none", "destination": "10.0.0.0/8", "via": "10.0.0.1"}]
    answer = rig.put({"wires": wires, "ways": ways})
    assert answer.status == 422
    paths = [p["path"] for p in answer.body["problems"]]
    assert paths == ["config.wires[a].mac", "config.wires[b].mac", "config.ways[w].wire"]
    doors = [{"id": "d", "port": 0, "target": "x"}, {"id": "e", "port": 1, "target": "10.0.0.1", "color": "red"}]
    answer = rig.put({"wires": [], "doors": doors, "notes": 3})
    paths = [p["path"] for p in answer.body["problems"]]
    assert paths == ["config.notes", "config.doors[d].port", "config.doors[d].target", "config.doors[e].color"]
    change = (put_in("doors", id="d", port=0, target="x"), remove("notes", "none"), put_in("windows", id="w"))
    paths = [p["path"] for p in rig.patch(*change).body["problems"]]
    assert paths == [
        "operations[0].object.port", "operations[0].object.target", "operations[1].id", "operations[2].collection",
    ]  # fmt: skip
    answer = rig.patch(put_in("doors", id="two", port=80, target="10.0.0.1"))
    assert [p["path"] for p in answer.body["problems"]] == ["config.doors[two]"]
    assert not rig.is_now(rig.engine.current.state)
    assert rig.engine.current.number == 1


def test_dry_check_refuses(rig: Rig) -> None:
    rig.host.refuse = [{"path": "unit toyd", "message": "line 3: no such word"}]
    answer = rig.put({**BASE, "doors": []})
    assert (answer.status, answer.body["problems"]) == (422, rig.host.refuse)
    assert list(rig.store.records) == [1]
    assert not rig.is_now(rig.engine.current.state)


def test_the_kernel_refuses_the_first_step(rig: Rig) -> None:
    rig.host.refuse_nft = "interval overlaps with an existing one"
    answer = rig.patch(DOOR)
    assert answer.status == 422
    assert answer.body["problems"] == [
        {"path": "apply ruleset m_door (web)", "message": "interval overlaps with an existing one"}
    ]
    assert "undo" not in answer.body
    assert not rig.is_now(rig.engine.current.state)
    rig.restart()
    assert rig.engine.current.number == 1


def test_the_kernel_refuses_a_later_step(rig: Rig) -> None:
    rig.host.refuse_nft = "no"
    # Undoing writes no ruleset: the refused one never was.
    answer = rig.put(RICH)
    assert (answer.status, answer.body["result"]) == (500, "undone")
    assert answer.body["step"].startswith("apply ruleset")
    assert not rig.is_now(rig.engine.current.state)


# --- a step that fails, a step that lies ---

TURNS = {
    "there": (BASE, RICH),
    "back": (RICH, BASE),
    "reload": (BASE, {**BASE, "doors": [{"id": "web", "port": 80, "target": "10.1.1.98"}]}),
}


def every_step(tmp_path: Path, turn: str) -> Iterator[tuple[Rig, int, Step]]:
    """A rig at the turn's first document for each step of the way to its second; the rig, the step and its number."""
    start, end = TURNS[turn]
    number = 0
    while True:
        rig = Rig(tmp_path / str(number))
        before = rig.settle(start)
        steps = plan(before, toy.compile(toy.Config.model_validate_json(json.dumps(end)), rig.host.known))
        if number == len(steps):
            return
        yield rig, number, steps[number]
        number += 1


def test_the_turns_have_every_kind_of_step(tmp_path: Path) -> None:
    seen = {(step.kind, step.verb) for turn in TURNS for _, _, step in every_step(tmp_path / turn, turn)}
    assert seen == {
        ("sysctl", "set"), ("link", "set"), ("link", "remove"), ("address", "add"), ("address", "remove"),
        ("route", "add"), ("route", "remove"), ("rule", "add"), ("rule", "remove"), ("ruleset", "apply"),
        ("file", "write"), ("file", "remove"), ("unit", "start"), ("unit", "stop"), ("unit", "reload"),
        ("entry", "set"), ("entry", "remove"), ("flows", "end"),
    }  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
def test_a_failing_step_is_undone(tmp_path: Path, turn: str) -> None:
    for rig, number, step in every_step(tmp_path, turn):
        before = rig.engine.current.state
        rig.host.fail_at = number
        answer = rig.put(TURNS[turn][1])
        assert answer.status == 500
        assert answer.body["result"] == "undone"
        assert answer.body["step"] == str(step)
        assert answer.body["object"] == step.owner
        assert answer.body["evidence"] == "evidence of the fake"
        assert (answer.body["current"], rig.engine.current.number) == (1, 1)
        assert not rig.is_now(before)
        assert rig.engine.broken == ""
        assert rig.store.records[2].status == "undone"
        rig.restart()
        assert not rig.is_now(before)


@pytest.mark.parametrize("turn", TURNS)
def test_a_step_that_breaks_unforeseen_is_undone(tmp_path: Path, turn: str) -> None:
    for rig, number, step in every_step(tmp_path, turn):
        before, left = rig.engine.current.state, [number]

        def break_once(taken: Step, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise ZeroDivisionError("nobody thought of this")

        rig.host.on_commit = break_once
        answer = rig.put(TURNS[turn][1])
        assert (answer.status, answer.body["result"], answer.body["step"]) == (500, "undone", str(step))
        assert answer.body["error"] == "ZeroDivisionError: nobody thought of this"
        assert not rig.is_now(before)


@pytest.mark.parametrize("turn", TURNS)
def test_a_lying_step_is_found_and_undone(tmp_path: Path, turn: str) -> None:
    for rig, number, step in every_step(tmp_path, turn):
        if step.kind == "flows":
            continue  # a deed, not a part of what the machine is
        before = rig.engine.current.state
        rig.host.lie_at = number
        answer = rig.put(TURNS[turn][1])
        assert (answer.status, answer.body["result"]) == (500, "undone"), step
        assert not rig.is_now(before)
        if step.kind == "link" and answer.body["step"] != "verify":
            assert "network is down" in answer.body["error"]  # a route met the lie before the verification did
            continue
        assert answer.body["step"] == "verify"
        assert answer.body["object"] == (step.owner or step.name)
        assert answer.body["evidence"][0]["name"] == step.name
        assert "did not converge" in answer.body["error"]


def test_blindness_after_the_commit_is_undone(rig: Rig) -> None:
    before = rig.engine.current.state

    def go_blind(step: Step) -> None:
        rig.host.blind = step.kind == "unit" and not rig.host.blind

    rig.host.on_commit = go_blind
    answer = rig.patch(LOUD)
    assert (answer.status, answer.body["step"]) == (500, "verify")
    assert answer.body["result"] == "undo failed"  # it cannot see what to undo
    rig.host.blind, rig.host.on_commit = False, None
    rig.engine.heal("timer")
    assert not rig.is_now(before)


def test_undo_that_fails_is_broken_until_healed(rig: Rig) -> None:
    client = rig.app().test_client()
    before = rig.engine.current.state
    rig.host.fail_at, rig.host.fail_for = 6, 1000
    answer = rig.put(RICH)
    assert (answer.status, answer.body["result"]) == (500, "undo failed")
    assert "broken on purpose" in answer.body["broken"]
    assert rig.engine.broken == answer.body["broken"]
    assert client.get("/v1/health").status_code == 503
    assert rig.is_now(before)
    rig.host.fail_at = -1
    drift = rig.engine.heal("timer")
    assert drift is not None
    assert drift.healed
    assert not rig.is_now(before)  # what was left over of RICH is gone too
    assert client.get("/v1/health").status_code == 200


def test_broken_is_healed_under_every_policy(tmp_path: Path) -> None:
    rig = Rig(tmp_path, heal="report")
    before = rig.settle(BASE)
    rig.host.fail_at, rig.host.fail_for = 6, 1000
    rig.put(RICH)
    rig.host.fail_at = -1
    rig.engine.heal("timer")
    assert not rig.is_now(before)


def test_a_push_to_a_broken_machine_starts_from_what_it_is(rig: Rig) -> None:
    rig.host.fail_at, rig.host.fail_for = 6, 1000
    rig.put(RICH)
    rig.host.fail_at = -1
    state = rig.settle({**BASE, "notes": []})
    assert not rig.is_now(state)
    assert rig.engine.broken == ""


def test_the_same_document_again_mends_a_broken_machine(rig: Rig) -> None:
    rig.host.fail_at, rig.host.fail_for = 6, 1000
    rig.put(RICH)
    answer = rig.put(BASE, 1)
    assert answer.status == 500
    assert answer.body["broken"]
    rig.host.fail_at = -1
    assert rig.put(BASE, 1).body["result"] == "unchanged"
    assert not rig.is_now(rig.engine.current.state)


def test_one_step_that_cannot_be_undone_leaves_the_others_undone(rig: Rig) -> None:
    before = rig.engine.current.state
    seen: list[Step] = []

    def hold_a_link(step: Step) -> None:
        seen.append(step)
        if len(seen) > 6 and step.kind == "link":
            raise OSError("device is busy")

    rig.host.on_commit, rig.host.fail_at = hold_a_link, 9
    answer = rig.put(RICH)
    assert answer.body["result"] == "undo failed"
    assert {step.kind for step in rig.is_now(before)} == {"link"}


def test_what_a_removal_takes_along_is_put_back(rig: Rig) -> None:
    """The kernel flushes a link's routes when its last address goes: an undo needs a second round then."""
    before = rig.engine.current.state

    def flush_routes(step: Step) -> None:
        if step.kind == "address" and step.verb == "remove":
            rig.host.machine = replace(rig.host.machine, routes=())

    assert rig.put(RICH).status == 202
    rig.host.on_commit = flush_routes
    rig.host.clock += 60
    assert rig.engine.expire()
    assert rig.engine.broken == ""
    assert not rig.is_now(before)


# --- the journal ---


def full_disk(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_full_disk(fd: int, data: bytes) -> int:
    """Takes half of the first write and refuses the rest."""
    if len(data) < 20:
        full_disk()
    return REAL_WRITE(fd, bytes(data[: len(data) // 2]))


REAL_WRITE = os.write


@pytest.mark.parametrize("disk", [full_disk, half_full_disk])
@pytest.mark.parametrize("kind", ["put", "patch"])
def test_full_disk_before_the_first_step(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, disk: Callable[..., int], kind: str
) -> None:
    before, done = rig.engine.current.state, len(rig.host.done)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk)
        answer = rig.put({**BASE, "doors": []}) if kind == "put" else rig.patch(DOOR)
    assert (answer.status, answer.body["result"]) == (500, "nothing touched")
    assert "No space left" in answer.body["error"]
    assert len(rig.host.done) == done
    rig.restart()
    assert (rig.engine.current.number, rig.store.unreadable) == (1, 0)
    assert not rig.is_now(before)
    assert rig.patch(DOOR).status == 200


def test_full_disk_at_the_end_is_undone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.engine.current.state
    with monkeypatch.context() as patch:
        rig.host.on_commit = lambda step: patch.setattr(os, "write", full_disk)
        answer = rig.patch(DOOR)
    rig.host.on_commit = None
    assert (answer.status, answer.body["result"], answer.body["step"]) == (500, "undone", "keep")
    assert not rig.is_now(before)
    rig.restart()
    assert rig.engine.current.number == 1
    assert not rig.is_now(before)


def test_full_disk_when_a_confirmation_is_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.engine.current.state
    with monkeypatch.context() as patch:
        rig.host.on_commit = lambda step: patch.setattr(os, "write", full_disk)
        answer = rig.put(RICH)
    assert (answer.status, answer.body["result"]) == (500, "undone")
    assert rig.engine.awaiting is None
    assert not rig.is_now(before)


def test_full_disk_for_the_number_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        assert rig.put(BASE, 5).status == 500
    assert rig.engine.current.number == 1


def test_full_disk_while_pruning_keeps_the_push(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 2)
    real = appliance.store.write_durably

    def refuse_journals(path: Path, content: bytes, mode: int = 0o600) -> None:
        if path.name == "journal":
            full_disk()
        real(path, content, mode)

    monkeypatch.setattr(appliance.store, "write_durably", refuse_journals)
    for number in range(8):
        assert rig.patch(put_in("notes", id="hello", text=f"{number}")).status == 200
    assert "cannot prune" in rig.log.getvalue()
    rig.restart()
    assert rig.engine.current.number == 9
    assert not rig.is_now(rig.engine.current.state)


@pytest.mark.parametrize(
    "torn", [b'{"event":"note","gener', b"\x00" * 40, b'{"event":"begin","rec\n', b"\xff\xfe\n", b"3\n"]
)
def test_a_torn_last_line_was_never_relied_upon(rig: Rig, torn: bytes) -> None:
    with (rig.folder / "journal").open("ab") as journal:
        journal.write(torn)
    rig.restart()
    assert rig.engine.current.number == 1
    assert not rig.is_now(rig.engine.current.state)
    assert rig.patch(DOOR).status == 200
    rig.restart()
    assert (rig.engine.current.number, rig.store.unreadable) == (2, 0)


def test_an_unreadable_line_is_told_and_left_out(rig: Rig) -> None:
    with (rig.folder / "journal").open("ab") as journal:
        journal.write(b'{"event":"no\n')
    rig.store._append({"event": "note", "generation": 1, "set": {"why": "a good line behind it"}})
    rig.restart()
    assert rig.engine.current.number == 1
    assert "1 lines cannot be read" in rig.log.getvalue()


# --- confirm ---


def test_confirm_over_another_connection(rig: Rig) -> None:
    answer = rig.put(RICH, connection="a")
    assert answer.status == 202
    assert answer.body["confirm"]["seconds"] == 60
    answer = rig.engine.confirm(2, "a")
    assert answer.status == 403
    assert rig.engine.awaiting
    assert rig.engine.confirm(2, "b").status == 200
    assert rig.engine.confirm(2, "b").body["result"] == "already confirmed"
    rig.host.clock += 1000
    assert not rig.engine.expire()
    rig.restart()
    assert rig.engine.current.number == 2


def test_confirm_of_another_generation(rig: Rig) -> None:
    assert rig.engine.confirm(1, "b").status == 200
    assert rig.engine.confirm(9, "b").status == 409
    rig.put(RICH)
    assert rig.engine.confirm(1, "b").status == 409
    assert rig.engine.awaiting


def test_too_late(rig: Rig) -> None:
    before = rig.engine.current.state
    rig.put(RICH, confirm={"seconds": 5})
    rig.host.clock += 5
    answer = rig.engine.confirm(2, "b")
    assert answer.status == 409
    assert "too late" in answer.body["error"]
    assert not rig.is_now(before)


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_the_wall_clock_may_be_set_meanwhile(rig: Rig, jump: float) -> None:
    """NTP puts a clock right minutes after boot: a deadline is neither over at once nor put off by a day."""
    rig.put(RICH, confirm={"seconds": 5})
    rig.host.ahead = jump
    rig.host.clock += 4.9
    assert not rig.engine.expire()
    assert rig.engine.awaiting
    rig.host.clock += 0.1
    assert rig.engine.expire()
    rig.put(RICH, confirm={"seconds": 5})
    rig.host.ahead = 0.0
    assert rig.engine.confirm(rig.engine.current.number, "b").status == 200


def test_the_deadline_undoes_with_evidence(rig: Rig) -> None:
    before = rig.engine.current.state
    rig.put(RICH, confirm={"seconds": 5})
    rig.host.clock += 4.9
    assert not rig.engine.expire()
    rig.host.clock += 0.1
    assert rig.engine.expire()
    assert not rig.is_now(before)
    assert (rig.engine.current.number, rig.engine.awaiting) == (1, None)
    assert rig.store.records[2].why == "not confirmed within 5 s"
    assert "a fake machine has no gateways" in rig.log.getvalue()
    assert not rig.engine.expire()


def test_the_deadline_holds_where_there_is_no_evidence(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rig.engine.current.state
    rig.put(RICH)
    monkeypatch.setattr(rig.host, "probe", full_disk)
    rig.host.clock += 60
    assert rig.engine.expire()
    assert not rig.is_now(before)


def test_a_document_may_ask_for_its_confirmation(rig: Rig) -> None:
    assert rig.put({**BASE, "notes": []}, confirm={"seconds": 9}).status == 202
    rig.engine.confirm(2, "b")
    assert rig.patch(DOOR, confirm={"seconds": 9}).status == 202


def test_what_touches_the_way_in_demands_a_confirmation(rig: Rig) -> None:
    wires = [{**BASE["wires"][0], "mtu": 1400}, BASE["wires"][1]]
    assert rig.put({**BASE, "wires": wires}).status == 202
    rig.engine.confirm(2, "b")
    wires = [{**BASE["wires"][0], "addresses": ["169.254.2.11/24"]}, BASE["wires"][1]]
    assert rig.put({**BASE, "wires": wires}).status == 202


def test_pushes_wait_for_the_confirmation(rig: Rig) -> None:
    rig.put(RICH)
    assert rig.put({**BASE, "doors": []}, 3).status == 409
    assert rig.put(BASE, 3).status == 409
    assert rig.patch(LOUD).status == 409
    assert rig.engine.rollback(1, "b").status == 409
    assert rig.put(RICH, 3).status == 409
    assert rig.engine.plan(document(BASE, 3)).status == 409
    assert rig.put(RICH, 2).status == 202  # the answer was lost: the same push, the same answer
    assert rig.engine.confirm(2, "b").status == 200


def test_restart_inside_the_window_is_undone(rig: Rig) -> None:
    before = rig.engine.current.state
    rig.put(RICH)
    rig.restart()
    assert (rig.engine.current.number, rig.engine.awaiting, rig.engine.broken) == (1, None, "")
    assert not rig.is_now(before)
    assert rig.engine.confirm(2, "b").status == 409


def test_first_document_unconfirmed_ends_in_the_closed_machine(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    shut = rig.engine.current.state
    assert rig.put(BASE).status == 202
    rig.host.clock += 60
    rig.engine.expire()
    assert not rig.is_now(shut)
    assert [a.cidr for a in rig.host.machine.addresses] == ["169.254.2.10/24"]


# --- rollback and reading back ---


def test_rollback_to_every_kept_generation(rig: Rig) -> None:
    states = {1: rig.engine.current.state}
    for number in range(2, 8):
        if number == 4:
            states[number] = rig.settle({**BASE, "doors": []})
        else:
            rig.patch(put_in("notes", id=f"n{number}", text="x"), *([remove("notes", "hello")] if number == 3 else []))
            states[number] = rig.engine.current.state
    for number, state in states.items():
        answer = rig.engine.rollback(number, "a")
        assert answer.status == 200
        assert answer.body["generation"] == rig.engine.current.number > 7
        assert not plan(rig.engine.current.state, state)
        assert not rig.is_now(state)
        rig.restart()
        assert not rig.is_now(state)


def test_rollback_to_what_is_not_kept(rig: Rig) -> None:
    rig.host.fail_at = 0
    rig.patch(DOOR)
    for number in (2, 99, 0):
        answer = rig.engine.rollback(number)
        assert answer.status == 404
        assert "those that are: 1" in answer.body["error"]


def test_rollback_that_fails_is_undone(rig: Rig) -> None:
    rig.patch(LOUD)
    before = rig.engine.current.state
    rig.host.fail_at = 1
    answer = rig.engine.rollback(1)
    assert (answer.status, answer.body["result"], answer.body["current"]) == (500, "undone", 2)
    assert not rig.is_now(before)


def test_rollback_to_a_document_that_does_not_fit_any_more(rig: Rig) -> None:
    rig.settle({**BASE, "wires": BASE["wires"][:1], "ways": []})
    rig.host.known = facts(MACS[0])
    answer = rig.engine.rollback(1)
    assert (answer.status, answer.body["problems"][0]["path"]) == (422, "config.wires[outside].mac")


def test_hundreds_of_changes_are_read_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.store, "KEEP", 20)
    monkeypatch.setattr(appliance.store, "WHOLE_EVERY", 30)
    texts: dict[int, dict[str, str]] = {1: {"hello": "hello"}}
    for number in range(2, 302):
        ident = f"n{number % 7}"
        notes = dict(texts[number - 1])
        if ident in notes and number % 3 == 0:
            answer = rig.patch(remove("notes", ident))
            del notes[ident]
        else:
            answer = rig.patch(put_in("notes", id=ident, text=str(number)))
            notes[ident] = str(number)
        texts[number] = notes
        assert answer.status == 200
        if number % 50 == 0:
            rig.restart()
    assert len(rig.store.records) <= 2 * 20 + 30 + 20
    kept = sorted(rig.store.records)[-20:]
    assert kept == list(range(282, 302))
    for number in kept:
        read = json.loads(rig.engine.document(number))["config"]["notes"]
        assert {n["id"]: n["text"] for n in read} == texts[number]
    assert rig.engine.rollback(282).status == 200
    assert rig.engine.rollback(5).status == 404
    documents = {int(p.stem) for p in (rig.folder / "documents").iterdir()}
    assert documents <= set(rig.store.records)


def test_a_generation_is_its_document(rig: Rig) -> None:
    rig.patch(LOUD)
    assert json.loads(rig.engine.document(1)) == {
        "version": 1, "role": "router", "generation": 1,
        "config": toy.Config.model_validate_json(json.dumps(BASE)).model_dump(mode="json"),
    }  # fmt: skip
    assert rig.engine.state_of(1).files != rig.engine.state_of(2).files
    with pytest.raises(KeyError):
        rig.engine.document(9)


# --- two at once ---


def test_two_managers_at_once(rig: Rig) -> None:
    bodies = [document({**BASE, "notes": [{"id": "by", "text": who}]}, 2) for who in ("anna", "ben")]
    gate, answers = threading.Barrier(2), list[int]()

    def push(body: bytes) -> None:
        gate.wait()
        answers.append(rig.engine.put(body).status)

    threads = [threading.Thread(target=push, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]
    assert not rig.is_now(rig.engine.current.state)


# --- drift ---


def damage(rig: Rig) -> None:
    machine = rig.host.machine
    rig.host.machine = State(
        files=machine.files, units=(), sysctls=machine.sysctls, links=machine.links,
        addresses=machine.addresses[:1], routes=machine.routes, rules=machine.rules, ruleset=machine.ruleset,
    )  # fmt: skip


def test_drift_is_healed_and_named(rig: Rig) -> None:
    assert rig.engine.heal("timer") is None
    damage(rig)
    drift = rig.engine.heal("address", "mallory")
    assert drift is not None
    assert drift.healed
    assert (drift.reason, drift.by) == ("address", "mallory")
    assert [(s["verb"], s["name"], s["owner"]) for s in drift.steps] == [
        ("add", "203.0.113.10/24 on eth1", "outside"), ("start", "toyd", ""),
        ("start", "vpnd", ""),
    ]  # fmt: skip
    assert not rig.is_now(rig.engine.current.state)
    assert rig.engine.heal("timer") is None
    assert '"objects": ["outside", "toyd", "vpnd"]' in rig.log.getvalue()
    assert rig.metrics.get("narthex_drift_total", 'done="healed"') == 1


def test_drift_is_only_reported_where_the_policy_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path, heal="report")
    rig.settle(BASE)
    damage(rig)
    done = len(rig.host.done)
    drift = rig.engine.heal("timer")
    assert drift is not None
    assert not drift.healed
    assert len(rig.host.done) == done
    assert rig.metrics.get("narthex_drift_total", 'done="reported"') == 1


def test_drift_that_cannot_be_healed_is_broken(rig: Rig) -> None:
    damage(rig)
    rig.host.fail_at, rig.host.fail_for = 0, 1000
    drift = rig.engine.heal("timer")
    assert drift is not None
    assert not drift.healed
    assert rig.engine.broken
    rig.host.fail_at = -1
    rig.engine.heal("timer")
    assert rig.engine.broken == ""


def test_drift_while_a_confirmation_is_awaited_goes_to_what_was_pushed(rig: Rig) -> None:
    rig.put(RICH)
    damage(rig)
    rig.engine.heal("timer")
    assert not rig.is_now(rig.engine.current.state)
    assert rig.engine.current.number == 2


# --- doing it twice, doing it backwards ---


def test_a_change_and_its_opposite_are_nothing(rig: Rig) -> None:
    before = rig.engine.current.state
    there = [remove("doors", "web"), put_in("doors", id="ssh", port=22, target="10.1.1.1"), LOUD]
    back = [put_in("doors", **BASE["doors"][0]), remove("doors", "ssh"), put_in("notes", **BASE["notes"][0])]
    assert rig.patch(*there).status == 200
    assert rig.is_now(before)
    assert rig.patch(*back).status == 200
    assert not rig.is_now(before)
    assert rig.put(BASE).body["result"] == "unchanged"


def test_twice_is_once(rig: Rig) -> None:
    rig.settle(RICH)
    done = len(rig.host.done)
    assert rig.put(RICH).body["result"] == "unchanged"
    rig.restart()
    assert rig.engine.heal("timer") is None
    assert len(rig.host.done) == done


def test_a_role_that_revises_says_what_it_would_compile(rig: Rig) -> None:
    rig.patch(LOUD, DOOR, remove("ways", "far"))
    rig.patch(put_in("doors", id="b", port=81, target="10.0.0.1", guarded=True))
    rig.patch(remove("notes", "hello"))
    current = rig.engine.current
    assert not plan(current.state, toy.compile(current.config, rig.engine.facts))  # type: ignore[arg-type]


def test_a_role_that_raises_touches_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(config: toy.Config, known: Any) -> list[Problem]:
        raise ZeroDivisionError

    monkeypatch.setattr(toy, "problems", problems)
    client = rig.app().test_client()
    answer = client.put("/v1/config", data=document({**BASE, "doors": []}, 2))
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.get_json()["error"]
    assert not rig.is_now(rig.engine.current.state)
    assert list(rig.store.records) == [1]


def test_trace_asks_the_role(rig: Rig) -> None:
    assert rig.engine.trace({"port": "80"}).body == {"target": "10.1.1.10", "object": "web"}
    assert rig.engine.trace({}).status == 422


def test_the_engine_is_a_host_away_from_linux() -> None:
    """FakeHost is all that the engine needs of a machine."""
    assert Engine.__init__.__annotations__["host"] == "Host"
    assert {n for n in dir(FakeHost) if not n.startswith("_")} >= {"check", "commit", "observe", "look", "probe"}


def test_a_change_may_be_about_what_was_plugged_in_since(rig: Rig) -> None:
    """The agent read its links when it started; a new one is asked for by a PATCH."""
    inside = put_in("wires", id="inside", mac="02:00:00:00:00:04", addresses=["10.1.1.1/24"])
    assert rig.patch(inside).status == 422
    rig.host.known = facts(*MACS, "02:00:00:00:00:04")
    assert rig.patch(inside).status in (200, 202)
    assert "eth3" in [link.name for link in rig.host.machine.links]
