"""A test bed: a router, with guests and outside hosts as namespaces on bridges in a ground of their own.

The router is in a cell, or where `standing_in` says: in a VM (tests/vm).

What netns tests, benchmarks and the soak share. Everything it makes is named by this process' pid and is gone at its
end; nothing touches the host's own network namespace.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from mgmt.hosts.cell import CellDriver
from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.guest import Guest
from mgmt.hosts.namespace import Bridge, Namespace
from mgmt.keys import KeyPair, make_key
from mgmt.push import Answer, Appliance, PushError, Target

CELL = "bed"
CONTROL = "169.254.240.10/20"
READY_SECONDS = 20.0
_numbers = itertools.count()

Json = dict[str, Any]


class Where:
    """Where a bed's router runs: in a cell. `slower`: how many times more patience it takes than a cell."""

    is_cell = True
    slower = 1.0

    def keys(self) -> tuple[KeyPair, KeyPair]:
        """The manager's and the host's."""
        return make_key(), make_key()

    def driver(self, ground: Namespace, folder: Path) -> Any:
        """A driver for one router."""
        return CellDriver(ground, folder / "state", folder / "run")

    def bring_up(self, driver: Any, seed: Seed, nics: Sequence[Nic]) -> None:
        """Create it and start it; its agent answers a little later."""
        driver.create(seed, nics)
        driver.start(seed.name)


_standing: list[Where] = [Where()]


@contextmanager
def standing_in(where: Where) -> Iterator[None]:
    """Beds that are put up meanwhile stand there."""
    _standing.append(where)
    try:
        yield
    finally:
        _standing.pop()


class Bed:
    """`nics` gives the router's interfaces: the name of a bridge -> MAC. Used as a context manager."""

    def __init__(self, nics: Mapping[str, str], heal: str = "heal", watch_seconds: float = 30.0) -> None:
        self.where = _standing[-1]
        self.name = f"bed{os.getpid()}-{next(_numbers)}"
        self.nics = dict(nics)
        self.heal, self.watch_seconds = heal, watch_seconds
        self.folder = Path(tempfile.mkdtemp(prefix=f"narthex-{self.name}-"))
        self.ground = Namespace(self.name)
        self.driver = self.where.driver(self.ground, self.folder)
        self.guests: dict[str, Guest] = {}
        self.generation = 0
        self._stack = ExitStack()
        self._manager, self._host = self.where.keys()

    # --- up and down

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.enter_context(self.ground)
            for bridge in self.nics:
                stack.enter_context(Bridge(f"nx-{bridge}", self.ground))
            seed = Seed(
                CELL, "router", CONTROL, self._manager.public, self._host.public, self._host.private,
                heal=self.heal, watch_seconds=self.watch_seconds,  # type: ignore[arg-type]
            )  # fmt: skip
            stack.callback(self.driver.destroy, CELL)
            self.where.bring_up(self.driver, seed, [Nic(mac, f"nx-{bridge}") for bridge, mac in self.nics.items()])
            self.appliance = stack.enter_context(Appliance(self.target()))
            self.wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def target(self) -> Target:
        """The way in, dialled from the ground."""
        return Target(
            CONTROL.partition("/")[0],
            self._host.public,
            self._manager.private,
            dial=lambda host, port, seconds: self.ground.connect(host, port, seconds),
        )

    def wait_ready(self, seconds: float = READY_SECONDS) -> Json:
        """Wait until the agent answers; its health."""
        deadline = time.monotonic() + seconds * self.where.slower
        while True:
            try:
                return dict(self.appliance.health().body)
            except PushError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02 * self.where.slower)

    # --- the router

    @property
    def control(self) -> Json:
        """The control interface as the document must have it."""
        mac = self.driver.definition(CELL).control_mac
        return {"id": "control", "mac": mac, "use": "control", "addresses": [CONTROL]}

    def document(self, config: Json, **envelope: Any) -> Json:
        """A document of the next generation; the control interface is put in where `config` has none."""
        interfaces = config["interfaces"]
        if not any(i["use"] == "control" for i in interfaces):
            config = {**config, "interfaces": [self.control, *interfaces]}
        return {"version": 1, "role": "router", "generation": self.generation + 1, **envelope, "config": config}

    def push(self, config: Json, **envelope: Any) -> Answer:
        """Put the whole config, confirm where that is asked for; must be good."""
        answer = self.settled(self.appliance.put(json.dumps(self.document(config, **envelope)).encode()))
        assert answer.good, answer.body
        return answer

    def patch(self, *operations: Json) -> Answer:
        """Operations against what is there; must be good."""
        change = {
            "version": 1, "role": "router", "base": self.generation, "generation": self.generation + 1,
            "operations": list(operations),
        }  # fmt: skip
        answer = self.settled(self.appliance.patch(json.dumps(change).encode()))
        assert answer.good, answer.body
        return answer

    def settled(self, answer: Answer) -> Answer:
        """Confirm what waits for it, and take note of the generation."""
        if answer.status == 202:
            confirmed = self.appliance.confirm(answer.body["generation"])
            assert confirmed.status == 200, confirmed.body
        if answer.good:
            self.generation = answer.body["generation"]
        return answer

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program inside the router; its output."""
        done = self.driver.run(CELL, argv, check=check)
        return done.stdout

    def pid_of(self, unit: str) -> int:
        """The process of a boot unit ("agent", "sshd") as the router counts."""
        found = self.run("pgrep", "-f", {"agent": "[-]m appliance$", "sshd": "sshd.*listener"}[unit])
        return int(found.split()[0])

    # --- who is around it

    def guest(
        self,
        name: str,
        bridge: str,
        mac: str,
        addresses: Sequence[str] = (),
        routes: Mapping[str, str] | None = None,
        serve: Sequence[int] = (),
    ) -> Guest:
        """A machine on a bridge, with fixed addresses; serving its name on TCP and UDP ports."""
        guest = self._stack.enter_context(Guest(f"{self.name}-{name}", name))
        if addresses:
            guest.plug(f"nx-{bridge}", mac, addresses, routes or {}, self.ground)
            guest.serve(*serve)
        self.guests[name] = guest
        return guest


def wait_for(what: Callable[[], bool], seconds: float = 10.0, words: str = "it did not come about") -> None:
    """Wait until `what` holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, words
        time.sleep(0.02)
