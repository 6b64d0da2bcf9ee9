"""A newer release by push: tried before it is switched to, confirmed over a new connection, or taken back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from appliance import upgrade as upgrade_module
from appliance.log import Log
from appliance.plan import lines
from appliance.release import Releases
from appliance.upgrade import TrialError, Upgrade, _read
from tests.appliance.bundles import agent, bundle, identity, library
from tests.appliance.rig import BASE, RICH, Rig, document

OLD, NEW = agent("old"), agent("new")
LIB = library()
OLD_ID, NEW_ID = identity(OLD, LIB), identity(NEW, LIB)
PUSH, OTHER = "sshd 7 at 100", "sshd 8 at 200"


class Machine:
    """An appliance with an agent that `runs` a release; the child that tries another answers `found`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rig = Rig(folder / "store")
        self.rig.settle(BASE)
        self.found: dict[str, Any] | TrialError | None = None
        self.tried: list[str] = []
        self.given_s = 0.0
        self.restarts: list[Callable[[], None]] = []
        self.ran: list[tuple[str, ...]] = []
        self.status = 0
        self.environment: dict[str, str] = {}
        Releases(folder / "opt").offer(bundle(OLD, LIB))
        self.runs(OLD_ID)

    def runs(self, release: str) -> FlaskClient:
        """The agent was started anew, as this release."""
        self.environment["NARTHEX_RELEASE"] = release
        self.releases = Releases(self.folder / "opt", self._run, lambda: "boot-1", self.environment)
        log = Log(self.rig.log)
        self.upgrade = Upgrade(self.rig.engine, self.releases, log, self._check, self.restarts.append)
        self.rig.upgrade = self.upgrade
        self.client = self.rig.app().test_client()
        return self.client

    def _run(self, argv: Any) -> tuple[int, str]:
        self.ran.append(tuple(argv))
        return self.status, "no bus"

    def _check(self, path: str, seconds: float) -> dict[str, Any]:
        self.tried.append(path)
        self.given_s = seconds
        if isinstance(self.found, TrialError):
            raise self.found
        current = self.rig.engine.current
        return self.found or {"version": "9", "generation": current.number, "lines": list(lines(current.state))}

    # --- what is asked

    def put(self, given: io.BytesIO | None = None, query: str = "", connection: str = PUSH) -> TestResponse:
        body = (given or bundle(NEW, LIB)).getvalue()
        return self.client.put(f"/v1/release{query}", data=body, environ_overrides=by(connection))

    def confirm(self, release: str = "", connection: str = OTHER) -> TestResponse:
        query = f"?release={release}" if release else ""
        return self.client.post(f"/v1/release/confirm{query}", environ_overrides=by(connection))

    def give_back(self) -> TestResponse:
        return self.client.post("/v1/release/return", environ_overrides=by(OTHER))

    @property
    def version(self) -> dict[str, Any]:
        told: dict[str, Any] = self.client.get("/v1/version").get_json()
        return told


def by(connection: str) -> dict[str, str]:
    return {"narthex.connection": connection}


def told(answer: TestResponse) -> tuple[int, str]:
    body = answer.get_json()
    places = "; ".join(f"{p['path']}: {p['message']}" for p in body.get("problems", ()))
    return answer.status_code, places or str(body.get("error", body.get("result", "")))


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_pushed_switched_restarted_confirmed(machine: Machine) -> None:
    answer = machine.put(query="?seconds=90")
    assert (answer.status_code, answer.get_json()) == (
        202, {"release": NEW_ID, "previous": OLD_ID, "seconds": 90, "version": "9"},
    )  # fmt: skip
    assert machine.tried == [machine.releases.path(NEW_ID)]
    assert machine.releases.current == NEW_ID
    assert machine.restarts == [machine.releases.restart]
    assert told(machine.confirm(NEW_ID)) == (409, f"release {NEW_ID} does not run yet; ask again when it does")
    machine.runs(NEW_ID)
    machine.upgrade.ready()
    assert machine.version["trial"]["release"] == NEW_ID
    assert (machine.version["release"], machine.version["previous"]) == (NEW_ID, OLD_ID)
    assert told(machine.confirm(NEW_ID, PUSH))[0] == 403
    assert told(machine.confirm(OLD_ID)) == (409, f"release {NEW_ID} is on trial, not {OLD_ID}")
    assert told(machine.confirm(NEW_ID)) == (200, "confirmed")
    assert told(machine.confirm(NEW_ID)) == (200, "already confirmed")
    assert (machine.version["trial"], machine.version["previous"]) == (None, OLD_ID)
    assert told(machine.put()) == (200, "unchanged")


