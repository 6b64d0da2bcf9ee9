"""From the sealed disk to what is handed out: qcow2, VHD, raw.zst, their sums, and lists of what is inside.

The lists are read off the disk itself, by debugfs, without mounting it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from mgmt.image.base import MIB, Partition
from mgmt.image.tools import HOUSE, ImageError, Workshop, step

QCOW2, VHD, RAW = "narthex.qcow2", "narthex.vhd", "narthex.raw.zst"
DISKS = (QCOW2, VHD, RAW)
FILES, PACKAGES, SBOM, SUMS, MANIFEST = "files.txt", "packages.txt", "sbom.cdx.json", "SHA512SUMS", "manifest.json"
BLOCK = 1 << 20


def make_artifacts(
    shop: Workshop,
    disk: Path,
    layout: Sequence[Partition],
    wheels: Sequence[tuple[str, str, str]],
    identity: str,
    epoch: int,
) -> None:
    """All artifacts but the manifest, in the workshop's folder `out`. `wheels`: (name, version, sha256)."""
    out = shop.folder / "out"
    out.mkdir()
    root = next(p for p in layout if p.name == "root")
    with step("artifacts: lists of what is inside"):
        at = f"{disk}?offset={root.first * MIB}"
        shop.run(["e2fsck", "-f", "-n", at])
        tree = shop.folder / "sealed"
        tree.mkdir()
        shop.run(["debugfs", "-R", f"rdump / {tree}", at])
        (out / FILES).write_text("".join(f"{line}\n" for line in listing(tree)))
        query = "-f=${Package} ${Version} ${Architecture}\n"
        (out / PACKAGES).write_text(shop.run(["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", query]))
        (out / SBOM).write_text(bill_of_materials(shop, tree, wheels, identity, epoch))
    with step("artifacts: qcow2"):
        shop.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", disk, out / QCOW2]
        )
    with step("artifacts: VHD"):
        options = "subformat=dynamic,force_size=on"
        shop.run(["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, disk, out / VHD])
    with step("artifacts: raw.zst"):
        shop.run(["zstd", "-q", "-T0", "-10", disk, "-o", out / RAW])
    sums = "".join(f"{sha512(out / name)}  {name}\n" for name in (*DISKS, FILES, PACKAGES, SBOM))
    (out / SUMS).write_text(sums)


def sha512(path: Path) -> str:
    """The digest of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def listing(tree: Path) -> list[str]:
    """Every file of a tree: path, kind and mode, owner, size, and the sha256 of its content or where a link leads."""
    found = []
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            info = path.lstat()
            what, size = "-", 0
            if stat.S_ISLNK(info.st_mode):
                what = f"-> {os.readlink(path)}"
            elif stat.S_ISREG(info.st_mode):
                size = info.st_size
                with path.open("rb") as file:
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            mode = stat.filemode(info.st_mode)
            found.append(f"/{path.relative_to(tree)} {mode} {info.st_uid}:{info.st_gid} {size} {what}")
    return sorted(found)


def bill_of_materials(
    shop: Workshop, tree: Path, wheels: Sequence[tuple[str, str, str]], identity: str, epoch: int
) -> str:
    """CycloneDX: Debian's packages by debsbom, and the agent's wheels beside them. The same inputs, the same text."""
    serial = uuid.uuid5(uuid.NAMESPACE_OID, f"narthex {identity} sbom")
    when = datetime.fromtimestamp(epoch, UTC)
    name = shop.folder / "debian"
    debsbom = HOUSE / ".venv/bin/debsbom"
    shop.run([
        debsbom, "generate", "--root", tree, "-t", "cdx", "-o", name, "--distro-name", "narthex",
        "--cdx-serialnumber", str(serial), "--timestamp", when.isoformat(),
    ])  # fmt: skip
    bom = Bom.from_json(json.loads(name.with_name(f"{name.name}.cdx.json").read_text()))  # type: ignore[attr-defined]
    for package, version, digest in wheels:
        purl = PackageURL("pypi", None, package, version)
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        bom.components.add(
            Component(
                name=package, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl), hashes=hashes
            )
        )
    text = json.loads(JsonV1Dot6(bom).output_as_string())
    return json.dumps(text, indent=1, sort_keys=True) + "\n"


def differences(before: Sequence[str], after: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """The paths in which two lists of files differ, but those `allowed`: paths, or folders with a / at the end."""
    one, other = _by_path(before), _by_path(after)
    found = sorted(p for p in one.keys() | other.keys() if one.get(p) != other.get(p))
    return [p for p in found if not any(p == a or (a.endswith("/") and p.startswith(a)) for a in allowed)]


def _by_path(lines: Sequence[str]) -> Mapping[str, str]:
    """A name may hold blanks; what follows it begins with the mode, ten characters."""
    found = {}
    for line in lines:
        path, _, rest = line.partition(" ")
        found[path] = rest
    return found


def check_sums(folder: Path) -> list[str]:
    """What of an image's artifacts is not as SHA512SUMS says, in words; none where all is."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except OSError as error:
        raise ImageError(f"{folder / SUMS}: {error.strerror}; build the image anew") from None
    wrong = []
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.exists():
            wrong.append(f"{name} is missing")
        elif sha512(path) != digest:
            wrong.append(f"{name} is not what was built: its SHA-512 differs")
    return wrong
