"""Beds whose router is in a VM: booted from the image, or put back to a moment of an earlier boot, in a second.

The tree's own agent goes in by the seed's bundle, so that a change of code rebuilds no image. All beds of a session
have the same keys, since a moment that was kept has its seed in it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.namespace import Bridge, Namespace
from mgmt.hosts.qemu import Hardware, QemuDriver
from mgmt.keys import KeyPair, make_key
from mgmt.push import Appliance, Target
from tests.bed import Where

READY = "ready"
BOOT_SECONDS = 240.0  # an emulated boot takes 25 s on an idle machine, and tests run on busy ones
SLOWER = {"tcg": 12.0, "kvm": 2.0}


def accelerator() -> Any:
    """What the machines of the tests run by."""
    return os.environ.get("NARTHEX_ACCELERATOR") or "tcg"


class Vm(Where):
    """Routers in VMs of `image`, with `bundle` for their agent. `folder` keeps the moments."""

    is_cell = False

    def __init__(self, folder: Path, image: Path, bundle: bytes, hardware: Hardware | None = None) -> None:
        self.folder, self.image, self.bundle = folder, image, bundle
        self.hardware = hardware or Hardware(accelerator=accelerator())
        self.slower = SLOWER[self.hardware.accelerator]
        self._keys = make_key(), make_key()
        self._kept: dict[str, Path] = {}

    def keys(self) -> tuple[KeyPair, KeyPair]:
        return self._keys

    def driver(self, ground: Namespace, folder: Path) -> QemuDriver:
        return QemuDriver(self.image, ground, folder / "state", folder / "run", self.hardware, self.bundle)

    def bring_up(self, driver: QemuDriver, seed: Seed, nics: Sequence[Nic]) -> None:
        """Put it back to the moment when it was ready for its first document."""
        key = json.dumps([seed.name, seed.heal, seed.watch_seconds, [asdict(nic) for nic in nics]])
        if key not in self._kept:
            self._kept[key] = self._boot_and_keep(seed, nics, len(self._kept))
        driver.create(seed, nics)
        shutil.copy(self._kept[key], driver.disk.folder(seed.name) / "root.qcow2")
        driver.restore(seed.name, READY)

    def _boot_and_keep(self, seed: Seed, nics: Sequence[Nic], number: int) -> Path:
        """Boot in a ground of its own until agent and cloud-init are done; the disk with that moment in it."""
        said = time.monotonic()
        print(f"vm: booting {self.image.parent.name} by {self.hardware.accelerator} ...", file=sys.stderr, flush=True)
        folder = self.folder / f"boot{number}"
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            ground = stack.enter_context(Namespace(f"boot{os.getpid()}-{number}"))
            for bridge in {nic.bridge for nic in nics}:
                stack.enter_context(Bridge(bridge, ground))
            driver = self.driver(ground, folder)
            stack.callback(driver.destroy, seed.name)
            driver.create(seed, nics)
            driver.start(seed.name)
            host, manager = self._keys[1], self._keys[0]
            address = seed.control_address.partition("/")[0]
            with Appliance(Target(address, host.public, manager.private, dial=ground.connect)) as appliance:
                appliance.wait(BOOT_SECONDS)
            wait_settled(driver, seed.name)
            driver.run(seed.name, ["sync"])
            driver.snapshot(seed.name, READY)
            driver.power_cut(seed.name)
            kept = folder / "ready.qcow2"
            (driver.disk.folder(seed.name) / "root.qcow2").rename(kept)
        print(f"vm: ready after {time.monotonic() - said:.0f} s", file=sys.stderr, flush=True)
        return kept


class Booted(Vm):
    """Routers in VMs that are booted each for itself, on the hardware that is asked for."""

    def __init__(self, vm: Vm, **hardware: Any) -> None:
        super().__init__(vm.folder, vm.image, vm.bundle, replace(vm.hardware, **hardware))
        self._keys = vm.keys()

    def bring_up(self, driver: QemuDriver, seed: Seed, nics: Sequence[Nic]) -> None:
        driver.create(seed, nics)
        driver.start(seed.name)


def wait_settled(driver: QemuDriver, name: str, seconds: float = BOOT_SECONDS) -> None:
    """Until cloud-init has done its part, which nobody waits for but who measures or keeps a moment."""
    deadline = time.monotonic() + seconds
    driver.wait_agent(name, seconds)
    words = ("systemctl", "show", "--property=ActiveState", "--value", "narthex-cloud-init.service")
    while driver.run(name, words).stdout.strip() not in ("active", "failed"):
        assert time.monotonic() < deadline, "cloud-init does not end"
        time.sleep(0.5)
