"""The birth of a cell: namespaces, a root of its own over the host's, and then its process 1.

Run as `python -I -S cellroot.py`, stdlib and kernel.py only, by cell.py, which talks to it over two pipes:

    stdin    the plan in JSON (`Plan`) after its length in 8 digits; later one byte, when the links are there
    stdout   a line "pid N", then a line "ready", or a line with what went wrong

Whoever is killed in the middle leaves nothing behind: the namespaces live only as long as their process 1, all mounts
are inside them, process 1 waits until its parent has put it on record, and ends itself where the byte does not come.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TypedDict

if __name__ == "__main__":  # `-I` keeps our own folder off the path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from mgmt.hosts import kernel as k

QUIET = k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC
LENGTH_DIGITS = 8
TTY_GROUP = 5  # of Debian's base-passwd
# What the cell shall not see of the host, with the mode of the empty directory in its place.
HIDDEN = {
    "/root": 0o700, "/home": 0o755, "/etc/ssh": 0o755, "/etc/narthex": 0o700, "/var/lib/narthex": 0o755,
    "/var/log": 0o755, "/var/tmp": 0o1777, "/run": 0o755, "/tmp": 0o1777, "/mnt": 0o755, "/media": 0o755,
    "/srv": 0o755, "/boot": 0o755,
}  # fmt: skip
DEVICES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0),
    "net/tun": (10, 200), "ppp": (108, 0),
}  # fmt: skip


class Plan(TypedDict):
    """What cell.py wants. Paths are the host's, but those of `files` and the targets of `binds`."""

    name: str
    root: str  # an empty directory that the cell's root is built upon
    record: str  # the file that shall say which process it is
    memory: str  # limit of what the cell may write outside its state: tmpfs(5), size
    files: list[tuple[str, int, str]]  # path, mode, content
    binds: list[tuple[str, str, bool]]  # source, target, read-only
    console: str  # what process 1 says goes to the end of this file
    command: list[str]
    environment: dict[str, str]


def main() -> int:
    plan = _plan(0)
    os.setsid()
    k.unshare(k.CLONE_NEWNS | k.CLONE_NEWUTS | k.CLONE_NEWIPC | k.CLONE_NEWNET | k.CLONE_NEWPID)
    recorded, record = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(record)
        return _process_1(plan, recorded)
    write_record(plan["record"], pid)
    os.write(1, f"pid {pid}\n".encode())
    os.write(record, b"r")
    return 0


def write_record(path: str, pid: int) -> None:
    """Which process it is: its pid, its start time and the boot, see processes.py."""
    with open(f"/proc/{pid}/stat") as file:
        began = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    with open(path + "~", "w") as file:
        json.dump({"pid": pid, "began": began, "boot": boot}, file)
    os.replace(path + "~", path)


def _process_1(plan: Plan, recorded: int) -> int:
    if os.read(recorded, 1) != b"r":
        return 1
    os.close(recorded)
    try:
        console = os.open(plan["console"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        k.set_hostname(plan["name"])
        build(plan)
    except OSError as error:
        os.write(1, f"{error.filename or 'its root'}: {error.strerror}\n".encode())
        return 1
    os.write(1, b"ready\n")
    if os.read(0, 1) != b"g":
        return 1
    null = os.open("/dev/null", os.O_RDONLY)
    for fd, number in ((null, 0), (console, 1), (console, 2)):
        os.dup2(fd, number)
    os.closerange(3, 256)
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def build(plan: Plan) -> None:
    """The root, and the change into it. In a fresh mount namespace only."""
    k.mount("", "/", "", k.MS_REC | k.MS_PRIVATE)
    k.mount("narthex", plan["root"], "tmpfs", 0, f"mode=0755,size={plan['memory']}")
    os.chdir(plan["root"])
    for name in ("upper", "work", "merged"):
        os.mkdir(name)
    os.chmod("upper", 0o755)
    for path, mode in HIDDEN.items():
        _hide(path, mode)
    for path, mode, content in plan["files"]:
        _write(path, mode, content)
    # Relative: overlayfs would take a colon or a comma of the path as its own.
    k.mount("narthex", "merged", "overlay", 0, "lowerdir=/,upperdir=upper,workdir=work")
    os.chdir("merged")
    _mount_own(plan["memory"])
    for source, target, read_only in plan["binds"]:
        _bind(source, "." + target, read_only)
    k.pivot_root(".", ".")
    k.unmount(".", k.MNT_DETACH)
    os.chdir("/")


def _hide(path: str, mode: int) -> None:
    """An empty directory over the host's: overlayfs calls it opaque."""
    _upper_folder(os.path.dirname(path))
    place = "upper" + path
    os.mkdir(place)
    os.chmod(place, mode)
    os.setxattr(place, "trusted.overlay.opaque", b"y")


def _write(path: str, mode: int, content: str) -> None:
    _upper_folder(os.path.dirname(path))
    fd = os.open("upper" + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "w") as file:
        file.write(content)
    os.chmod("upper" + path, mode)


def _upper_folder(path: str) -> None:
    """The directory in the upper layer, looking as the host's does: the upper one's mode is what is seen."""
    place = "upper" + path
    if path == "/" or os.path.isdir(place):
        return
    _upper_folder(os.path.dirname(path))
    os.mkdir(place)
    mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.isdir(path) else 0o755
    os.chmod(place, mode)


def _mount_own(memory: str) -> None:
    k.mount("proc", "proc", "proc", QUIET)
    # The network's settings are the cell's own; all others are the host's.
    k.bind("proc/sys", "proc/sys")
    k.bind("proc/sys/net", "proc/sys/net")
    k.mount("", "proc/sys", "", k.MS_BIND | k.MS_REMOUNT | k.MS_RDONLY | QUIET)
    k.mount("sysfs", "sys", "sysfs", QUIET | k.MS_RDONLY)
    k.mount("narthex", "run", "tmpfs", k.MS_NOSUID | k.MS_NODEV, f"mode=0755,size={memory}")
    k.mount("narthex", "tmp", "tmpfs", k.MS_NOSUID | k.MS_NODEV, f"mode=1777,size={memory}")
    k.mount("narthex", "dev", "tmpfs", k.MS_NOSUID | k.MS_NOEXEC, "mode=0755,size=64k")
    for name in ("pts", "shm", "net"):
        os.mkdir("dev/" + name)
    old = os.umask(0)
    for name, (major, minor) in DEVICES.items():
        os.mknod("dev/" + name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    os.umask(old)
    k.mount("devpts", "dev/pts", "devpts", k.MS_NOSUID | k.MS_NOEXEC, f"newinstance,ptmxmode=0666,gid={TTY_GROUP}")
    k.mount("narthex", "dev/shm", "tmpfs", k.MS_NOSUID | k.MS_NODEV, f"mode=1777,size={memory}")
    for name, target in {
        "ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
    }.items():  # fmt: skip
        os.symlink(target, "dev/" + name)


def _bind(source: str, target: str, read_only: bool) -> None:
    os.makedirs(target, exist_ok=True)
    k.bind(source, target, read_only)


def _plan(fd: int) -> Plan:
    """The plan, and not a byte after it: the rest of the pipe is for process 1."""
    length = int(os.read(fd, LENGTH_DIGITS))
    text = b""
    while len(text) < length:
        some = os.read(fd, length - len(text))
        if not some:
            raise SystemExit("cellroot: the plan on stdin was cut off")
        text += some
    plan: Plan = json.loads(text)
    return plan


if __name__ == "__main__":
    # Not sys.exit: the one half of a fork ends here while the other goes on.
    os._exit(main())
