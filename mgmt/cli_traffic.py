"""The commands that tell of a router's traffic: usage, flows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import to_appliance
from mgmt.terminal import CAREFUL, NAME, QUIET, print_json, print_line, print_table

if TYPE_CHECKING:
    from mgmt.push import Appliance

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
PAGE = 1000  # flows that are asked for at once


@click.command(epilog=EXIT_CODES)
@click.option("--kind", metavar="KIND", help="One of addresses, networks, guests, vpn_users, vpn_sites, balancers.")
@to_appliance
def usage(appliance: Appliance, as_json: bool, kind: str | None) -> None:
    """Bytes and packets of each public address, network, guest, VPN user and balancer, since they are counted."""
    told = good(appliance.usage()).body["usage"]
    since = told["since"]
    kinds = {name: objects for name, objects in told.items() if name != "since" and kind in (None, name)}
    if as_json:
        return print_json({"since": since, **kinds})
    if not kinds:
        return print_line('nothing is counted: the document says "usage": true where it shall be')
    rows = [_row(name, ident, four) for name, objects in kinds.items() for ident, four in objects.items()]
    print_line(("counted since ", QUIET), datetime.fromtimestamp(since).strftime("%Y-%m-%d %H:%M:%S"))
    print_table(("kind", "object", "received>", "packets>", "sent>", "packets>", ""), rows)


def _row(kind: str, ident: str, told: Mapping[str, Any]) -> tuple[str | tuple[str, str], ...]:
    gone = ("gone", QUIET) if "gone_since" in told else ""
    return (
        kind, (ident, NAME),
        size(told["received_bytes"]), f"{told['received_packets']:,}",
        size(told["sent_bytes"]), f"{told['sent_packets']:,}", gone,
    )  # fmt: skip


def size(count: int) -> str:
    """Bytes as people read them."""
    value, place = float(count), 0
    while value >= 1024 and place < len(UNITS) - 1:
        value, place = value / 1024, place + 1
    return f"{count} B" if place == 0 else f"{value:.1f} {UNITS[place]}"


@click.command(epilog=EXIT_CODES)
@click.option("--guest", metavar="GUEST", help="Only those of this guest: its id in the document, or its address.")
@click.option("--object", metavar="OBJECT", help="Only those that this object of the document allowed.")
@click.option("--protocol", metavar="PROTOCOL", help="tcp, udp, icmp, icmpv6 or a number.")
@click.option("--left-over", is_flag=True, help="Only those that no rule of today would allow.")
@click.option("--most", type=click.IntRange(1), default=1000, show_default=True, metavar="NUMBER", help="So many.")
@to_appliance
def flows(appliance: Appliance, as_json: bool, most: int, left_over: bool, **asked: str | None) -> None:
    """Live flows, each with the object of the document that allowed it."""
    query = {name: text for name, text in asked.items() if text} | ({"left_over": "1"} if left_over else {})
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None and len(found) < most:
        told = good(appliance.flows({**query, "most": str(min(most, PAGE)), "after": str(after)})).body
        found += told["flows"]
        after = told["next"]
    more = after is not None or len(found) > most
    del found[most:]
    if as_json:
        return print_json({"flows": found, "more": more})
    print_table(
        ("", "from", "to", "translated", "allowed by", "state", "bytes>", "age>"), [_flow_row(f) for f in found]
    )
    print_line(f"{len(found)} flows", ", and there are more: --most" if more else "")


def _flow_row(flow: Mapping[str, Any]) -> tuple[str | tuple[str, str], ...]:
    by = ", ".join(flow["allowed_by"]) or flow["why"]
    counted = [flow[way]["bytes"] for way in ("sent", "received") if flow[way] is not None]
    age = "" if flow["age_s"] is None else f"{flow['age_s']:.0f} s"
    return (
        flow["protocol"],
        _end(flow["source"], flow["source_port"]),
        _end(flow["destination"], flow["destination_port"]),
        _translated(flow),
        (f"left over: {flow['why']}", CAREFUL) if flow["left_over"] else (by, NAME),
        flow["state"],
        size(sum(counted)) if counted else "",
        age,
    )


def _translated(flow: Mapping[str, Any]) -> str:
    """What is other behind the router: the target, and the source that it sees."""
    changed = flow["translated"]
    if changed is None:
        return ""
    to = (changed["to"], changed["to_port"]) != (flow["destination"], flow["destination_port"])
    by = (changed["from"], changed["from_port"]) != (flow["source"], flow["source_port"])
    words = [f"to {_end(changed['to'], changed['to_port'])}"] if to else []
    words += [f"from {_end(changed['from'], changed['from_port'])}"] if by else []
    return " ".join(words)


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
