"""`./narthex cell`: appliances in namespaces of this host, for a person."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_target import as_json_option, complete_cell, manager_key, only_running
from mgmt.terminal import (
    BAD,
    GOOD,
    NAME,
    QUIET,
    UNEXPECTED,
    UNREACHABLE,
    Failure,
    milliseconds,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgmt.hosts.cell import CellDriver
    from mgmt.hosts.driver import Appliance, Nic

EXIT_CODES = """\b
Exit codes:
  0  done
  1  it could not be done; the message names the cell, the cause and the remedy
  2  the command line is wrong
  6  it runs, but its agent does not answer
exec and shell end in the program's own.
"""
READY_SECONDS = 15.0

NAME_ARGUMENT = click.argument("name", shell_complete=complete_cell)
ONE_NAME = click.argument("name", required=False, shell_complete=complete_cell)
NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_cell)


@click.group(epilog=EXIT_CODES)
def cell() -> None:
    """Appliances in namespaces of this host: the same agent, the same way in, no image (docs/cell.md)."""


def with_driver(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets the driver of this host's cells first; what the driver cannot do ends the program in 1."""

    @wraps(command)
    def driven(**options: Any) -> Any:
        from mgmt.hosts.cell import CellDriver

        with driver_errors_as_failures():
            return command(CellDriver(), **options)

    return driven


@contextmanager
def driver_errors_as_failures() -> Iterator[None]:
    from mgmt.hosts.driver import DriverError

    try:
        yield
    except DriverError as error:
        raise Failure(str(error), UNEXPECTED) from None
    except PermissionError as error:
        raise Failure(f"{error.filename or 'the kernel'}: {error.strerror}", UNEXPECTED, "Run as root.") from None


class NicType(click.ParamType):  # type: ignore[type-arg]
    """MAC=BRIDGE, or MAC=BRIDGE,MTU."""

    name = "MAC=BRIDGE[,MTU]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Nic:
        from appliance.values import mac
        from mgmt.hosts.driver import Nic

        found = re.fullmatch(r"([^=]+)=([A-Za-z0-9_.-]{1,15})(?:,(\d{3,5}))?", str(value))
        if not found:
            self.fail(f"{value!r} is not {self.name}: 02:00:5e:00:01:02=br0", param, ctx)
        try:
            return Nic(mac(found[1]), found[2], int(found[3] or 1500))
        except ValueError as error:
            self.fail(str(error), param, ctx)


# --- life


@cell.command(epilog=EXIT_CODES)
@click.argument("name")
@click.option(
    "--nic", "nics", multiple=True, type=NicType(), help="An interface on a bridge of this host; may be repeated."
)
@click.option("--control", metavar="ADDRESS/LENGTH", help="Its control address.  [default: a free one]")
@click.option("--role", default="router", show_default=True, type=click.Choice(["router"]))
@click.option("--heal/--report", default=True, help="What it does about drift.  [default: heal]")
@as_json_option
@with_driver
def create(
    driver: CellDriver, name: str, nics: tuple[Nic, ...], control: str | None, role: str, heal: bool, as_json: bool
) -> None:
    """Define a cell, with keys of its own. It is stopped."""
    from mgmt.hosts.driver import Seed
    from mgmt.keys import make_key

    host = make_key()
    seed = Seed(
        name, role, control or driver.free_address(), manager_key().public, host.public, host.private,
        heal="heal" if heal else "report",
    )  # fmt: skip
    made = driver.create(seed, nics)
    if as_json:
        return print_json(_told(driver, made))
    print_line((name, NAME), f" is made, control address {made.control_address}; next: narthex cell start {name}")


@cell.command(epilog=EXIT_CODES)
@NAMES
@click.option("--wait/--no-wait", "waits", default=True, help="Be back when the agent answers.  [default: wait]")
@as_json_option
@with_driver
def start(driver: CellDriver, names: tuple[str, ...], waits: bool, as_json: bool) -> None:
    """Start cells; one that runs is left alone."""
    told = []
    for name in names:
        started = time.monotonic()
        found = driver.start(name)
        generation = _wait_for_agent(name) if waits else None
        took = round((time.monotonic() - started) * 1000, 1)
        told.append({**_told(driver, found), "milliseconds": took, "generation": generation})
        if not as_json:
            words = f", its agent answers on {found.control_address} at generation {generation}" if waits else ""
            print_line((name, NAME), (" runs", GOOD), words, (f"  {milliseconds(took)}", QUIET))
    if as_json:
        print_json(told)


