"""What came of a pytest run is read from its report; a run that broke is never counted as passed."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.__main__ as runner
from tests.tier import Outcome, read_report

REPORT = """<testsuites><testsuite>
<testcase name="a"><properties><property name="figure"
  value='{"name": "kills", "value": 100, "unit": "times"}'/></properties></testcase>
<testcase name="b"/>
<testcase name="c"><failure message="no"/></testcase>
<testcase name="d"><error message="in a fixture"/></testcase>
<testcase name="e"><skipped/></testcase>
</testsuite></testsuites>"""


def test_counts_and_figures(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)
    outcome = read_report(report, 1.5, 1)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, 2, 1)
    assert outcome.figures == ({"name": "kills", "value": 100, "unit": "times"},)


def test_a_code_without_a_failure_is_a_failure(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text("<testsuites><testsuite><testcase name='a'/></testsuite></testsuites>")
    assert read_report(report, 1.0, 3).failed == 1


@pytest.mark.parametrize(
    ("outcomes", "code", "last"),
    [
        ([Outcome(3, 0, 0, 1.0, 0), Outcome(4, 0, 1, 1.0, 0)], 0, "7 passed, 0 failed"),
        ([Outcome(3, 0, 0, 1.0, 0), Outcome(4, 1, 0, 1.0, 1)], 1, "7 passed, 1 failed"),
        ([Outcome(0, 0, 0, 1.0, 5), Outcome(0, 0, 2, 1.0, 0)], 1, "0 passed, 0 failed"),
    ],
)
def test_closing_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: list[Outcome],
    code: int,
    last: str,
) -> None:
    remaining = iter(outcomes)
    monkeypatch.setattr(runner, "run_tier", lambda tier, arguments: next(remaining))
    assert runner.main(["--tier", "lint", "--tier", "unit"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last