def test_a_person_on_the_machine_may_confirm_by_the_same_process(machine: Machine) -> None:
    """Sockets are counted anew by the new agent, so that the first of it bears the name of the first of the old one."""
    machine.put(connection="process 5 socket 0")
    machine.runs(NEW_ID)
    assert told(machine.confirm(NEW_ID, "process 5 socket 0")) == (200, "confirmed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ModuleNotFoundError: No module named 'x'", "No module named 'x'"),
        ("it did not end within 30 s, and was ended", "did not end within 30 s"),
    ],
)
def test_one_that_does_not_work_is_refused(machine: Machine, words: str, said: str) -> None:
    machine.found = TrialError(words)
    status, text = told(machine.put())
    assert (status, said in text, f"release {NEW_ID}: " in text) == (422, True, True)
    assert (machine.releases.current, machine.releases.trial, machine.restarts) == (OLD_ID, None, [])


@pytest.mark.parametrize(("tool_s", "given_s"), [(1.0, 60.0), (30.0, 60.0), (100.0, 200.0)])
def test_a_trial_may_take_two_tools_time_and_a_minute_at_least(machine: Machine, tool_s: float, given_s: float) -> None:
    machine.rig.engine.settings = replace(machine.rig.settings, tool_seconds=tool_s)
    machine.put()
    assert machine.given_s == given_s


def test_a_broken_bundle_is_refused(machine: Machine) -> None:
    assert told(machine.put(io.BytesIO(b"no tar" * 200)))[0] == 422
    assert told(machine.put(bundle(NEW, library("x"), without=[LIB[0]])))[1].startswith("bundle: neither in the bundle")
    assert (machine.tried, machine.releases.current) == ([], OLD_ID)


def test_a_bundle_that_is_too_large_is_not_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "BUNDLE_BYTES", 1000)
    assert "the limit is 1000" in told(machine.put())[1]
    assert machine.releases.installed == [OLD_ID]


@pytest.mark.parametrize("query", ["?seconds=5", "?seconds=x", "?seconds=99999", "?change=yes"])
def test_a_wrong_query_is_refused(machine: Machine, query: str) -> None:
    assert told(machine.put(query=query)) == (422, "query: seconds is 10 to 3600, change is allow or not there")


def test_another_machine_is_only_made_where_that_is_wanted(machine: Machine) -> None:
    theirs = [line.replace("hello", "HELLO") for line in lines(machine.rig.engine.current.state)]
    machine.found = {"version": "9", "generation": 1, "lines": theirs}
    answer = machine.put()
    assert told(answer) == (409, f"release {NEW_ID} makes another machine of generation 1; allow the change")
    assert "+file /etc/toy/notes/HELLO: HELLO" in answer.get_json()["diff"]
    assert machine.releases.current == OLD_ID
    assert machine.put(query="?change=allow").status_code == 202


def test_a_push_in_between_is_noticed(machine: Machine) -> None:
    machine.found = {"version": "9", "generation": 0, "lines": []}
    assert told(machine.put(query="?change=allow"))[1].startswith("it was tried on generation 0, the machine is at 1")


def test_no_document_while_a_release_is_on_trial_and_no_release_while_a_document_is(machine: Machine) -> None:
    rig = machine.rig
    assert machine.client.put("/v1/config", data=document(RICH, 2), environ_overrides=by("a")).status_code == 202
    assert told(machine.put()) == (409, "generation 2 waits for its confirmation; confirm it or let it lapse")
    rig.engine.confirm(2, "b")
    machine.put()
    machine.runs(NEW_ID)
    words = f"release {NEW_ID} waits for its confirmation; confirm it, return it, or let it lapse"
    change = json.dumps({"version": 1, "role": "router", "generation": 3, "base": 2, "operations": []})
    assert told(machine.client.put("/v1/config", data=document(BASE, 3))) == (409, words)
    assert told(machine.client.patch("/v1/config", data=change)) == (409, words)
    assert told(machine.client.post("/v1/rollback/1")) == (409, words)
    assert machine.client.post("/v1/plan", data=document(BASE, 3)).status_code == 200
    assert told(machine.put()) == (409, f"release {NEW_ID} is on trial; confirm it, return it, or let it lapse")
    machine.confirm(NEW_ID)
    assert machine.client.put("/v1/config", data=document(BASE, 3)).status_code == 202


