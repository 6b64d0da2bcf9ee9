"""A router of two on a stage: two cells, the machines around them, and what can be done to either.

    world 203.0.113.1, 198.51.100.7 --- left ---+--- r1 ---+--- lan 10.1.1.0/24: web .10, desk .30
                                                +--- r2 ---+
                                                   sync 169.254.51.0/30

r1 is the stronger. Both get the same document, of one generation.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from mgmt.hosts.cell import CellDriver
from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.namespace import Bridge, Namespace, Process, link_name
from mgmt.keys import make_key
from mgmt.push import Answer, Appliance, PushError, Target
from tests.netns import calls
from tests.netns.calls import Call, Reply
from tests.netns.flows import Flow
from tests.netns.machines import Machine, Services

Json = dict[str, Any]

BRIDGES = ("left", "lan", "sync")
MEMBERS = ("r1", "r2")
MACS = {
    (member, bridge): f"02:00:00:00:5{n}:{m:02x}"
    for n, member in enumerate(MEMBERS, 1)
    for m, bridge in enumerate(BRIDGES, 1)
}
ADDRESSES = {"r1": "169.254.240.11/20", "r2": "169.254.240.12/20"}
SHARED = "203.0.113.2"
FORWARDED, STATIC = "203.0.113.10", "203.0.113.20"
LAN, WEB, DESK = "10.1.1.1", "10.1.1.10", "10.1.1.30"
WORLD = "198.51.100.7"
INTERVAL = 0.3
_numbers = itertools.count()
_MACHINES: dict[str, tuple[Sequence[tuple[str, str, Sequence[str]]], Sequence[tuple[str, str]]]] = {
    "world": ((("left", "02:00:00:00:5b:01", ("203.0.113.1/24", f"{WORLD}/32")),), ()),
    "web": ((("lan", "02:00:00:00:5b:02", (f"{WEB}/24",)),), (("default", LAN),)),
    "desk": ((("lan", "02:00:00:00:5b:03", (f"{DESK}/24",)),), (("default", LAN),)),
}


class Pair:
    """Used as a context manager; `cells` runs both members, closed."""

    def __init__(self) -> None:
        self.name = f"pair{os.getpid()}-{next(_numbers)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"narthex-{self.name}-"))
        self.ground = Namespace(self.name)
        self.driver = CellDriver(self.ground, self.folder / "state", self.folder / "run")
        self.services = Services()
        self.machines: dict[str, Machine] = {}
        self.generation = {member: 0 for member in MEMBERS}
        self._ways: dict[str, Appliance] = {}
        self._manager = make_key()
        self._hosts = {member: make_key() for member in MEMBERS}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.enter_context(self.ground)
            for bridge in BRIDGES:
                stack.enter_context(Bridge(f"nx-{bridge}", self.ground))
            for member in MEMBERS:
                host = self._hosts[member]
                seed = Seed(
                    member, "router", ADDRESSES[member], self._manager.public, host.public, host.private,
                    watch_seconds=10.0,
                )  # fmt: skip
                stack.callback(self.driver.destroy, member)
                self.driver.create(seed, [Nic(MACS[member, bridge], f"nx-{bridge}") for bridge in BRIDGES])
                self.driver.start(member)
            stack.callback(self.services.stop)
            for name, (links, routes) in _MACHINES.items():
                machine = self.machines[name] = stack.enter_context(Machine(f"{self.name}-{name}", name))
                machine.settle(self.ground, links, routes)
                self.services.serve(machine)
            self.services.start()
            stack.callback(self._close_ways)
            for member in MEMBERS:
                self.wait(member)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _close_ways(self) -> None:
        for way in self._ways.values():
            with suppress(OSError, PushError):
                way.__exit__(None, None, None)

    # --- the members

    def way(self, member: str) -> Appliance:
        """The way in, kept open."""
        if member not in self._ways:
            address = ADDRESSES[member].partition("/")[0]
            dial = self.driver.dial(member)
            target = Target(address, self._hosts[member].public, self._manager.private, dial=dial)
            self._ways[member] = Appliance(target)
        return self._ways[member]

    def wait(self, member: str, seconds: float = 20.0) -> None:
        """Until its agent answers."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.way(member).health()
                return
            except PushError:
                assert time.monotonic() < deadline, f"{member} does not answer"
                time.sleep(0.05)

    def push(self, config: Json, *members: str) -> None:
        """To both members, or to those named; must be good."""
        for member in members or MEMBERS:
            answer = self.try_push(config, member)
            assert answer.good, answer.body

    def try_push(self, config: Json, member: str) -> Answer:
        number = self.generation[member] + 1
        document = {"version": 1, "role": "router", "generation": number, "config": config}
        answer = self.way(member).put(json.dumps(document).encode())
        if answer.status == 202:
            answer = self.way(member).confirm(number)
        if answer.good:
            self.generation[member] = number
        return answer

    def patch(self, member: str, *operations: Json) -> None:
        """Operations against what a member has; must be good."""
        base = self.generation[member]
        change = {
            "version": 1, "role": "router", "base": base, "generation": base + 1, "operations": list(operations),
        }  # fmt: skip
        answer = self.way(member).patch(json.dumps(change).encode())
        assert answer.good, answer.body
        self.generation[member] = base + 1

    def document(self, redundancy: Json | None = None, **collections: Any) -> Json:
        """The pair's config; `redundancy` changes what it says of the two."""
        macs = {member: self.driver.definition(member).control_mac for member in MEMBERS}
        own = {"r1": "169.254.51.1/30", "r2": "169.254.51.2/30"}
        members = [
            {
                "id": member,
                "priority": priority,
                "interfaces": [
                    {"interface": "control", "mac": macs[member], "addresses": [ADDRESSES[member]]},
                    *({"interface": b, "mac": MACS[member, b]} for b in ("left", "lan")),
                    {"interface": "sync", "mac": MACS[member, "sync"], "addresses": [own[member]]},
                ],
            }
            for member, priority in zip(MEMBERS, (250, 240), strict=True)
        ]
        public = [f"{a}/24" for a in (SHARED, FORWARDED, STATIC)]
        plain = {"dhcp": {"enabled": False}, "dns": False}
        return {
            "interfaces": [
                {"id": "control", "mac": macs["r1"], "use": "control", "addresses": [ADDRESSES["r1"]]},
                {"id": "left", "mac": MACS["r1", "left"], "use": "public", "addresses": public,
                 "gateway": "203.0.113.1"},
                {"id": "lan", "mac": MACS["r1", "lan"], "use": "guest", "addresses": [f"{LAN}/24"]},
                {"id": "sync", "mac": MACS["r1", "sync"], "use": "private"},
            ],
            "networks": [{"id": "office", "interface": "lan", "cidr": "10.1.1.0/24", "source_nat": SHARED, **plain}],
            "firewall": [{"id": "all", "address": FORWARDED, "protocol": "any"},
                         {"id": "too", "address": STATIC, "protocol": "any"}],
            "forwards": [
                {"id": f"f-{protocol}", "protocol": protocol, "address": FORWARDED,
                 "ports": {"first": 5000, "last": 5001}, "target": WEB}
                for protocol in ("tcp", "udp")
            ],
            "static_nats": [{"id": "s", "address": STATIC, "target": DESK}],
            "redundancy": {
                "interface": "sync", "members": members, "interval": INTERVAL,
                "track": [{"interface": "left"}, {"interface": "lan"}], **(redundancy or {}),
            },
            **collections,
        }  # fmt: skip

    # --- what is so

    def report(self, member: str) -> Json:
        """The word of its peer.py; {} while there is none."""
        done = self.driver.run(member, ("cat", "/run/narthex/redundancy/report"), check=False)
        return dict(json.loads(done.stdout)) if done.stdout else {}

    def role(self, member: str) -> str:
        """By its own word."""
        return str(self.report(member).get("role", ""))

    def holds(self, member: str, link: str = "lan") -> list[str]:
        """The addresses of the kernel, on one of its links."""
        number = BRIDGES.index(link) + 1
        done = self.driver.run(member, ("ip", "-j", "-4", "addr", "show", f"eth{number}"), check=False)
        found = json.loads(done.stdout or "[]")
        return [a["local"] for one in found for a in one.get("addr_info", [])]

    def one_of_two(self, seconds: float = 10.0) -> tuple[str, str]:
        """(primary, backup), when it is so and they agree."""
        until(lambda: sorted(map(self.role, MEMBERS)) == ["backup", "primary"], seconds, self.reports)
        primary = next(m for m in MEMBERS if self.role(m) == "primary")
        backup = next(m for m in MEMBERS if m != primary)
        self.settled(primary, backup, seconds)
        return primary, backup

    def reports(self) -> list[Json]:
        return [self.report(m) for m in MEMBERS]

    def settled(self, primary: str, backup: str = "", seconds: float = 10.0) -> None:
        """Until `primary` is, has the addresses, and its peer (where it is named) is the backup and has none."""

        def is_so() -> bool:
            mine = self.role(primary) == "primary" and LAN in self.holds(primary)
            return mine and (not backup or (self.role(backup) == "backup" and LAN not in self.holds(backup)))

        until(is_so, seconds, lambda: f"{primary} {self.report(primary)}, {backup} {backup and self.report(backup)}")

    # --- what is done to them

    def kill(self, member: str) -> None:
        """As a pulled plug: process 1 ends by SIGKILL, and its links with it."""
        self._ways.pop(member, None)
        pid = next(a.pid for a in self.driver.list() if a.name == member)
        os.kill(pid, 9)

    def bring_back(self, member: str) -> None:
        self.driver.start(member)
        self.wait(member)

    def cut(self, member: str, bridge: str, up: bool = False) -> None:
        """Its link loses the carrier; `up` gives it back."""
        other = link_name(member, MACS[member, bridge])
        self.ground.run(("ip", "link", "set", other, "up" if up else "down"))

    def kill_unit(self, member: str, unit: str, by: str = "KILL") -> None:
        """All processes of a unit of redundancy."""
        command = {"keepalived": "^keepalived", "conntrackd": "^conntrackd", "peer": "redundancy/peer"}[unit]
        self.driver.run(member, ("pkill", f"-{by}", "-f", command))

    def hinder(self, what: str) -> None:
        """Nothing of it passes where the members meet: `ip protocol 112`, or all ("")."""
        ports = ", ".join(f'"{link_name(m, MACS[m, "sync"])}"' for m in MEMBERS)
        rule = f"add rule bridge hinder f iifname {{ {ports} }} {what} drop"
        chain = "add chain bridge hinder f { type filter hook forward priority 0; }"
        self.ground.run(("nft", "-f", "-"), stdin=f"add table bridge hinder\n{chain}\n{rule}\n")

    def let_pass(self) -> None:
        self.ground.run(("nft", "delete", "table", "bridge", "hinder"))

    def said(self, member: str, unit: str) -> str:
        return "\n".join(self.driver.logs(member, unit))

    def kept(self, member: str) -> str:
        """The strangers' leases that it has of the other."""
        return self.driver.run(member, ("cat", "/var/lib/narthex/redundancy/office.leases"), check=False).stdout

    def leases(self, member: str) -> str:
        """Those that its own server gives."""
        return self.driver.run(member, ("cat", "/var/lib/narthex/dhcp/lan.leases"), check=False).stdout

    def namespace(self, member: str) -> Process:
        return Process(next(a.pid for a in self.driver.list() if a.name == member))

    # --- packets

    def __getattr__(self, name: str) -> Machine:
        machines: dict[str, Machine] = self.__dict__.get("machines", {})
        if name not in machines:
            raise AttributeError(name)
        return machines[name]

    def meets(self, name: str, *asked: Call, seen: str = "") -> None:
        for call, reply in zip(asked, calls.met(self.services, asked), strict=True):
            expected = Reply(name, seen or reply.seen, reply.link)
            assert reply == expected, f"{call}: {reply}, not {expected}"

    def silent(self, *asked: Call) -> None:
        calls.silent(self.services, asked)


class Beat:
    """A UDP flow that asks a thousand times a second; `gap()` ends it and says how long nothing came back, at most."""

    def __init__(self, call: Call) -> None:
        self.flow = Flow(call)
        self.flow.socket.settimeout(0.05)
        self._ends = threading.Event()
        self.came: list[float] = [time.monotonic()]
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._send, self._read)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ends.is_set():
            with suppress(OSError):
                self.flow.socket.send(b"%d" % len(self.came))
            time.sleep(0.001)

    def _read(self) -> None:
        while not self._ends.is_set():
            with suppress(OSError):
                self.flow.socket.recv(512)
                self.came.append(time.monotonic())

    def gap(self) -> float:
        self.came.append(time.monotonic())
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self.flow.close()
        return max(b - a for a, b in itertools.pairwise(self.came))


def until(true: Any, seconds: float, words: Any) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, words()
        time.sleep(0.05)
