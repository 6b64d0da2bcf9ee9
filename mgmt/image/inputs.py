"""What an image is made from, as one digest each: its system, and the agent in it.

The two are apart so that a change of the agent's code rebuilds no image for the tests: they give the agent by the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from mgmt.image.tools import HOUSE

# The agent's programs that belong to the image and not to a release: they outlive a broken one.
PROGRAMS = ("__init__", "boot", "bundle", "durable", "release", "seed", "seeddisk", "seedtext", "settings")
# What of this program's code decides about the content of an image.
_RECIPE = ("mgmt/image/artifacts.py", "mgmt/image/base.py", "mgmt/image/build.py", "mgmt/image/provision.py")


def system_files() -> Iterator[Path]:
    """Every file of the tree that goes into the image's system, or says how it is made."""
    for folder in ("images", "packer"):
        yield from sorted(p for p in (HOUSE / folder).rglob("*") if p.is_file() or p.is_symlink())
    yield from (HOUSE / "appliance" / f"{name}.py" for name in PROGRAMS)
    yield from (HOUSE / name for name in _RECIPE)


def system(wheels: Iterable[str]) -> str:
    """The digest of the system's inputs, 16 hex digits. `wheels`: the hashes of the third-party wheels in it."""
    found = sha256()
    for path in system_files():
        if path.suffix == ".md":
            continue
        content = path.readlink().as_posix().encode() if path.is_symlink() else path.read_bytes()
        executable = not path.is_symlink() and bool(path.stat().st_mode & 0o100)
        head = f"{path.relative_to(HOUSE)}\0{executable}\0{len(content)}\0"
        found.update(head.encode() + content)
    for wheel in sorted(wheels):
        found.update(wheel.encode() + b"\0")
    return found.hexdigest()[:16]
