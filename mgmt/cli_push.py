"""The commands that change a router: plan (which only says so), push, rollback, confirm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import to_appliance
from mgmt.draft import Draft, DraftError, read_draft
from mgmt.terminal import (
    BAD,
    CAREFUL,
    GOOD,
    NAME,
    QUIET,
    STALE,
    USAGE,
    Failure,
    count,
    milliseconds,
    print_diff,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from mgmt.push import Answer, Appliance

SHOWN_NAMES = 3
# In the order of the transaction; "decode" holds the checks and the compilation.
PHASES = (
    "decode", "checks", "compile", "plan", "check", "journal",
    "sysctl", "link", "wireguard", "peer", "address", "route", "rule", "ruleset", "file", "unit", "pool", "entry",
    "advert", "flows", "verify", "keep",
)  # fmt: skip


FILE = click.argument("file", type=click.File("r", encoding="utf-8"))
NEXT = click.option("--next", "next_generation", is_flag=True, help="Number it one above the router's generation.")
CONFIRM = click.option(
    "--confirm/--no-confirm",
    "does_confirm",
    default=True,
    help="Where the router demands a confirmation, give it over a new connection.  [default: confirm]",
)


@click.command(epilog=EXIT_CODES)
@FILE
@NEXT
@click.option("--steps", "with_steps", is_flag=True, help="Show every step on its own line.")
@click.option("--diff", "with_diff", is_flag=True, help="Show the machine's difference, line by line.")
@to_appliance
def plan(
    appliance: Appliance, file: IO[str], next_generation: bool, with_steps: bool, with_diff: bool, as_json: bool
) -> None:
    """What FILE (JSON or YAML, - for stdin) would do: steps, reloads, flows that would break. Touches nothing."""
    draft = _complete(appliance, _read(file), next_generation, as_json)
    answer = good(appliance.plan(draft.body()))
    if as_json:
        return print_json(answer.body)
    told = answer.body
    if not told["steps"]:
        return print_line(("nothing to do", GOOD), f": the router is generation {told['generation']} already")
    print_line((count(len(told["steps"]), "step"), NAME), f" to generation {told['generation']}")
    _print_steps(told["steps"]) if with_steps else _print_kinds(told["steps"])
    if told["units"]:
        print_line("daemons: ", ", ".join(told["units"]))
    print_line(*_flows(told["flows"]))
    if told["confirm"]:
        print_line(("touches the manager's way in: a confirmation is demanded", CAREFUL))
    _print_refused(told)
    if with_diff:
        print_diff(told["diff"])
    print_line(("plan ", QUIET), (told["plan"], QUIET))


@click.command(epilog=EXIT_CODES)
@FILE
@NEXT
@CONFIRM
@click.option("--plan", "plan_hash", metavar="HASH", help="Carry it out only if its plan still has this hash.")
@to_appliance
def push(
    appliance: Appliance,
    file: IO[str],
    next_generation: bool,
    does_confirm: bool,
    plan_hash: str | None,
    as_json: bool,
) -> None:
    """Make the router what FILE says (JSON or YAML, - for stdin).

    FILE is a whole document, or a change: an object with `operations`. Its generation (and a change's base) may be
    left out: the next one is taken, and said.
    """
    draft = _read(file)
    if plan_hash:
        draft = Draft({**draft.told, "plan": plan_hash}, draft.filled)
    draft = _complete(appliance, draft, next_generation, as_json)
    answer = appliance.patch(draft.body()) if draft.is_change else appliance.put(draft.body())
    _finish_push(appliance, answer, does_confirm, as_json)


@click.command(epilog=EXIT_CODES)
@click.argument("generation", type=click.IntRange(min=1))
@CONFIRM
@to_appliance
def rollback(appliance: Appliance, generation: int, does_confirm: bool, as_json: bool) -> None:
    """Make the router what GENERATION was, under a new number."""
    _finish_push(appliance, appliance.rollback(generation), does_confirm, as_json)


@click.command(epilog=EXIT_CODES)
@click.argument("generation", type=click.IntRange(min=1), required=False)
@to_appliance
def confirm(appliance: Appliance, generation: int | None, as_json: bool) -> None:
    """Keep GENERATION (default: the one that waits)."""
    if generation is None:
        awaiting = good(appliance.state()).body["awaiting"]
        if awaiting is None:
            raise Failure("no generation waits for a confirmation", STALE, "See: narthex router generations")
        generation = int(awaiting["generation"])
    answer = good(appliance.confirm(generation))
    if as_json:
        return print_json(answer.body)
    print_line(f"generation {generation} ", (answer.body["result"].replace("applied", "kept"), GOOD))


def _read(file: IO[str]) -> Draft:
    try:
        return read_draft(file.read(), getattr(file, "name", "the document"))
    except (DraftError, UnicodeDecodeError) as error:
        raise Failure(str(error), USAGE, "Nothing was sent.") from None


def _complete(appliance: Appliance, draft: Draft, next_generation: bool, as_json: bool) -> Draft:
    """The draft with generation and base, and a word about what was filled in."""
    if draft.is_complete and not next_generation:
        return draft
    completed = draft.completed(int(good(appliance.generations()).body["current"]), next_generation)
    if not as_json:
        print_line((f"filled in: {', '.join(completed.filled)}", QUIET))
    return completed


def _finish_push(appliance: Appliance, answer: Answer, does_confirm: bool, as_json: bool) -> None:
    """Confirm where it is demanded, then say what was done. Raises Failure where it was not."""
    told = dict(good(answer).body)
    seconds = answer.seconds
    if answer.status == 202 and does_confirm:
        kept = good(appliance.confirm(told["generation"]))
        seconds += kept.seconds
        told["confirmed"] = {"result": kept.body["result"], "milliseconds": round(kept.seconds * 1000, 1)}
    told["milliseconds"] = round(seconds * 1000, 1)
    if as_json:
        return print_json(told)
    number = told["generation"]
    if told["result"] == "unchanged":
        print_line((f"generation {number} unchanged", GOOD), f": it is so already, {milliseconds(seconds * 1000)}")
        return _print_refused(told)
    print_line((f"generation {number} applied", GOOD), f" in {milliseconds(seconds * 1000)}")
    _print_refused(told)
    steps: list[Mapping[str, Any]] = []
    record = appliance.generations(number)
    if record.good:
        steps = record.body["plan"]
    _print_phases(told["timings"], steps)
    if "confirmed" in told:
        print_line("confirmed over a new connection")
    elif answer.status == 202:
        left = told["confirm"]["seconds"]
        print_line((f"waits {left:.0f} s for: narthex router confirm {number}", CAREFUL), "; then it is undone")


def _print_refused(told: Mapping[str, Any]) -> None:
    """What of the document is not in force, though all else is."""
    for one in told.get("refused", ()):
        print_line((f"refused, and as it was: {one['path']}", BAD), f": {one['message']}")


def _print_steps(steps: list[Mapping[str, Any]]) -> None:
    print_table(
        ("step", "kind", "name", "object"), [(s["verb"], s["kind"], s["name"], (s["owner"], QUIET)) for s in steps]
    )


def _print_kinds(steps: list[Mapping[str, Any]]) -> None:
    kinds = dict.fromkeys(step["kind"] for step in steps)
    print_table(("kind", "steps"), [(kind, _summary(kind, steps)) for kind in kinds])


def _print_phases(timings: Mapping[str, float], steps: list[Mapping[str, Any]]) -> None:
    """What the push spent its time on, in the order in which it did."""
    names = [*(p for p in PHASES if p in timings), *(t for t in timings if t not in PHASES)]
    rows = [(name, milliseconds(timings[name]), (_summary(name, steps), QUIET)) for name in names]
    print_table(("phase", "time>", "steps"), rows)


def _summary(kind: str, steps: list[Mapping[str, Any]]) -> str:
    """The steps of a kind in a few words: the first names by verb, and how many more."""
    by_verb: dict[str, list[str]] = {}
    for step in steps:
        if step["kind"] == kind:
            owner = f" ({step['owner']})" if step["owner"] and step["owner"] not in step["name"] else ""
            by_verb.setdefault(step["verb"], []).append(step["name"] + owner)
    told = []
    for verb, names in by_verb.items():
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        told.append(f"{verb} {', '.join(names[:SHOWN_NAMES])}{more}")
    return "; ".join(told)


def _flows(flows: Any) -> Iterator[str | tuple[str, str]]:
    number = flows if isinstance(flows, int) else len(flows)
    yield (count(number, "live flow") + " would break", CAREFUL if number else "")
