"""`./narthex router`: a person speaks to one router's agent. Each command is a request, an exit code and a page."""

from __future__ import annotations

import click

from mgmt.cli_answer import EXIT_CODES
from mgmt.cli_ask import diff, generations, schema, state, trace, watch
from mgmt.cli_health import diagnose, health, support
from mgmt.cli_push import confirm, plan, push, rollback
from mgmt.cli_traffic import flows, usage


@click.group(epilog=EXIT_CODES)
def router() -> None:
    """Push documents to a router and ask it questions.

    The router is the only cell that runs, unless --cell, --address or --socket says another.
    """


_ASK = (state, generations, diff, trace, usage, flows, schema, watch, health, diagnose, support)
for command in (plan, push, confirm, rollback, *_ASK):
    router.add_command(command)
