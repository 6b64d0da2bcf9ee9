"""The early reader as its own process, in namespaces: a seed's image in, and one way in for real packets.

Beside it lie the files that lie beside it in the image, and no others. Each boot has its own /run; /etc stays.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgmt.keys import make_key
from mgmt.seed import CONFIG_DRIVE, NOCLOUD, SeedFile, config_drive, no_cloud, read_seed_file
from mgmt.seed_iso import make_iso
from tests.mgmt import iso9660
from tests.netns.namespaces import Namespace, tool

ROOT = Path(__file__).parents[2]
BESIDE = ("__init__", "settings", "seed", "seeddisk", "seedtext")
CLOSED = ROOT / "images/tree/usr/lib/narthex/closed.nft"
MAC = "02:00:5e:00:01:02"
# A private /etc, /run and /dev/shm; the only disk is the image, the only console /dev/null. $1: the folder of the stage
SCRIPT = """
set -e
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
mount --bind "$1/etc" /etc
mount -t sysfs none /sys
mount --bind "$1/block" /sys/class/block
mount --bind "$1/active" /sys/class/tty/console/active
[ ! -e "$1/seed.iso" ] || cp "$1/seed.iso" /dev/shm/seed
code=0
PATH="$1/bin:$PATH" PYTHONPATH="$1/lib" "$2" -X importtime -P -s -m appliance.seed 2>"$1/imports" || code=$?
cp -r /run/. "$1/run"
exit $code
"""
# Not every kernel of a host has isofs: then what another reader finds in the image is mounted in its place.
MOUNT = """\
#!/bin/sh
for folder; do :; done
mount=$(command -v -p mount)
"$mount" "$@" 2>/dev/null || exec "$mount" --bind -o ro "{tree}" "$folder"
"""


@dataclass
class Stage:
    folder: Path
    machine: Namespace
    manager: Namespace

    def insert(self, files: dict[str, bytes], volume: str) -> None:
        image = make_iso(files, volume)
        (self.folder / "seed.iso").write_bytes(image)
        shutil.rmtree(self.folder / "tree", ignore_errors=True)
        for path, content in iso9660.files_by_rock_ridge(image).items():
            target = self.folder / "tree" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def eject(self) -> None:
        (self.folder / "seed.iso").unlink()

    def boot(self) -> subprocess.CompletedProcess[str]:
        """Closed, then the early reader."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir()
        with self.machine.entered():
            tool(f"nft -f {CLOSED}")
            tool("ip addr flush dev eth0")
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]
            return subprocess.run(
                [*command, self.folder, sys.executable], capture_output=True, text=True, check=False, timeout=60
            )

    def imported(self) -> set[str]:
        return {line.rpartition("|")[2].strip() for line in (self.folder / "imports").read_text().splitlines()}

    def reaches(self, address: str, port: int) -> bool:
        """The manager's TCP connection comes about, or is refused: it was let in."""
        with self.manager.entered():
            sock = socket.socket()
        with sock:
            sock.settimeout(0.5)
            try:
                sock.connect((address, port))
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
        return True


@pytest.fixture(name="stage")
def stage_fixture(tmp_path: Path) -> Iterator[Stage]:
    for folder in ("etc", "block/shm!seed", "lib/appliance", "bin", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", tmp_path / "etc" / name)
    for name in BESIDE:
        shutil.copy(ROOT / "appliance" / f"{name}.py", tmp_path / "lib/appliance")
    (tmp_path / "block/shm!seed/size").write_text("8\n")
    (tmp_path / "active").write_text("null\n")
    (tmp_path / "bin/mount").write_text(MOUNT.format(tree=tmp_path / "tree"))
    (tmp_path / "bin/mount").chmod(0o755)
    machine, manager = Namespace(), Namespace()
    with manager.entered():
        tool(f"ip link add eth0 type veth peer name eth0 address {MAC} netns {machine.path}")
        tool("ip addr add 169.254.2.1/24 dev eth0")
        tool("ip link set eth0 up")
    with machine.entered():
        tool("ip link add eth1 type veth peer name eth2")
    yield Stage(tmp_path, machine, manager)
    machine.close()
    manager.close()


def described(address: str = "169.254.2.10/24") -> SeedFile:
    key = make_key()
    return read_seed_file(
        {
            "name": "r-17", "role": "router", "manager_key": key.public, "host_key": key.private,
            "control": {"mac": MAC, "address": address, "gateway": "169.254.2.1", "mtu": 1400},
        }
    )  # fmt: skip


@pytest.mark.parametrize(("volume", "files"), [(NOCLOUD, no_cloud), (CONFIG_DRIVE, config_drive)])
def test_a_seed_opens_one_way_in(stage: Stage, volume: str, files) -> None:  # type: ignore[no-untyped-def]
    seed = described()
    stage.insert(files(seed), volume)
    assert not stage.reaches("169.254.2.10", 3922)
    done = stage.boot()
    assert done.returncode == 0, done
    assert (stage.folder / "run/narthex/sshd.env").read_text() == "CONTROL=169.254.2.10\n"
    assert (stage.folder / "etc/narthex/host_key").read_text() == seed.host_key
    with stage.machine.entered():
        assert "mtu 1400" in tool("ip link show dev eth0")
        assert "default via 169.254.2.1 dev eth0" in tool("ip route")
        assert "state DOWN" in tool("ip link show dev eth1")
    assert stage.reaches("169.254.2.10", 3922)
    assert not stage.reaches("169.254.2.10", 3923)
    with stage.manager.entered():
        tool("ping -c 1 -W 2 169.254.2.10")


def test_later_boots(stage: Stage) -> None:
    stage.insert(no_cloud(described()), NOCLOUD)
    assert stage.boot().returncode == 0
    assert "yaml" in stage.imported(), "the list of imports is one"
    again = stage.boot()
    assert "is as it was" in again.stdout
    assert "wrote" not in again.stdout
    assert not stage.imported() & {"yaml", "typing", "dataclasses", "appliance.settings"}
    stage.eject()
    without = stage.boot()
    assert without.returncode == 0, without
    assert "no seed is attached; going on as r-17" in without.stdout
    assert stage.reaches("169.254.2.10", 3922)
    stage.insert(no_cloud(described("169.254.2.11/24")), NOCLOUD)
    assert stage.boot().returncode == 0
    assert stage.reaches("169.254.2.11", 3922)


def test_a_broken_seed_leaves_it_closed(stage: Stage) -> None:
    files = no_cloud(described())
    stage.insert(files | {"user-data": files["user-data"].replace(b"restrict ", b"")}, NOCLOUD)
    done = stage.boot()
    assert done.returncode == 1, done
    words = "authorized_keys: key 1: does not begin with `restrict`"
    for path in ("narthex/trouble", "issue.d/narthex.issue"):
        assert words in (stage.folder / "run" / path).read_text()
    assert words in done.stdout
    assert not (stage.folder / "etc/narthex").exists()
    with stage.machine.entered():
        assert "accept" not in tool("nft list chain inet narthex forward")
        assert "3922" not in tool("nft list ruleset")
    assert not stage.reaches("169.254.2.10", 3922)


def test_no_traceback_for_a_person(stage: Stage) -> None:
    """A folder that lacks a file of the image would be one."""
    stage.insert({"user-data": b"#!/bin/sh\n"}, NOCLOUD)
    done = stage.boot()
    assert done.returncode == 1
    assert "Traceback" not in (stage.folder / "imports").read_text()
    assert "meta-data: missing" in done.stdout
