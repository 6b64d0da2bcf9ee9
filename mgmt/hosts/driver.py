"""What every host of appliances can do, whatever it is made of: the one interface of cells, libvirt and XenServer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

PORT = 3922  # of the way in, in every appliance


class DriverError(Exception):
    """What a host could not do; the message names the appliance, what stands in the way, and the remedy."""


@dataclass(frozen=True, slots=True)
class Seed:
    """What an appliance is born with. All keys are ed25519 in OpenSSH's form, made by the manager.

    `name` is a host name; `control_address` has its prefix length; `manager_key` and `host_key` are public lines
    ("ssh-ed25519 AAAA..."), `host_private` is the PEM text that belongs to `host_key`.
    """

    name: str
    role: str
    control_address: str
    manager_key: str
    host_key: str
    host_private: str
    time_servers: tuple[str, ...] = ()
    heal: Literal["heal", "report"] = "heal"
    watch_seconds: float = 30.0

    def __repr__(self) -> str:
        return f"Seed({self.name!r}, {self.role!r}, {self.control_address!r})"


@dataclass(frozen=True, slots=True)
class Nic:
    """A network interface: its MAC (lower case, colons), the host's bridge that it is on, its MTU in bytes."""

    mac: str
    bridge: str
    mtu: int = 1500


State = Literal["stopped", "running", "failed"]


@dataclass(frozen=True, slots=True)
class Appliance:
    """An appliance as the host has it. `pid` is its process on the host, 0 where it has none there.

    "failed": it was started, and ended without being stopped.
    """

    name: str
    role: str
    state: State
    pid: int
    control_address: str
    nics: tuple[Nic, ...]


@dataclass(frozen=True, slots=True)
class Console:
    """Where an appliance's console is. "file": a text to be followed; "vnc": a host and port, or a socket's path."""

    kind: Literal["file", "vnc"]
    path: str = ""
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a host has: processors, memory in bytes, and how many appliances run on it."""

    cpus: int
    memory_bytes: int
    free_bytes: int
    running: int


class Driver(Protocol):
    """A host of appliances. Every method may raise DriverError; each may be repeated after it was cut off."""

    def create(self, seed: Seed, nics: Sequence[Nic] = ()) -> Appliance:
        """Define an appliance; it is stopped. Refuses a name that is taken."""

    def start(self, name: str) -> Appliance:
        """Start it; one that runs is left alone. Back when it is under way: the agent answers a little later."""

    def stop(self, name: str) -> Appliance:
        """End it and keep its state; one that is stopped is left alone."""

    def destroy(self, name: str) -> None:
        """End it and remove all of it; one that is not there is no error."""

    def plug(self, name: str, nic: Nic) -> Appliance:
        """Give it another interface, now if it runs."""

    def unplug(self, name: str, mac: str) -> Appliance:
        """Take an interface away; one that is not there is no error."""

    def console(self, name: str) -> Console: ...
    def list(self) -> tuple[Appliance, ...]: ...
    def capacity(self) -> Capacity: ...
