"""The boot: by either firmware, from either seed, on little memory; and what a machine does that has no good one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mgmt import seed as seeds
from mgmt.hosts.driver import DriverError
from mgmt.hosts.qemu import QemuDriver
from mgmt.seed_iso import make_iso
from tests.bed import CELL, Bed, standing_in, wait_for
from tests.vm.machine import BOOT_SECONDS, Booted, Vm, wait_settled

pytestmark = pytest.mark.soak("image")
NICS = {"lan": "02:00:00:00:0a:03"}


@contextmanager
def booted(machines: Vm, **hardware: object) -> Iterator[Bed]:
    """A router of its own, booted on this hardware, its agent ready."""
    with standing_in(Booted(machines, **hardware)), Bed(NICS) as bed:
        yield bed


@pytest.fixture(scope="module", name="plain")
def plain_fixture(machines: Vm) -> Iterator[Bed]:
    """By UEFI, from a ConfigDrive in a CD drive, with a larger disk: what the shared machine is not."""
    with booted(
        machines, firmware="uefi", seed="configdrive", seed_bus="ide", disk_mib=3072, clock="2001-02-03T04:05:06"
    ) as bed:
        wait_settled(bed.driver, CELL)
        yield bed


def test_the_seed_has_come_in(plain: Bed) -> None:
    kept = json.loads(plain.run("cat", "/etc/narthex/seed.json"))["seed"]
    assert kept["kind"] == "configdrive"
    assert plain.run("test", "-d", "/sys/firmware/efi") == ""
    assert plain.run("hostname").strip() == CELL


def test_nothing_has_failed(plain: Bed) -> None:
    assert plain.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").strip() == ""


def test_the_root_has_grown_with_the_disk_and_logs_have_a_place_of_their_own(plain: Bed) -> None:
    mounts = {line.split()[1]: line.split() for line in plain.run("cat", "/proc/mounts").splitlines()}
    size = int(plain.run("stat", "-f", "-c", "%b", "/")) * int(plain.run("stat", "-f", "-c", "%S", "/")) >> 20
    assert size > 2500
    assert mounts["/var/log"][2] == "ext4"
    assert mounts["/var/log"][0] != mounts["/"][0]
    assert "noexec" in mounts["/var/log"][3]


def test_nobody_has_a_password_and_only_sshd_listens(plain: Bed) -> None:
    shadow = plain.run("cat", "/etc/shadow")
    assert all(line.split(":")[1] == "*" for line in shadow.splitlines())
    listening = plain.run("ss", "-Hltun").splitlines()
    assert [line.split()[4] for line in listening] == ["169.254.240.10:3922"], listening


def test_a_router_runs_in_256_mib(plain: Bed) -> None:
    told = plain.run("cat", "/proc/meminfo")
    memory = {line.split(":")[0]: int(line.split()[1]) for line in told.splitlines()}
    assert memory["MemTotal"] < 256 * 1024
    assert memory["MemAvailable"] > 40 * 1024
    assert plain.run("sh", "-c", "dmesg | grep -ci 'out of memory' || true").strip() == "0"


def test_consoles_are_served(plain: Bed) -> None:
    """A login prompt on the serial console, for who has a password in the seed."""
    log = "\n".join(plain.driver.logs(CELL))
    assert f"{CELL} login:" in log


def test_the_power_button_is_heard(plain: Bed) -> None:
    """An orderly end, as a host asks for it; last in this file, since the machine is down then."""
    started = time.monotonic()
    process = plain.driver._process(CELL)
    assert process is not None
    plain.driver.monitor(CELL, "system_powerdown")
    wait_for(lambda: not process.alive, BOOT_SECONDS, "the machine does not go down")
    assert time.monotonic() - started < BOOT_SECONDS
    assert "reboot: Power down" in "\n".join(plain.driver.logs(CELL))


# --- broken seeds -----------------------------------------------------------------------------------------------------


def _no_settings(files: dict[str, bytes]) -> dict[str, bytes]:
    text = files["user-data"].decode().replace("/etc/narthex/settings.json", "/etc/narthex/elsewhere.json")
    return {**files, "user-data": text.encode()}


def _torn(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "user-data": files["user-data"][: len(files["user-data"]) // 2]}


def _wrong_mac(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content.replace(b"02:", b"06:") for name, content in files.items()}


BROKEN = {
    "no settings": (_no_settings, "settings.json"),
    "torn": (_torn, "user-data"),
    "another MAC": (_wrong_mac, "no interface has the control MAC"),
}


def test_a_broken_seed_leaves_a_closed_machine_that_says_so(machines: Vm) -> None:
    """One machine after the other: each says on its serial console what is wrong, opens nothing, and runs no agent."""
    where = Booted(machines)
    with standing_in(where):
        bed = Bed(NICS)
    driver: QemuDriver = bed.driver
    with bed.ground:
        from mgmt.hosts.driver import Nic, Seed
        from mgmt.hosts.namespace import Bridge

        Bridge("nx-lan", bed.ground).create()
        manager, host = machines.keys()
        seed = Seed(CELL, "router", "169.254.240.10/20", manager.public, host.public, host.private)
        driver.create(seed, [Nic(mac, f"nx-{bridge}") for bridge, mac in NICS.items()])
        files = seeds.no_cloud(seeds.of_driver(seed, driver.definition(CELL).control_mac))
        try:
            for name, (breaks, words) in BROKEN.items():
                driver.write_seed(CELL, make_iso(breaks(files), seeds.NOCLOUD))
                driver.start(CELL)
                log = driver.disk.folder(CELL) / "log" / "console.log"
                wait_for(
                    lambda log=log: "this machine stays closed" in log.read_text(errors="replace"),  # type: ignore[misc]
                    BOOT_SECONDS, f"{name}: nothing is said on the console",
                )  # fmt: skip
                driver.wait_agent(CELL, BOOT_SECONDS)
                assert words in log.read_text(errors="replace"), name
                assert driver.run(CELL, ["ss", "-Hltun"]).stdout == ""
                assert driver.run(CELL, ["systemctl", "is-active", "narthex-agent"], check=False).stdout != "active\n"
                chains = driver.run(CELL, ["nft", "list", "ruleset"]).stdout
                assert chains.count("policy drop") == 2, chains
                assert "3922" not in chains
                driver.power_cut(CELL)
        finally:
            driver.destroy(CELL)


def test_a_driver_says_what_it_cannot_do(machines: Vm) -> None:
    with standing_in(machines):
        bed = Bed(NICS)
    with pytest.raises(DriverError, match="no such cell"):
        bed.driver.start("nobody")
