"""`./narthex router`: a person speaks to one router's agent. Each command is a request, an exit code and a page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

import click

from mgmt.cli_answer import good
from mgmt.cli_target import as_json_option, to_appliance
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

EXIT_CODES = """\b
Exit codes:
  0  applied, unchanged, or answered
  1  something unexpected; the message says what
  2  the command line or the file is wrong; nothing was sent
  3  refused (422): the document or the question; nothing was touched
  4  stale (409, 412): another push came first, or the plan is not the one demanded
  5  undone (500): a step failed and the router is what it was before
  6  the router cannot be reached, or is not the one that it should be
"""
SHOWN_STEPS = 30


@click.group(epilog=EXIT_CODES)
def router() -> None:
    """Push documents to a router and ask it questions.

    The router is the only cell that runs, unless --cell, --address or --socket says another.
    """


# --- pushing


FILE = click.argument("file", type=click.File("r", encoding="utf-8"))
NEXT = click.option("--next", "next_generation", is_flag=True, help="Number it one above the router's generation.")
CONFIRM = click.option(
    "--confirm/--no-confirm",
    "does_confirm",
    default=True,
    help="Where the router demands a confirmation, give it over a new connection.  [default: confirm]",
)


@router.command(epilog=EXIT_CODES)
@FILE
@NEXT
@click.option("--diff", "with_diff", is_flag=True, help="Show the machine's difference, line by line.")
@to_appliance
def plan(appliance: Appliance, file: IO[str], next_generation: bool, with_diff: bool, as_json: bool) -> None:
    """What FILE (JSON or YAML, - for stdin) would do: steps, reloads, flows that would break. Touches nothing."""
    draft = _complete(appliance, _read(file), next_generation, as_json)
    answer = good(appliance.plan(draft.body()))
    if as_json:
        return print_json(answer.body)
    told = answer.body
    if not told["steps"]:
        return print_line(("nothing to do", GOOD), f": the router is generation {told['generation']} already")
    print_line((count(len(told["steps"]), "step"), NAME), f" to generation {told['generation']}")
    _print_steps(told["steps"])
    if told["units"]:
        print_line("daemons: ", ", ".join(told["units"]))
    print_line(*_flows(told["flows"]))
    if told["confirm"]:
        print_line(("touches the manager's way in: a confirmation is demanded", CAREFUL))
    if with_diff:
        print_diff(told["diff"])
    print_line(("plan ", QUIET), (told["plan"], QUIET))


@router.command(epilog=EXIT_CODES)
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


@router.command(epilog=EXIT_CODES)
@click.argument("generation", type=click.IntRange(min=1))
@CONFIRM
@to_appliance
def rollback(appliance: Appliance, generation: int, does_confirm: bool, as_json: bool) -> None:
    """Make the router what GENERATION was, under a new number."""
    _finish_push(appliance, appliance.rollback(generation), does_confirm, as_json)


@router.command(epilog=EXIT_CODES)
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
        return
    print_line((f"generation {number} applied", GOOD), f" in {milliseconds(seconds * 1000)}")
    record = appliance.generations(number)
    if record.good:
        _print_steps(record.body["plan"])
    _print_timings(told)
    if "confirmed" in told:
        print_line("confirmed over a new connection")
    elif answer.status == 202:
        left = told["confirm"]["seconds"]
        print_line((f"waits {left:.0f} s for: narthex router confirm {number}", CAREFUL), "; then it is undone")


def _print_steps(steps: list[Mapping[str, Any]]) -> None:
    rows = [(s["verb"], s["kind"], s["name"], (s["owner"], QUIET)) for s in steps[:SHOWN_STEPS]]
    print_table(("step", "kind", "name", "object"), rows)
    if len(steps) > SHOWN_STEPS:
        print_line(("  " + count(len(steps) - SHOWN_STEPS, "more step"), QUIET))


def _print_timings(told: Mapping[str, Any]) -> None:
    timings: Mapping[str, float] = told.get("timings", {})
    print_table(("phase", "time>"), [(name, milliseconds(ms)) for name, ms in timings.items() if ms >= 0.05])


def _flows(flows: Any) -> Iterator[str | tuple[str, str]]:
    number = flows if isinstance(flows, int) else len(flows)
    yield (count(number, "live flow") + " would break", CAREFUL if number else "")


# --- asking


@router.command(epilog=EXIT_CODES)
@click.option("--document", "view", flag_value="document", help="The whole document, as JSON.")
@click.option("--machine", "view", flag_value="machine", help="What the machine shall be, a part a line.")
@to_appliance
def state(appliance: Appliance, view: str | None, as_json: bool) -> None:
    """What the router is: generation, health, and what drifted."""
    told = good(appliance.state(view or "")).body
    if as_json:
        return print_json(told)
    if view == "document":
        return print_json(told.get("document"))
    if view == "machine":
        for line in told["lines"]:
            click.echo(line)
        return
    print_line((told["name"], NAME), f", a {told['role']}, generation {told['generation']}")
    print_line(*_converged(told))
    if told["awaiting"]:
        print_line((f"generation {told['awaiting']['generation']} waits for its confirmation", CAREFUL))
    print_table(("drift", "", "what", "by"), [_drift_row(d) for d in told["drift"]])


def _converged(told: Mapping[str, Any]) -> Iterator[str | tuple[str, str]]:
    if told["broken"]:
        yield ("not converged", BAD)
        yield f": {told['broken']}"
    else:
        yield ("converged", GOOD)


def _drift_row(drift: Mapping[str, Any]) -> tuple[str | tuple[str, str], ...]:
    what = sorted({s["owner"] or s["name"] for s in drift["steps"]})
    state = ("healed", GOOD) if drift["healed"] else ("reported", CAREFUL)
    return _when(drift["at"]), state, ", ".join(what[:8]), drift["by"] or drift["reason"]


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


@router.command(epilog=EXIT_CODES)
@to_appliance
def generations(appliance: Appliance, as_json: bool) -> None:
    """The generations that are kept, and those that were undone and why."""
    told = good(appliance.generations()).body
    if as_json:
        return print_json(told)
    styles = {"kept": GOOD, "undone": BAD, "awaiting": CAREFUL, "begun": CAREFUL}
    rows = [
        (
            ("* " if r["generation"] == told["current"] else "  ") + str(r["generation"]),
            _when(r["at"]),
            r["kind"],
            (r["status"], styles.get(r["status"], "")),
            str(r["steps"]),
            milliseconds(r["milliseconds"]),
            r["why"],
        )
        for r in told["generations"]
    ]
    if not rows:
        return print_line("no generation yet; push a document: narthex router push docs/examples/router.json")
    print_table(("generation>", "when", "kind", "status", "steps>", "time>", "why"), rows, indent=0)


@router.command(epilog=EXIT_CODES)
@click.argument("a", type=click.IntRange(min=1))
@click.argument("b", type=click.IntRange(min=1))
@to_appliance
def diff(appliance: Appliance, a: int, b: int, as_json: bool) -> None:
    """How the machine of generation B differs from that of generation A."""
    told = good(appliance.generations(b, against=a)).body
    if as_json:
        return print_json({"before": a, "after": b, "diff": told["diff"]})
    if not told["diff"]:
        return print_line(f"generations {a} and {b} make the same machine")
    print_diff(told["diff"])


PACKET = (
    click.option(
        "--in", "interface", metavar="IFACE", help="The interface that it comes in by: an id of the document."
    ),
    click.option("--src", metavar="ADDRESS", help="Its source address."),
    click.option("--dst", metavar="ADDRESS", required=True, help="Its destination address."),
    click.option("--proto", metavar="PROTOCOL", help="tcp, udp, icmp or a number.  [default: tcp]"),
    click.option("--sport", type=click.IntRange(1, 65535), metavar="PORT", help="Its source port."),
    click.option("--dport", type=click.IntRange(1, 65535), metavar="PORT", help="Its destination port."),
    click.option("--icmp-type", type=click.IntRange(0, 255), metavar="TYPE", help="Its ICMP type."),
)


def _packet_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(PACKET):
        command = option(command)
    return command


@router.command(epilog=EXIT_CODES)
@_packet_options
@to_appliance
def trace(appliance: Appliance, as_json: bool, interface: str | None, **fields: Any) -> None:
    """Walk a new packet through the router's rules: each rule that it meets, and the object that decides."""
    query = {name: str(value) for name, value in {"in": interface, **fields}.items() if value is not None}
    told = good(appliance.trace(query)).body
    if as_json:
        return print_json(told)
    print_json(told)


