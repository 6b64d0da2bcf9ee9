"""The early boot: a seed is taken whole or not at all; a machine without one stays closed, and says why."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from appliance import seed as early
from appliance.seed import boot, write_files
from appliance.seeddisk import FILES
from tests.appliance import seeds
from tests.appliance.seeds import (
    MAC,
    Stage,
    fat_head,
    iso_head,
    network_with,
    settings_with,
    stage_fixture,
    trouble,
    user_data,
)
from tests.appliance.wrongseeds import WRONG

__all__ = ["stage_fixture"]
ETC = ("settings.json", "host_key", "authorized_keys")


# --- a good one


def test_first_boot(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    for name, entry in seeds.write_files().items():
        path = stage.root / "etc/narthex" / name
        assert path.read_text() == entry["content"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stage.commands("ip") == [
        "address replace 169.254.2.10/24 dev eth0\n"
        "link set dev eth0 mtu 1400 up\n"
        "route replace 0.0.0.0/0 via 169.254.2.1 dev eth0\n"
    ]
    assert stage.commands("nft") == [
        'add rule inet narthex input iifname "eth0" tcp dport 3922 accept\n'
        'add rule inet narthex input iifname "eth0" icmp type echo-request accept\n'
    ]
    assert (stage.root / "run/narthex/sshd.env").read_text() == "CONTROL=169.254.2.10\n"
    assert (stage.root / "proc/sys/kernel/hostname").read_text() == "r-1\n"
    assert stage.ran[-1][0][0] == "nft"
    assert [argv[0] for argv, _ in stage.ran[:2]] == ["mount", "umount"]
    assert "ro,nodev,nosuid,noexec" in stage.ran[0][0]
    assert not (stage.root / "run/narthex/trouble").exists()


def test_config_drive(stage: Stage) -> None:
    network = {
        "links": [{"id": "a", "ethernet_mac_address": MAC.upper(), "mtu": 1400}, {"id": "b"}],
        "networks": [
            {"link": "b", "ip_address": "10.0.0.1"},
            {
                "link": "a", "ip_address": "169.254.2.10", "netmask": "255.255.255.0",
                "routes": [{"network": "10.0.0.0", "netmask": "255.0.0.0", "gateway": "169.254.2.1"}],
            },
        ],
    }  # fmt: skip
    stage.insert(
        {
            "openstack/latest/user_data": user_data(),
            "openstack/latest/meta_data.json": b'{"uuid": "i-1"}',
            "openstack/latest/network_data.json": json.dumps(network).encode(),
        },
        "config-2",
        "xvdd",
    )
    assert boot(stage.machine) == 0
    assert "mtu 1400 up" in stage.commands("ip")[0]
    assert "route replace 10.0.0.0/8 via 169.254.2.1 dev eth0" in stage.commands("ip")[0]


def test_without_a_network_config_the_settings_are_enough(stage: Stage) -> None:
    stage.insert(seeds.seed(network_config=None))
    assert boot(stage.machine) == 0
    assert stage.commands("ip") == ["address replace 169.254.2.10/24 dev eth0\nlink set dev eth0 up\n"]


@pytest.mark.parametrize(
    ("address", "listens", "on_link"),
    [("2001:db8::10/64", "2001:db8::10", "nodad"), ("fe80::10/64", "fe80::10%eth0", "nodad")],
)
def test_ipv6(stage: Stage, address: str, listens: str, on_link: str) -> None:
    entries = seeds.write_files({"control_address": address})
    stage.insert(seeds.seed(user_data=user_data(list(entries.values())), network_config=None))
    assert boot(stage.machine) == 0
    assert f"address replace {address} dev eth0 {on_link}" in stage.commands("ip")[0]
    assert "nd-neighbor-solicit" in stage.commands("nft")[0]
    assert (stage.root / "run/narthex/sshd.env").read_text() == f"CONTROL={listens}\n"


def test_what_comes_late_is_waited_for(stage: Stage) -> None:
    os.rename(stage.root / "sys/class/net/eth0", stage.root / "away")
    stage.later = [
        (3.0, lambda: stage.insert(seeds.seed())),
        (9.0, lambda: os.rename(stage.root / "away", stage.root / "sys/class/net/eth0")),
    ]
    assert boot(stage.machine) == 0
    assert 9.0 <= stage.clock < 9.1


# --- which disk


@pytest.mark.parametrize(
    ("content", "system"),
    [
        (iso_head("cidata"), "iso9660"), (iso_head("CIDATA"), "iso9660"), (fat_head("CIDATA"), "vfat"),
        (fat_head("cidata", fat32=True), "vfat"), (fat_head("CONFIG-2"), "vfat"),
    ],
)  # fmt: skip
def test_seeds_disk(stage: Stage, content: bytes, system: str) -> None:
    files = seeds.seed() | {"openstack/latest/user_data": user_data(), "openstack/latest/meta_data.json": b"uuid: i"}
    stage.add_disk("sdb1", content, files)
    assert boot(stage.machine) == 0
    assert stage.ran[0][0][:3] == ("mount", "-t", system)


def test_nocloud_comes_first_and_a_cd_before_a_disk(stage: Stage) -> None:
    other = list(seeds.write_files({"name": "other"}).values())
    wrong = seeds.seed(user_data=user_data(other))
    stage.insert(wrong, "config-2", "aaa")
    stage.insert(wrong, "cidata", "vdb")
    stage.insert(seeds.seed(), "cidata", "sr1")
    assert boot(stage.machine) == 0
    assert b'"r-1"' in (stage.root / "etc/narthex/settings.json").read_bytes()


def test_disks_that_are_none(stage: Stage) -> None:
    stage.add_disk("sr0", b"")
    stage.add_disk("vdb", b"short")
    stage.add_disk("vdc", bytes(510) + b"\x55\xaa" + bytes(40000))
    stage.add_disk("vdd", iso_head("ubuntu"))
    stage.insert(seeds.seed(), "cidata", "fd0")  # not asked: a drive that is empty takes seconds to say so
    os.unlink(stage.root / "dev/vda")
    assert "no disk bears the volume id cidata or config-2" in trouble(stage)
    assert stage.clock >= 10.0


# --- what is wrong


@pytest.mark.parametrize(("changed", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
def test_a_wrong_seed_changes_nothing(
    stage: Stage, changed: dict[str, bytes | None], words: str, is_first: bool
) -> None:
    if not is_first:
        stage.insert(seeds.seed())
        assert boot(stage.machine) == 0
        stage.restart()
    before = {path: content for path, content in stage.kept().items() if path.startswith("etc/")}
    stage.insert(seeds.seed(**changed))
    said = trouble(stage)
    assert said.startswith("/dev/sr0 (cidata): ")
    assert words in said
    assert "AAAAC3" not in said
    assert {path: content for path, content in stage.kept().items() if path.startswith("etc/")} == before
    assert not stage.commands("ip")


def test_all_that_is_wrong_is_said_at_once(stage: Stage) -> None:
    broken = seeds.write_files({"name": "R", "role": "R"})
    del broken["host_key"]
    stage.insert(seeds.seed(user_data=user_data(list(broken.values())), meta_data=b"{}"))
    said = trouble(stage).splitlines()
    assert len(said) == 4


# --- what the machine has not got


def test_a_disk_that_cannot_be_mounted(stage: Stage) -> None:
    stage.insert(seeds.seed())
    stage.answers["mount"] = (32, "mount: wrong fs type")
    assert "/dev/sr0 (cidata): cannot be mounted as iso9660: mount: wrong fs type; make" in trouble(stage)


def test_no_such_interface(stage: Stage) -> None:
    stage.insert(seeds.seed())
    os.rename(stage.root / "sys/class/net/eth0", stage.root / "away")
    stage.add_link("eth1", "02:00:00:00:00:02")
    assert f"no interface has the control MAC {MAC}; there are: eth1 02:00:00:00:00:02; correct" in trouble(stage)
    assert stage.clock >= 10.0


def test_two_interfaces_of_one_mac(stage: Stage) -> None:
    stage.insert(seeds.seed())
    stage.add_link("eth0.5", MAC, below="eth0")
    assert boot(stage.machine) == 0, "a VLAN is not the link that it is on"
    stage.restart()
    stage.add_link("eth1", MAC)
    assert "eth0 and eth1 have the MAC" in trouble(stage)


def test_ip_and_nft_refuse(stage: Stage) -> None:
    stage.insert(seeds.seed())
    stage.answers["ip"] = (1, "Error: Nexthop has invalid gateway.")
    said = trouble(stage)
    assert "route replace 0.0.0.0/0 via 169.254.2.1 dev eth0: Error: Nexthop has invalid gateway." in said
    stage.answers = {"nft": (1, "No such file or directory")}
    assert boot(stage.machine) == 1
    assert not (stage.root / "run/narthex/sshd.env").exists()


def test_a_full_disk(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    stage.insert(seeds.seed())
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device; look at the disk" in trouble(stage)
    assert not any((stage.root / "etc/narthex" / name).exists() for name in ETC)
    monkeypatch.undo()
    stage.restart()
    assert boot(stage.machine) == 0


def test_a_fault_of_our_own_is_said_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.insert(seeds.seed())
    monkeypatch.setattr(early, "keep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        boot(stage.machine)
    assert "ZeroDivisionError" in (stage.root / "dev/ttyS0").read_text()


def test_no_escape_reaches_the_console(stage: Stage) -> None:
    early.tell_trouble(stage.machine, "\x1b[31m\\d\nsecond")
    assert "\x1b" not in (stage.root / "dev/tty0").read_text()
    assert "?[31m\\\\d\n" in (stage.root / "run/issue.d/narthex.issue").read_text()


def test_a_console_that_nobody_empties_holds_up_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def full_after_some(fd: int, data: bytes) -> int:
        if len(written) == 3:
            raise BlockingIOError
        written.append(data[:10])
        return 10

    monkeypatch.setattr(os, "write", full_after_some)
    early.show(stage.machine, str(stage.root / "dev/tty0"), b"0123456789" * 5)
    assert b"".join(written) == b"0123456789" * 3
    assert 1.0 <= stage.clock < 1.1


# --- the boots after it


def test_a_second_boot_writes_nothing_and_reads_no_yaml(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    inodes = {path: (stage.root / path).stat().st_ino for path in stage.kept() if path.startswith("etc/")}
    stage.restart()
    monkeypatch.setattr("appliance.seedtext.read_seed", lambda *_: 1 / 0)
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    assert boot(stage.machine) == 0
    assert inodes == {path: (stage.root / path).stat().st_ino for path in stage.kept() if path.startswith("etc/")}
    assert "mtu 1400 up" in stage.commands("ip")[0]


def test_the_disk_may_be_taken_out(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    stage.eject()
    stage.restart()
    assert boot(stage.machine) == 0
    assert stage.clock == 0.0, "it is not waited for"
    assert "via 169.254.2.1" in stage.commands("ip")[0]


def test_what_was_damaged_is_put_right(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    good = stage.kept()
    stage.eject()
    for name in ETC:
        (stage.root / "etc/narthex" / name).write_bytes(b"")
    os.chmod(stage.root / "etc/narthex/host_key", 0o644)
    stage.restart()
    assert boot(stage.machine) == 0
    assert stage.kept() == good
    assert stat.S_IMODE((stage.root / "etc/narthex/host_key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": 1, "seed": {}}', b'{"format": 2}', b"\xff"])
def test_a_memory_that_is_none(stage: Stage, content: bytes) -> None:
    (stage.root / "etc/narthex").mkdir()
    (stage.root / "etc/narthex/seed.json").write_bytes(content)
    assert "there is no seed" in trouble(stage)
    stage.insert(seeds.seed())
    stage.restart()
    assert boot(stage.machine) == 0


def test_another_seed_is_taken_anew(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    (stage.root / "var/lib/narthex").mkdir(parents=True)
    stage.restart()
    entries = seeds.write_files({"control_address": "169.254.2.11/24"})
    stage.insert(seeds.seed(
        user_data=user_data(list(entries.values())), meta_data=b"instance-id: i-2",
        network_config=network_with("2.10/24", "2.11/24"),
    ))  # fmt: skip
    assert boot(stage.machine) == 0
    assert (stage.root / "run/narthex/sshd.env").read_text() == "CONTROL=169.254.2.11\n"
    assert (stage.root / "var/lib/narthex").exists(), "it is the same appliance"


def test_another_appliances_state_is_set_aside(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    for _ in range(2):
        (stage.root / "var/lib/narthex").mkdir(parents=True)
        for name in ("r-2", "r-1"):
            stage.restart()
            stage.insert(seeds.seed(user_data=settings_with(name=name), meta_data=b"instance-id: i-2"))
            assert boot(stage.machine) == 0
            assert not (stage.root / "var/lib/narthex").exists()
    assert {path.name for path in (stage.root / "var/lib").iterdir()} == {"narthex.r-1", "narthex.r-1~"}


def test_started_again_in_the_same_boot(stage: Stage) -> None:
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    stage.ran.clear()
    assert boot(stage.machine) == 0
    assert not stage.commands("nft")
    assert not stage.commands("ip")


def test_trouble_goes_when_it_is_over(stage: Stage) -> None:
    stage.insert(seeds.seed(meta_data=None))
    trouble(stage)
    stage.insert(seeds.seed())
    assert boot(stage.machine) == 0
    assert not (stage.root / "run/narthex/trouble").exists()
    assert not (stage.root / "run/issue.d/narthex.issue").exists()


# --- writing


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.new").write_bytes(b"left by a power cut, and longer")
    write_files(str(tmp_path), {"a": b"1", "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}
    (tmp_path / "c.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="c.new"):
        write_files(str(tmp_path), {"c": b"3"})
    assert not (tmp_path / "elsewhere").exists()


def test_the_bounds_are_there() -> None:
    assert all(limit <= 1 << 20 for files in FILES.values() for limit in files.values())
