"""The stage of the demo: a ground of its own with bridges, five guests, one outside host, and a router in a cell.

    outside 198.51.100.10 -- 203.0.113.1 -- [public] -- router r1 -- [guest] -- web, mail, desk
                                                |          |  |
                                           [control]       |  +-- [app] -- app       two tiers of a VPC, plugged in
                                            this process   +-- [data] -- db          while it runs

All of it is in namespaces that no one else uses, named by this process' pid, and files in one folder; so what a
killed demo left is found by the next one, and what this one leaves can be looked for.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mgmt.hosts.cell import CellDriver
from mgmt.hosts.driver import Driver, DriverError, Nic, Seed
from mgmt.hosts.guest import Guest
from mgmt.hosts.namespace import NETNS, PREFIX, Bridge, Namespace
from mgmt.keys import make_key
from mgmt.push import PORT, Appliance, PushError, Target

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "router.json"
WHOLE = EXAMPLE.with_name("demo.json")  # the same, and what the demo puts into it while it runs
ROUTER = "r1"  # a cell's control MAC comes of its name; the example's is this one's
OUTSIDE = "198.51.100.10"
GATEWAY = "203.0.113.1"
BRIDGES = {"public": "nx-public", "guest": "nx-guest"}
TIERS = {"app": "nx-app", "data": "nx-data"}  # bridges, by the tier's interface
READY_SECONDS = 15.0
_NAME = "demo-"
_FOLDER = "narthex-demo-"


class Host(Driver, Protocol):
    """A driver whose appliances this process may reach, and look into."""

    def dial(self, name: str) -> Callable[[str, int, float], Any]: ...
    def logs(self, name: str, unit: str) -> Iterator[str]: ...
    def run(self, name: str, argv: Sequence[str], timeout_s: float) -> Any: ...


@dataclass(frozen=True, slots=True)
class Where:
    """Where the router runs: in words, its driver (of a ground and a folder), and how many times slower it is."""

    words: str
    driver: Callable[[Namespace, Path], Host]
    slower: float = 1.0


CELL = Where("a cell", lambda ground, folder: CellDriver(ground, folder / "state", folder / "run"))


class Stage:
    """Put up with `put_up`, taken down with `take_down`, which may be called at any moment, and twice."""

    def __init__(self, where: Where = CELL) -> None:
        self.where = where
        self.name = f"{_NAME}{os.getpid()}"
        self.folder = _folder(os.getpid())
        self.document: dict[str, Any] = json.loads(EXAMPLE.read_text())
        self.whole: dict[str, Any] = json.loads(WHOLE.read_text())["config"]
        self.ground = Namespace(self.name)
        self.guests = {h["name"]: Guest(f"{self.name}-{h['name']}", h["name"]) for h in self.whole["hosts"]}
        self.outside = Guest(f"{self.name}-outside", "outside")
        self.driver = where.driver(self.ground, self.folder)
        self.seed: Seed | None = None
        self._manager = make_key()
        self._namespaces: set[int] = set()  # the kernel's numbers of all that were made
        self._open: list[Appliance] = []

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["config"]
        return found

    # --- up

    def put_up(self) -> None:
        """Ground, bridges and the outside host; the guests are there, not yet plugged in."""
        self.folder.mkdir(mode=0o700)
        self.ground.create()
        for bridge in (*BRIDGES.values(), *TIERS.values()):
            Bridge(bridge, self.ground).create()
        for guest in (*self.guests.values(), self.outside):
            guest.create()
        for namespace in (self.ground, self.outside, *self.guests.values()):
            self._namespaces.add(os.stat(namespace.path).st_ino)
        # To reach a guest without translation the outside host would send to the router: one test tries it.
        routes = {network["cidr"]: network["source_nat"] for network in self.config["networks"]}
        addresses = (f"{GATEWAY}/24", f"{OUTSIDE}/32")
        self.outside.plug(BRIDGES["public"], "02:00:5e:00:03:01", addresses, routes, self.ground)
        self.outside.serve(25, 80)
        self.guests["web"].serve(22, 8080)
        self.guests["mail"].serve(25, 8080)
        self.guests["desk"].serve(5004, 7000)
        self.guests["app"].serve(8080)
        self.guests["db"].serve(22, 5432)

    def start_router(self) -> Appliance:
        """Create and start the appliance; back with a warm connection when its agent answers."""
        control, *others = self.config["interfaces"]
        host = make_key()
        self.seed = Seed(ROUTER, "router", control["addresses"][0], self._manager.public, host.public, host.private)
        self.driver.create(self.seed, [Nic(i["mac"], BRIDGES[i["use"]]) for i in others])
        cell = self.driver.start(ROUTER)
        self._namespaces.add(os.stat(f"/proc/{cell.pid}/ns/net").st_ino)
        deadline = time.monotonic() + READY_SECONDS * self.where.slower
        while True:
            appliance = self.connect()
            try:
                appliance.health()
                return appliance
            except PushError as error:
                appliance.close()
                if time.monotonic() > deadline:
                    raise PushError(f"{error}; {self._last_words()}") from error
                time.sleep(0.02 * self.where.slower)

    def plug_in_tiers(self) -> None:
        """Plug the interfaces of the tiers into the running router."""
        macs = {i["id"]: i["mac"] for i in self.whole["interfaces"]}
        for ident, bridge in TIERS.items():
            self.driver.plug(ROUTER, Nic(macs[ident], bridge))

    def _last_words(self) -> str:
        """Of the agent, or of the console: what it says last is why it does not answer."""
        for unit in ("agent", "console"):
            with suppress(DriverError, IndexError):
                return f"the log of {unit} ends: {list(self.driver.logs(ROUTER, unit))[-1]}"
        return "it left no log"

    def connect(self) -> Appliance:
        """A new connection of the manager's, from the ground."""
        assert self.seed is not None
        target = Target(self._address, self.seed.host_key, self._manager.private, dial=self.ground.connect)
        self._open.append(Appliance(target))
        return self._open[-1]

    def answers_on_ssh(self) -> bool:
        """Whether a new TCP connection from the ground to the router's port 3922 can be made at once."""
        try:
            self.ground.connect(self._address, PORT, timeout_s=0.2).close()
        except OSError:
            return False
        return True

    @property
    def _address(self) -> str:
        assert self.seed is not None
        return self.seed.control_address.partition("/")[0]

    def take_lease(self, name: str) -> str:
        """The guest plugs in and asks by DHCP. Returns its address."""
        host = next(h for h in self.whole["hosts"] if h["name"] == name)
        bridge = TIERS.get(host["network"], BRIDGES["guest"])
        return self.guests[name].take_lease(bridge, host["mac"], self.ground).address.partition("/")[0]

    def in_router(self, *argv: str) -> str:
        """Run a program in the router, by hand as it were; its output."""
        return str(self.driver.run(ROUTER, argv, timeout_s=10.0 * self.where.slower).stdout)

    def process(self) -> int:
        """The router's process on this host, 0 where it doesn't run."""
        return next((cell.pid for cell in self.driver.list()), 0)

    # --- down

    def take_down(self) -> None:
        """End and remove everything. Each part is tried, whatever became of the others; the first error is raised."""
        with ExitStack() as deeds:
            deeds.callback(shutil.rmtree, self.folder, ignore_errors=True)
            deeds.callback(self.ground.destroy)
            for guest in (self.outside, *self.guests.values()):
                deeds.callback(guest.destroy)
            if self.folder.exists():
                deeds.callback(self.driver.destroy, ROUTER)
            for appliance in self._open:
                deeds.callback(appliance.close)

    def left_behind(self) -> list[str]:
        """What is still there of what was made: namespaces, processes in them, mounts, files. Empty is clean."""
        deadline = time.monotonic() + 2.0
        while (found := list(self._left())) and time.monotonic() < deadline:
            time.sleep(0.02)  # the kernel frees a namespace some time after the last process has gone
        return found

    def _left(self) -> Iterator[str]:
        if self.folder.exists():
            yield f"folder {self.folder}"
        own = (self.ground, self.outside, *self.guests.values())
        yield from (f"namespace {namespace.path.name}" for namespace in own if namespace.path.exists())
        marks = (f"{self.folder}/", *(f"{n.path} " for n in own), *(f"net:[{n}]" for n in self._namespaces))
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if any(mark in line for mark in marks):
                yield f"mount {line.split()[4]}"
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with suppress(OSError):
                    if os.stat(process / "ns/net").st_ino in self._namespaces:
                        yield f"process {process.name}"


