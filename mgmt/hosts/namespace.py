"""Network namespaces, links between them and bridges: the ground that cells, guests and outside hosts stand on.

Everything made here is named `nx-...`, so that what a killed process leaves is found by name: `sweep()`. A namespace
is a name under /run/netns, as ip-netns(8) has them; nothing is started to make one or to enter it, a thread changes
over for the moment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Protocol, Self

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError as NetlinkError  # type: ignore[import-untyped]

from mgmt.hosts import kernel, processes

PREFIX = "nx-"
NETNS = Path("/run/netns")
_LINK_NAME_BYTES = 15  # IFNAMSIZ of linux/if.h, without its end


class Ground(Protocol):
    """A network namespace that links and bridges are put into."""

    def entered(self) -> AbstractContextManager[None]:
        """A context in which the calling thread is there: sockets and processes made in it belong there."""

    def connect(self, address: str, port: int, timeout_s: float = 5.0) -> socket.socket:
        """A TCP connection from there: the `dial` of mgmt.push.Target."""
        with self.entered():
            return socket.create_connection((address, port), timeout=timeout_s)


class HostGround(Ground):
    """The namespace of this process: the host itself."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        yield


HOST = HostGround()


@dataclass(frozen=True, slots=True)
class Process(Ground):
    """The network namespace of a running process, by its pid: a cell's."""

    pid: int

    @contextmanager
    def entered(self) -> Iterator[None]:
        with _in_namespace(f"/proc/{self.pid}/ns/net"):
            yield


class Namespace(Ground):
    """A named network namespace of ours; its loopback is up. `name` is given without the prefix."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = NETNS / f"{PREFIX}{name}"

    def create(self) -> Self:
        """Make it. Raises FileExistsError where the name is taken."""
        _make_netns_folder()
        self.path.touch(exist_ok=False)
        try:
            _in_thread(lambda: self._unshare())
            with self.entered(), IPRoute() as netlink:
                netlink.link("set", index=1, state="up")
        except BaseException:
            self.destroy()
            raise
        return self

    def _unshare(self) -> None:
        kernel.unshare(kernel.CLONE_NEWNET)
        kernel.mount("/proc/thread-self/ns/net", str(self.path), "", kernel.MS_BIND)

    def destroy(self) -> None:
        """End what runs in it and delete it with all its links; one that is not there is no error."""
        if not self.path.exists():
            return
        if self._is_namespace():
            info = os.stat(self.path)
            processes.end_inside((info.st_dev, info.st_ino))
            self._delete_links()
            with suppress(OSError):
                kernel.unmount(str(self.path), kernel.MNT_DETACH)
        self.path.unlink(missing_ok=True)

    def _is_namespace(self) -> bool:
        """A file that was touched and not yet mounted upon is none."""
        return os.stat(self.path).st_dev != os.stat(NETNS).st_dev

    def _delete_links(self) -> None:
        # The kernel would do it too, some time after the last reference is gone; their names are wanted sooner.
        with suppress(OSError, NetlinkError), self.entered(), IPRoute() as netlink:
            for link in netlink.get_links():
                if link["index"] != 1:
                    with suppress(NetlinkError):
                        netlink.link("del", index=link["index"])

    def __enter__(self) -> Self:
        return self.create()

    def __exit__(self, *error: object) -> None:
        self.destroy()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside; sockets and processes that it makes there stay there."""
        with _in_namespace(str(self.path)):
            yield

    def run(
        self, argv: Sequence[str], timeout_s: float = 30.0, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside. Raises as subprocess.run does."""
        with self.entered():
            return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=check)

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program inside, with subprocess.Popen's own options."""
        with self.entered():
            return subprocess.Popen(argv, **options)

    def plug(
        self,
        bridge: str,
        mac: str,
        addresses: Sequence[str] = (),
        routes: Mapping[str, str] | None = None,
        ground: Ground = HOST,
        name: str = "eth0",
        mtu: int = 1500,
    ) -> str:
        """A link `name` in here, its other end in `ground` on `bridge`, up. Returns the other end's name.

        `addresses` with their prefix length; `routes` maps a destination ("default" for all) to its gateway.
        """
        other = link_name(self.name, name)
        with open(self.path, "rb") as file:
            make_link(ground, other, bridge, file.fileno(), name, mac, mtu)
        configure(self, name, addresses, routes or {})
        return other


class Bridge:
    """A bridge of ours in `ground`: no spanning tree, no delay, no IPv6 of its own. The kernel's name is `name`."""

    def __init__(self, name: str, ground: Ground = HOST, mtu: int = 1500) -> None:
        self.name = name if name.startswith(PREFIX) else PREFIX + name
        self.ground, self.mtu = ground, mtu
        if len(self.name) > _LINK_NAME_BYTES:
            raise ValueError(f"{self.name}: a link's name has at most {_LINK_NAME_BYTES} characters")

    def create(self, addresses: Iterable[str] = ()) -> Self:
        """Make it, with `addresses` of the ground's own on it. Raises FileExistsError where it is there."""
        with self.ground.entered(), IPRoute() as netlink:
            try:
                netlink.link(
                    "add", ifname=self.name, kind="bridge", br_stp_state=0, br_forward_delay=0,
                    br_mcast_snooping=0, mtu=self.mtu,
                )  # fmt: skip
            except NetlinkError as error:
                if error.code == 17:
                    raise FileExistsError(17, "the bridge exists", self.name) from None
                raise
            quieten(self.name)
            index = netlink.link_lookup(ifname=self.name)[0]
            netlink.link("set", index=index, state="up")
            for address in addresses:
                _add_address(netlink, index, address)
        return self

    def exists(self) -> bool:
        with self.ground.entered():
            return Path(f"/proc/sys/net/ipv4/conf/{self.name}").exists()

    def destroy(self) -> None:
        delete_link(self.ground, self.name)

    def __enter__(self) -> Self:
        return self.create()

    def __exit__(self, *error: object) -> None:
        self.destroy()


# --- links


def link_name(owner: str, link: str) -> str:
    """The ground's end of `link` of `owner`: nx- and a digest of both, always the same, at most 15 characters."""
    return PREFIX + blake2b(f"{owner}/{link}".encode(), digest_size=6).hexdigest()


def make_link(
    ground: Ground, other: str, bridge: str, netns: int, name: str, mac: str, mtu: int, isolated: bool = False
) -> None:
    """A veth pair: `other` in `ground` on `bridge` ("": on none), `name` in the namespace open as `netns`, down.

    Made in one step: a process killed here leaves both ends or none, and both go with either namespace. `isolated`:
    on its bridge it reaches only what is not isolated. Raises LookupError where the bridge is not there.
    """
    with ground.entered(), IPRoute() as netlink:
        master = _index(netlink, bridge) if bridge else 0
        for old in netlink.link_lookup(ifname=other):
            netlink.link("del", index=old)  # of a life before that was killed
        peer = {"ifname": name, "address": mac, "net_ns_fd": netns, "mtu": mtu}
        netlink.link("add", ifname=other, kind="veth", mtu=mtu, peer=peer)
        quieten(other)
        index = _index(netlink, other)
        if master:
            netlink.link("set", index=index, master=master)
        if isolated:
            netlink.brport("set", index=index, isolated=1)
        netlink.link("set", index=index, state="up")


def delete_link(ground: Ground, name: str) -> None:
    """Delete a link; one that is not there is no error. Its pair goes with it at once."""
    with ground.entered(), IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=name):
            with suppress(NetlinkError):
                netlink.link("del", index=index)


