"""The stage of the packet tests: a router in a cell, and a machine wherever one could stand.

                  world (198.51.100.0/24)
      203.0.113.1 |                     | 192.0.2.1
      near .99 ---+ left           right +--- far .99            203.0.113.0/24   192.0.2.0/24
                  |      router          |
    10.1.1.0/24 lan      |  |  back     dmz 10.1.2.0/24
       web .10, mail .20,   |  |          db .10
       desk .30             |  172.16.0.0/24: store .5, and behind it 172.20.0.0/16
                         control

`left` and `right` are uplinks; world is the gateway of both, and so an outside host that is reached by either. What a
document says beyond the interfaces and networks each test adds by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import pytest

from appliance.conntrack import Conntrack
from appliance.plan import Flows
from mgmt.hosts.namespace import Process
from mgmt.push import Answer
from tests.bed import Bed, wait_for
from tests.netns import calls
from tests.netns.calls import Call, Reply
from tests.netns.flows import Flow, Stream
from tests.netns.machines import Machine, Services

Json = dict[str, Any]

MACS = {name: f"02:00:00:00:0a:{n:02x}" for n, name in enumerate(("left", "right", "lan", "dmz", "back"), 1)}
LEFT, RIGHT = "203.0.113.2", "192.0.2.2"  # the router's own addresses on its uplinks, and more there
L10, L20, L30 = "203.0.113.10", "203.0.113.20", "203.0.113.30"
R10, R20 = "192.0.2.10", "192.0.2.20"
WORLD, WORLD_LOW, WORLD_HIGH = "198.51.100.7", "198.51.100.8", "198.51.100.200"
NEAR, FAR = "203.0.113.99", "192.0.2.99"
LAN, DMZ, BACK = "10.1.1.1", "10.1.2.1", "172.16.0.1"
WEB, MAIL, DESK, DB = "10.1.1.10", "10.1.1.20", "10.1.1.30", "10.1.2.10"
STORE, DEPOT = "172.16.0.5", "172.20.0.5"

Link = tuple[str, str, Sequence[str]]  # bridge, MAC, addresses with their length
_MACHINES: Mapping[str, tuple[tuple[Link, ...], tuple[tuple[str, str], ...]]] = {
    "world": (
        (
            ("left", "02:00:00:00:0b:01", ("203.0.113.1/24", *(f"{a}/32" for a in (WORLD, WORLD_LOW, WORLD_HIGH)))),
            ("right", "02:00:00:00:0b:02", ("192.0.2.1/24",)),
        ),
        (("10.1.0.0/16", LEFT), ("172.16.0.0/12", LEFT)),  # no honest outside host would: tests try it
    ),
    "near": ((("left", "02:00:00:00:0b:03", (f"{NEAR}/24",)),), (("default", LEFT),)),
    "far": ((("right", "02:00:00:00:0b:04", (f"{FAR}/24",)),), (("default", RIGHT),)),
    "web": ((("lan", "02:00:00:00:0b:05", (f"{WEB}/24",)),), (("default", LAN),)),
    "mail": ((("lan", "02:00:00:00:0b:06", (f"{MAIL}/24",)),), (("default", LAN),)),
    "desk": ((("lan", "02:00:00:00:0b:07", (f"{DESK}/24",)),), (("default", LAN),)),
    "db": ((("dmz", "02:00:00:00:0b:08", (f"{DB}/24",)),), (("default", DMZ),)),
    "store": ((("back", "02:00:00:00:0b:09", (f"{STORE}/24", f"{DEPOT}/32")),), (("default", BACK),)),
}


class Stage:
    """The bed, the machines by name, and what they can be asked to do. Used as a context manager."""

    def __init__(self, heal: str = "heal", watch_seconds: float = 60.0, more_bridges: Sequence[str] = ()) -> None:
        """`more_bridges`: bridges that the cell has no link on yet."""
        self.bed = Bed(MACS, heal, watch_seconds)
        self.more_bridges = more_bridges
        self.machines: dict[str, Machine] = {}
        self.services = Services()
        self._flows: list[Flow] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.bed)
            for bridge in self.more_bridges:
                self.bed.ground.run(("ip", "link", "add", f"nx-{bridge}", "type", "bridge"))
                self.bed.ground.run(("ip", "link", "set", f"nx-{bridge}", "up"))
            stack.callback(self.services.stop)
            for name, (links, routes) in _MACHINES.items():
                machine = self.machines[name] = stack.enter_context(Machine(f"{self.bed.name}-{name}", name))
                machine.settle(self.bed.ground, links, routes)
                self.services.serve(machine)
            # Else a refusal may fail to come. -e: not every kernel has all of them in a namespace.
            self.run(
                "sysctl -eqw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=10000"
            )
            self.services.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for flow in self._flows:
            flow.close()
        self._stack.close()

    def __getattr__(self, name: str) -> Machine:
        machines: dict[str, Machine] = self.__dict__.get("machines", {})
        if name not in machines:
            raise AttributeError(name)
        return machines[name]

    @property
    def router(self) -> Process:
        """The router's own namespace, for calls of its own. Only a cell has one here."""
        if not self.bed.where.is_cell:
            pytest.skip("the router's own calls are made in its namespace: in a cell")
        return Process(self.bed.driver.list()[0].pid)

    # --- documents

    def push(self, *objects: Json, **envelope: Any) -> Answer:
        """Push the base document with these objects; must be good."""
        return self.bed.push(config(*objects), **envelope)

    def forget(self) -> None:
        """End all flows, as time would: protocols without ports have one between two hosts, and it goes on."""
        if not self.bed.where.is_cell:
            self.bed.run("conntrack", "-F")
            return
        with self.router.entered():
            table = Conntrack()
        table.end_flows([Flows()])
        table.close()

    def run(self, command: str) -> str:
        """A command in the router, its words as they stand."""
        return self.bed.run(*command.split())

    # --- packets

    def meets(self, name: str, *asked: Call, seen: str = "", link: str = "") -> None:
        """All are answered by `name`, who sees them come from `seen`, on its link `link` (where those are given)."""
        for call, reply in zip(asked, calls.met(self.services, asked), strict=True):
            expected = Reply(name, seen or reply.seen, link or reply.link)
            assert reply == expected, f"{call}: {reply}, not {expected}"

    def silent(self, *asked: Call) -> None:
        """None is answered in any way."""
        calls.silent(self.services, asked)

    def flow(self, call: Call) -> Flow:
        """A live flow; it is closed with the stage."""
        self._flows.append(Flow(call))
        return self._flows[-1]

    def stream(self, call: Call) -> Stream:
        return Stream(call)

    # --- drift

    def drift_after(self, damage: Callable[[], object], healed: bool = True) -> set[str]:
        """Do the damage and wait until it is told of (`healed` or not). The objects and names that the agent gives."""
        before = self.bed.appliance.state().body["drift"]
        last = before[-1]["at"] if before else 0.0
        damage()
        found: list[Json] = []

        def is_told() -> bool:
            found[:] = [d for d in self.bed.appliance.state().body["drift"] if d["at"] > last]
            return any(d["healed"] == healed for d in found)

        wait_for(is_told, 15.0 * self.bed.where.slower, "no drift was told of")
        return {word for d in found for step in d["steps"] for word in (*step["owner"].split(", "), step["name"])}


