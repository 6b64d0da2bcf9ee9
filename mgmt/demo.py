"""`./narthex demo`: a router, its guests and real packets, each told on one line as it happens. `python -m mgmt.demo`.

Ends in 0 where everything was so, in 1 where something was not; and takes everything down, whatever happened.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
if __name__ == "__main__":  # the other imports take a part of a second, and nothing is there yet to be taken down
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(130))

import click  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from mgmt.demo_stage import CELL, Stage, Where, sweep_stages  # noqa: E402
from mgmt.demo_story import Step, Story  # noqa: E402
from mgmt.terminal import BAD, GOOD, NAME, QUIET, console, milliseconds, print_json  # noqa: E402

INTENT = """\
A router in a cell, five guests and an outside host, each in namespaces of this machine: real
daemons, real packets. Nothing else of the machine is touched; all of it is gone at the end.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step that was taken: `words` tell what was so, or what was not."""

    name: str
    words: str
    milliseconds: float
    ok: bool


class Teller:
    """Prints each step on one line, at once; on a terminal also what is being done. Silent for JSON."""

    def __init__(self, silent: bool) -> None:
        self._out: Console | None = None if silent else console()

    def say(self, *parts: str | tuple[str, str]) -> None:
        if self._out is not None:
            self._out.print(Text.assemble(*parts), soft_wrap=True)

    def take(self, step: Step) -> Outcome:
        """Take the step and tell how it went. What it raises is its outcome; an interrupt goes through."""
        started = time.monotonic()
        if self._out is not None and self._out.is_terminal:
            self._out.print(Text.assemble("  .. ", " " * 9, "  ", (step.doing, QUIET)), end="\r", soft_wrap=True)
        try:
            words, ok = step.deed(), True
        except Exception as error:
            words, ok = _first_line(error), False
        outcome = Outcome(step.name, words, round((time.monotonic() - started) * 1000, 1), ok)
        self.tell(outcome)
        return outcome

    def tell(self, outcome: Outcome) -> None:
        mark = ("  ok ", GOOD) if outcome.ok else (" NOT ", BAD)
        self.say(mark, (milliseconds(outcome.milliseconds).rjust(9), QUIET), "  ", outcome.words)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    stderr = str(getattr(error, "stderr", None) or "").strip()
    return f"{text}: {stderr}" if stderr else text


def run_demo(teller: Teller, keep: bool, where: Where = CELL) -> list[Outcome]:
    """Every step until one is not so; then everything is taken down, and looked for."""
    outcomes: list[Outcome] = []
    sweep_stages()
    stage = Stage(where)
    try:
        for step in Story(stage).steps():
            outcomes.append(teller.take(step))
            if not outcomes[-1].ok:
                break
        if keep:
            _stand(teller, stage)
    finally:
        # A second Ctrl-C must not cut the taking down short.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        outcomes.append(teller.take(Step("clean", "taking everything down", lambda: _take_down(stage))))
    return outcomes


def _take_down(stage: Stage) -> str:
    stage.take_down()
    if left := stage.left_behind():
        raise RuntimeError(f"left behind: {', '.join(left)}")
    return "all gone: no namespace, mount, process, bridge or rule is left"


def _stand(teller: Teller, stage: Stage) -> None:
    teller.say()
    teller.say(("It stands until Ctrl-C. Look around from another terminal:", NAME))
    for guest in (*stage.guests.values(), stage.outside):
        teller.say(f"  ip netns exec {guest.path.name} sh".ljust(52), (guest.label, QUIET))
    teller.say(f"  nsenter -t {stage.process()} -m -u -i -n -p -r -w sh".ljust(52), ("the router", QUIET))
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        teller.say()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every step and its milliseconds.")
@click.option("--keep", is_flag=True, help="Let it all stand until Ctrl-C, to look around.")
def demo(as_json: bool, keep: bool) -> None:
    """A router, its guests and real packets, in half a minute. Ends in 0 where everything was so."""
    teller = Teller(silent=as_json)
    try:
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        ok = show(teller, as_json, keep)
    except KeyboardInterrupt:
        teller.say("interrupted")
        sys.exit(130)
    sys.exit(0 if ok else 1)


def show(teller: Teller, as_json: bool, keep: bool) -> bool:
    """Run the demo and tell what came of it; was everything so?"""
    teller.say(INTENT)
    started = time.monotonic()
    outcomes = run_demo(teller, keep)
    seconds, ok = time.monotonic() - started, all(outcome.ok for outcome in outcomes)
    if as_json:
        print_json({"ok": ok, "seconds": round(seconds, 2), "steps": [asdict(outcome) for outcome in outcomes]})
    else:
        teller.say()
        words = ("Everything was so", GOOD) if ok else ("Not everything was so", BAD)
        teller.say(words, f", in {seconds:.1f} s. To look around in it: ./narthex demo --keep")
    return ok


if __name__ == "__main__":
    demo(prog_name="narthex demo")
