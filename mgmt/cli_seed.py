"""`./narthex seed`: the seed of an appliance in a machine of its own, from a small YAML."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgmt.cli_target import as_json_option, manager_key
from mgmt.terminal import NAME, QUIET, UNEXPECTED, USAGE, Failure, print_json, print_line

if TYPE_CHECKING:
    from mgmt.seed import SeedFile

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a file could not be read or written
  2  the command line or the YAML is wrong; the message names each place and the remedy
"""
MAX_YAML = 1 << 20
MAX_BUNDLE = 256 << 20  # what the appliance takes
_SECRETS = re.compile(r"(-----BEGIN OPENSSH PRIVATE KEY-----).*?(-----END OPENSSH PRIVATE KEY-----)", re.DOTALL)
_HASHES = re.compile(r'(password: )"[^"]*"')


def _print_schema(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from mgmt.seed import schema

        click.echo(schema(), nl=False)
        context.exit()


@click.command(epilog=EXIT_CODES)
@click.argument("yaml_file", metavar="FILE.yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The image.  [default: NAME.iso]")
@click.option("--config-drive", is_flag=True, help="A ConfigDrive (XenServer), in place of NoCloud.")
@click.option("--show", is_flag=True, help="Show the files that would be in it, keys left out, and make nothing.")
@click.option(
    "--schema", is_flag=True, is_eager=True, expose_value=False, callback=_print_schema, help="The YAML's JSON schema."
)
@as_json_option
def seed(yaml_file: Path, output: Path | None, config_drive: bool, show: bool, as_json: bool) -> None:
    """Make the seed of an appliance: an ISO that is attached to its machine (cloud-init/example.yaml)."""
    from mgmt import seed as seeds
    from mgmt.keys import public_part
    from mgmt.seed_iso import make_iso

    born, made = _completed(_read(yaml_file))
    bundle = _read_bundle(yaml_file.parent / born.bundle) if born.bundle else None
    files = (seeds.config_drive if config_drive else seeds.no_cloud)(born, bundle)
    volume = seeds.CONFIG_DRIVE if config_drive else seeds.NOCLOUD
    shown = {path: _shown(content) for path, content in files.items()}
    host_key = public_part(born.host_key or "")
    if show:
        if as_json:
            return print_json({"volume": volume, "host_key": host_key, "files": shown})
        for path, text in shown.items():
            print_line((f"--- {path}", NAME))
            click.echo(text.rstrip("\n"))
        return None
    target = output or Path(f"{born.name}.iso")
    _write(target, make_iso(files, volume))
    if as_json:
        return print_json(
            {"path": str(target), "volume": volume, "name": born.name, "address": born.control.address,
             "host_key": host_key, "host_key_made": made}
        )  # fmt: skip
    print_line(
        (str(target), NAME), f" is the seed of {born.name}, a {born.role}; control address {born.control.address}"
    )
    print_line("its host key", " (new)" if made else "", ": ", host_key)
    print_line(("attach it as a CD-ROM; whoever reads it can be this appliance: keep it as a key", QUIET))
    return None


def _read(path: Path) -> SeedFile:
    """The YAML at `path`. Raises Failure."""
    from mgmt.draft import DraftError, from_yaml
    from mgmt.seed import SeedError, read_seed_file

    remedy = "See cloud-init/example.yaml and cloud-init/seed.schema.json."
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML + 1)
        if len(raw) > MAX_YAML:
            raise Failure(f"{path}: more than {MAX_YAML >> 20} MiB", USAGE, remedy)
        told = from_yaml(raw.decode(), str(path))
        if not isinstance(told, dict):
            raise Failure(f"{path}: holds no keys and values", USAGE, remedy)
        return read_seed_file(told)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", UNEXPECTED) from None
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: byte {error.start} is not UTF-8", USAGE, "Save it as UTF-8 text.") from None
    except DraftError as error:
        raise Failure(str(error), USAGE, remedy) from None
    except SeedError as error:
        body = {"error": str(error), "problems": [{"path": place, "message": words} for place, words in error.problems]}
        raise Failure(f"{path}: {error}", USAGE, remedy, body, error.problems) from None


def _completed(born: SeedFile) -> tuple[SeedFile, bool]:
    """With both keys; and whether the host key was made just now."""
    from mgmt.keys import make_key

    update: dict[str, Any] = {}
    if born.manager_key is None:
        try:
            update["manager_key"] = manager_key().public
        except OSError as error:
            words = f"{error.filename}: {error.strerror}; run as root, or give the manager's public key"
            raise Failure(
                "this host's manager key cannot be read", UNEXPECTED, "", None, (("manager_key", words),)
            ) from None
    if born.host_key is None:
        update["host_key"] = make_key().private
    return born.model_copy(update=update), "host_key" in update


def _read_bundle(path: Path) -> bytes:
    remedy = "Make it: ./narthex appliance bundle -o FILE"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        places = (("bundle", f"{path}: {error.strerror}"),)
        raise Failure("the bundle cannot be read", UNEXPECTED, remedy, None, places) from None
    if len(content) > MAX_BUNDLE or content[:13] != b"release.json\0":
        raise Failure("this is no seed", USAGE, remedy, None, (("bundle", f"{path}: is no bundle of an agent"),))
    return content


def _shown(content: bytes) -> str:
    """For a person: without secrets; a bundle by its size."""
    if content[:13] == b"release.json\0":
        return f"({len(content):,} bytes)\n"
    text = _SECRETS.sub(r"\1 ... \2", content.decode())
    return _HASHES.sub(r'\1"..."', text)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, for its owner alone: there is a private key in it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise Failure(f"{path}: {error.strerror}", UNEXPECTED, "Give another place with -o.") from None
