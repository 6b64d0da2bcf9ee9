"""`narthex router`: exit codes that mean something, JSON for machines, words that name the place and the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mgmt.cli_target
from mgmt.cli import narthex
from mgmt.push import Answer, PushError

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "router.json"
STEPS = [{"kind": "ruleset", "verb": "apply", "name": "inet narthex", "owner": "web-http"}]
APPLIED = {"generation": 1, "result": "applied", "steps": 1, "timings": {"decode": 1.0, "ruleset": 4.5}}
AWAITING = {
    "generation": 1,
    "result": "applied, awaiting confirmation",
    "confirm": {"seconds": 60.0, "deadline": 1e9},
    "steps": 1,
    "timings": {},
}
RECORD = {
    "generation": 1, "at": 1.7e9, "kind": "put", "status": "kept", "why": "", "steps": 1, "milliseconds": 5.5,
    "digest": "", "plan": STEPS, "timings": {}, "diff": "-old\n+new",
}  # fmt: skip
STATE: dict[str, Any] = {
    "name": "r1", "role": "router", "generation": 1, "digest": "", "converged": True, "broken": "",
    "awaiting": None, "drift": [],
}  # fmt: skip


class FakeAppliance:
    """Answers what it is told to; remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "put": (200, APPLIED),
            "patch": (200, {**APPLIED, "generation": 2}),
            "confirm": (200, {"generation": 1, "result": "applied", "steps": 0, "timings": {}}),
            "rollback": (200, {**APPLIED, "generation": 8}),
            "generations": (200, {"current": 6, "generations": [RECORD]}),
            "generation": (200, RECORD),
            "state": (200, STATE),
            "health": (
                200,
                {
                    "healthy": True,
                    "generation": 1,
                    "broken": "",
                    "awaiting": False,
                    "drift": {"healed": 0, "reported": 0},
                },
            ),
        }
        self.asked: list[tuple[str, Any]] = []
        self.error: PushError | None = None

    def __enter__(self) -> FakeAppliance:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _answer(self, name: str, asked: Any) -> Answer:
        if self.error:
            raise self.error
        self.asked.append((name, asked))
        return Answer(*self.answers[name], seconds=0.012)

    def put(self, document: bytes) -> Answer:
        return self._answer("put", json.loads(document))

    def patch(self, change: bytes) -> Answer:
        return self._answer("patch", json.loads(change))

    def plan(self, document: bytes) -> Answer:
        return self._answer("plan", json.loads(document))

    def confirm(self, generation: int) -> Answer:
        return self._answer("confirm", generation)

    def rollback(self, generation: int) -> Answer:
        return self._answer("rollback", generation)

    def generations(self, number: int | None = None, against: int | None = None) -> Answer:
        return self._answer("generations" if number is None else "generation", (number, against))

    def state(self, view: str = "") -> Answer:
        return self._answer("state", view)

    def health(self) -> Answer:
        return self._answer("health", None)

    def flows(self, query: Mapping[str, str]) -> Answer:
        return self._answer("flows", dict(query))

    def usage(self) -> Answer:
        return self._answer("usage", None)

    def trace(self, query: Mapping[str, str]) -> Answer:
        return self._answer("trace", dict(query))


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch) -> FakeAppliance:
    fake = FakeAppliance()
    monkeypatch.setattr(mgmt.cli_target, "reach", lambda *ways: fake)
    return fake