# --- documents --------------------------------------------------------------------------------------------------------


def interface(name: str, use: str, *addresses: str, **more: Any) -> Json:
    return {"_": "interfaces", "id": name, "mac": MACS.get(name), "use": use, "addresses": list(addresses), **more}


def left(*more: str, **fields: Any) -> Json:
    """The first uplink; `more` addresses beside its own four."""
    own = (f"{a}/24" for a in (LEFT, L10, L20, L30))
    return interface("left", "public", *own, *more, **{"gateway": "203.0.113.1", **fields})


def right(*more: str, **fields: Any) -> Json:
    own = (f"{a}/24" for a in (RIGHT, R10, R20))
    return interface("right", "public", *own, *more, **{"gateway": "192.0.2.1", **fields})


def network(name: str, link: str, cidr: str, source_nat: str | None, **more: Any) -> Json:
    """A network without DHCP and DNS, unless `more` says otherwise."""
    plain = {"dhcp": {"enabled": False}, "dns": False}
    return {"_": "networks", "id": name, "interface": link, "cidr": cidr, "source_nat": source_nat, **plain, **more}


def office(source_nat: str | None = LEFT, **more: Any) -> Json:
    """The network on lan: out by the left uplink."""
    return network("office", "lan", "10.1.1.0/24", source_nat, **more)


def servers(source_nat: str | None = RIGHT, **more: Any) -> Json:
    """The network on dmz: out by the right uplink."""
    return network("servers", "dmz", "10.1.2.0/24", source_nat, **more)


def config(*objects: Json) -> Json:
    """The base document, with these objects in it: one with the id of a base object takes its place."""
    base = (
        left(), right(), interface("lan", "guest", f"{LAN}/24"), interface("dmz", "guest", f"{DMZ}/24"),
        interface("back", "private", f"{BACK}/24"), office(), servers(),
    )  # fmt: skip
    found: dict[str, dict[str, Json]] = {"interfaces": {}}
    for item in (*base, *objects):
        plain = {k: v for k, v in item.items() if k != "_"}
        found.setdefault(item["_"], {})[item["id"]] = plain
    return {collection: list(items.values()) for collection, items in found.items()}


def ports(first: int, last: int | None = None) -> Json:
    return {"first": first, "last": last or first}


def span(value: int | tuple[int, int] | None) -> Json | None:
    return value if value is None else ports(*value) if isinstance(value, tuple) else ports(value)


Span = int | tuple[int, int]


def forward(
    name: str,
    address: str,
    at: Span,
    target: str,
    to: Span | None = None,
    protocol: str = "tcp",
    sources: Sequence[str] = (),
) -> Json:
    return {
        "_": "forwards", "id": name, "protocol": protocol, "address": address, "ports": span(at), "target": target,
        "target_ports": span(to), "sources": list(sources),
    }  # fmt: skip


def allow(
    name: str,
    address: str,
    protocol: str | int = "any",
    at: Span | None = None,
    sources: Sequence[str] = (),
    **icmp: int,
) -> Json:
    """A firewall rule."""
    return {
        "_": "firewall", "id": name, "address": address, "protocol": protocol, "ports": span(at),
        "sources": list(sources), **icmp,
    }  # fmt: skip


def static(name: str, address: str, target: str) -> Json:
    return {"_": "static_nats", "id": name, "address": address, "target": target}


def exception(name: str, where: str, protocol: str | int = "any", at: Span | None = None, **more: Any) -> Json:
    """An egress rule."""
    return {"_": "egress", "id": name, "network": where, "protocol": protocol, "ports": span(at), **more}


def route(name: str, destination: str, via: str) -> Json:
    return {"_": "routes", "id": name, "destination": destination, "via": via}


def put(item: Json) -> Json:
    """The operation that puts an object where it belongs."""
    return {"op": "put", "collection": item["_"], "object": {k: v for k, v in item.items() if k != "_"}}


def remove(item: Json) -> Json:
    return {"op": "remove", "collection": item["_"], "id": item["id"]}