def test_systemd_takes_no_timer(machine: Machine) -> None:
    machine.status = 1
    answer = machine.put()
    assert (answer.status_code, answer.get_json()["result"]) == (500, "nothing touched")
    assert (machine.releases.current, machine.releases.trial, machine.restarts) == (OLD_ID, None, [])


def test_too_late(machine: Machine) -> None:
    machine.put()
    machine.runs(NEW_ID)
    machine.releases.take_back("it was not confirmed within 60 s")
    machine.runs(OLD_ID)
    words = f"no release is on trial; {NEW_ID} was taken back: it was not confirmed within 60 s; {OLD_ID} runs"
    assert told(machine.confirm(NEW_ID)) == (409, words)
    assert machine.version["returned"]["release"] == NEW_ID


def test_returned_from_a_trial_at_once_and_later_by_a_trial(machine: Machine) -> None:
    machine.put()
    machine.runs(NEW_ID)
    answer = machine.give_back()
    assert (answer.status_code, answer.get_json()["returned"]) == (202, NEW_ID)
    assert machine.releases.current == OLD_ID
    machine.runs(OLD_ID)
    assert told(machine.give_back()) == (409, "there is no release before this one")
    machine.put()
    machine.runs(NEW_ID)
    machine.confirm()
    answer = machine.give_back()
    assert (answer.get_json()["release"], answer.get_json()["seconds"]) == (OLD_ID, 60)
    machine.runs(OLD_ID)
    assert told(machine.confirm(OLD_ID, PUSH)) == (200, "confirmed")
    assert machine.version["previous"] == NEW_ID


def test_a_cell_has_no_releases(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    client = rig.app().test_client()
    for method, path in (("PUT", ""), ("POST", "/return")):
        answer = client.open(f"/v1/release{path}", method=method, data=b"")
        assert told(answer)[0] == 409
        assert "a cell runs its host's own code" in told(answer)[1]
    assert client.post("/v1/release/confirm").status_code == 409
    assert client.get("/v1/version").get_json()["release"] == ""


# --- at the agent's start


def test_the_seeds_release_confirms_itself(machine: Machine) -> None:
    machine.releases.offer(bundle(NEW, LIB))
    assert machine.client.put("/v1/config", data=document(BASE, 2)).status_code == 200, "it blocks no document"
    machine.runs(NEW_ID)
    machine.upgrade.ready()
    assert (machine.releases.current, machine.releases.trial, machine.restarts) == (NEW_ID, None, [])


@pytest.mark.parametrize("is_seeds", [True, False])
def test_one_that_cannot_make_the_document_goes_at_once(machine: Machine, is_seeds: bool) -> None:
    if is_seeds:
        machine.releases.offer(bundle(NEW, LIB))
    else:
        machine.put()
    machine.rig.engine._unmade = "generation 1 cannot be made: KeyError: 'web'"
    machine.runs(NEW_ID)
    machine.upgrade.ready()
    assert machine.releases.current == OLD_ID
    assert len(machine.restarts) == (1 if is_seeds else 2)
    assert machine.version["returned"]["why"] == "generation 1 cannot be made: KeyError: 'web'"


def test_a_trial_that_was_cut_before_the_switch_ends(machine: Machine) -> None:
    machine.put()
    machine.releases.switch(OLD_ID)
    machine.upgrade.ready()
    assert (machine.releases.trial, machine.releases.current) == (None, OLD_ID)


def test_a_disk_that_fails_at_the_start_ends_no_agent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.releases.offer(bundle(NEW, LIB))
    machine.runs(NEW_ID)

    def broken(release: str) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(machine.releases, "confirm", broken)
    machine.upgrade.ready()
    assert "Input/output error" in machine.rig.log.getvalue()


# --- what the child says


@pytest.mark.parametrize(
    ("status", "out", "err", "words"),
    [
        (1, b'{"error": "KeyError: 1"}', "", "KeyError: 1"),
        (1, b"", "Traceback\nSyntaxError: bad", "its trial ended in 1\nTraceback\nSyntaxError: bad"),
        (-9, b"", "", "killed by signal 9; is there memory for it?"),
        (0, b"", "", "its trial ended in 0"),
        (0, b'{"version": "1"}', "", "its trial ended in 0"),
        (0, b"[]", "", "its trial ended in 0"),
        (0, b"[" * 100_000, "", "its trial ended in 0"),
        (3, b'{"version": "1", "generation": 1, "lines": []}', "", "its trial ended in 3"),
    ],
)
def test_what_a_child_says_that_did_not_work(status: int, out: bytes, err: str, words: str) -> None:
    with pytest.raises(TrialError) as caught:
        _read(status, out, err)
    assert words in str(caught.value)
