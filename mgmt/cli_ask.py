"""The commands that ask a router and change nothing: state, generations, diff, trace, schema, watch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import as_json_option, to_appliance
from mgmt.terminal import (
    BAD,
    CAREFUL,
    GOOD,
    NAME,
    QUIET,
    milliseconds,
    print_diff,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from mgmt.push import Appliance


@click.command(epilog=EXIT_CODES)
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
    print_table(("drift at", "", "object", "by"), [_drift_row(d) for d in told["drift"]])


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


@click.command(epilog=EXIT_CODES)
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


@click.command(epilog=EXIT_CODES)
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
    click.option("--proto", metavar="PROTOCOL", help="tcp, udp, icmp, icmpv6 or a number.  [default: tcp]"),
    click.option("--sport", type=click.IntRange(1, 65535), metavar="PORT", help="Its source port."),
    click.option("--dport", type=click.IntRange(1, 65535), metavar="PORT", help="Its destination port."),
    click.option("--icmp-type", type=click.IntRange(0, 255), metavar="TYPE", help="Its ICMP type."),
    click.option("--icmp-code", type=click.IntRange(0, 255), metavar="CODE", help="Its ICMP code."),
)


def _packet_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(PACKET):
        command = option(command)
    return command


@click.command(epilog=EXIT_CODES)
@_packet_options
@to_appliance
def trace(appliance: Appliance, as_json: bool, interface: str | None, **fields: Any) -> None:
    """Walk a new packet through the router's rules: each rule that it meets, and the object that decides."""
    query = {name: str(value) for name, value in {"in": interface, **fields}.items() if value is not None}
    told = good(appliance.trace(query)).body
    if as_json:
        return print_json(told)
    rows = [(s["chain"], s["did"], s["rule"], s["element"], (s["owner"], NAME)) for s in told["steps"]]
    print_table(("chain", "what", "rule", "element", "object"), rows)
    _print_outcome(told.get("outcome", told))


def _print_outcome(outcome: Mapping[str, Any]) -> None:
    """What became of the packet, and by which object: the last one that had a say."""
    verdict = outcome["verdict"]
    way = f" by {outcome['out_interface']}" if outcome.get("out_interface") else ""
    ports = [f":{p}" if (p := outcome.get(f"{side}_port")) is not None else "" for side in ("source", "destination")]
    pair = f"{outcome['source']}{ports[0]} to {outcome['destination']}{ports[1]}"
    print_line((verdict, BAD if verdict == "dropped" else GOOD), way, f": {pair}")
    owners, why = outcome["owners"], outcome["why"]
    if owners:
        print_line("decided by ", (owners[-1], NAME), f": {why}" if why else "")
    elif why:
        print_line("because: ", why)


@click.command(epilog=EXIT_CODES)
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


@click.command(epilog=EXIT_CODES)
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
        told = {
            name: value for name, value in health.body.items() if name != "checks"
        }  # those say when they were asked
        return {**told, "latest": good(appliance.state()).body["drift"][-1:]}
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
    words += f", {failing} checks fail" if (failing := told.get("failing")) else ""
    print_line(stamp, health, f"  generation {told['generation']}{waits}{words}{broken}")
    if seen is not None and told["latest"] != seen.get("latest"):
        for found in told["latest"]:
            _, state, what, by = _drift_row(found)
            print_line("          ", state, f": {what}", (f"  ({by})", QUIET))