def _folder(pid: int) -> Path:
    return Path(tempfile.gettempdir()) / f"{_FOLDER}{pid}"


def sweep_stages() -> list[int]:
    """Take down what killed demos have left. Returns their pids."""
    namespaces = {path.name.removeprefix(PREFIX).removeprefix(_NAME).partition("-")[0] for path in _namespaces()}
    folders = {path.name.removeprefix(_FOLDER) for path in _folder(0).parent.glob(f"{_FOLDER}*")}
    dead = sorted(int(p) for p in namespaces | folders if p.isdigit() and not Path("/proc", p).exists())
    for pid in dead:
        with ExitStack() as deeds:
            deeds.callback(shutil.rmtree, _folder(pid), ignore_errors=True)
            for path in _namespaces():
                if f"{path.name}-".startswith(f"{PREFIX}{_NAME}{pid}-"):
                    deeds.callback(Namespace(path.name.removeprefix(PREFIX)).destroy)
            if _folder(pid).exists():
                ground = Namespace(f"{_NAME}{pid}")
                driver = CellDriver(ground, _folder(pid) / "state", _folder(pid) / "run")
                deeds.callback(driver.destroy, ROUTER)
    return dead


def _namespaces() -> Iterator[Path]:
    yield from NETNS.glob(f"{PREFIX}{_NAME}*")
