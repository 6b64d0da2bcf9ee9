"""`narthex appliance`: another release, waited for and confirmed; or, in words, why not and what runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mgmt.cli_target
from mgmt import upgrade as room
from mgmt.cli import narthex
from mgmt.push import Answer, PushError

OLD, NEW = "0.1.0-aaaaaaaaaaaa", "0.1.0-bbbbbbbbbbbb"
HEALTHY = {"healthy": True, "broken": ""}
REFUSED = {
    "error": "the release is refused; nothing was touched", "release": OLD,
    "problems": [{"path": f"release {NEW}", "message": "ModuleNotFoundError: No module named 'x'"}],
}  # fmt: skip
DIFFERS = {"error": f"release {NEW} makes another machine", "release": OLD, "diff": "--- running\n-file /a: 1"}


def version(release: str = OLD, **more: Any) -> dict[str, Any]:
    told = {"narthex": "0.1.0", "document": 1, "role": "router", "release": release, "previous": "", "refused": ""}
    return {**told, "trial": None, "returned": None, **more}


ON_TRIAL = {"release": NEW, "since": 1.7e9, "seconds": 60, "failures": 0}
RETURNED = {"release": NEW, "why": "its agent failed (exit-code), 2 times", "at": 1.7e9}


class FakeAppliance:
    """Answers by the script: for each call its next answer, the last one for ever; None is no answer."""

    def __init__(self) -> None:
        self.script: dict[str, list[tuple[int, Any] | None]] = {
            "version": [(200, version())],
            "health": [(200, HEALTHY)],
            "put": [(202, {"release": NEW, "previous": OLD, "seconds": 60})],
            "confirm": [(200, {"release": NEW, "result": "confirmed"})],
            "return": [(202, {"release": OLD, "previous": NEW, "seconds": 60})],
        }
        self.asked: list[tuple[Any, ...]] = []

    def __enter__(self) -> FakeAppliance:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _answer(self, name: str, *asked: Any) -> Answer:
        self.asked.append((name, *asked))
        script = self.script[name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if answer is None:
            raise PushError("the agent did not answer")
        return Answer(*answer, seconds=0.01)

    def version(self) -> Answer:
        return self._answer("version")

    def health(self) -> Answer:
        return self._answer("health")

    def put_release(self, bundle: bytes, allow_change: bool, seconds: int) -> Answer:
        return self._answer("put", bundle, allow_change, seconds)

    def confirm_release(self, release: str) -> Answer:
        return self._answer("confirm", release)

    def return_release(self) -> Answer:
        return self._answer("return")

    def names(self) -> list[str]:
        return [name for name, *_ in self.asked]


@pytest.fixture(name="appliance")
def _appliance(monkeypatch: pytest.MonkeyPatch) -> FakeAppliance:
    fake = FakeAppliance()
    now = [0.0]
    monkeypatch.setattr(mgmt.cli_target, "reach", lambda *ways: fake)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(room, "time", clock)
    return fake


def run(*argv: str) -> Result:
    result = CliRunner().invoke(narthex, ("appliance", *argv))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> str:
    (tmp_path / "a.bundle").write_bytes(b"the bundle")
    return str(tmp_path / "a.bundle")


def test_upgraded(appliance: FakeAppliance, file: str) -> None:
    new = version(NEW, previous=OLD, trial=ON_TRIAL)
    appliance.script["version"] = [(200, version()), (200, version(trial=ON_TRIAL)), None, None, (200, new)]
    result = run("upgrade", "--bundle", file, "--seconds", "90", "--allow-change")
    assert result.exit_code == 0, result.output
    assert ("put", b"the bundle", True, 90) in appliance.asked
    assert appliance.asked[-1] == ("confirm", NEW)
    assert f"it runs {NEW} after 0.8 s, 750 ms of it without an agent; before it was {OLD}" in result.output


def test_upgraded_in_json(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), (200, version(NEW, trial=ON_TRIAL))]
    told = json.loads(run("upgrade", "--bundle", file, "--json").output)
    assert told == {"release": NEW, "previous": OLD, "changed": True, "seconds": 0.0, "away": 0.0}


def test_it_runs_that_already(appliance: FakeAppliance, file: str) -> None:
    appliance.script["put"] = [(200, {"release": OLD, "previous": "", "result": "unchanged"})]
    assert f"it runs {OLD} already" in run("upgrade", "--bundle", file).output
    assert "confirm" not in appliance.names()


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (422, REFUSED, 3, ["nothing was touched", f"release {NEW}: ModuleNotFoundError"]),
        (409, DIFFERS, 4, ["makes another machine", "-file /a: 1", "--allow-change"]),
        (409, {"error": "a cell runs its host's own code"}, 4, ["a cell runs its host's own code"]),
        (500, {"error": "systemd takes no timer", "result": "nothing touched"}, 1, ["systemd takes no timer"]),
        (404, {"error": "PUT /v1/release: not found"}, 1, ["PUT /v1/release: not found"]),
    ],
)
def test_refused(appliance: FakeAppliance, file: str, status: int, body: Any, code: int, words: list[str]) -> None:
    appliance.script["put"] = [(status, body)]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == code, result.output
    for one in words:
        assert one in result.output
    assert "confirm" not in appliance.names()


def test_taken_back(appliance: FakeAppliance, file: str) -> None:
    trial, back = version(trial=ON_TRIAL), version(returned=RETURNED)
    appliance.script["version"] = [(200, version()), (200, trial), None, (200, back)]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 5
    assert f"{NEW} was taken back: its agent failed (exit-code), 2 times; {OLD} runs" in result.output


def test_an_older_return_of_another_release_is_not_taken_for_this_ones(appliance: FakeAppliance, file: str) -> None:
    other = {**RETURNED, "release": "0.1.0-cccccccccccc"}
    switching, new = version(returned=other), version(NEW, trial=ON_TRIAL, returned=other)
    appliance.script["version"] = [(200, switching), (200, switching), (200, new)]
    assert run("upgrade", "--bundle", file).exit_code == 0


def test_not_healthy_any_more_is_not_confirmed(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), (200, version(NEW, trial=ON_TRIAL))]
    appliance.script["health"] = [(200, HEALTHY), (503, {"healthy": False, "broken": "start: no nft"})]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 5
    assert "start: no nft" in result.output
    assert "goes back by itself" in result.output
    assert "confirm" not in appliance.names()


def test_one_that_was_not_healthy_before_may_be_confirmed(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), (200, version(NEW, trial=ON_TRIAL))]
    appliance.script["health"] = [(503, {"healthy": False, "broken": "the disk is full"})]
    assert run("upgrade", "--bundle", file).exit_code == 0


def test_nothing_answers_any_more(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), None]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 5
    assert f"{NEW} does not answer: the agent did not answer; see its console" in result.output


def test_the_push_is_not_answered(appliance: FakeAppliance, file: str) -> None:
    appliance.script["put"] = [None]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 5
    said = " ".join(result.output.split())
    assert f"the push was not answered: the agent did not answer; {OLD} runs; what is on trial goes back" in said


def test_it_dies_before_it_tells_its_health(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), (200, version(NEW, trial=ON_TRIAL)), (200, version())]
    appliance.script["health"] = [(200, HEALTHY), None]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 5
    said = " ".join(result.output.split())
    assert f"{NEW} ran, and does not tell its health: the agent did not answer" in said
    assert f"goes back by itself; {OLD} runs" in said
    assert "confirm" not in appliance.names()


def test_confirmed_too_late(appliance: FakeAppliance, file: str) -> None:
    appliance.script["version"] = [(200, version()), (200, version(NEW, trial=ON_TRIAL)), (200, version())]
    appliance.script["confirm"] = [(409, {"error": f"no release is on trial; {NEW} was taken back", "release": OLD})]
    result = run("upgrade", "--bundle", file)
    assert result.exit_code == 4
    assert f"{NEW} was taken back; {OLD} runs" in result.output


def test_returned(appliance: FakeAppliance) -> None:
    appliance.script["version"] = [None, (200, version(OLD, trial={**ON_TRIAL, "release": OLD}))]
    result = run("return")
    assert result.exit_code == 0, result.output
    assert appliance.asked[-1] == ("confirm", OLD)


def test_returned_from_a_trial(appliance: FakeAppliance) -> None:
    appliance.script["return"] = [(202, {"release": OLD, "previous": "", "returned": NEW, "seconds": 0})]
    appliance.script["version"] = [(200, version(NEW)), (200, version(OLD, returned=RETURNED))]
    result = run("return")
    assert result.exit_code == 0, result.output
    assert "confirm" not in appliance.names()


def test_version_tells_of_all_that_was_tried(appliance: FakeAppliance) -> None:
    told = version(NEW, previous=OLD, trial=ON_TRIAL, returned=RETURNED, refused="x.whl: its sha256 is another")
    appliance.script["version"] = [(200, told)]
    output = run("version").output
    for words in (f"{NEW}, a router", f"before it: {OLD}", "is on trial since", "was taken back", "x.whl: its sha256"):
        assert words in output
    assert json.loads(run("version", "--json").output) == told