def configure(inside: Ground, name: str, addresses: Iterable[str], routes: Mapping[str, str]) -> None:
    """Bring a link up with its addresses and routes."""
    with inside.entered(), IPRoute() as netlink:
        index = _index(netlink, name)
        netlink.link("set", index=index, state="up")
        for address in addresses:
            _add_address(netlink, index, address)
        for destination, gateway in routes.items():
            netlink.route("add", dst=destination, gateway=gateway, oif=index)


def _add_address(netlink: IPRoute, index: int, address: str) -> None:
    found = ip_interface(address)
    flags = {"flags": 0x02} if found.version == 6 else {}  # IFA_F_NODAD: usable at once
    netlink.addr("add", index=index, address=str(found.ip), prefixlen=found.network.prefixlen, **flags)


def _index(netlink: IPRoute, name: str) -> int:
    found = netlink.link_lookup(ifname=name)
    if not found:
        raise LookupError(f"there is no interface {name}; create it first")
    return int(found[0])


def quieten(name: str) -> None:
    """No IPv6 of its own on a link that only carries: no router solicitations, no neighbour discovery."""
    with suppress(OSError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


# --- entering


@contextmanager
def _in_namespace(path: str) -> Iterator[None]:
    target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(target)
        raise
    try:
        kernel.setns(target, kernel.CLONE_NEWNET)
        try:
            yield
        finally:
            kernel.setns(home, kernel.CLONE_NEWNET)
    finally:
        os.close(target)
        os.close(home)


def _in_thread(deed: Callable[[], None]) -> None:
    """Do it on a thread of its own, which takes what it changed about itself along when it ends."""
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            deed()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _make_netns_folder() -> None:
    """/run/netns as ip-netns(8) has it: a mount of its own that is shared, so that every mount namespace sees it."""
    NETNS.mkdir(parents=True, exist_ok=True)
    if not _is_mounted(NETNS):
        kernel.mount(str(NETNS), str(NETNS), "", kernel.MS_BIND)
        kernel.mount("", str(NETNS), "", _MS_SHARED)


_MS_SHARED = 1 << 20


def _is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


# --- sweeping


def sweep(ground: Ground = HOST, keep: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Destroy every namespace and every link of ours that `keep` does not claim by its name. Returns the names."""
    swept = []
    for path in sorted(NETNS.glob(f"{PREFIX}*")):
        if not keep(path.name):
            Namespace(path.name.removeprefix(PREFIX)).destroy()
            swept.append(path.name)
    with ground.entered(), IPRoute() as netlink:
        for link in netlink.get_links():
            name = str(link.get("ifname"))
            if name.startswith(PREFIX) and not keep(name):
                with suppress(NetlinkError):  # the pair of one that has just gone
                    netlink.link("del", index=link["index"])
                swept.append(name)
    return swept
