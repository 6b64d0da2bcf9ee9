"""The disk that the seed is on: found by its volume id, mounted read-only for a moment, read with bounds.

udev's links by label come seconds after the disks do: so the volume ids are read here, a block or two of every block
device. This file and seed.py run before everything else, on a processor that may be emulated: an import costs ten
times what it does elsewhere. So processes are started by `os.posix_spawn`, and these classes are no dataclasses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# Runs a program: (argv, what it reads) -> (exit code, what it printed on both).
Run = Callable[[tuple[str, ...], bytes], tuple[int, str]]

KINDS = {"cidata": "nocloud", "config-2": "configdrive"}  # volume id -> kind, the first one preferred
# path on the disk -> bytes that it may have at most
FILES = {
    "nocloud": {"user-data": 1 << 20, "meta-data": 1 << 16, "network-config": 1 << 16},
    "configdrive": {
        "openstack/latest/user_data": 1 << 20,
        "openstack/latest/meta_data.json": 1 << 16,
        "openstack/latest/network_data.json": 1 << 16,
    },
}
BUNDLE = "narthex.bundle"
BUNDLE_BYTES = 256 << 20
POLL_S = 0.05
_OUTPUT_BYTES = 1 << 14


class SeedError(Exception):
    """A seed that cannot be used; every line names place and remedy."""


class Machine:
    """The machine's file system, programs and clock (seconds). Unit tests have one of their own."""

    def __init__(self, root: str, run: Run, now: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.root, self.run, self.now, self.sleep = root, run, now, sleep


class Found:
    """A seed as read. `kind`: "nocloud" or "configdrive"; `origin` says where, for a person; `texts` by path on the
    disk, those that are there; `bundle` is the path of narthex.bundle while the disk is mounted, "" without one."""

    def __init__(self, kind: str, origin: str, texts: dict[str, bytes], bundle: str = "") -> None:
        self.kind, self.origin, self.texts, self.bundle = kind, origin, texts, bundle


def run(argv: tuple[str, ...], stdin: bytes = b"") -> tuple[int, str]:
    """Run a program; at most 64 KiB of input. Raises OSError where it cannot be started."""
    reads, written = os.pipe()
    told, tells = os.pipe()
    try:
        if stdin:
            os.write(written, stdin)  # a pipe holds 64 KiB: nobody has to read yet
        os.close(written)
        actions = [(os.POSIX_SPAWN_DUP2, reads, 0), (os.POSIX_SPAWN_DUP2, tells, 1), (os.POSIX_SPAWN_DUP2, tells, 2)]
        pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions)
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(reads)
        os.close(tells)
    output = b""
    while some := os.read(told, 1 << 16):
        output = (output + some)[-_OUTPUT_BYTES:]
    os.close(told)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode(errors="replace").strip()


def this_machine() -> Machine:
    return Machine("", run, time.monotonic, time.sleep)


def volume_id(device: str) -> tuple[str, str]:
    """(volume id in small letters, file system) of a block device; two empty texts for any other content."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # a drive without a disk in it, or one that is gone
        return "", ""
    try:
        sector = os.pread(fd, 512, 0)
        descriptor = os.pread(fd, 2048, 16 * 2048)  # ECMA-119: the volume descriptors begin at sector 16
    except OSError:
        return "", ""
    finally:
        os.close(fd)
    if descriptor[:6] == b"\x01CD001":
        return _text(descriptor[40:72]), "iso9660"
    if sector[510:512] == b"\x55\xaa":
        for kind, label in ((54, 43), (82, 71)):  # FAT12 and FAT16, FAT32: the boot sector's own copy of the label
            if sector[kind : kind + 3] == b"FAT":
                return _text(sector[label : label + 11]), "vfat"
    return "", ""


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip(" \0").lower()


def disks(machine: Machine) -> list[str]:
    """The names of the block devices that have content, CD-ROMs first. A floppy drive takes seconds to say no."""
    base = f"{machine.root}/sys/class/block"
    names = [name for name in os.listdir(base) if not name.startswith("fd") and _is_filled(f"{base}/{name}/size")]
    return sorted(names, key=lambda name: (not name.startswith("sr"), name))


def _is_filled(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(32).strip() != b"0"
    except OSError:
        return False


def seed_disk(machine: Machine) -> tuple[str, str, str] | None:
    """(device, volume id, file system) of the disk with the seed, None where there is none now."""
    seen: dict[str, tuple[str, str, str]] = {}
    for name in disks(machine):
        device = f"{machine.root}/dev/{name.replace('!', '/')}"
        label, system = volume_id(device)
        if label in KINDS:
            seen.setdefault(label, (device, label, system))
    return next((seen[label] for label in KINDS if label in seen), None)


def wait_for_disk(machine: Machine, wait_s: float) -> tuple[str, str, str] | None:
    """As seed_disk, looking again for `wait_s` seconds."""
    deadline = machine.now() + wait_s
    while not (disk := seed_disk(machine)) and machine.now() < deadline:
        machine.sleep(POLL_S)
    return disk


@contextmanager
def attached(machine: Machine, wait_s: float) -> Iterator[Found | None]:
    """The seed, its disk mounted meanwhile; None without one. Raises SeedError."""
    disk = wait_for_disk(machine, wait_s)
    if disk is None:
        yield None
        return
    device, label, system = disk
    where = f"{machine.root}/run/narthex/seed"
    origin = f"{device.removeprefix(machine.root)} ({label})"
    os.makedirs(where, exist_ok=True)
    code, words = machine.run(("mount", "-t", system, "-o", "ro,nodev,nosuid,noexec", device, where), b"")
    if code:
        raise SeedError(f"{origin}: cannot be mounted as {system}: {words}; make the seed anew with ./narthex seed")
    try:
        yield read_folder(where, KINDS[label], origin)
    finally:
        machine.run(("umount", where), b"")
        with suppress(OSError):
            os.rmdir(where)


def read_folder(where: str, kind: str, origin: str) -> Found:
    """The seed in a folder. Raises SeedError."""
    texts = {}
    for path, limit in FILES[kind].items():
        content = _read(f"{where}/{path}", limit, f"{origin}: {path}")
        if content is not None:
            texts[path] = content
    bundle = f"{where}/{BUNDLE}"
    if not os.path.isfile(bundle):
        bundle = ""
    elif os.path.getsize(bundle) > BUNDLE_BYTES:
        raise SeedError(f"{origin}: {BUNDLE}: more than {BUNDLE_BYTES >> 20} MiB; give a smaller bundle")
    return Found(kind, origin, texts, bundle)


def _read(path: str, limit: int, place: str) -> bytes | None:
    """The file's content, None without the file. Raises SeedError."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SeedError(f"{place}: cannot be read: {error.strerror}; make the seed anew with ./narthex seed") from None
    if len(content) > limit:
        raise SeedError(f"{place}: more than {limit} bytes; make it smaller")
    return content
