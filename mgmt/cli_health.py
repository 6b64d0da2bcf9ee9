"""What a person asks when something does not work: health, diagnose, support."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
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


@click.group(epilog=EXIT_CODES)
def diagnose() -> None:
    """Have the router ask: ping, traceroute, arping, dns, and what passes on a link."""


_COUNT = click.option("--count", type=click.IntRange(1, 10), default=3, show_default=True, help="How many packets.")


@diagnose.command(epilog=EXIT_CODES)
@click.argument("whom", metavar="ADDRESS")
@click.option("--source", help="An address of the router's own to ask from.")
@_COUNT
@to_appliance
def ping(appliance: Appliance, whom: str, source: str | None, count: int, as_json: bool) -> None:
    """Does ADDRESS answer, of either family?"""
    _ask(appliance, {"kind": "ping", "address": whom, "source": source, "count": count}, as_json)


@diagnose.command(epilog=EXIT_CODES)
@click.argument("whom", metavar="ADDRESS")
@click.option("--hops", type=click.IntRange(1, 30), default=20, show_default=True)
@to_appliance
def traceroute(appliance: Appliance, whom: str, hops: int, as_json: bool) -> None:
    """By which routers does a packet get to ADDRESS, of either family?"""
    _ask(appliance, {"kind": "traceroute", "address": whom, "hops": hops}, as_json)


@diagnose.command(epilog=EXIT_CODES)
@click.argument("whom", metavar="ADDRESS")
@click.option("--on", "link", required=True, metavar="INTERFACE", help="An id of the document, or eth1.")
@_COUNT
@to_appliance
def arping(appliance: Appliance, whom: str, link: str, count: int, as_json: bool) -> None:
    """Who has ADDRESS on an interface?"""
    _ask(appliance, {"kind": "arping", "address": whom, "link": link, "count": count}, as_json)


@diagnose.command(epilog=EXIT_CODES)
@click.argument("name")
@click.option("--server", required=True, metavar="ADDRESS", help="Whom to ask: one of the router's own, or another.")
@click.option("--type", "kind", default="A", show_default=True, help="A, AAAA, CNAME, MX, NS, PTR, SOA, SRV or TXT.")
@click.option("--tcp", is_flag=True)
@to_appliance
def dns(appliance: Appliance, name: str, server: str, kind: str, tcp: bool, as_json: bool) -> None:
    """What does a name server answer for NAME?"""
    _ask(appliance, {"kind": "dns", "name": name, "server": server, "type": kind, "tcp": tcp}, as_json)


@diagnose.command(epilog=EXIT_CODES)
@click.argument("link", metavar="INTERFACE")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--seconds", type=click.IntRange(1, 20), default=5, show_default=True)
@click.option("--packets", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--bytes", "size", type=click.IntRange(64, 65535), default=256, show_default=True, help="Of each packet.")
@click.option("--protocol", help="ip, ip6, arp, icmp, icmp6, tcp, udp, esp or vrrp.")
@click.option("--host", "hosts", multiple=True, metavar="ADDRESS", help="One end; twice: both. A network, too.")
@click.option("--port", type=click.IntRange(1, 65535))
@to_appliance
def capture(
    appliance: Appliance, link: str, file: Path, seconds: int, packets: int, size: int, protocol: str | None,
    hosts: tuple[str, ...], port: int | None, as_json: bool,
) -> None:  # fmt: skip
    """What passes on INTERFACE (an id of the document, or eth1), into FILE, for Wireshark or tcpdump."""
    told = good(
        appliance.diagnostics(
            {
                "kind": "capture", "link": link, "seconds": seconds, "packets": packets, "bytes": size,
                "protocol": protocol, "hosts": hosts, "port": port,
            }
        )
    ).body  # fmt: skip
    file.write_bytes(b64decode(told.pop("pcap")))
    if as_json:
        return print_json({**told, "file": str(file)})
    click.echo(told["output"].rstrip())
    print_line("written to ", (str(file), NAME))


def _ask(appliance: Appliance, question: dict[str, Any], as_json: bool) -> None:
    told = good(appliance.diagnostics(question)).body
    if as_json:
        print_json(told)
    else:
        click.echo(told["output"].rstrip())
    click.get_current_context().exit(0 if told["status"] == 0 else UNEXPECTED)


@click.command(epilog=EXIT_CODES)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@to_appliance
def support(appliance: Appliance, file: Path, as_json: bool) -> None:
    """A support bundle into FILE (tar.gz): state, health, logs, packet filter, routes; no secrets."""
    body = good(appliance.support()).body
    file.touch(0o600)
    file.write_bytes(body)
    if as_json:
        return print_json({"file": str(file), "bytes": len(body)})
    print_line("written to ", (str(file), NAME), f", {len(body) / 1024:.0f} KiB; it holds no secret of the document")
