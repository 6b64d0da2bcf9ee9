"""An engine over a fake machine and a real journal, and the words that the tests speak to it in."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flask import Flask

from appliance.api import create_app
from appliance.engine import Answer, Engine
from appliance.fake import FakeHost, facts
from appliance.health import Health
from appliance.log import Log
from appliance.metrics import Metrics
from appliance.plan import Step, plan
from appliance.release import Releases
from appliance.roles import Role
from appliance.settings import Settings
from appliance.state import State
from appliance.store import Store
from appliance.upgrade import Upgrade
from tests.appliance import toy

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
CONTROL = "169.254.2.10/24"

WIRES = [
    {"id": "control", "mac": MACS[0], "addresses": [CONTROL]},
    {"id": "outside", "mac": MACS[1], "addresses": ["203.0.113.10/24"]},
]
BASE: dict[str, Any] = {
    "wires": WIRES,
    "doors": [{"id": "web", "port": 80, "target": "10.1.1.10"}],
    "ways": [{"id": "far", "wire": "outside", "destination": "10.9.0.0/16", "via": "203.0.113.1"}],
    "notes": [{"id": "hello", "text": "hello"}],
}
# All that BASE is not: a plan between the two has every kind of step.
RICH: dict[str, Any] = {
    "wires": [
        WIRES[0],
        {"id": "outside", "mac": MACS[1], "addresses": ["203.0.113.11/24"], "mtu": 1400},
        {"id": "inside", "mac": MACS[2], "addresses": ["10.1.1.1/24"]},
    ],
    "doors": [
        {"id": "mail", "port": 25, "target": "10.1.1.11"},
        {"id": "shop", "port": 443, "target": "10.1.1.12", "guarded": True},
    ],
    "ways": [{"id": "near", "wire": "inside", "destination": "10.8.0.0/16", "via": "10.1.1.2"}],
    "notes": [{"id": "bye", "text": "bye"}],
    "accounts": [{"id": "anna", "password": "correct horse"}],
}


class Rig:
    """`engine` over `host` and the journal in `folder`; `log` is what it wrote."""

    def __init__(self, folder: Path, host: FakeHost | None = None, heal: str = "heal", role: Any = toy) -> None:
        self.folder, self.role = folder, role
        self.host = host or FakeHost(facts(*MACS))
        self.settings = Settings("r-1", "router", MACS[0], CONTROL, "supervisor", heal=heal)  # type: ignore[arg-type]
        self.log = io.StringIO()
        self.start()

    def start(self) -> None:
        self.store = Store(self.folder)
        self.metrics = Metrics()
        self.engine = Engine(cast(Role, self.role), self.host, self.store, self.settings, Log(self.log), self.metrics)
        self.engine.start()
        self.health = Health(self.engine, Log(self.log), self.metrics)
        self.upgrade = Upgrade(self.engine, Releases(self.folder / "opt", environment={}), Log(self.log))

    def app(self) -> Flask:
        return create_app(self.engine, self.metrics, self.upgrade, self.health)

    def restart(self) -> None:
        """The agent ended, however, and starts anew on the same machine and the same disk."""
        self.store.close()
        self.start()

    @property
    def next(self) -> int:
        return max(self.engine.current.number, self.store.last()) + 1

    def put(self, config: Mapping[str, Any], generation: int = 0, connection: str = "push", **rest: Any) -> Answer:
        return self.engine.put(document(config, generation or self.next, **rest), connection)

    def patch(self, *operations: Mapping[str, Any], connection: str = "push", **rest: Any) -> Answer:
        return self.engine.patch(self.change(*operations, **rest), connection)

    def change(self, *operations: Mapping[str, Any], **rest: Any) -> bytes:
        told = {"generation": self.next, "base": self.engine.current.number, "operations": operations, **rest}
        return json.dumps({"version": 1, "role": "router", **told}).encode()

    def settle(self, config: Mapping[str, Any]) -> State:
        """Make the machine `config`, confirmed where that is demanded. Returns its State."""
        answer = self.put(config)
        if answer.status == 202:
            answer = self.engine.confirm(self.engine.current.number, "another")
        assert answer.status == 200, answer
        return self.engine.current.state

    def is_now(self, state: State) -> tuple[Step, ...]:
        """The steps that the machine is away from `state`, leftovers of whatever else included."""
        host = self.host
        was, host.blind = host.blind, False
        try:
            return plan(host.observe(state, [host.machine]), state)
        finally:
            host.blind = was


def document(config: Mapping[str, Any], generation: int, **rest: Any) -> bytes:
    return json.dumps({"version": 1, "role": "router", "generation": generation, "config": config, **rest}).encode()


def put_in(collection: str, **fields: Any) -> dict[str, Any]:
    return {"op": "put", "collection": collection, "object": fields}


def remove(collection: str, ident: str) -> dict[str, Any]:
    return {"op": "remove", "collection": collection, "id": ident}
