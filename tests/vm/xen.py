"""Appliances as guests of a real Xen by its own toolstack, xl: PV or PVH, from the image's VHD and a config drive.

The VHD is read in dom0 by qemu-nbd and given on by the kernel's blkback, much as blktap does on XenServer: Debian's
toolstack has no driver of its own for it. A PV guest is started by pygrub (Debian's PV GRUB cannot unpack a kernel
that is packed with zstd), PVH by GRUB. HVM is left out: its emulated devices, inside an emulation, took four minutes
for a third of the kernel.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from socket import socket
from typing import Literal

from mgmt import seed as seeds
from mgmt.hosts.cell import CONTROL_BRIDGE, MANAGER_ADDRESS
from mgmt.hosts.celldisk import Definition
from mgmt.hosts.driver import Appliance, Capacity, Console, DriverError, Nic, Seed
from mgmt.hosts.namespace import Bridge, Namespace
from mgmt.seed_iso import make_iso
from tests.vm.xenhost import FIRST_DISK, XenHost

Kind = Literal["pv", "pvh"]
Words = list[str]  # `list` is a method of the driver
DISKS = 4  # as many appliances can be created in the life of a host
STOP_S = 120.0
BOOT = {
    "pv": ('bootloader="pygrub"',),
    "pvh": ('type="pvh"', 'kernel="/usr/lib/grub-xen/grub-i386-xen_pvh.bin"'),
}


class XenDriver:
    """The interface is driver.py's. `kind` is what the next appliance will be; the host starts with the first one."""

    def __init__(
        self, vhd: Path, ground: Namespace, folder: Path, bridges: Sequence[str], bundle: bytes | None = None,
        memory_mib: int = 256,
    ) -> None:  # fmt: skip
        self.kind: Kind = "pv"
        self.ground, self.folder, self.bundle, self.memory_mib = ground, folder, bundle, memory_mib
        self.host = XenHost(ground, folder / "xen", (CONTROL_BRIDGE, *bridges), vhd, DISKS)
        self.created_s = 0.0  # of the last start, until xl was through
        self._known: dict[str, Definition] = {}
        self._disks = iter(range(DISKS))

    # --- the interface of driver.py

    def create(self, seed: Seed, nics: Sequence[Nic] = ()) -> Appliance:
        if seed.name in self._known:
            raise DriverError(f"{seed.name}: there is a guest of this name; destroy it first")
        for nic in nics:
            self._check(seed.name, nic)
        number = next(self._disks, None)
        if number is None:
            raise DriverError(f"{seed.name}: all {DISKS} disks of this host have been used; start another host")
        self.power_on()
        definition = Definition(seed, tuple(nics), self.ground.name)
        told = seeds.of_driver(seed, definition.control_mac)
        drive = make_iso(seeds.config_drive(told, self.bundle), seeds.CONFIG_DRIVE)
        self.host.run(f"mkdir -p /root/guests && cat >/root/guests/{seed.name}.iso", drive)
        device = f"/dev/{FIRST_DISK[:-1]}{chr(ord(FIRST_DISK[-1]) + number)}"
        nbd = f"/dev/nbd{number}"
        self.host.run(f"qemu-nbd --format=vpc --cache=unsafe --connect={nbd} {device}")
        loop = self.host.run(f"losetup --show --read-only --find /root/guests/{seed.name}.iso").strip()
        config = self._config(definition, nbd, loop)
        self.host.run(f"cat >/root/guests/{seed.name}.cfg", config.encode())
        self._known[seed.name] = definition
        return self._appliance(seed.name)

    def start(self, name: str) -> Appliance:
        self.definition(name)
        if not self._runs(name):
            started = time.monotonic()
            self.host.run(f"xl create /root/guests/{name}.cfg")
            self.created_s = time.monotonic() - started
        return self._appliance(name)

    def stop(self, name: str) -> Appliance:
        """By the toolstack's request; by force where that is not heard."""
        if self._runs(name):
            with suppress(DriverError):
                self.host.run(f"xl shutdown {name}")
            deadline = time.monotonic() + STOP_S
            while self._runs(name) and time.monotonic() < deadline:
                time.sleep(1.0)
            if self._runs(name):
                self.host.run(f"xl destroy {name}")
        return self._appliance(name)

    def destroy(self, name: str) -> None:
        if not self._known.pop(name, None) or not self.host.pid:
            return
        if self._runs(name):
            self.host.run(f"xl destroy {name}")
        config = f"/root/guests/{name}"
        self.host.run(
            f"losetup --detach $(losetup --noheadings --output=NAME --associated {config}.iso);"
            f" qemu-nbd --disconnect $(sed -n 's,.*\\(/dev/nbd[0-9]*\\).*,\\1,p' {config}.cfg);"
            f" rm {config}.iso {config}.cfg"
        )

    def plug(self, name: str, nic: Nic) -> Appliance:
        definition = self.definition(name)
        self._check(name, nic)
        if any(known.mac == nic.mac for known in definition.nics):
            raise DriverError(f"{name}: has an interface {nic.mac} already; unplug it first")
        if self._runs(name):
            self.host.run(f"xl network-attach {name} type=vif mac={nic.mac} bridge={nic.bridge}")
        self._known[name] = replace(definition, nics=(*definition.nics, nic))
        return self._appliance(name)

    def unplug(self, name: str, mac: str) -> Appliance:
        definition = self.definition(name)
        left = tuple(nic for nic in definition.nics if nic.mac != mac)
        if len(left) < len(definition.nics) and self._runs(name):
            self.host.run(f"xl network-detach {name} {mac}")
        self._known[name] = replace(definition, nics=left)
        return self._appliance(name)

    def console(self, name: str) -> Console:
        raise DriverError(f"{name}: its console is in dom0; see logs()")

    def list(self) -> tuple[Appliance, ...]:
        return tuple(self._appliance(name) for name in self._known)

    def capacity(self) -> Capacity:
        told = dict(line.split(":", 1) for line in self.host.run("xl info").splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in told.items()}
        total, free = (int(found[key]) << 20 for key in ("total_memory", "free_memory"))
        return Capacity(int(found["nr_cpus"]), total, free, sum(a.state == "running" for a in self.list()))

    # --- the way in, and inside

    def definition(self, name: str) -> Definition:
        if name not in self._known:
            raise DriverError(f"{name}: there is no such guest; create it first")
        return self._known[name]

    def dial(self, name: str) -> Callable[[str, int, float], socket]:
        self.definition(name)
        return self.ground.connect

    def logs(self, name: str, unit: str = "console", follow: bool = False) -> Iterator[str]:
        """The lines of its console, as xenconsoled has kept them."""
        self.definition(name)
        if unit != "console" or follow:
            raise DriverError(f"{name}: no log of {unit}; there is: console, as it stands")
        yield from self.host.run(f"cat /var/log/xen/console/guest-{name}.log").splitlines()

    def run(self, name: str, argv: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Nothing can be run in a guest: Debian has no guest agent for Xen, and the console lets nobody in."""
        raise DriverError(f"{name}: {argv[0]} cannot be run in a guest of Xen; ask its agent")

    def type_of(self, name: str) -> str:
        """What Xen itself holds a running guest for: "pv" or "pvh"."""
        (told,) = json.loads(self.host.run(f"xl list --long {name}"))
        return str(told["config"]["c_info"]["type"])

    # --- what is known

    def power_on(self) -> None:
        """Start the host, where it isn't running."""
        bridge = Bridge(CONTROL_BRIDGE, self.ground)
        if not bridge.exists():
            bridge.create([MANAGER_ADDRESS])
        self.host.power_on()

    def _check(self, name: str, nic: Nic) -> None:
        if nic.bridge not in self.host.bridges:
            raise DriverError(f"{name}: dom0 has no bridge {nic.bridge}; it has {', '.join(self.host.bridges)}")

    def _config(self, definition: Definition, disk: str, drive: str) -> str:
        nics = (Nic(definition.control_mac, CONTROL_BRIDGE), *definition.nics)
        # A PVH guest's kernel leaves CD drives to a device model that it hasn't got; a PV guest has nothing else.
        cdrom = "" if self.kind == "pvh" else ",devtype=cdrom"
        disks = [
            f"format=raw,vdev=xvda,access=rw,target={disk}",
            f"format=raw,vdev=xvdd,access=ro{cdrom},target={drive}",
        ]
        vifs = [f"type=vif,mac={nic.mac},bridge={nic.bridge}" for nic in nics]
        lines = (
            f'name="{definition.name}"', *BOOT[self.kind], f"memory={self.memory_mib}", "vcpus=1",
            f"disk={json.dumps(disks)}", f"vif={json.dumps(vifs)}", 'on_crash="preserve"', 'on_poweroff="destroy"',
        )  # fmt: skip
        return "\n".join(lines) + "\n"

    def _runs(self, name: str) -> bool:
        if not self.host.pid:
            return False
        return name in self.host.run("xl list | awk '{print $1}'").split()

    def _appliance(self, name: str) -> Appliance:
        definition = self.definition(name)
        runs = self._runs(name)
        return Appliance(
            name, definition.seed.role, "running" if runs else "stopped", self.host.pid if runs else 0,
            str(ip_interface(definition.seed.control_address)), definition.nics,
        )  # fmt: skip
