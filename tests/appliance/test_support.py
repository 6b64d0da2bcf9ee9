"""The support bundle: what is in it, what cannot be, and that it comes whatever is broken."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import support
from appliance.machine import HostError
from appliance.state import File
from tests.appliance.rig import BASE, RICH, Rig

SECRET = "correct horse"  # the password of RICH's account


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(support, "_LOGS", tmp_path / "log")
    (tmp_path / "log").mkdir()
    rig = Rig(tmp_path)
    rig.settle(BASE)
    rig.settle(RICH)
    rig.health.look()
    return rig


def parts(rig: Rig) -> dict[str, str]:
    answer = rig.app().test_client().get("/v1/support")
    assert (answer.status_code, answer.mimetype) == (200, "application/gzip")
    with tarfile.open(fileobj=io.BytesIO(answer.get_data())) as tar:
        return {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_what_is_in_it(rig: Rig) -> None:
    found = parts(rig)
    assert {"about.json", "document.json", "machine.txt", "generations.json", "health.json", "metrics.txt"} <= set(
        found
    )
    assert '"name": "anna"' not in found["about.json"]
    assert '"id": "anna"' in found["document.json"]
    assert "files/etc/toy/notes/bye" in found
    assert "narthex_generation" in found["metrics.txt"]
    assert "nft_list_table_inet_narthex.txt: HostError: nft is not installed" in found["missing.txt"]


def test_a_secret_is_nowhere_though_everything_repeats_it(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the document, in files (marked or not), in the words of tools, logs, generations and of what fails."""
    for name in ("agent", "toyd"):
        (tmp_path / "log" / f"{name}.log").write_text(f"began\nwrong password: {SECRET}!\n")
    rig.store.records[1].why = f"refused: {SECRET}"
    state = rig.engine.current.state
    files = (*state.files, File("/etc/leak", f"password={SECRET}\n"), File("/etc/kept", SECRET, secret=True))
    rig.engine.current = replace(rig.engine.current, state=replace(state, files=files))

    def run(argv: tuple[str, ...], stdin: bytes = b"", seconds: float = 0) -> Any:
        if argv[0] == "df":
            raise HostError(f"df: no {SECRET}")
        return 0, f"{argv[0]} says {SECRET}".encode(), SECRET.encode()

    monkeypatch.setattr(rig.host, "run", run)
    found = parts(rig)
    assert not [name for name, text in found.items() if SECRET in text or "correct" in text]
    assert "files/etc/kept" not in found
    assert found["files/etc/leak"] == "password=***\n"
    assert "wrong password: ***!" in found["logs/toyd.log"]
    assert "df says" not in found["missing.txt"]


def test_a_part_has_an_end_and_no_half_of_a_secret(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "PART_BYTES", 1000)
    for cut in range(len(SECRET) + 2):
        text = f"{SECRET}\n" + "x" * (998 - cut) + "\n"
        (tmp_path / "log" / "agent.log").write_text("y" * 3000 + text)
        log = parts(rig)["logs/agent.log"]
        assert len(log) <= 1000
        assert not any(SECRET[n:] in log for n in range(len(SECRET) - 3))


def test_time_runs_out_and_what_there_is_comes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "ALL_S", -1.0)
    found = parts(rig)
    assert list(found) == ["missing.txt"]
    assert "about.json: there was no time left" in found["missing.txt"]


def test_secrets_are_found_however_deep() -> None:
    """Every Secret of a router's document, whatever object it is in: a new one needs no line here or in support.py."""
    from appliance.values import Secret

    deep = ({"a": [Secret("one-1")]}, (Secret("two-2"),))
    assert sorted(support.found(deep)) == ["one-1", "two-2"]
    assert support.shown(deep) == [{"a": ["***"]}, ["***"]]
