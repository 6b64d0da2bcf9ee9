"""A machine for the early reader, in a folder: block devices are files, mounting copies, ip and nft are remembered."""

from __future__ import annotations

import binascii
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.seed import boot
from appliance.seeddisk import Machine

MAC = "02:00:00:00:00:01"
SETTINGS: dict[str, Any] = {
    "name": "r-1", "role": "router", "control_mac": MAC, "control_address": "169.254.2.10/24", "runner": "systemd",
}  # fmt: skip
PUBLIC = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"k" * 32
AUTHORIZED = f"restrict ssh-ed25519 {binascii.b2a_base64(PUBLIC, newline=False).decode()}\n"
NETWORK = f"""version: 2
ethernets:
  control:
    match: {{macaddress: "{MAC}"}}
    addresses: [169.254.2.10/24]
    mtu: 1400
    routes: [{{to: default, via: 169.254.2.1}}]
"""


def host_key(cipher: bytes = b"none", public: bytes = PUBLIC) -> str:
    """In OpenSSH's form (its PROTOCOL.key); the numbers are no key."""

    def text(raw: bytes) -> bytes:
        return struct.pack(">I", len(raw)) + raw

    private = b"abcdabcd" + public + text(b"s" * 64) + text(b"") + b"\1\2\3\4\5"
    blob = b"openssh-key-v1\0" + text(cipher) + text(b"none") + text(b"") + b"\0\0\0\1" + text(public) + text(private)
    encoded = binascii.b2a_base64(blob, newline=False).decode()
    lines = [encoded[at : at + 70] for at in range(0, len(encoded), 70)]
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----", ""])


def write_files(settings: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The three entries, by the file's name."""
    contents = {
        "settings.json": json.dumps(SETTINGS | (settings or {})), "host_key": host_key(), "authorized_keys": AUTHORIZED,
    }  # fmt: skip
    return {
        name: {"path": f"/etc/narthex/{name}", "permissions": "0600", "content": text}
        for name, text in contents.items()
    }


def user_data(entries: list[Any] | None = None, **keys: Any) -> bytes:
    entries = list(write_files().values()) if entries is None else entries
    return ("#cloud-config\n" + json.dumps({"write_files": entries} | keys)).encode()


def entries_with(name: str, **changed: Any) -> bytes:
    entries = write_files()
    entries[name] |= changed
    return user_data(list(entries.values()))


def settings_with(**changed: Any) -> bytes:
    return user_data(list(write_files(changed).values()))


def network_with(old: str, new: str) -> bytes:
    assert old in NETWORK
    return NETWORK.replace(old, new).encode()


def seed(**changed: bytes | None) -> dict[str, bytes]:
    """A NoCloud seed. Keys with _ for -, None for a file that is missing."""
    files: dict[str, bytes | None] = {
        "user-data": user_data(), "meta-data": b"instance-id: i-1\n", "network-config": NETWORK.encode(),
        **{name.replace("_", "-"): content for name, content in changed.items()},
    }  # fmt: skip
    return {name: content for name, content in files.items() if content is not None}


class Stage:
    """The machine's folder and what was done to it. `answers` has (exit code, words) by program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = 0.0
        self.ran: list[tuple[tuple[str, ...], str]] = []
        self.answers: dict[str, tuple[int, str]] = {}
        self.later: list[tuple[float, Any]] = []  # (when, what is done then)
        self.media: dict[str, dict[str, bytes]] = {}
        self.machine = Machine(str(root), self._run, lambda: self.clock, self._sleep)
        for folder in (
            "sys/class/block",
            "sys/class/net/lo",
            "sys/class/tty/console",
            "dev",
            "etc",
            "run",
            "proc/sys/kernel",
        ):
            (root / folder).mkdir(parents=True)
        (root / "sys/class/tty/console/active").write_text("tty0 ttyS0\n")
        for console in ("tty0", "ttyS0"):
            (root / "dev" / console).touch()
        self.add_link("eth0", MAC)
        self.add_disk("vda", b"")

    def add_link(self, name: str, mac: str, below: str = "") -> None:
        folder = self.root / "sys/class/net" / name
        folder.mkdir()
        (folder / "address").write_text(f"{mac}\n")
        if below:
            (folder / f"lower_{below}").touch()

    def add_disk(self, name: str, content: bytes, files: dict[str, bytes] | None = None) -> None:
        folder = self.root / "sys/class/block" / name
        folder.mkdir(exist_ok=True)
        (folder / "size").write_text("100\n" if content or name == "vda" else "0\n")
        (self.root / "dev" / name).write_bytes(content)
        if files is not None:
            self.media[f"{self.root}/dev/{name}"] = files

    def insert(self, files: dict[str, bytes], volume: str = "cidata", name: str = "sr0") -> None:
        self.add_disk(name, iso_head(volume), files)

    def eject(self, name: str = "sr0") -> None:
        self.add_disk(name, b"")

    def commands(self, program: str) -> list[str]:
        """What a program was told, on its command line or on stdin."""
        return [stdin or " ".join(argv) for argv, stdin in self.ran if argv[0] == program]

    def kept(self) -> dict[str, bytes]:
        """Every file of /etc and /run, those of the mount point aside."""
        found = [path for top in ("etc", "run", "var") for path in (self.root / top).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def restart(self) -> None:
        """Another boot: /run is empty."""
        shutil.rmtree(self.root / "run")
        (self.root / "run").mkdir()
        self.ran.clear()
        self.clock = 0.0

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds
        for when, deed in [one for one in self.later if one[0] <= self.clock]:
            self.later.remove((when, deed))
            deed()

    def _run(self, argv: tuple[str, ...], stdin: bytes) -> tuple[int, str]:
        self.ran.append((argv, stdin.decode()))
        if argv[0] in self.answers:
            return self.answers[argv[0]]
        if argv[0] == "mount":
            for path, content in self.media[argv[-2]].items():
                target = Path(argv[-1], path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        if argv[0] == "umount":
            shutil.rmtree(argv[-1])
        return 0, ""


def iso_head(volume: str) -> bytes:
    return bytes(16 * 2048) + (b"\x01CD001\x01\0" + bytes(32) + volume.encode().ljust(32)).ljust(2048, b"\0")


def fat_head(volume: str, fat32: bool = False) -> bytes:
    sector = bytearray(512)
    sector[510:] = b"\x55\xaa"
    label, kind = (71, 82) if fat32 else (43, 54)
    sector[label : label + 11] = volume.encode().ljust(11)
    sector[kind : kind + 8] = b"FAT32   " if fat32 else b"FAT16   "
    return bytes(sector)


@pytest.fixture(name="stage")
def stage_fixture(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def trouble(stage: Stage) -> str:
    """What a machine says that stays closed."""
    assert boot(stage.machine) == 1
    assert not stage.commands("nft"), "the packet filter stays as it is"
    assert not (stage.root / "run/narthex/sshd.env").exists()
    said = (stage.root / "run/narthex/trouble").read_text()
    for console in ("tty0", "ttyS0"):
        shown = (stage.root / "dev" / console).read_text()
        assert all(line in shown for line in said.splitlines())
        assert "this machine stays closed" in shown
    assert said.splitlines()[0] in (stage.root / "run/issue.d/narthex.issue").read_text()
    return said
