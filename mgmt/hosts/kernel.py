"""System calls that Python 3.11 lacks, as functions: namespaces(7), mount(2), pivot_root(2). Linux only.

No import of the house: cellroot.py runs with this alone, started without site-packages, and in a hurry.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """The calling thread gets new namespaces; its later children, with CLONE_NEWPID."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """The calling thread moves into the namespace that `fd` is open on."""
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    found = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(found, target)


def bind(source: str, target: str, read_only: bool = False) -> None:
    """Show `source` at `target` too. `read_only` takes a second call: mount(2) ignores it in the first."""
    mount(source, target, "", MS_BIND)
    if read_only:
        mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def unmount(target: str, flags: int = 0) -> None:
    _checked(_libc.umount2(target.encode(), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    number = _SYS_PIVOT_ROOT[os.uname().machine]  # glibc has no function for it
    _checked(_libc.syscall(number, new_root.encode(), put_old.encode()), new_root)


def set_hostname(name: str) -> None:
    _checked(_libc.sethostname(name.encode(), len(name)), name)
