"""Appliances in bare QEMU machines on this host: the hypervisor of `image smoke` and of the vm tests.

A machine boots the image by an overlay of its own, from a seed of its own, with taps on bridges of the ground. It is
ended with its host's session, knows no migration and no pool: for production there is libvirt. The accelerator is a
setting; tcg, the emulation, works everywhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from socket import socket
from typing import Any, Literal

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from mgmt import seed as seeds
from mgmt.hosts import processes
from mgmt.hosts.cell import CONTROL_BRIDGE, MANAGER_ADDRESS
from mgmt.hosts.celldisk import RUN_ROOT, CellDisk, Definition, lines, state_root
from mgmt.hosts.driver import Appliance, Capacity, Console, DriverError, Nic, Seed
from mgmt.hosts.guestagent import GuestAgent, GuestAgentError
from mgmt.hosts.namespace import HOST, Bridge, Ground, Namespace, delete_link, link_name, quieten
from mgmt.seed_iso import make_iso

EMULATOR = "qemu-system-x86_64"
STOP_S = 90.0
FIRMWARE = Path("/usr/share/OVMF")
Words = list[str]  # `list` is a method of the driver
Dial = Callable[[str, int, float], socket]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is made of. `clock`: what its clock shows at power-on (ISO 8601), "" for the time as it is.

    `disk_mib`: the root disk's size, 0 for the image's. `options`: more words for QEMU.
    """

    accelerator: Literal["tcg", "kvm"] = "tcg"
    memory_mib: int = 256
    cpus: int = 2
    firmware: Literal["bios", "uefi"] = "bios"
    seed: Literal["nocloud", "configdrive"] = "nocloud"
    seed_bus: Literal["virtio", "ide"] = "virtio"
    clock: str = ""
    disk_mib: int = 0
    options: tuple[str, ...] = ()


