"""The embedded host: a cell is an appliance in namespaces of this machine, with the same agent and the same way in.

What holds a cell together is its process 1 (cellroot.py makes it): its mounts and its network namespace live as long
as it does, and no longer. What a killed driver or a dead cell leaves is therefore files at most (celldisk.py), and the
record of a running cell is believed only where the kernel has the very process that it names.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from socket import socket
from typing import IO

from mgmt.hosts import cellfiles, processes
from mgmt.hosts.cellcode import HOUSE, code_folders, compile_for, programs
from mgmt.hosts.celldisk import CONTROL, RUN_ROOT, CellDisk, Definition, lines, state_root
from mgmt.hosts.cellroot import LENGTH_DIGITS, Plan
from mgmt.hosts.driver import Appliance, Capacity, Console, DriverError, Nic, Seed
from mgmt.hosts.namespace import (
    HOST,
    Bridge,
    Ground,
    Namespace,
    NetlinkError,
    Process,
    configure,
    delete_link,
    link_name,
    make_link,
    quieten,
)

CONTROL_BRIDGE = "nx-control"
CONTROL_LINK = "eth0"
MANAGER_ADDRESS = "169.254.240.1/20"  # link-local, and clear of the metadata services' 169.254.169.254
MEMORY = "256m"  # of what a cell writes outside its state
STOP_S = 12.0
CONSOLE_BYTES = 1 << 20

Dial = Callable[[str, int, float], socket]


class CellDriver:
    """Cells on this machine. `ground` is where new cells' links go, the host's own by default; a cell remembers it."""

    def __init__(
        self,
        ground: Namespace | None = None,
        state: Path | None = None,
        run: Path = Path(RUN_ROOT),
        manager_address: str = MANAGER_ADDRESS,
    ) -> None:
        self.ground_name = ground.name if ground else ""
        self.disk = CellDisk(state or state_root(), run)
        self.manager_address = manager_address

    # --- the interface of driver.py

    def create(self, seed: Seed, nics: Sequence[Nic] = ()) -> Appliance:
        _check_seed(seed, self.manager_address)
        with self.disk.locked(seed.name):
            self.disk.add(Definition(seed, tuple(nics), self.ground_name))
            return self._appliance(seed.name)

    def start(self, name: str) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            if not self._process(name):
                self._clear(definition)
                try:
                    self._bear(definition)
                except BaseException:
                    self._end(definition, patience_s=0.0)
                    raise
            return self._appliance(name)

    def stop(self, name: str) -> Appliance:
        with self.disk.locked(name):
            self._end(self.disk.definition(name), STOP_S)
            return self._appliance(name)

    def destroy(self, name: str) -> None:
        with self.disk.locked(name, last=True):
            try:
                definition = self.disk.definition(name)
                self._end(definition, patience_s=0.0)
                ground = definition.ground
            except DriverError:  # not there, or broken: what can be found of it goes all the same
                self._end_process(name, patience_s=0.0)
                ground = self.ground_name
            self.disk.remove(name)
        self._drop_control_bridge(ground)

    def plug(self, name: str, nic: Nic) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            if any(known.mac == nic.mac for known in definition.nics):
                raise DriverError(f"{name}: has an interface {nic.mac} already; unplug it first")
            process = self._process(name)
            if process:
                taken = _links_of(process.pid)
                free = next(n for n in range(1, len(taken) + 2) if f"eth{n}" not in taken)
                with _failing_as(f"{name}: cannot plug {nic.mac}"):
                    self._link(definition, nic, f"eth{free}", process.pid)
            self.disk.change(replace(definition, nics=(*definition.nics, nic)))
            return self._appliance(name)

    def unplug(self, name: str, mac: str) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            left = tuple(nic for nic in definition.nics if nic.mac != mac)
            self.disk.change(replace(definition, nics=left))
            if len(left) < len(definition.nics):
                delete_link(_ground(definition.ground), link_name(name, mac))
            return self._appliance(name)

    def console(self, name: str) -> Console:
        self.disk.definition(name)
        return Console("file", str(self.disk.folder(name) / "log" / "console.log"))

    def list(self) -> tuple[Appliance, ...]:
        found = []
        for name in self.disk.names():
            with suppress(DriverError):  # destroyed meanwhile
                found.append(self._appliance(name))
        return tuple(found)

    def capacity(self) -> Capacity:
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(memory[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
        return Capacity(os.cpu_count() or 1, total, free, sum(a.state == "running" for a in self.list()))

    # --- the way in

    def definition(self, name: str) -> Definition:
        """With the seed: the key that the cell must show is `seed.host_key`."""
        return self.disk.definition(name)

    def dial(self, name: str) -> Dial:
        """Opens TCP sockets where the cell's control address is near: mgmt.push.Target's `dial`."""
        ground = _ground(self.disk.definition(name).ground)
        return ground.connect

    def free_address(self) -> str:
        """A control address, with its prefix length, that no cell here has."""
        own = ip_interface(self.manager_address)
        taken = {ip_interface(a.control_address).ip for a in self.list()} | {own.ip}
        free = next((ip for ip in own.network.hosts() if ip not in taken), None)
        if free is None:
            raise DriverError(f"no address is left in {own.network}; destroy a cell")
        return f"{free}/{own.network.prefixlen}"

    # --- inside a cell

    def entry(self, name: str, argv: Sequence[str]) -> Sequence[str]:
        """The command that runs `argv` in a running cell, as root: nsenter(1)'s."""
        self.disk.definition(name)
        process = self._process(name)
        if not process:
            raise DriverError(f"{name}: the cell is not running; start it")
        variables = cellfiles.environment(programs()) | {"TERM": os.environ.get("TERM", "dumb")}
        return [
            "nsenter", f"--target={process.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd",
            "--", "/usr/bin/env", "-i", *(f"{key}={value}" for key, value in variables.items()), *argv,
        ]  # fmt: skip

    def run(
        self, name: str, argv: Sequence[str], timeout_s: float = 60.0, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a cell and give its output. Raises as subprocess.run does."""
        return subprocess.run(
            self.entry(name, argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, check=check
        )

    def exec(self, name: str, argv: Sequence[str]) -> int:
        """Run a program in a cell on this process' own terminal; its exit status."""
        return subprocess.call(self.entry(name, argv))

    def shell(self, name: str) -> int:
        return self.exec(name, ["/bin/sh", "-c", "command -v bash >/dev/null && exec bash --norc; exec sh"])

    def logs(self, name: str, unit: str = "console", follow: bool = False) -> Iterator[str]:
        """The lines of a unit's log, oldest first; with `follow`, those to come too, without end."""
        return lines(self.disk.log(name, unit), follow)

    def sweep(self) -> Sequence[str]:
        """Remove what killed commands have left. Returns what it was."""
        swept = []
        for path, name in self.disk.left_over():
            with self.disk.locked(name):
                if not self.disk.folder(name).exists():
                    self.disk.remove(name)
                    swept.append(str(path))
        for name in self.disk.recorded():
            with self.disk.locked(name):
                if not self.disk.folder(name).exists() or not self._process(name):
                    self._end_process(name, patience_s=0.0)
                    swept.append(name)
        return swept

    # --- birth and end

    def _bear(self, definition: Definition) -> None:
        name = definition.name
        with _failing_as(f"{name}: the cell cannot be started"):
            self._make_control_bridge(_ground(definition.ground))
            plan = json.dumps(self._plan(definition)).encode()
            argv = [str(programs().bare_python), "-I", "-S", str(HOUSE / "mgmt/hosts/cellroot.py")]
            pipe = subprocess.PIPE
            launcher = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, bufsize=0)
            with launcher:  # it ends when process 1 is on record
                assert launcher.stdin
                assert launcher.stdout
                launcher.stdin.write(f"{len(plan):0{LENGTH_DIGITS}}".encode() + plan)
                compile_for(definition.seed.role)
                pid = _said(name, launcher.stdout, "pid")
                self._connect(definition, int(pid))
                _said(name, launcher.stdout, "ready")
                launcher.stdin.write(b"g")

    def _plan(self, definition: Definition) -> Plan:
        found = programs()
        folder, running = self.disk.folder(definition.name), self.disk.running / definition.name
        (running / "root").mkdir(parents=True, exist_ok=True, mode=0o700)
        console = folder / "log" / "console.log"
        if console.exists() and console.stat().st_size > CONSOLE_BYTES:
            console.replace(console.with_name("console.log.1"))
        own = [(folder / "state", "/var/lib/narthex"), (folder / "log", cellfiles.LOG)]
        passwd = Path("/etc/passwd").read_text()
        return {
            "name": definition.name,
            "root": str(running / "root"),
            "record": str(running / "run.json"),
            "memory": MEMORY,
            "files": cellfiles.files(definition.seed, definition.control_mac, found, passwd),
            "binds": [*((str(p), str(p), True) for p in code_folders()), *((str(s), t, False) for s, t in own)],
            "console": str(console),
            "command": found.supervisor,
            "environment": cellfiles.environment(found),
        }

    def _connect(self, definition: Definition, pid: int) -> None:
        """The control link, up with its address; a link for each interface, down until a document brings it up."""
        self._link(definition, Nic(definition.control_mac, CONTROL_BRIDGE), CONTROL_LINK, pid)
        inside = Process(pid)
        if ":" not in definition.seed.control_address:
            with inside.entered():
                quieten(CONTROL_LINK)
        configure(inside, "lo", (), {})
        configure(inside, CONTROL_LINK, (definition.seed.control_address,), {})
        for number, nic in enumerate(definition.nics, 1):
            self._link(definition, nic, f"eth{number}", pid)

    def _link(self, definition: Definition, nic: Nic, name: str, pid: int) -> None:
        ground, other = _ground(definition.ground), link_name(definition.name, nic.mac)
        with open(f"/proc/{pid}/ns/net", "rb") as netns:
            # Cells do not reach each other over the control network.
            apart = nic.bridge == CONTROL_BRIDGE
            make_link(ground, other, nic.bridge, netns.fileno(), name, nic.mac, nic.mtu, apart)

    def _end(self, definition: Definition, patience_s: float) -> None:
        self._end_process(definition.name, patience_s)
        self._clear(definition)

    def _end_process(self, name: str, patience_s: float) -> None:
        if process := self._process(name):
            processes.end(process, patience_s)
        self.disk.forget(name)

    def _clear(self, definition: Definition) -> None:
        """Its record, and the ground's ends of its links: the kernel removes them too, but some time later."""
        self.disk.forget(definition.name)
        macs = [definition.control_mac, *(nic.mac for nic in definition.nics)]
        with suppress(FileNotFoundError):  # the ground itself is gone, and so are they
            for mac in macs:
                delete_link(_ground(definition.ground), link_name(definition.name, mac))

    def _make_control_bridge(self, ground: Ground) -> None:
        bridge = Bridge(CONTROL_BRIDGE, ground)
        with self.disk.locked(CONTROL):
            if not bridge.exists():
                bridge.create([self.manager_address])

    def _drop_control_bridge(self, ground: str) -> None:
        """With the last cell of its ground."""
        with self.disk.locked(CONTROL, last=True), suppress(FileNotFoundError):
            if all(self.disk.definition(name).ground != ground for name in self.disk.names()):
                Bridge(CONTROL_BRIDGE, _ground(ground)).destroy()

    # --- what is known

    def _process(self, name: str) -> processes.Process | None:
        """Process 1 of a running cell."""
        record = self.disk.record(name)
        return record if record and record.alive else None

    def _appliance(self, name: str) -> Appliance:
        definition = self.disk.definition(name)
        record = self.disk.record(name)
        alive = record is not None and record.alive
        died = record is not None and not alive and record.boot == processes.boot_id()
        return Appliance(
            name,
            definition.seed.role,
            "running" if alive else "failed" if died else "stopped",
            record.pid if record and alive else 0,
            definition.seed.control_address,
            definition.nics,
        )