@router.command(epilog=EXIT_CODES)
@as_json_option
def schema(as_json: bool) -> None:
    """The JSON Schema of a router's document, for editors and for programs that write one."""
    from appliance.document import Document
    from router.config import Config

    told = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Document[Config].model_json_schema(),
        "title": "Narthex router document",
    }
    print_json(told)


# --- watching


@router.command(epilog=EXIT_CODES)
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), metavar="SECONDS")
@click.option("--times", type=click.IntRange(min=1), help="End after so many looks.  [default: at Ctrl-C]")
@to_appliance
def watch(appliance: Appliance, every: float, times: int | None, as_json: bool) -> None:
    """Follow health, generation and drift: a line whenever something changes."""
    seen: Mapping[str, Any] | None = None
    looks = 0
    while times is None or looks < times:
        if looks:
            time.sleep(every)
        looks += 1
        told = _look(appliance)
        if told != seen:
            _print_look(told, seen, as_json)
        seen = told


def _look(appliance: Appliance) -> dict[str, Any]:
    """Health and the latest drift; {"unreachable": why} while nobody answers."""
    from mgmt.push import PushError

    try:
        health = appliance.health()
        if health.status not in (200, 503):
            good(health)
        return {**health.body, "latest": good(appliance.state()).body["drift"][-1:]}
    except PushError as error:
        return {"unreachable": str(error)}


def _print_look(told: Mapping[str, Any], seen: Mapping[str, Any] | None, as_json: bool) -> None:
    at = datetime.now()
    if as_json:
        click.echo(json.dumps({"at": at.isoformat(timespec="milliseconds"), **told}))
        sys.stdout.flush()
        return
    stamp = (at.strftime("%H:%M:%S  "), QUIET)
    if "unreachable" in told:
        return print_line(stamp, ("unreachable", BAD), f": {told['unreachable']}")
    health = ("healthy", GOOD) if told["healthy"] else ("not healthy", BAD)
    waits = ", waits for its confirmation" if told["awaiting"] else ""
    broken = f": {told['broken']}" if told["broken"] else ""
    drift = told["drift"]
    words = f", drift {drift['healed']} healed, {drift['reported']} reported"
    print_line(stamp, health, f"  generation {told['generation']}{waits}{words}{broken}")
    if seen is not None and told["latest"] != seen.get("latest"):
        for found in told["latest"]:
            _, state, what, by = _drift_row(found)
            print_line("          ", state, f": {what}", (f"  ({by})", QUIET))