def run(*argv: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(narthex, argv, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (200, APPLIED, 0, ["generation 1 applied", "12.0 ms", "inet narthex", "web-http", "ruleset"]),
        (200, {**APPLIED, "result": "unchanged"}, 0, ["unchanged"]),
        (
            422,
            {
                "error": "the document is refused",
                "problems": [{"path": "config.forwards[a].target", "message": "no guest"}],
            },
            3,
            ["refused", "config.forwards[a].target: no guest", "Correct each place"],
        ),
        (409, {"error": "generation 1 is stale; the machine is at 6", "current": 6}, 4, ["stale", "--next"]),
        (412, {"error": "the plan is not the one demanded any more", "plan": "", "steps": []}, 4, ["plan"]),
        (
            500,
            {
                "error": "did not converge",
                "result": "undone",
                "step": "verify",
                "object": "web",
                "evidence": "x",
                "current": 3,
            },
            5,
            ["undone: did not converge", "step: verify", "object: web", "generation 3 as before"],
        ),
        (
            500,
            {
                "error": "e",
                "result": "undo failed",
                "step": "s",
                "object": "",
                "evidence": "",
                "current": 3,
                "broken": "dnsmasq",
            },
            5,
            ["the undo failed too", "broken: dnsmasq"],
        ),
        (500, {"error": "the disk is full", "result": "nothing touched"}, 1, ["disk is full", "Nothing was touched"]),
    ],
)
def test_push_ends_in_what_it_means(
    appliance: FakeAppliance, status: int, body: dict[str, Any], code: int, words: list[str]
) -> None:
    appliance.answers["put"] = (status, body)
    result = run("router", "push", str(EXAMPLE))
    assert result.exit_code == code
    for word in words:
        assert word in result.output
    as_json = run("router", "push", "--json", str(EXAMPLE))
    assert as_json.exit_code == code
    assert json.loads(as_json.stdout).items() >= body.items()


def test_push_confirms_over_a_new_connection_unless_told_not_to(appliance: FakeAppliance) -> None:
    appliance.answers["put"] = (202, AWAITING)
    result = run("router", "push", str(EXAMPLE))
    assert result.exit_code == 0
    assert "confirmed over a new connection" in result.output
    assert ("confirm", 1) in appliance.asked
    appliance.asked.clear()
    result = run("router", "push", "--no-confirm", str(EXAMPLE))
    assert "narthex router confirm 1" in result.output
    assert "confirm" not in dict(appliance.asked)


def test_push_that_cannot_be_confirmed_says_so(appliance: FakeAppliance) -> None:
    appliance.answers["put"] = (202, AWAITING)
    appliance.answers["confirm"] = (409, {"error": "too late: generation 1 was undone", "current": 0})
    result = run("router", "push", str(EXAMPLE))
    assert result.exit_code == 4
    assert "too late" in result.output


def test_push_fills_in_the_generation_and_says_so(appliance: FakeAppliance) -> None:
    document = {"version": 1, "role": "router", "config": {"interfaces": []}}
    result = run("router", "push", "-", stdin=json.dumps(document))
    assert result.exit_code == 0
    assert "filled in: generation 7, because the appliance is at 6" in result.output
    assert ("put", {**document, "generation": 7}) in appliance.asked
    run("router", "push", "--next", "-", stdin=json.dumps({**document, "generation": 3}))
    assert appliance.asked[-2] == ("put", {**document, "generation": 7})


def test_push_sends_a_change_as_a_change(appliance: FakeAppliance) -> None:
    change = {"version": 1, "role": "router", "operations": [{"op": "remove", "collection": "hosts", "id": "a"}]}
    result = run("router", "push", "-", stdin=json.dumps(change))
    assert result.exit_code == 0
    assert ("patch", {**change, "generation": 7, "base": 6}) in appliance.asked


def test_push_reads_yaml_without_its_traps(appliance: FakeAppliance) -> None:
    text = "version: 1\nrole: router\ngeneration: 7\nconfig:\n  interfaces:\n    - {id: on, mac: 52:54:00:12:34:56}\n"
    assert run("router", "push", "-", stdin=text).exit_code == 0
    interface = appliance.asked[0][1]["config"]["interfaces"][0]
    assert interface == {"id": "on", "mac": "52:54:00:12:34:56"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"version": 1,\n  oops}', "line 2 column 3"),
        ("a: [1,\n b: }", "line 2 column"),
        ("[]", "no object"),
        ("{}", "config"),
    ],
)
def test_what_is_no_document_is_refused_here_with_its_place(appliance: FakeAppliance, text: str, place: str) -> None:
    result = run("router", "push", "-", stdin=text)
    assert result.exit_code == 2
    assert place in result.output
    assert not appliance.asked


