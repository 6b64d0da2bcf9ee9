"""One setting decides how often trials are repeated."""

from __future__ import annotations

import pytest

from tests.trials import trials


@pytest.mark.parametrize(
    ("setting", "full", "count"),
    [("full", 100, 100), ("tenth", 100, 10), ("tenth", 20, 5), (None, 10_000, 1_000), ("full", 3, 3)],
)
def test_counts(monkeypatch: pytest.MonkeyPatch, setting: str | None, full: int, count: int) -> None:
    if setting is None:
        monkeypatch.delenv("NARTHEX_TRIALS", raising=False)
    else:
        monkeypatch.setenv("NARTHEX_TRIALS", setting)
    assert trials(full) == count