def _check_seed(seed: Seed, manager_address: str) -> None:
    try:
        address = ip_interface(seed.control_address)
    except ValueError as error:
        raise DriverError(f"{seed.name}: control address: {error}") from None
    own = ip_interface(manager_address)
    if address.ip not in own.network or address.ip == own.ip:
        raise DriverError(f"{seed.name}: {seed.control_address} is not free in the control network {own.network}")
    for key in (seed.manager_key, seed.host_key):
        if not key.startswith("ssh-ed25519 ") or "\n" in key.strip():
            raise DriverError(f"{seed.name}: a key of the seed is no single line of an ed25519 key")


def _ground(name: str) -> Ground:
    return Namespace(name) if name else HOST


def _links_of(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return {line.partition(":")[0].strip() for line in lines if ":" in line}


def _said(name: str, pipe: IO[bytes], word: str) -> str:
    """The rest of the line that begins with `word`. Raises DriverError with what was said instead."""
    line = pipe.readline()
    first, _, rest = line.decode(errors="replace").strip().partition(" ")
    if first != word:
        more = (line + pipe.read()).decode(errors="replace").strip()
        raise DriverError(f"{name}: the cell cannot be made: {more or 'its first process was ended'}")
    return rest


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    try:
        yield
    except (LookupError, OSError, NetlinkError) as error:
        raise DriverError(f"{what}: {error}") from error