def test_unreachable_is_six_and_no_traceback(appliance: FakeAppliance) -> None:
    appliance.error = PushError("192.0.2.1 port 3922 cannot be reached: timed out")
    for command in (["state"], ["push", str(EXAMPLE)], ["generations"], ["confirm", "3"], ["diff", "1", "2"]):
        result = run("router", *command)
        assert result.exit_code == 6, command
        assert "cannot be reached" in result.output
        assert "narthex cell list" in result.output
    told = json.loads(run("router", "state", "--json").stdout)
    assert told["error"].startswith("192.0.2.1")
    assert told["remedy"]


def test_plan_shows_steps_and_touches_nothing(appliance: FakeAppliance) -> None:
    plan = {
        "generation": 2, "steps": STEPS, "diff": "--- before\n+++ after\n-a\n+b", "units": ["reload dnsmasq"],
        "flows": [], "confirm": True, "plan": "f" * 64,
    }  # fmt: skip
    appliance.answers["plan"] = (200, plan)
    result = run("router", "plan", "--diff", str(EXAMPLE))
    assert result.exit_code == 0
    for word in ("1 step", "reload dnsmasq", "0 live flows", "confirmation is demanded", "+b", "f" * 64):
        assert word in result.output
    assert {name for name, _ in appliance.asked} == {"plan"}


def test_push_may_demand_a_plan(appliance: FakeAppliance) -> None:
    run("router", "push", "--plan", "a" * 64, str(EXAMPLE))
    assert appliance.asked[0][1]["plan"] == "a" * 64


def test_confirm_finds_what_waits(appliance: FakeAppliance) -> None:
    result = run("router", "confirm")
    assert result.exit_code == 4
    assert "no generation waits" in result.output
    appliance.answers["state"] = (200, {**STATE, "awaiting": {"generation": 5, "deadline": 1e9}})
    assert run("router", "confirm").exit_code == 0
    assert appliance.asked[-1] == ("confirm", 5)


def test_state_names_what_drifted(appliance: FakeAppliance) -> None:
    drift = {"at": 1.7e9, "reason": "nft", "healed": True, "by": "nft (41)", "steps": STEPS}
    appliance.answers["state"] = (200, {**STATE, "drift": [drift]})
    result = run("router", "state")
    for word in ("r1", "generation 1", "converged", "healed", "web-http", "nft (41)"):
        assert word in result.output


def test_rollback_generations_and_diff(appliance: FakeAppliance) -> None:
    assert "generation 8 applied" in run("router", "rollback", "3").output
    assert "kept" in run("router", "generations").output
    assert run("router", "diff", "1", "2").output == "-old\n+new\n"
    assert appliance.asked[-1] == ("generation", (2, 1))
    appliance.answers["generation"] = (404, {"error": "generation 99 is not kept", "current": 6})
    assert run("router", "diff", "1", "99").exit_code == 3


def test_trace_asks_for_the_packet_and_names_who_decides(appliance: FakeAppliance) -> None:
    step = {
        "chain": "dstnat", "did": "dnat to 10.1.1.10:8080", "rule": "forwards",
        "element": "203.0.113.10 . tcp . 80", "owner": "web-http",
    }  # fmt: skip
    outcome = {
        "verdict": "forwarded", "out_interface": "guest", "source": "198.51.100.10", "destination": "10.1.1.10",
        "source_port": 40000, "destination_port": 8080, "owners": ["web", "web-http"], "why": "forwards",
    }  # fmt: skip
    appliance.answers["trace"] = (200, {"steps": [step], "outcome": outcome})
    packet = ("--in", "public", "--src", "198.51.100.10", "--dst", "203.0.113.10", "--dport", "80", "--proto", "tcp")
    result = run("router", "trace", *packet)
    query = {"in": "public", "src": "198.51.100.10", "dst": "203.0.113.10", "dport": "80", "proto": "tcp"}
    assert appliance.asked == [("trace", query)]
    for words in ("dnat to 10.1.1.10:8080", "forwarded by guest", "to 10.1.1.10:8080", "decided by web-http"):
        assert words in result.output


