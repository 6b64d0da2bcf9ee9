"""What a person asks when something does not work: health."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import to_appliance
from mgmt.terminal import BAD, GOOD, NAME, UNEXPECTED, print_json, print_line, print_table

if TYPE_CHECKING:
    from mgmt.push import Appliance


@click.command(epilog=EXIT_CODES)
@click.option("--now", is_flag=True, help="Ask everything now, and wait for it: some seconds at most.")
@click.option("--all", "everything", is_flag=True, help="Show what is well, too.")
@to_appliance
@click.pass_context
def health(context: click.Context, appliance: Appliance, now: bool, everything: bool, as_json: bool) -> None:
    """Does everything around the router that its document names answer? Exit code 1 where something does not."""
    answer = appliance.health(now)
    if answer.status not in (200, 503):
        good(answer)
    told = answer.body
    is_well = told["healthy"] and not told["failing"]
    if as_json:
        print_json(told)
    else:
        _print(told, everything)
    context.exit(0 if is_well else UNEXPECTED)


def _print(told: Mapping[str, Any], everything: bool) -> None:
    state = ("healthy", GOOD) if told["healthy"] else ("not healthy", BAD)
    count = len(told["checks"])
    failing = (f"{told['failing']} fail", BAD) if told["failing"] else ("all hold", GOOD)
    print_line(state, f", generation {told['generation']}; of {count} checks ", failing)
    for words in (told["broken"], *told["legacy"]):
        if words:
            print_line("  ", words)
    shown = [c for c in told["checks"] if everything or not c["ok"]]
    rows = [
        (("ok", GOOD) if c["ok"] else ("fails", BAD), c["kind"], (c["object"], NAME), _since(c), c["why"])
        for c in shown
    ]
    print_table(("", "check", "object", "since", "why"), rows)
    for check in shown:
        if not check["ok"]:
            print_line(f"  {check['object'] or check['target']}: ", check["remedy"])


def _since(check: Mapping[str, Any]) -> str:
    return datetime.fromtimestamp(check["since"]).strftime("%Y-%m-%d %H:%M:%S")
