"""Stage one: the base disk, from Debian's packages alone. mmdebstrap makes the tree, mke2fs the file systems of it.

No file system is mounted and no block device is used. The disk has no boot loader yet: that is installed from inside
by stage two, which boots the kernel and the initramfs beside the disk directly.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mgmt.image.tools import HOUSE, ImageError, Workshop, step
from mgmt.keys import KeyPair

IMAGES = HOUSE / "images"
PACKER = HOUSE / "packer"
Kind = Literal["image", "bare"]
MIB = 1 << 20
SECTOR = 512
FIRST_MIB = 1
# Boot loaders and pygrub read the root: neither knows the newest features of ext4.
EXT4 = "^metadata_csum_seed,^orphan_file"


@dataclass(frozen=True, slots=True)
class Partition:
    """`first` and `size` in MiB; `number` from 1."""

    number: int
    name: str
    type: str
    first: int
    size: int
    format: str


@dataclass(frozen=True, slots=True)
class Base:
    """A base disk: the raw file, its kernel and initramfs, the tree that it was made from."""

    disk: Path
    kernel: Path
    initrd: Path
    tree: Path


def packages(kind: Kind) -> dict[str, str]:
    """The packages that are asked for, each with what it is there for."""
    told = yaml.safe_load((IMAGES / "packages.yaml").read_text())
    found: dict[str, str] = dict(told["bare"])
    return found if kind == "bare" else found | told["image"]


def suite() -> str:
    """The Debian release."""
    return str(yaml.safe_load((IMAGES / "packages.yaml").read_text())["suite"])


def partitions(size_mib: int, told: Sequence[Mapping[str, Any]]) -> tuple[Partition, ...]:
    """The partitions one after the other, the one without a size taking what is left. The last MiB is GPT's copy."""
    found, first = [], FIRST_MIB
    for number, entry in enumerate(told, 1):
        size = int(entry.get("mib") or size_mib - first - 1)
        found.append(Partition(number, entry["name"], entry["type"], first, size, entry.get("format", "")))
        first += size
    return tuple(found)


def make_base(kind: Kind, shop: Workshop, key: KeyPair, epoch: int, identity: str) -> Base:
    """Make the base disk in the workshop's folder. `epoch` dates its files; `identity` gives its file systems' ids."""
    tree = shop.folder / "tree"
    with step("stage one: Debian's packages"):
        _debootstrap(kind, shop, tree, key, epoch)
    with step("stage one: base disk"):
        base = _kernel(shop, tree)
        told = yaml.safe_load((IMAGES / "disk.yaml").read_text())
        layout = partitions(told["size_mib"], told["partitions"])
        _make_disk(shop, base.disk, told["size_mib"], layout, identity)
        for partition in layout:
            _format(shop, base.disk, partition, tree, epoch, identity)
    return base


def _debootstrap(kind: Kind, shop: Workshop, tree: Path, key: KeyPair, epoch: int) -> None:
    excluded = [line for line in (IMAGES / "excluded.txt").read_text().splitlines() if line.startswith("path-")]
    build = shop.folder / "build-tree"
    _write_build_tree(build, key)
    argv: list[str | Path] = [
        "mmdebstrap", "--variant=minbase", "--format=directory", f"--include={','.join(packages(kind))}",
        "--aptopt=APT::Install-Recommends false", "--components=main",
        *(f"--dpkgopt={line}" for line in excluded),
    ]  # fmt: skip
    if kind == "image":
        # Before the kernel is configured: it makes the initramfs.
        early = IMAGES / "tree/etc/initramfs-tools"
        argv.append(f'--essential-hook=mkdir -p "$1/etc/initramfs-tools" && cp -rT {early} "$1/etc/initramfs-tools"')
    argv += [
        f'--customize-hook=cp -rT {build} "$1" && chmod 0700 "$1/root/.ssh"',
        '--customize-hook=chroot "$1" systemctl enable ssh.service packer-network.service',
        '--customize-hook=mkdir -p "$1/boot/efi"',
        suite(), tree,
    ]  # fmt: skip
    shop.run(argv, {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"})
    (tree / "etc/fstab").write_text((IMAGES / "tree/etc/fstab").read_text())


def _write_build_tree(folder: Path, key: KeyPair) -> None:
    """What only the build needs: Packer's way in. packer/image.sh removes it."""
    ssh, units = folder / "root/.ssh", folder / "etc/systemd/system"
    ssh.mkdir(parents=True)
    units.mkdir(parents=True)
    (ssh / "authorized_keys").write_text(f"{key.public}\n")
    unit = (PACKER / "packer-network.service").read_text()
    (units / "packer-network.service").write_text(unit)


def _kernel(shop: Workshop, tree: Path) -> Base:
    """The kernel and initramfs, copied from the tree."""
    try:
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        (initrd,) = (tree / "boot").glob("initrd.img-*")
    except ValueError:
        raise ImageError(f"{tree}/boot has not one kernel with its initramfs; see {shop.log}") from None
    found = Base(shop.folder / "base.raw", shop.folder / "vmlinuz", shop.folder / "initrd", tree)
    found.kernel.write_bytes(kernel.read_bytes())
    found.initrd.write_bytes(initrd.read_bytes())
    return found


def _make_disk(shop: Workshop, disk: Path, size_mib: int, layout: Sequence[Partition], identity: str) -> None:
    with disk.open("wb") as file:
        file.truncate(size_mib * MIB)
    lines = ["label: gpt", f"label-id: {_id(identity, 'disk')}"]
    sectors = MIB // SECTOR
    lines += [
        f"start={p.first * sectors}, size={p.size * sectors}, type={p.type}, "
        f"uuid={_id(identity, f'partition {p.name}')}, name={p.name}"
        for p in layout
    ]
    table = shop.folder / "partitions"
    table.write_text("\n".join(lines) + "\n")
    shop.run(["sh", "-c", 'sfdisk --quiet --no-reread --no-tell-kernel "$1" <"$2"', "sh", disk, table])


def _format(shop: Workshop, disk: Path, p: Partition, tree: Path, epoch: int, identity: str) -> None:
    own = _id(identity, p.name)
    if p.format == "vfat":
        serial = own.replace("-", "")[:8]
        place = f"--offset={p.first * MIB // SECTOR}"
        shop.run(
            [
                "mkfs.vfat",
                "--invariant",
                "-F",
                "32",
                "-s",
                "1",
                "-n",
                p.name,
                "-i",
                serial,
                place,
                disk,
                str(p.size * 1024),
            ]
        )
    elif p.format == "ext4":
        argv: list[str | Path] = [
            "mke2fs", "-q", "-F", "-t", "ext4", "-L", p.name, "-U", own, "-O", EXT4, "-m", "1",
            "-E", f"offset={p.first * MIB},hash_seed={own},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
        ]  # fmt: skip
        if p.name == "root":
            argv += ["-d", tree]
        shop.run(
            [*argv, disk, f"{p.size * 1024}k"], {"SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch)}
        )


def _id(identity: str, what: str) -> str:
    """The same id for the same thing of the same inputs."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"narthex {identity} {what}"))
