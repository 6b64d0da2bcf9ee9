"""Which appliance a command speaks to: options that every command of `./narthex router` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgmt.terminal import UNREACHABLE, USAGE, Failure

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mgmt.hosts.cell import CellDriver
    from mgmt.keys import KeyPair
    from mgmt.push import Appliance, Target

as_json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


def complete_cell(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The names of the cells, for the shell."""
    from click.shell_completion import CompletionItem

    from mgmt.hosts.cell import CellDriver

    with suppress(OSError):  # who may not read them gets none
        return [CompletionItem(c.name, help=c.state) for c in CellDriver().list() if c.name.startswith(typed)]
    return []


_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--cell", metavar="NAME", shell_complete=complete_cell, help="A cell on this host."),
    click.option("--address", metavar="ADDRESS", help="Any appliance, by its control address."),
    click.option(
        "--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The manager's private key."
    ),
    click.option("--host-key", metavar="KEY", help='The key it must show: "ssh-ed25519 AAAA...", or a file with it.'),
    click.option("--socket", type=click.Path(path_type=Path), help="The agent's socket, on the appliance itself."),
    as_json_option,
)


def to_appliance(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets `appliance` as its first argument, and --json as `as_json`."""

    @wraps(command)
    def connected(
        *,
        cell: str | None,
        address: str | None,
        key: Path | None,
        host_key: str | None,
        socket: Path | None,
        **rest: Any,
    ) -> None:
        from mgmt.push import PushError

        with unreachable_as_failure(PushError), reach(cell, address, key, host_key, socket) as appliance:
            command(appliance, **rest)

    for option in reversed(_OPTIONS):
        connected = option(connected)
    return connected


@contextmanager
def unreachable_as_failure(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        remedy = "Does it run? See: narthex cell list. Another one: --cell, --address or --socket."
        raise Failure(str(error), UNREACHABLE, remedy) from error


def reach(
    cell: str | None, address: str | None, key: Path | None, host_key: str | None, socket: Path | None
) -> Appliance:
    """The appliance that the options name; the only cell that runs where they name none."""
    from mgmt.push import Appliance, LocalAppliance, Target

    if sum(bool(way) for way in (cell, address, socket)) > 1:
        raise click.UsageError("give one of --cell, --address and --socket")
    if address:
        if key is None or not host_key:
            raise click.UsageError(
                "--address needs --key (the manager's private key) and --host-key (the key it must show)"
            )
        return Appliance(Target(address, _host_key(host_key), key.read_text()))
    if key or host_key:
        raise click.UsageError("--key and --host-key go with --address; a cell's are in its definition")
    if socket:
        return LocalAppliance(socket)
    return Appliance(cell_target(cell))


def _host_key(given: str) -> str:
    text = given if given.startswith(("ssh-", "ecdsa-")) else _read_key(Path(given))
    if len(text.split()) < 2:
        raise Failure(f"{given} is no public host key", USAGE, 'It looks like "ssh-ed25519 AAAA...".')
    return text


def _read_key(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise Failure(
            f"--host-key {path}: {error.strerror}", USAGE, 'Give a file, or the key: "ssh-ed25519 AAAA...".'
        ) from None


def cell_target(name: str | None) -> Target:
    """The way into a cell; without a name into the only one that runs."""
    from mgmt.hosts.cell import CellDriver
    from mgmt.hosts.driver import DriverError
    from mgmt.push import Target

    driver = CellDriver()
    try:
        name = name or only_running(driver)
        seed = driver.definition(name).seed
        address = seed.control_address.partition("/")[0]
        return Target(address, seed.host_key, manager_key().private, dial=driver.dial(name))
    except DriverError as error:
        raise Failure(str(error), UNREACHABLE) from None
    except OSError as error:
        raise Failure(f"the cells cannot be read: {error}", UNREACHABLE, "Run as root.") from None


def only_running(driver: CellDriver) -> str:
    """The name of the only cell that runs. Raises Failure where there are none or several."""
    names = [cell.name for cell in driver.list() if cell.state == "running"]
    if len(names) == 1:
        return names[0]
    if names:
        raise Failure(f"several cells run: {', '.join(names)}", USAGE, "Say which: --cell NAME.")
    raise Failure("no cell runs", UNREACHABLE, "Start one (narthex cell start NAME), or give --address or --socket.")


def manager_key() -> KeyPair:
    """The manager's own key on this host, made at its first use."""
    from mgmt.hosts.celldisk import state_root
    from mgmt.keys import kept_key

    return kept_key(state_root() / "manager" / "key")