def _wait_for_agent(name: str) -> int:
    """The generation that the agent is at, when it answers. Raises Failure."""
    from mgmt.cli_target import cell_target
    from mgmt.push import Appliance, PushError

    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with Appliance(cell_target(name)) as appliance:
                return int(appliance.health().body["generation"])
        except PushError as error:
            if time.monotonic() > deadline:
                raise Failure(
                    f"{name} runs, but: {error}", UNREACHABLE, f"See: narthex cell logs {name} --unit agent"
                ) from error
            time.sleep(0.05)


@cell.command(epilog=EXIT_CODES)
@NAMES
@as_json_option
@with_driver
def stop(driver: CellDriver, names: tuple[str, ...], as_json: bool) -> None:
    """Stop cells; their state stays."""
    stopped = [driver.stop(name) for name in names]
    if as_json:
        return print_json([_told(driver, found) for found in stopped])
    for found in stopped:
        print_line((found.name, NAME), " is stopped")


@cell.command(epilog=EXIT_CODES)
@NAMES
@as_json_option
@with_driver
def destroy(driver: CellDriver, names: tuple[str, ...], as_json: bool) -> None:
    """Stop cells and remove all of them: state, keys, logs."""
    for name in names:
        driver.destroy(name)
    if as_json:
        return print_json([{"name": name, "state": "destroyed"} for name in names])
    for name in names:
        print_line((name, NAME), " is destroyed")


@cell.command(epilog=EXIT_CODES)
@as_json_option
@with_driver
def sweep(driver: CellDriver, as_json: bool) -> None:
    """Remove what killed commands and killed cells have left."""
    swept = driver.sweep()
    if as_json:
        return print_json(swept)
    for path in swept:
        print_line("removed ", path)
    if not swept:
        print_line("nothing was left")


# --- looking


@cell.command("list", epilog=EXIT_CODES)
@as_json_option
@with_driver
def list_cells(driver: CellDriver, as_json: bool) -> None:
    """The cells of this host."""
    found = driver.list()
    if as_json:
        return print_json([_told(driver, one) for one in found])
    if not found:
        return print_line("no cell yet; make one: narthex cell create NAME --nic MAC=BRIDGE")
    styles = {"running": GOOD, "failed": BAD, "stopped": QUIET}
    print_table(
        ("cell", "role", "state", "pid>", "control address", "interfaces"),
        [
            (
                (one.name, NAME),
                one.role,
                (one.state, styles[one.state]),
                str(one.pid or "-"),
                one.control_address,
                ", ".join(f"{nic.mac} on {nic.bridge}" for nic in one.nics),
            )
            for one in found
        ],
        indent=0,
    )


def _told(driver: CellDriver, found: Appliance) -> dict[str, Any]:
    return {
        "name": found.name, "role": found.role, "state": found.state, "pid": found.pid,
        "control_address": found.control_address, "host_key": driver.definition(found.name).seed.host_key,
        "nics": [{"mac": nic.mac, "bridge": nic.bridge, "mtu": nic.mtu} for nic in found.nics],
    }  # fmt: skip


@cell.command(epilog=EXIT_CODES)
@ONE_NAME
@click.option("--unit", default="console", show_default=True, help="Whose log: agent, sshd, a daemon's, or console.")
@click.option("-f", "--follow", is_flag=True, help="And what is yet to come.")
@with_driver
def logs(driver: CellDriver, name: str | None, unit: str, follow: bool) -> None:
    """The log of a cell (default: the only one that runs)."""
    for line in driver.logs(name or only_running(driver), unit, follow):
        click.echo(line)


@cell.command(
    "exec", epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@NAME_ARGUMENT
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@with_driver
def execute(driver: CellDriver, name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a cell, as root."""
    raise SystemExit(driver.exec(name, command[1:] if command[0] == "--" else command))


@cell.command(epilog=EXIT_CODES)
@ONE_NAME
@with_driver
def shell(driver: CellDriver, name: str | None) -> None:
    """A shell in a cell (default: the only one that runs)."""
    raise SystemExit(driver.shell(name or only_running(driver)))
