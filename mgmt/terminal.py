"""What a person sees of an answer: aligned tables, coloured on a terminal, plain in a pipe; JSON on request.

Colour carries no meaning that the words beside it don't: NO_COLOR (no-color.org), a pipe and a dumb terminal lose
nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

APPLIED, UNEXPECTED, USAGE, REFUSED, STALE, UNDONE, UNREACHABLE = 0, 1, 2, 3, 4, 5, 6
PLAIN_WIDTH = 10_000  # nothing is folded in a pipe: a line is a row

GOOD, BAD, CAREFUL, QUIET, NAME = "green", "bold red", "yellow", "dim", "bold"


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (default: stdout) that writes escapes only to a terminal that wants them."""
    out = stream or sys.stdout
    colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Console(
        file=out,
        force_terminal=colours,
        color_system="auto" if colours else None,
        width=None if out.isatty() else PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_json(told: Any) -> None:
    """One JSON text on stdout."""
    click.echo(json.dumps(told, indent=2, default=str))


def print_line(*parts: str | tuple[str, str]) -> None:
    """One line; a part is words, or words with their style."""
    console().print(Text.assemble(*parts), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]], indent: int = 2) -> None:
    """A table without frames. A column whose name ends in ">" is set to the right. Nothing without rows."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text.assemble(cell) for cell in row))
    if not table.row_count:
        return
    out = console()
    with out.capture() as captured:
        out.print(table, width=out.width - indent) if out.is_terminal else out.print(table)
    for line in captured.get().splitlines():
        click.echo(" " * indent + line.rstrip(), color=True)


def print_diff(text: str) -> None:
    """A unified diff, coloured by its marks."""
    styles = {"+": GOOD, "-": "red", "@": "cyan"}
    for line in text.splitlines():
        print_line((line, styles.get(line[:1], "") if not line.startswith(("+++", "---")) else NAME))


class Failure(click.ClickException):
    """An end that a person can act on: what happened, what to do, and an exit code that means it.

    `body` is what `--json` prints in place of the words; `places` are rows of (place, what is wrong there).
    """

    def __init__(
        self, message: str, code: int, remedy: str = "", body: Any = None, places: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]
        self.remedy, self.body, self.places = remedy, body, places
        context = click.get_current_context(silent=True)
        self._as_json = bool(context and context.params.get("as_json"))

    def show(self, file: IO[Any] | None = None) -> None:
        if self._as_json:
            told = self.body if self.body is not None else {"error": self.message, "remedy": self.remedy}
            print_json(told)
            return
        out = console(file or sys.stderr)
        out.print(Text.assemble(("narthex: ", BAD), self.message), soft_wrap=True)
        for place, words in self.places:
            out.print(Text.assemble("  ", (place, NAME), ": " if place else "", words), soft_wrap=True)
        if self.remedy:
            out.print(Text(f"  {self.remedy}", style=QUIET), soft_wrap=True)


def milliseconds(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:,.0f} ms"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
