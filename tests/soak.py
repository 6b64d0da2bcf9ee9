"""`./narthex soak ROOM [--json] [pytest's arguments]`: the repeated trials of a room at their full counts."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from tests.tier import Outcome, run_pytest


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="./narthex soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("room", help="the room whose trials to run, as in @pytest.mark.soak(ROOM)")
    parser.add_argument("--json", action="store_true", help="figures as JSON; progress goes to stderr")
    ours, for_pytest = parser.parse_known_args(argv)

    # No limit of time per test but the room's own: a full count may last.
    arguments = [
        f"--soak-room={ours.room}",
        "-m",
        "soak",
        "--timeout=0",
        *for_pytest,
        "tests",
        "--ignore=tests/lint",
    ]
    with stdout_to_stderr() if ours.json else contextlib.nullcontext():
        outcome = run_pytest(arguments, {"NARTHEX_TRIALS": "full"})

    if ours.json:
        figures = {"room": ours.room, "passed": outcome.passed, "failed": outcome.failed}
        print(json.dumps({**figures, "figures": list(outcome.figures)}, indent=2))
    else:
        print_figures(ours.room, outcome)
    if outcome.passed + outcome.failed == 0:
        print(f'no test is marked soak("{ours.room}")', file=sys.stderr)
    return 0 if outcome.passed and not outcome.failed else 1


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What is written to stdout meanwhile, by children too, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_figures(room: str, outcome: Outcome) -> None:
    table = Table()
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for figure in outcome.figures:
        table.add_row(str(figure["name"]), f"{figure['value']:,}", str(figure["unit"]))
    if outcome.figures:
        Console().print(table)
    print(f"soak {room}: full counts, {outcome.seconds:.0f} s")
    print(f"{outcome.passed} passed, {outcome.failed} failed")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
