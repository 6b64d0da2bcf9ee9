"""`./narthex vpn`: keys and profiles for who comes in by a tunnel. Everything is made here, from a document's file."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from mgmt.cli_ipsec import ikev2
from mgmt.draft import DraftError, read_draft
from mgmt.terminal import REFUSED, USAGE, Failure

if TYPE_CHECKING:
    from router.config import Config

SCALE = 6  # pixels of one dot of a QR code


@click.group()
def vpn() -> None:
    """Keys and profiles for a VPN's users."""


@vpn.command()
@click.option("--public", "private", metavar="FILE", type=click.File("r"), help="The public key of a private one.")
def key(private: IO[str] | None) -> None:
    """A new WireGuard key: the private one, and below it the public one that goes into the document."""
    from mgmt.vpn import ProfileError, key_of, make_key

    try:
        pair = key_of(private.read().strip()) if private else make_key()
    except ProfileError as error:
        raise Failure(str(error), USAGE) from None
    click.echo(pair.public if private else f"{pair.private}\n{pair.public}")


@vpn.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.argument("user")
@click.option(
    "--key", "private", metavar="FILE", type=click.File("r"), help="The user's private key; else a line for it."
)
@click.option("--qr", is_flag=True, help="As a QR code, here.")
@click.option(
    "--image", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="As a .png or .svg file."
)
@click.option(
    "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Into a file of mode 0600."
)
def profile(file: IO[str], user: str, private: IO[str] | None, qr: bool, image: Path | None, out: Path | None) -> None:
    """The WireGuard profile of USER, from the router's document in FILE (JSON or YAML, - for stdin).

    It has the user's private key where --key gives it: an app reads it whole from the QR code.
    """
    from mgmt.vpn import ProfileError, wireguard_profile

    config = _read(file)
    try:
        text = wireguard_profile(config, user, private.read().strip() if private else "")
    except ProfileError as error:
        raise Failure(str(error), USAGE) from None
    if image is not None:
        _draw(text, image)
    if out is not None:
        _write(out, text.encode())
    if qr:
        import segno

        segno.make(text, error="l").terminal(compact=True)
    elif image is None and out is None:
        click.echo(text, nl=False)


def _read(file: IO[str]) -> Config:
    from appliance.document import DocumentError, validate
    from router.config import Config

    try:
        draft = read_draft(file.read(), file.name)
        if draft.is_change:
            raise Failure(f"{file.name} is a change; a profile is made from a whole document", USAGE)
        return validate(Config, draft.told["config"])
    except DraftError as error:
        raise Failure(str(error), USAGE) from None
    except DocumentError as error:
        told = "; ".join(f"{p.path}: {p.message}" for p in error.problems[:5])
        raise Failure(f"{file.name} is no router's document: {told}", REFUSED) from None


def _draw(text: str, path: Path) -> None:
    import io

    import segno

    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise Failure(f"{path} is neither .png nor .svg; name it so", USAGE)
    drawn = io.BytesIO()
    segno.make(text, error="l").save(drawn, kind=kind, scale=SCALE)
    _write(path, drawn.getvalue())


def _write(path: Path, content: bytes) -> None:
    """There may be a private key in it."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


vpn.add_command(ikev2)
