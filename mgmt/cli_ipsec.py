"""`./narthex vpn ikev2`: a user's profile for remote access by IKEv2, from the router's document."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgmt.cli_target import as_json_option
from mgmt.terminal import NAME, QUIET, UNEXPECTED, USAGE, Failure, print_json, print_line

if TYPE_CHECKING:
    from router.config import Config

KINDS = {"apple": "mobileconfig", "android": "sswan"}
EXIT_CODES = """\b
Exit codes:
  0  done
  1  a file could not be read or written
  2  the command line is wrong, or the document has no such user; the message names the remedy
"""


@click.command(epilog=EXIT_CODES)
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("user")
@click.option("--for", "kind", type=click.Choice(list(KINDS)), default="apple", show_default=True,
              help="iOS, iPadOS, macOS; or strongSwan's app on Android.")  # fmt: skip
@click.option("--pkcs12", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The user's certificate and key, where that is how he logs in.")  # fmt: skip
@click.option("--name", help="What the device shows it as.  [default: the router's name]")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="The file.  [default: USER.mobileconfig or USER.sswan]")  # fmt: skip
@as_json_option
def ikev2(
    document: Path, user: str, kind: str, pkcs12: Path | None, name: str | None, output: Path | None, as_json: bool
) -> None:
    """Write USER's profile (its id or login), as DOCUMENT says. No password is in it: the device asks for it."""
    from mgmt.ipsec_profile import ProfileError, mobileconfig, sswan, user_of

    config = _read(document)
    try:
        access, found = user_of(config, user)
        make = {"apple": mobileconfig, "android": sswan}[kind]
        content = make(config, found.id, name or access.name, pkcs12.read_bytes() if pkcs12 else None)
    except ProfileError as error:
        raise Failure(str(error), USAGE) from None
    except OSError as error:
        raise Failure(f"{pkcs12}: {error.strerror}", UNEXPECTED) from None
    target = output or Path(f"{found.id}.{KINDS[kind]}")
    try:
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise Failure(f"{target}: {error.strerror}", UNEXPECTED) from None
    if as_json:
        return print_json({"path": str(target), "user": found.id, "login": found.login, "server": access.name})
    print_line((str(target), NAME), f" is the profile of {found.login} for {access.name}")
    if found.password is not None:
        print_line(("open it on the device; it asks for the password", QUIET))
    return None


def _read(path: Path) -> Config:
    """The config of a router's document. Raises Failure."""
    from appliance.document import DocumentError, parse, validate
    from router.config import Config

    try:
        raw = parse(path.read_bytes())
        return validate(Config, raw.get("config", {}))
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", UNEXPECTED) from None
    except DocumentError as error:
        places = tuple((p.path, p.message) for p in error.problems[:20])
        raise Failure(f"{path}: is no router's document", USAGE, "", None, places) from None
