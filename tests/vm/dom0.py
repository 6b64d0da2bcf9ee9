"""A Debian dom0 for Xen, from Debian's packages: hypervisor, kernel, initramfs and root disk, kept in the cache.

The keys of its sshd are made with it, and lie beside it: it is reached from a test's own network namespace alone.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from mgmt.image.tools import HOUSE, Workshop, cache, step
from mgmt.keys import KeyPair, make_key, public_part

OWN = Path(__file__).with_name("dom0")
INITRAMFS = HOUSE / "images/tree/etc/initramfs-tools"  # the image's: only what a root can lie on
EXCLUDED = HOUSE / "images/excluded.txt"
SUITE = "trixie"
DISK_MIB = 1400


@dataclass(frozen=True, slots=True)
class Dom0:
    """The files to boot it with, root's key to get in, and the public line of the key that it shows."""

    hypervisor: Path
    kernel: Path
    initrd: Path
    disk: Path
    key: KeyPair
    host_key: str


def dom0() -> Dom0:
    """The dom0 of this tree's inputs, made where it isn't in the cache. Raises ImageError."""
    folder = cache() / "xen" / _inputs()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
            try:
                _make(new)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    return Dom0(
        folder / "xen", folder / "vmlinuz", folder / "initrd", folder / "root.raw", _kept(folder / "key"),
        _kept(folder / "host_key").public,
    )  # fmt: skip


def _inputs() -> str:
    """16 hex digits that are others when what it is made of is, Debian's versions apart."""
    digest = hashlib.sha256()
    for path in (Path(__file__), EXCLUDED, *sorted(OWN.iterdir()), *sorted(INITRAMFS.rglob("*"))):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _make(folder: Path) -> None:
    shop, tree = Workshop(folder), folder / "tree"
    with step("dom0: Debian's packages"):
        excluded = [line for line in EXCLUDED.read_text().splitlines() if line.startswith("path-")]
        shop.run(
            [
                "mmdebstrap", "--variant=minbase", "--format=directory", "--components=main",
                f"--include={','.join(yaml.safe_load((OWN / 'packages.yaml').read_text()))}",
                "--aptopt=APT::Install-Recommends false", *(f"--dpkgopt={line}" for line in excluded),
                f'--essential-hook=mkdir -p "$1/etc/initramfs-tools" && cp -rT {INITRAMFS} "$1/etc/initramfs-tools"',
                SUITE, tree,
            ]
        )  # fmt: skip
    with step("dom0: disk"):
        for made_by_package in (tree / "etc/ssh").glob("ssh_host_*"):
            made_by_package.unlink()
        for name, place in (("key", "root/.ssh/authorized_keys"), ("host_key", "etc/ssh/ssh_host_ed25519_key")):
            pair = make_key()
            _write(folder / name, pair.private, 0o600)
            (tree / place).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(tree / place, f"{pair.public}\n" if name == "key" else pair.private, 0o600)
        shutil.copy(OWN / "init", tree / "usr/lib/dom0-init")
        (folder / "xen").write_bytes(gzip.decompress((tree / "boot/xen-4.20-amd64.gz").read_bytes()))
        for name in ("vmlinuz", "initrd"):
            (found,) = (tree / "boot").glob(f"{name}*")
            shutil.copy(found, folder / name)
        with (folder / "root.raw").open("wb") as disk:
            disk.truncate(DISK_MIB << 20)
        shop.run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "dom0", "-d", tree, folder / "root.raw"])
        shutil.rmtree(tree)


def _write(path: Path, text: str, mode: int) -> None:
    path.touch(mode)
    path.write_text(text)


def _kept(path: Path) -> KeyPair:
    private = path.read_text()
    return KeyPair(private, public_part(private))
