"""What stage two puts into the booted base disk: the file tree, the agent's own programs, its release, the checks."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from mgmt.image.base import IMAGES
from mgmt.image.inputs import PROGRAMS
from mgmt.image.tools import HOUSE

FIXED = "usr/lib/narthex/appliance"


def make_provision(path: Path, bundle: bytes, epoch: int) -> None:
    """Write the tar that packer/image.sh unpacks: tree/, checks/, agent.bundle."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("tree", "checks"):
            for source in sorted((IMAGES / name).rglob("*")):
                _add(tar, source, f"{name}/{source.relative_to(IMAGES / name)}", epoch)
        for program in PROGRAMS:
            _add(tar, HOUSE / "appliance" / f"{program}.py", f"tree/{FIXED}/{program}.py", epoch)
        for kind, folder in (("unit", "system"), ("generator", "system-generators")):
            for masked in _masked(kind):
                # It masks as a link to /dev/null does, but `systemctl preset-all` leaves it alone in an instance too.
                empty = tarfile.TarInfo(f"tree/etc/systemd/{folder}/{masked}")
                empty.mtime = epoch
                tar.addfile(empty)
        info = tarfile.TarInfo("agent.bundle")
        info.size, info.mtime = len(bundle), epoch
        tar.addfile(info, io.BytesIO(bundle))


def _add(tar: tarfile.TarFile, source: Path, name: str, epoch: int) -> None:
    """A file of the tree as root's, with the mode that git knows: executable or not."""
    info = tar.gettarinfo(source, name)
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mtime = epoch
    if info.issym():
        tar.addfile(info)
    elif info.isdir():
        return  # Debian's own folders keep their modes
    else:
        info.mode = 0o755 if info.mode & 0o100 else 0o644
        with source.open("rb") as file:
            tar.addfile(info, file)


def _masked(kind: str) -> list[str]:
    lines = (line.split() for line in (IMAGES / "masked.txt").read_text().splitlines() if not line.startswith("#"))
    return [words[1] for words in lines if words and words[0] == kind]
