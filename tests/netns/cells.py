"""What the tests of cells stand on: a private ground, a driver with state of its own, and an eye for what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from mgmt.hosts.cell import CellDriver
from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.namespace import PREFIX, Namespace
from mgmt.keys import KeyPair, make_key
from mgmt.push import Appliance, Target

MANAGER = make_key()


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until it is so; fails the test when it isn't in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)


@dataclass
class Field:
    """A ground with the bridge nx-guest, and a driver whose state and records lie under `folder`."""

    ground: Namespace
    folder: Path
    driver: CellDriver
    keys: dict[str, KeyPair] = field(default_factory=dict)

    def seed(self, name: str, manager: KeyPair = MANAGER) -> Seed:
        key = self.keys.setdefault(name, make_key())
        address = self.driver.free_address()
        return Seed(name, "router", address, manager.public, key.public, key.private)

    def cell(self, name: str, *macs: str) -> Appliance:
        """A running cell that answers, and the way to it."""
        self.driver.create(self.seed(name), [Nic(mac, "nx-guest") for mac in macs])
        self.driver.start(name)
        appliance = self.way(name)
        appliance.wait(10.0)
        return appliance

    def target(self, name: str, manager: KeyPair = MANAGER, host_key: str = "") -> Target:
        seed = self.driver.definition(name).seed
        address = seed.control_address.partition("/")[0]
        return Target(address, host_key or seed.host_key, manager.private, dial=self.driver.dial(name))

    def way(self, name: str) -> Appliance:
        return Appliance(self.target(name))

    # --- what is left

    def links(self) -> list[str]:
        with self.ground.entered(), IPRoute() as netlink:
            names = [str(link.get("ifname")) for link in netlink.get_links()]
        return [name for name in names if name.startswith(PREFIX) and name != "nx-guest"]

    def processes(self) -> list[int]:
        """Those that have our state mounted, and those that still carry our mark from before."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        mark = self.folder.name.encode()
        try:
            return pid != os.getpid() and (
                mark in Path(f"/proc/{pid}/mountinfo").read_bytes()
                or b"MARK=" + mark in Path(f"/proc/{pid}/environ").read_bytes()
            )
        except OSError:
            return False

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.name not in ("cells", "run")]

    def assert_nothing_left(self) -> None:
        until(lambda: not self.processes())
        assert not self.links(), self.links()
        assert not self.files(), self.files()
        assert self.folder.name.encode() not in Path("/proc/self/mountinfo").read_bytes()


@contextmanager
def field_of(folder: Path) -> Iterator[Field]:
    from mgmt.hosts.namespace import Bridge

    with Namespace(f"t{os.getpid()}") as ground:
        Bridge("guest", ground).create()
        driver = CellDriver(ground, folder, folder / "run")
        try:
            yield Field(ground, folder, driver)
        finally:
            for cell in driver.list():
                driver.destroy(cell.name)


@pytest.fixture(name="field")
def field_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field_of(tmp_path_factory.mktemp("cells")) as found:
        yield found
