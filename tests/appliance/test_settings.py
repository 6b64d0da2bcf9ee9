"""Boot facts: taken whole or refused, with file, key and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.settings import VARIABLE, Settings, SettingsError, load, parse

GOOD: dict[str, Any] = {
    "name": "r-1",
    "role": "router",
    "control_mac": "02:00:00:00:00:01",
    "control_address": "169.254.240.2/20",
    "runner": "supervisor",
}


def test_good_ones() -> None:
    found = parse(GOOD, "f")
    assert found == Settings("r-1", "router", "02:00:00:00:00:01", "169.254.240.2/20", "supervisor")
    assert found.socket == "/run/narthex/agent.sock"
    assert parse(GOOD | {"run_dir": "/run/other", "heal": "report", "watch_seconds": 5}, "f").watch_seconds == 5
    assert parse(GOOD | {"control_address": "fe80::1/64"}, "f").control_address == "fe80::1/64"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "R1"), ("name", "r1\n"), ("name", ""), ("name", 1), ("role", "../x"), ("control_mac", "02:00"),
        ("control_mac", "02:00:00:00:00:0A"), ("control_address", "10.0.0.1"), ("control_address", "x/24"),
        ("runner", "systemd2"), ("state_dir", "var"), ("run_dir", None), ("heal", True), ("watch_seconds", 0),
        ("watch_seconds", "30"), ("watch_seconds", True),
    ],
)  # fmt: skip
def test_bad_ones_are_named(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^f: {key}: .* is not .*; correct it$"):
        parse(GOOD | {key: value}, "f")


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        parse({"name": "r-1", "nmae": 1}, "f")
    assert str(refused.value).splitlines()[0] == "f: nmae: unknown key; remove it or correct its name"
    assert "f: role: missing; add a role, such as router" in str(refused.value).splitlines()
    assert len(str(refused.value).splitlines()) == 5


def test_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(SettingsError, match=f"{path}: No such file"):
        load()
    path.write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        load()
    path.write_text("[]")
    with pytest.raises(SettingsError, match="not a JSON object"):
        load()
    path.write_text(json.dumps(GOOD))
    assert load().name == "r-1"
