"""`./narthex appliance`: the release of the agent in an appliance, and what another one is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import to_appliance
from mgmt.terminal import (
    CAREFUL,
    GOOD,
    NAME,
    QUIET,
    STALE,
    UNDONE,
    UNEXPECTED,
    USAGE,
    Failure,
    milliseconds,
    print_diff,
    print_json,
    print_line,
)

if TYPE_CHECKING:
    from mgmt.bundle import Bundle
    from mgmt.push import Appliance
    from mgmt.upgrade import Upgraded

MOST_BYTES = 64 << 20


@click.group(epilog=EXIT_CODES)
def appliance() -> None:
    """The agent in an appliance: its release, a newer one, and the way back.

    The appliance is named as for `narthex router`: --address with --key and --host-key, or --socket. A cell has no
    releases: it runs its host's own code.
    """


@appliance.command(epilog=EXIT_CODES)
@click.option("--bundle", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A release as a file.  [default: this tree's own]")  # fmt: skip
@click.option("--allow-change", is_flag=True, help="Take it even if it makes another machine of the same document.")
@click.option(
    "--seconds", default=60, show_default=True, type=click.IntRange(10, 3600), help="Time to be confirmed in."
)
@to_appliance
def upgrade(appliance: Appliance, file: Path | None, allow_change: bool, seconds: int, as_json: bool) -> None:
    """Give an appliance another release: tried there, switched to, confirmed; else it goes back by itself."""
    from mgmt import upgrade as room

    say = _quiet if as_json else _say
    given = _read(file) if file else _made(say)
    with _failing():
        _print_upgraded(room.upgrade(appliance, given, allow_change, seconds, say), as_json)


@appliance.command("return", epilog=EXIT_CODES)
@to_appliance
def give_back(appliance: Appliance, as_json: bool) -> None:
    """Go back to the release before this one."""
    from mgmt import upgrade as room

    with _failing():
        _print_upgraded(room.give_back(appliance, _quiet if as_json else _say), as_json)


@appliance.command(epilog=EXIT_CODES)
@to_appliance
def version(appliance: Appliance, as_json: bool) -> None:
    """Which release an appliance runs, and what became of others."""
    told = good(appliance.version()).body
    if as_json:
        return print_json(told)
    print_line(
        (told["release"] or told["narthex"], NAME), f", a {told['role']}, documents of version {told['document']}"
    )
    if told["previous"]:
        print_line("before it: ", told["previous"])
    if trial := told["trial"]:
        until = f", to be confirmed until {_at(trial['since'] + trial['seconds'])}" if trial["seconds"] else ""
        print_line((f"{trial['release']} is on trial", CAREFUL), f" since {_at(trial['since'])}{until}")
    if returned := told["returned"]:
        print_line((f"{returned['release']} was taken back", CAREFUL), f" {_at(returned['at'])}: {returned['why']}")
    if told["refused"]:
        print_line(("the seed's release was not taken", CAREFUL), f": {told['refused']}")


@appliance.command(epilog=EXIT_CODES)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Write it there.")
@click.option("--thin", is_flag=True, help="Without the wheels that an image of the same lock has.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def bundle(output: Path, thin: bool, as_json: bool) -> None:
    """Make a release of this tree as one file, for a seed or for `upgrade --bundle`."""
    made = _made(_quiet if as_json else _say)
    content = made.pack(thin)
    try:
        output.write_bytes(content)
    except OSError as error:
        raise Failure(f"{output}: {error.strerror}", UNEXPECTED, "Give another place.") from None
    if as_json:
        return print_json({"release": made.id, "file": str(output), "bytes": len(content), "thin": thin})
    print_line((made.id, NAME), f", {len(content) / 2**20:.1f} MiB, is in {output}")


def _read(file: Path) -> bytes:
    if file.stat().st_size > MOST_BYTES:
        raise Failure(f"{file}: more than {MOST_BYTES >> 20} MiB", USAGE, "Make it with: narthex appliance bundle")
    return file.read_bytes()


def _made(say: Any) -> Bundle:
    from mgmt.bundle import make_bundle
    from mgmt.image.tools import ImageError

    say("making a release of this tree")
    try:
        return make_bundle()
    except ImageError as error:
        raise Failure(str(error), UNEXPECTED) from None


@contextmanager
def _failing() -> Iterator[None]:
    """An UpgradeError as the answer's own failure, with the difference where that is what was refused."""
    from mgmt.upgrade import UpgradeError

    try:
        yield
    except UpgradeError as error:
        answer = error.answer
        if answer is None or answer.good or answer.status == 503:
            raise Failure(str(error), UNDONE, "See: narthex appliance version") from None
        told = dict(answer.body) if isinstance(answer.body, dict) else {}
        if told.get("diff"):
            print_diff(told["diff"])
            raise Failure(str(error), STALE, "Look at the difference; to have it: --allow-change.", told) from None
        if answer.status == 422:
            good(answer)
        code = STALE if answer.status == 409 else UNEXPECTED
        raise Failure(str(error), code, "See: narthex appliance version", told) from None


def _print_upgraded(done: Upgraded, as_json: bool) -> None:
    if as_json:
        return print_json({
            "release": done.release, "previous": done.previous, "changed": done.changed,
            "seconds": round(done.seconds, 2), "away": round(done.away, 2),
        })  # fmt: skip
    if not done.changed:
        return print_line((f"it runs {done.release} already", GOOD))
    away = f", {milliseconds(done.away * 1000)} of it without an agent" if done.away else ""
    print_line((f"it runs {done.release}", GOOD), f" after {done.seconds:.1f} s{away}; before it was {done.previous}")


def _say(words: str) -> None:
    print_line("  ", (words, QUIET))


def _quiet(words: str) -> None:
    pass


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
