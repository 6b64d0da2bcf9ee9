"""The images that there are, in the cache: by the digest of what each was made from."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mgmt.bundle import make_bundle
from mgmt.image import artifacts, build, inputs
from mgmt.image.tools import ImageError, cache


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its folder, and of its manifest: release, time (ISO 8601), kernel, packages, sizes in bytes."""

    folder: Path
    system: str
    agent: str
    narthex: str
    built: str
    kernel: str
    packages: int
    sizes: dict[str, int]

    @property
    def name(self) -> str:
        return self.folder.name

    def artifact(self, name: str) -> Path:
        return self.folder / name


def folder() -> Path:
    return cache() / "image"


def images() -> list[Image]:
    """All that are whole, the newest first."""
    found = []
    for manifest in folder().glob("[!.]*/" + artifacts.MANIFEST):
        try:
            found.append(_read(manifest.parent))
        except (OSError, ValueError, KeyError):
            continue  # somebody removes it, or it is of a release that wrote otherwise
    return sorted(found, key=lambda image: image.built, reverse=True)


def named(name: str) -> Image:
    """The image called `name` or whose name begins so, or the newest for "". Raises ImageError."""
    found = [image for image in images() if image.name.startswith(name)]
    if not found:
        raise ImageError(
            f"no image {name!r} in {folder()}; ./narthex image list shows them, ./narthex image build makes one"
        )
    if name and len(found) > 1:
        raise ImageError(f"{name!r} is the beginning of {len(found)} images; give more of the name")
    return found[0]


def _read(own: Path) -> Image:
    told = json.loads((own / artifacts.MANIFEST).read_text())
    return Image(
        own, told["inputs"]["system"], told["inputs"]["agent"], told["narthex"], told["built"], told["kernel"],
        told["packages"], {name: entry["bytes"] for name, entry in told["artifacts"].items()},
    )  # fmt: skip


def built(accel: str = "", fresh: bool = False, any_agent: bool = False) -> tuple[Image, bool]:
    """The image of this tree, and whether it had to be built. `any_agent`: one with another agent will do."""
    bundle = make_bundle()
    system = inputs.system(wheel.sha256 for wheel in bundle.third_party)
    with _lock():
        if not fresh:
            for image in images():
                if image.system == system and (any_agent or image.agent == bundle.id):
                    return image, False
        own = folder() / f"{system}-{bundle.id.rpartition('-')[2]}"
        wheels = [(w.name, w.version, w.sha256) for w in (bundle.agent, *bundle.third_party)]
        build.build_image(own, system, bundle.id, bundle.pack(), wheels, build.accelerator(accel))
        return _read(own), True


def bare(accel: str = "") -> Path:
    """The disk of the bare Debian, built where it isn't there."""
    system = inputs.system(())
    own = cache() / "bare" / system
    with _lock():
        if not (own / "bare.qcow2").exists():
            build.build_bare(own, system, build.accelerator(accel))
    return own / "bare.qcow2"


def for_tests() -> Path:
    """The qcow2 that fits this tree's system, or the one that NARTHEX_IMAGE names; the agent comes by the seed."""
    if named := os.environ.get("NARTHEX_IMAGE"):
        return Path(named)
    image, _ = built(any_agent=True)
    return image.artifact(artifacts.QCOW2)


@contextmanager
def _lock() -> Iterator[None]:
    """Two builds at once make one."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
