"""Running pytest in a process group of its own, and reading back what came of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
NO_TESTS_COLLECTED = 5
GRACE_S = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of one pytest run; seconds on the wall; figures as the tests recorded them."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    code: int
    figures: tuple[dict[str, object], ...] = ()


def run_pytest(arguments: Sequence[str], extra_env: Mapping[str, str]) -> Outcome:
    """Run pytest with the arguments; its output goes where ours goes. Nothing of its group outlives it."""
    with termination_as_interrupt(), started(arguments, extra_env, None) as run:
        return run.outcome()


@dataclass(frozen=True, slots=True)
class Run:
    """A pytest in a process group of its own; `said` is the file of its output, None where it goes to ours."""

    process: subprocess.Popen[bytes]
    report: Path
    said: Path | None
    since: float

    def outcome(self) -> Outcome:
        """Wait for its end, and show what it says where nobody has seen it yet."""
        if self.said is not None:
            self._show(self.said)
        code = self.process.wait()
        seconds = time.monotonic() - self.since
        if not self.report.exists():
            return Outcome(0, 0 if code == NO_TESTS_COLLECTED else 1, 0, seconds, code)
        return read_report(self.report, seconds, code)

    def _show(self, said: Path) -> None:
        with said.open() as lines:
            while True:
                over = self.process.poll() is not None
                print(lines.read(), end="", flush=True)
                if over:
                    return
                time.sleep(0.2)


@contextmanager
def started(arguments: Sequence[str], extra_env: Mapping[str, str], said: Path | None) -> Iterator[Run]:
    """pytest as the leader of a new session, its output in the file `said` if there is one.

    A Ctrl-C or SIGTERM that reaches us is passed on, and waited for; then whatever is left of its group is killed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="narthex-tests-") as directory,
        nullcontext() if said is None else said.open("wb") as out,
    ):
        report = Path(directory) / "junit.xml"
        command = [sys.executable, "-P", "-m", "pytest", "--no-header", f"--junit-xml={report}", *arguments]
        since = time.monotonic()
        with subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **extra_env}, stdin=subprocess.DEVNULL, stdout=out,
            stderr=None if out is None else subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield Run(process, report, said, since)
            except BaseException:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
                raise
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM means what Ctrl-C means, as long as this lasts.

    SIGINT is taken too: a shell's background jobs inherit it ignored, and would hand that on to pytest.
    """
    taken = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.default_int_handler) for number in taken]
    try:
        yield
    finally:
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)


def read_report(report: Path, seconds: float, code: int) -> Outcome:
    """Counts and figures out of pytest's junit file. A non-zero code without a failure counts as one."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    broken = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    figures = tuple(
        json.loads(item.attrib["value"])
        for case in cases
        for item in case.iter("property")
        if item.attrib["name"] == "figure"
    )
    failed = broken or (1 if code not in (0, NO_TESTS_COLLECTED) else 0)
    return Outcome(max(0, len(cases) - broken - skipped), failed, skipped, seconds, code, figures)
