"""The agent's start in a machine: loaded early, run only when the seed was read, and then the current release."""

from __future__ import annotations

from pathlib import Path

from appliance import boot


def test_it_waits_for_the_way_in(tmp_path: Path) -> None:
    (tmp_path / "run/narthex").mkdir(parents=True)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / boot.WAY_IN.lstrip("/")).touch()

    assert boot.is_seeded(str(tmp_path), sleep)
    assert len(waits) == 3


def test_a_seed_in_trouble_ends_the_wait(tmp_path: Path) -> None:
    (tmp_path / "run/narthex").mkdir(parents=True)
    assert not boot.is_seeded(str(tmp_path), lambda seconds: (tmp_path / boot.TROUBLE.lstrip("/")).touch())


def test_the_seed_may_have_brought_another_release(tmp_path: Path) -> None:
    opt = tmp_path / "opt/narthex"
    (opt / "releases/1-a").mkdir(parents=True)
    (opt / "current").symlink_to("releases/1-a")
    assert boot.is_current("1-a", str(tmp_path))
    assert not boot.is_current("1-b", str(tmp_path))