def test_watch_tells_changes_only(appliance: FakeAppliance) -> None:
    result = run("router", "watch", "--times", "3", "--every", "0.1")
    assert result.exit_code == 0
    assert result.output.count("healthy") == 1
    told = json.loads(run("router", "watch", "--json", "--times", "1").stdout)
    assert told["healthy"] is True


def test_schema_is_a_schema() -> None:
    schema = json.loads(run("router", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"] == "Narthex router document"
    assert "config" in schema["required"]


def test_the_way_in_is_said_once() -> None:
    result = run("router", "state", "--cell", "a", "--socket", "b")
    assert result.exit_code == 2
    assert run("router", "state", "--address", "192.0.2.1").exit_code == 2
    assert "--host-key" in run("router", "state", "--address", "192.0.2.1").output


def test_usage_names_each_object_with_what_it_received_and_sent(appliance: FakeAppliance) -> None:
    four = {"received_bytes": 2048, "sent_bytes": 3 << 30, "received_packets": 2, "sent_packets": 1234567}
    told = {"since": 0.0, "guests": {"vm-7": four}, "networks": {"lan": {**four, "gone_since": 5.0}}}
    appliance.answers["usage"] = (200, {"usage": told})
    lines = run("router", "usage").output.splitlines()
    assert [*lines[2].split(), *lines[3].split()[-1:]] == [
        *("guests", "vm-7", "2.0", "KiB", "2", "3.0", "GiB", "1,234,567", "gone"),
    ]
    appliance.answers["usage"] = (200, {"usage": dict(told)})
    assert "lan" not in run("router", "usage", "--kind", "guests").output
    appliance.answers["usage"] = (200, {"usage": {"since": 0.0}})
    assert '"usage": true' in run("router", "usage").output


def test_flows_name_who_allowed_them(appliance: FakeAppliance) -> None:
    flow = {
        "id": 7, "protocol": "tcp", "source": "192.0.2.7", "source_port": 4000, "destination": "203.0.113.10",
        "destination_port": 80, "allowed_by": ["fw", "web"], "why": "", "left_over": False, "state": "established",
        "translated": {"to": "10.1.1.10", "to_port": 8080, "from": "192.0.2.7", "from_port": 4000},
        "age_s": 12.4, "sent": {"bytes": 1024, "packets": 3}, "received": {"bytes": 1024, "packets": 3},
    }  # fmt: skip
    left = {**flow, "left_over": True, "why": "would be dropped now", "sent": None, "received": None, "age_s": None}
    appliance.answers["flows"] = (200, {"flows": [flow, left], "next": None})
    result = run("router", "flows", "--guest", "vm-1", "--left-over")
    assert appliance.asked == [("flows", {"guest": "vm-1", "left_over": "1", "most": "1000", "after": "0"})]
    for words in ("192.0.2.7:4000", "to 10.1.1.10:8080", "fw, web", "2.0 KiB", "12 s", "left over: would be dropped"):
        assert words in result.output, words
    assert result.output.strip().endswith("2 flows")


def test_every_command_documents_its_exit_codes() -> None:
    for name in (
        "plan",
        "push",
        "confirm",
        "rollback",
        "state",
        "diff",
        "trace",
        "flows",
        "usage",
        "generations",
        "schema",
        "watch",
    ):
        shown = run("router", name, "--help").output
        assert "Exit codes" in shown, name
        assert "6  the router cannot be reached" in shown, name
        assert "--json" in shown, name


def test_nothing_is_coloured_in_a_pipe(appliance: FakeAppliance) -> None:
    for command in (["state"], ["generations"], ["diff", "1", "2"], ["push", str(EXAMPLE)]):
        assert "\x1b" not in run("router", *command).output
