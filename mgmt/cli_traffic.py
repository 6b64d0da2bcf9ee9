"""The commands that tell of a router's traffic: usage."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_answer import EXIT_CODES, good
from mgmt.cli_target import to_appliance
from mgmt.terminal import NAME, QUIET, print_json, print_line, print_table

if TYPE_CHECKING:
    from mgmt.push import Appliance

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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
