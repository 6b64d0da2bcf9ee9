"""`narthex router health`, `diagnose` and `support`: what is asked of the agent, what a person sees, how it ends."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mgmt.cli_target
from mgmt.cli import narthex
from mgmt.push import Answer

WELL = {
    "kind": "dns",
    "object": "web",
    "target": "10.1.1.1",
    "ok": True,
    "why": "it answers",
    "since": 1.7e9,
    "last": 1.7e9,
}
ILL = {**WELL, "kind": "gateway", "object": "wan", "ok": False, "why": "no answer", "remedy": "look at the link"}


class FakeAppliance:
    """Answers `told` to every question, and remembers what was asked."""

    def __init__(self) -> None:
        self.told: Any = {}
        self.asked: list[Any] = []

    def __enter__(self) -> FakeAppliance:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def health(self, now: bool = False) -> Answer:
        self.asked.append(now)
        return Answer(200, self.told, 0.01)

    def diagnostics(self, question: Mapping[str, Any]) -> Answer:
        self.asked.append({name: value for name, value in question.items() if value not in (None, ())})
        return Answer(200, dict(self.told), 0.01)

    def support(self) -> Answer:
        return Answer(200, self.told, 0.01)


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch) -> FakeAppliance:
    fake = FakeAppliance()
    monkeypatch.setattr(mgmt.cli_target, "reach", lambda *ways: fake)
    return fake


def run(*argv: str) -> Result:
    result = CliRunner().invoke(narthex, ("router", *argv))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def health(*checks: Mapping[str, Any]) -> dict[str, Any]:
    failing = sum(not c["ok"] for c in checks)
    return {"healthy": True, "generation": 3, "broken": "", "legacy": [], "failing": failing, "checks": list(checks)}


def test_health_ends_by_what_it_found(appliance: FakeAppliance) -> None:
    appliance.told = health(WELL)
    result = run("health")
    assert (result.exit_code, appliance.asked) == (0, [False])
    assert "of 1 checks all hold" in result.output
    assert "10.1.1.1" not in result.output
    appliance.told = health(ILL, WELL)
    result = run("health", "--now", "--all")
    assert (result.exit_code, appliance.asked) == (1, [False, True])
    for words in ("1 fail", "gateway", "wan", "no answer", "look at the link", "it answers"):
        assert words in result.output
    assert json.loads(run("health", "--json").output)["failing"] == 1


@pytest.mark.parametrize(
    ("argv", "question"),
    [
        ("ping 192.0.2.1 --count 1", {"kind": "ping", "address": "192.0.2.1", "count": 1}),
        ("traceroute ::1 --hops 3", {"kind": "traceroute", "address": "::1", "hops": 3}),
        ("arping 10.1.1.9 --on lan", {"kind": "arping", "address": "10.1.1.9", "link": "lan", "count": 3}),
        (
            "dns a.example --server 10.1.1.1 --type MX --tcp",
            {"kind": "dns", "name": "a.example", "server": "10.1.1.1", "type": "MX", "tcp": True},
        ),
    ],
)
def test_diagnose(appliance: FakeAppliance, argv: str, question: Mapping[str, Any]) -> None:
    appliance.told = {"argv": [], "status": 0, "output": "its own words\n"}
    result = run("diagnose", *argv.split())
    assert (result.exit_code, result.output, appliance.asked) == (0, "its own words\n", [question])
    appliance.told["status"] = 2
    assert run("diagnose", *argv.split()).exit_code == 1


def test_a_capture_is_written_to_a_file(appliance: FakeAppliance, tmp_path: Path) -> None:
    appliance.told = {
        "argv": [],
        "status": 0,
        "output": "3 packets captured",
        "pcap": b64encode(b"\xd4\xc3\xb2\xa1").decode(),
    }
    file = tmp_path / "a.pcap"
    result = run("diagnose", "capture", "lan", str(file), "--host", "10.1.1.9", "--port", "80", "--seconds", "1")
    assert (result.exit_code, file.read_bytes()) == (0, b"\xd4\xc3\xb2\xa1")
    (asked,) = appliance.asked
    assert (asked["link"], asked["hosts"], asked["port"], asked["seconds"]) == ("lan", ("10.1.1.9",), 80, 1)


def test_a_support_bundle_is_for_its_owner_alone(appliance: FakeAppliance, tmp_path: Path) -> None:
    appliance.told = b"\x1f\x8b rest"
    file = tmp_path / "bundle.tar.gz"
    assert run("support", str(file)).exit_code == 0
    assert (file.read_bytes(), file.stat().st_mode & 0o077) == (b"\x1f\x8b rest", 0)