class QemuDriver:
    """Machines of one image. The interface is driver.py's; `run` and what is below it are for tests."""

    def __init__(
        self,
        image: Path,
        ground: Namespace | None = None,
        state: Path | None = None,
        run: Path = Path(RUN_ROOT),
        hardware: Hardware = Hardware(),
        bundle: bytes | None = None,
        manager_address: str = MANAGER_ADDRESS,
    ) -> None:
        self.image, self.hardware, self.bundle = image, hardware, bundle
        self.ground_name = ground.name if ground else ""
        self.disk = CellDisk((state or state_root()) / "qemu", run / "qemu")
        self.manager_address = manager_address

    # --- the interface of driver.py

    def create(self, seed: Seed, nics: Sequence[Nic] = ()) -> Appliance:
        with self.disk.locked(seed.name):
            definition = Definition(seed, tuple(nics), self.ground_name)
            self.disk.add(definition)
            folder = self.disk.folder(seed.name)
            try:
                size = [f"{self.hardware.disk_mib}M"] if self.hardware.disk_mib else []
                _tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.image), "-F", "qcow2",
                      str(folder / "root.qcow2"), *size)  # fmt: skip
                self.write_seed(seed.name, self.seed_iso(definition))
                (folder / "hardware.json").write_text(json.dumps(asdict(self.hardware)))
            except BaseException:
                self.disk.remove(seed.name)
                raise
            return self._appliance(seed.name)

    def seed_iso(self, definition: Definition) -> bytes:
        """The seed as a disk."""
        told = seeds.of_driver(definition.seed, definition.control_mac)
        if self.hardware.seed == "configdrive":
            return make_iso(seeds.config_drive(told, self.bundle), seeds.CONFIG_DRIVE)
        return make_iso(seeds.no_cloud(told, self.bundle), seeds.NOCLOUD)

    def write_seed(self, name: str, image: bytes) -> None:
        """Give it another seed, from its next start on."""
        path = self.disk.folder(name) / "seed.iso"
        path.touch(0o600)
        path.write_bytes(image)

    def start(self, name: str) -> Appliance:
        return self._start(name, ())

    def _start(self, name: str, more: Sequence[str]) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            if not self._process(name):
                self._clear(definition)
                try:
                    self._boot(definition, more)
                except BaseException:
                    self._end(definition)
                    raise
            return self._appliance(name)

    def stop(self, name: str) -> Appliance:
        """By the power button; by force where that is not heard."""
        with self.disk.locked(name):
            if process := self._process(name):
                with suppress(DriverError):
                    self.monitor(name, "system_powerdown")
                deadline = time.monotonic() + STOP_S
                while process.alive and time.monotonic() < deadline:
                    time.sleep(0.1)
            self._end(self.disk.definition(name))
            return self._appliance(name)

    def destroy(self, name: str) -> None:
        with self.disk.locked(name, last=True):
            with suppress(DriverError):
                self._end(self.disk.definition(name))
            self._end_process(name)
            self.disk.remove(name)

    def plug(self, name: str, nic: Nic) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            if any(known.mac == nic.mac for known in definition.nics):
                raise DriverError(f"{name}: has an interface {nic.mac} already; unplug it first")
            if self._process(name):
                tap = self._make_tap(definition, nic)
                ident = _ident(nic.mac)
                self.monitor(name, "netdev_add", type="tap", id=ident, ifname=tap, script="no", downscript="no")
                self.monitor(name, "device_add", driver="virtio-net-pci", netdev=ident, id=f"nic-{ident}", mac=nic.mac)
            self.disk.change(replace(definition, nics=(*definition.nics, nic)))
            return self._appliance(name)

    def unplug(self, name: str, mac: str) -> Appliance:
        with self.disk.locked(name):
            definition = self.disk.definition(name)
            left = tuple(nic for nic in definition.nics if nic.mac != mac)
            if len(left) < len(definition.nics) and self._process(name):
                self._pull(name, _ident(mac))
                delete_link(_ground(definition.ground), link_name(name, mac))
            self.disk.change(replace(definition, nics=left))
            return self._appliance(name)

    def _pull(self, name: str, ident: str) -> None:
        """The guest lets go of a device some time after it was asked to."""
        self.monitor(name, "device_del", id=f"nic-{ident}")
        deadline = time.monotonic() + 20.0
        while f"nic-{ident}" in self.monitor(name, "human-monitor-command", **{"command-line": "info qtree"}):
            if time.monotonic() > deadline:
                raise DriverError(f"{name}: the guest does not let go of its interface; is it up and running?")
            time.sleep(0.1)
        self.monitor(name, "netdev_del", id=ident)

    def console(self, name: str) -> Console:
        self.disk.definition(name)
        return Console("file", str(self.disk.folder(name) / "log" / "console.log"))

    def list(self) -> tuple[Appliance, ...]:
        found = []
        for name in self.disk.names():
            with suppress(DriverError):
                found.append(self._appliance(name))
        return tuple(found)

    def capacity(self) -> Capacity:
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(memory[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
        return Capacity(os.cpu_count() or 1, total, free, sum(a.state == "running" for a in self.list()))

    # --- the way in

    def definition(self, name: str) -> Definition:
        """With the seed: the key that the machine must show is `seed.host_key`."""
        return self.disk.definition(name)

    def dial(self, name: str) -> Dial:
        """Opens TCP sockets where the machine's control address is near: mgmt.push.Target's `dial`."""
        return _ground(self.disk.definition(name).ground).connect

    # --- inside, and from outside with the hand of the hypervisor

    def run(
        self, name: str, argv: Sequence[str], timeout_s: float = 60.0, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine, by its guest agent; its output. Raises as subprocess.run does."""
        with GuestAgent(self.disk.running / name / "agent.sock", min(timeout_s, 20.0)) as agent:
            done = agent.run(argv, timeout_s, stdin)
        if check and done.returncode:
            raise subprocess.CalledProcessError(done.returncode, list(argv), done.stdout, done.stderr)
        return done

    def wait_agent(self, name: str, seconds: float) -> None:
        """Until programs can be run. Raises DriverError."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.run(name, ["true"], timeout_s=5.0)
                return
            except (GuestAgentError, subprocess.SubprocessError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def logs(self, name: str, unit: str = "console", follow: bool = False) -> Iterator[str]:
        """The lines of its serial console."""
        return lines(self.disk.log(name, unit), follow)

    def power_cut(self, name: str) -> None:
        """As if somebody had pulled the plug: what the guest has not written to its disk is lost."""
        with self.disk.locked(name):
            self._end(self.disk.definition(name))

    def snapshot(self, name: str, tag: str) -> None:
        """Keep the running machine, memory and all, in its own disk."""
        self._human(name, f"savevm {tag}")

    def restore(self, name: str, tag: str) -> None:
        """Put the running machine back to a snapshot; one that does not run is started from it."""
        if self._process(name):
            self._human(name, f"loadvm {tag}")
        else:
            self._start(name, ("-loadvm", tag))

    def _human(self, name: str, command: str) -> None:
        if words := str(self.monitor(name, "human-monitor-command", **{"command-line": command})).strip():
            raise DriverError(f"{name}: {command}: {words}")

    def monitor(self, name: str, command: str, **arguments: Any) -> Any:
        """A command of QEMU's own monitor (QMP). Raises DriverError."""
        client = QEMUMonitorProtocol(str(self.disk.running / name / "qmp.sock"))
        try:
            client.connect(negotiate=True)
            client.settimeout(120.0)
            return client.cmd(command, **arguments)
        except (QMPError, OSError) as error:
            raise DriverError(f"{name}: {command}: {error}") from error
        finally:
            with suppress(Exception):  # whatever becomes of the connection: the answer is had
                client.close()

    # --- birth and end

    def _boot(self, definition: Definition, more: Sequence[str]) -> None:
        name, ground = definition.name, _ground(definition.ground)
        if not shutil.which(EMULATOR):
            raise DriverError(f"{EMULATOR} is not installed; `apt-get install qemu-system-x86`")
        bridge = Bridge(CONTROL_BRIDGE, ground)
        if not bridge.exists():
            bridge.create([self.manager_address])
        folder, running = self.disk.folder(name), self.disk.running / name
        running.mkdir(parents=True, exist_ok=True, mode=0o700)
        control = Nic(definition.control_mac, CONTROL_BRIDGE)
        taps = [(nic, self._make_tap(definition, nic)) for nic in (control, *definition.nics)]
        console = folder / "log" / "console.log"
        if console.exists():
            console.replace(console.with_name("console.log.1"))
        with ExitStack() as stack:
            words = stack.enter_context((running / "qemu.log").open("wb"))
            stack.enter_context(ground.entered())
            process = subprocess.Popen(
                [*self._command(folder, running, taps), *more],
                stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True,
            )  # fmt: skip
        found = processes.process(process.pid)
        if found:
            (running / "run.json").write_text(json.dumps(asdict(found)))
        self._wait_for_monitor(name, process, running)

    def _wait_for_monitor(self, name: str, process: subprocess.Popen[bytes], running: Path) -> None:
        deadline = time.monotonic() + 30.0
        while not (running / "qmp.sock").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (running / "qemu.log").read_text(errors="replace").strip()
                raise DriverError(f"{name}: QEMU does not start: {said or 'no words'}")
            time.sleep(0.02)

    def _command(self, folder: Path, running: Path, taps: Sequence[tuple[Nic, str]]) -> Words:
        h = self.hardware
        accel = "tcg,thread=multi" if h.accelerator == "tcg" else h.accelerator
        argv = [
            EMULATOR, "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", "on",
            "-machine", "q35" if h.firmware == "uefi" else "pc",
            "-accel", accel, "-cpu", "max" if h.accelerator == "tcg" else "host",
            "-m", str(h.memory_mib), "-smp", str(h.cpus),
            "-drive", f"file={folder}/root.qcow2,format=qcow2,if=none,id=root,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=root,bootindex=1",
            "-qmp", f"unix:{running}/qmp.sock,server=on,wait=off",
            "-chardev", f"socket,id=console,path={running}/console.sock,server=on,wait=off,"
            f"logfile={folder}/log/console.log",
            "-serial", "chardev:console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={running}/agent.sock,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            "-device", "virtio-rng-pci",
            "-rtc", f"base={h.clock or 'utc'},clock=host",
        ]  # fmt: skip
        seed = f"file={folder}/seed.iso,format=raw,readonly=on"
        if h.seed_bus == "ide":
            argv += ["-drive", f"{seed},if=ide,media=cdrom"]
        else:
            argv += ["-drive", f"{seed},if=none,id=seed", "-device", "virtio-blk-pci,drive=seed"]
        for nic, tap in taps:
            ident = _ident(nic.mac)
            argv += [
                "-netdev", f"tap,id={ident},ifname={tap},script=no,downscript=no",
                "-device", f"virtio-net-pci,netdev={ident},id=nic-{ident},mac={nic.mac},romfile=",
            ]  # fmt: skip
        if h.firmware == "uefi":
            argv += _uefi(folder)
        return [*argv, *h.options]

    def _make_tap(self, definition: Definition, nic: Nic) -> str:
        ground, tap = _ground(definition.ground), link_name(definition.name, nic.mac)
        delete_link(ground, tap)
        with ground.entered(), IPRoute() as netlink:
            master = netlink.link_lookup(ifname=nic.bridge)
            if not master:
                raise DriverError(f"{definition.name}: there is no bridge {nic.bridge}; create it first")
            netlink.link("add", ifname=tap, kind="tuntap", mode="tap")
            quieten(tap)
            index = netlink.link_lookup(ifname=tap)[0]
            netlink.link("set", index=index, mtu=nic.mtu, master=master[0])
            if nic.bridge == CONTROL_BRIDGE:
                netlink.brport("set", index=index, isolated=1)
            netlink.link("set", index=index, state="up")
        return tap

    def _end(self, definition: Definition) -> None:
        self._end_process(definition.name)
        self._clear(definition)

    def _end_process(self, name: str) -> None:
        if process := self._process(name):
            processes.end(process)
            with suppress(ChildProcessError):
                os.waitpid(process.pid, 0)
        self.disk.forget(name)

    def _clear(self, definition: Definition) -> None:
        self.disk.forget(definition.name)
        with suppress(FileNotFoundError):
            for mac in (definition.control_mac, *(nic.mac for nic in definition.nics)):
                delete_link(_ground(definition.ground), link_name(definition.name, mac))

    # --- what is known

    def _process(self, name: str) -> processes.Process | None:
        record = self.disk.record(name)
        return record if record and record.alive else None

    def _appliance(self, name: str) -> Appliance:
        definition = self.disk.definition(name)
        record = self.disk.record(name)
        alive = record is not None and record.alive
        died = record is not None and not alive and record.boot == processes.boot_id()
        return Appliance(
            name, definition.seed.role, "running" if alive else "failed" if died else "stopped",
            record.pid if record and alive else 0, definition.seed.control_address, definition.nics,
        )  # fmt: skip


def _uefi(folder: Path) -> Words:
    """The firmware, and its variables in a file of the machine's own."""
    for code, variables in (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")):
        if (FIRMWARE / code).exists():
            own = folder / "variables.fd"
            if not own.exists():
                shutil.copy(FIRMWARE / variables, own)
            return [
                "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE / code}",
                "-drive", f"if=pflash,format=raw,unit=1,file={own}",
            ]  # fmt: skip
    raise DriverError(f"no UEFI firmware in {FIRMWARE}; `apt-get install ovmf`")


def _ground(name: str) -> Ground:
    return Namespace(name) if name else HOST


def _ident(mac: str) -> str:
    return f"n{mac.replace(':', '')}"


def _tool(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DriverError(f"{argv[0]}: {done.stderr.strip() or done.returncode}")
