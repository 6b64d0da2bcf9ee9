"""`narthex image`: build, list, verify, compare, smoke."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from mgmt.demo import Teller
from mgmt.hosts.driver import DriverError
from mgmt.image import artifacts, catalogue
from mgmt.image import smoke as trial
from mgmt.image.base import IMAGES
from mgmt.image.tools import ImageError
from mgmt.terminal import APPLIED, BAD, GOOD, UNEXPECTED, print_json, print_line, print_table


def _failing(command: Callable[..., Any]) -> Callable[..., Any]:
    """An ImageError as words, not as a traceback."""

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (ImageError, DriverError) as error:
            print_line(("image: ", BAD), str(error))
            sys.exit(UNEXPECTED)

    return guarded


@click.group()
def image() -> None:
    """The system VM image: one for every role, for KVM and Xen."""


@image.command()
@click.option("--accelerator", type=click.Choice(["tcg", "kvm"]), help="What QEMU runs the build by; tcg by default.")
@click.option("--fresh", is_flag=True, help="Build it anew even where it is there: for newer packages.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Copy the artifacts there.")
@_failing
def build(accelerator: str | None, fresh: bool, output: Path | None) -> None:
    """Build the image of this tree, or find it in the cache."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started ends, too
    found, made = catalogue.built(accelerator or "", fresh)
    print_line("built " if made else "in the cache: ", (found.name, GOOD), f", {found.folder}")
    print_table(["artifact", "MiB>"], [(name, f"{size / 2**20:.1f}") for name, size in found.sizes.items()])
    if output:
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(found.folder.iterdir()):
            shutil.copy2(path, output / path.name)


@image.command("list")
@click.option("--json", "as_json", is_flag=True)
@_failing
def list_images(as_json: bool) -> None:
    """The images in the cache, the newest first."""
    found = catalogue.images()
    if as_json:
        print_json([
            {"name": i.name, "folder": i.folder, "narthex": i.narthex, "built": i.built, "kernel": i.kernel,
             "packages": i.packages, "system": i.system, "agent": i.agent, "bytes": i.sizes} for i in found
        ])  # fmt: skip
        return
    if not found:
        print_line("no image is built; ./narthex image build makes one")
    rows = [
        (i.name, i.built, i.narthex, i.kernel, str(i.packages), f"{i.sizes[artifacts.QCOW2] / 2**20:.0f}")
        for i in found
    ]
    print_table(["image", "built", "release", "kernel", "packages>", "qcow2 MiB>"], rows)


@image.command()
@click.argument("name", default="")
@_failing
def verify(name: str) -> None:
    """Hold an image's artifacts against their sums. NAME, or its beginning; the newest by default."""
    found = catalogue.named(name)
    wrong = artifacts.check_sums(found.folder)
    for words in wrong:
        print_line((f"{found.name}: ", BAD), words)
    if wrong:
        sys.exit(UNEXPECTED)
    print_line(f"{found.name}: ", ("every artifact is as it was built", GOOD))


@image.command()
@click.argument("one")
@click.argument("other")
@_failing
def compare(one: str, other: str) -> None:
    """In what the files of two images differ: names, or folders of artifacts."""
    before, after = (_listing(name) for name in (one, other))
    lines = (line.split() for line in (IMAGES / "differs.txt").read_text().splitlines())
    allowed = [words[0] for words in lines if words and words[0].startswith("/")]
    found = artifacts.differences(before, after, allowed)
    for path in found:
        print_line(path)
    print_line(f"{len(found)} files differ, those aside that images/differs.txt lists")
    sys.exit(UNEXPECTED if found else APPLIED)


def _listing(name: str) -> list[str]:
    folder = Path(name) if (Path(name) / artifacts.FILES).exists() else catalogue.named(name).folder
    return (folder / artifacts.FILES).read_text().splitlines()


@image.command()
@click.argument("name", default="")
@click.option("--accelerator", type=click.Choice(["tcg", "kvm"]), help="What QEMU runs it by; tcg by default.")
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), default="bios", show_default=True)
@_failing
def smoke(name: str, accelerator: str | None, firmware: str) -> None:
    """Boot an image, push the demo's document, try its packets. NAME, or its beginning; this tree's by default."""
    found = catalogue.named(name) if name else catalogue.built(accelerator or "")[0]
    print_line(f"{found.name}, release {found.agent}")
    outcomes = trial.smoke(found, Teller(silent=False), accelerator or "", firmware)
    sys.exit(APPLIED if all(outcome.ok for outcome in outcomes) else UNEXPECTED)
