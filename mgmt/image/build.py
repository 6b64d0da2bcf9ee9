"""The build: base disk, Packer, artifacts; into the cache, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml

from appliance.version import VERSION
from mgmt.image import artifacts
from mgmt.image.base import IMAGES, PACKER, Base, Kind, make_base, partitions, suite
from mgmt.image.provision import make_provision
from mgmt.image.tools import ImageError, Workshop, cache, step
from mgmt.keys import make_key

EPOCH = 1_762_000_000  # dates the files that a build makes: the same in every build of the same inputs
NEEDED_MIB = 6_000  # of disk, while a build runs


def accelerator(wished: str = "") -> str:
    """What QEMU runs the build by: `wished`, else NARTHEX_ACCELERATOR, else "tcg", which works everywhere."""
    return wished or os.environ.get("NARTHEX_ACCELERATOR") or "tcg"


def build_image(
    folder: Path, system: str, agent: str, bundle: bytes, wheels: list[tuple[str, str, str]], accel: str
) -> None:
    """Build the image into `folder`, which is there only when all of it is."""
    with _workshop(folder) as shop:
        base, disk = _packed("image", shop, system, bundle, accel)
        told = yaml.safe_load((IMAGES / "disk.yaml").read_text())
        layout = partitions(told["size_mib"], told["partitions"])
        artifacts.make_artifacts(shop, disk, layout, wheels, system, EPOCH)
        out = shop.folder / "out"
        sizes = {name: {"bytes": (out / name).stat().st_size} for name in artifacts.DISKS}
        manifest = {
            "format": 1,
            "narthex": VERSION,
            "debian": suite(),
            "inputs": {"system": system, "agent": agent},
            "built": datetime.now(UTC).isoformat(timespec="seconds"),
            "kernel": next((base.tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-"),
            "packages": len((out / artifacts.PACKAGES).read_text().splitlines()),
            "disk_mib": told["size_mib"],
            "artifacts": sizes,
        }
        (out / artifacts.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.copy(shop.log, out / "build.log")
        _publish(out, folder)


def build_bare(folder: Path, identity: str, accel: str) -> None:
    """Build the bare Debian, the floor of the image's boot: one raw disk, into `folder`."""
    with _workshop(folder) as shop:
        _, disk = _packed("bare", shop, identity, b"", accel)
        out = shop.folder / "out"
        out.mkdir()
        shop.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, out / "bare.qcow2"])
        _publish(out, folder)


def _packed(kind: Kind, shop: Workshop, identity: str, bundle: bytes, accel: str) -> tuple[Base, Path]:
    """Stage one and two: the base, and the sealed disk."""
    key = make_key()
    key_file = shop.folder / "key"
    key_file.touch(0o600)
    key_file.write_text(key.private)
    base = make_base(kind, shop, key, EPOCH, identity)
    provision = shop.folder / "provision.tar"
    if kind == "image":
        make_provision(provision, bundle, EPOCH)
    else:
        provision.write_bytes(bytes(10240))  # an empty tar
    packed = shop.folder / "packed"
    variables = {
        "base": base.disk, "kernel": base.kernel, "initrd": base.initrd, "key": key_file, "provision": provision,
        "script": PACKER / f"{kind}.sh", "accelerator": accel, "console": shop.folder / "console.log", "output": packed,
    }  # fmt: skip
    # A place of its own for Packer's sockets: a Unix socket's path has 107 bytes at most, and a cache may lie deep.
    with step(f"stage two: Packer, by {accel}"), tempfile.TemporaryDirectory(prefix="narthex-") as short:
        words = [f"-var={name}={value}" for name, value in variables.items()]
        own = {"CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(shop.folder / "packer-cache"),
               "PACKER_CONFIG_DIR": str(shop.folder), "TMPDIR": short}  # fmt: skip
        shop.run([packer(shop), "build", "-color=false", *words, PACKER / "image.pkr.hcl"], own)
    return base, packed / "disk.raw"


def packer(shop: Workshop) -> Path:
    """Packer 1.6.6, the last one in Debian, out of bookworm: what is installed here may be another."""
    kept = cache() / "tools" / "packer-bookworm"
    if not kept.exists():
        with step("Packer, from Debian's package"):
            tree = shop.folder / "packer-tree"
            shop.run(["mmdebstrap", "--variant=extract", "--include=packer", "--format=directory", "bookworm", tree])
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_name(f".{kept.name}.{os.getpid()}")
            shutil.copy(tree / "usr/bin/packer", new)
            new.rename(kept)
    return kept


@contextmanager
def _workshop(folder: Path) -> Iterator[Workshop]:
    """A folder beside `folder` to build in; it is removed at the end, its log kept where the build failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free >> 20
    if free < NEEDED_MIB:
        raise ImageError(
            f"{folder.parent}: {free} MiB are free, a build needs {NEEDED_MIB}; make room, or set NARTHEX_CACHE"
        )
    own = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    shop = Workshop(own)
    try:
        yield shop
    except BaseException:
        if shop.log.exists():
            kept = folder.parent / f"failed-{folder.name}.log"
            shutil.copy(shop.log, kept)
            console = own / "console.log"
            if console.exists():
                with kept.open("ab") as log:
                    log.write(b"\n# the serial console\n" + console.read_bytes())
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _publish(out: Path, folder: Path) -> None:
    """In one step; an image that is there already makes room."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    out.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
