"""A router's namespace, guests on bridges, and the units of a State running: what the tests of DHCP and DNS stand on.

Namespaces are named after this process and removed with everything in them. Files go under a directory of the
test's own: `moved` puts it in the place of /etc/narthex throughout a State.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.reversename
from pyroute2 import netns

from appliance.plan import plan
from appliance.ruleset import whole
from appliance.state import Facts, File, LinkFact, State, Unit
from router.compile import compile
from router.config import Config
from router.dhcp import compile_dhcp
from router.dns import compile_dns

CONTROL = "02:00:00:00:00:01"
# The variables that udhcpc(8) gives its script, as lines; then the address is set as a real script would.
_SCRIPT = """#!/bin/sh
PATH=/sbin:/usr/sbin:/bin:/usr/bin
case "$1" in
deconfig) ip address flush dev "$interface"; ip link set "$interface" up ;;
bound | renew) ip address replace "$ip/$mask" dev "$interface" ;;
esac
{ echo "event=$1"; env; } > "%s.new"; mv "%s.new" "%s"
"""


def run(*argv: str, check: bool = True) -> str:
    return subprocess.run(argv, check=check, capture_output=True, text=True).stdout


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until it is so; fails the test when it isn't in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)


@dataclass
class Guest:
    """A machine with one interface, eth0, in a namespace of its own."""

    namespace: str
    mac: str
    directory: Path
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def exec(self, *argv: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", self.namespace, *argv, check=check)

    def lease(self, *arguments: str, tries: int = 3) -> dict[str, str] | None:
        """What a real client is given (udhcpc's variables), None where it isn't. The address stays on eth0."""
        self._seen.unlink(missing_ok=True)
        self.exec("env", "-i", *self._client(), "-n", "-q", f"-t{tries}", "-T1", *arguments, check=False)
        found = self.seen()
        return found if found.get("event") == "bound" else None

    def stay(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A client that keeps its lease: SIGUSR1 makes it renew."""
        self._seen.unlink(missing_ok=True)
        argv = ["ip", "netns", "exec", self.namespace, "env", "-i", *self._client(), "-T1", *arguments]
        quiet = subprocess.DEVNULL
        self.clients.append(subprocess.Popen(argv, stdout=quiet, stderr=quiet))
        until(lambda: self.seen().get("event") == "bound")
        return self.clients[-1]

    def renew(self, client: subprocess.Popen[bytes]) -> None:
        """The client asks for its lease anew, from the address it has, and is given it."""
        self._seen.unlink()
        client.send_signal(signal.SIGUSR1)
        until(lambda: self.seen().get("event") == "renew")

    def seen(self) -> dict[str, str]:
        if not self._seen.exists():
            return {}
        pairs = (line.partition("=") for line in self._seen.read_text().splitlines())
        return {key: value for key, _, value in pairs}

    def set_mac(self, mac: str) -> None:
        """Another card: the old one's address is gone with it."""
        for argv in (("address", "flush", "dev", "eth0"), ("link", "set", "eth0", "address", mac)):
            run("ip", "-n", self.namespace, *argv)

    @property
    def _seen(self) -> Path:
        return self.directory / f"{self.namespace}.seen"

    def _client(self) -> tuple[str, ...]:
        script = self.directory / f"{self.namespace}.sh"
        script.write_text(_SCRIPT % ((self._seen,) * 3))
        script.chmod(0o755)
        wanted = ("mtu", "ntpsrv", "search", "staticroutes", "domain", "hostname")
        return ("/usr/sbin/udhcpc", "-f", "-i", "eth0", "-s", str(script), *(f"-O{o}" for o in wanted))

    def socket(self, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A socket that lives in this guest."""
        with inside(self.namespace):
            return socket.socket(socket.AF_INET, kind)

    def ask(self, server: str, name: str, kind: str = "A", seconds: float = 3.0) -> dns.message.Message:
        """The answer of a name server, by UDP."""
        query = dns.message.make_query(dns.reversename.from_address(name) if kind == "PTR" else name, kind)
        with self.socket() as by:
            by.setblocking(False)
            return dns.query.udp(query, server, timeout=seconds, sock=by)

    def answers(self, server: str, name: str, kind: str = "A") -> list[str]:
        """The texts of an answer's records, sorted; where there are none, what it says instead."""
        reply = self.ask(server, name, kind)
        found = sorted(str(record) for group in reply.answer for record in group)
        return found or [dns.rcode.to_text(reply.rcode())]


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        netns.setns(namespace)
        yield
    finally:
        netns.setns(own)
        os.close(own)


class Segment:
    """A router in a namespace: its links, the guests behind them, and its units."""

    def __init__(self, name: str) -> None:
        self.prefix = f"nx{os.getpid()}-{name}"
        self.router = f"{self.prefix}-r"
        self.directory = Path(tempfile.mkdtemp(prefix="narthex-segment-"))
        self.directory.chmod(0o755)  # dnsmasq reads again as nobody
        self.links = {CONTROL: LinkFact("eth0", CONTROL, 2, 1500, True)}  # a fact is enough: nothing comes by it
        self.guests: list[Guest] = []
        self.namespaces: list[str] = []
        self.state = State()
        self.units: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = count()
        self._namespace(self.router)

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self.namespaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    @property
    def facts(self) -> Facts:
        return Facts("r-4", self.links, state_dir=str(self.directory / "state"))

    def link(self, name: str, mac: str, *addresses: str) -> None:
        """A link of the router, and the bridge that its guests are on."""
        switch = f"{self.prefix}-{name}"
        self._namespace(switch)
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        self.plug(name, mac, *addresses)
        self.links[mac] = LinkFact(name, mac, len(self.links) + 2, 1500, True)

    def plug(self, name: str, mac: str, *addresses: str) -> None:
        self._plug(self.router, name, mac, f"{self.prefix}-{name}")
        for address in addresses:
            run("ip", "-n", self.router, "address", "add", address, "dev", name)

    def unplug(self, name: str) -> None:
        run("ip", "-n", self.router, "link", "delete", name)

    def exec(self, *argv: str) -> str:
        """Run in the router's namespace."""
        return run("ip", "netns", "exec", self.router, *argv)

    def guest(self, link: str, mac: str) -> Guest:
        """A guest on the bridge of that link."""
        name = f"{self.prefix}-g{len(self.guests)}"
        self._namespace(name)
        self._plug(name, "eth0", mac, f"{self.prefix}-{link}")
        self.guests.append(Guest(name, mac, self.directory))
        return self.guests[-1]

    def _plug(self, namespace: str, link: str, mac: str, switch: str) -> None:
        port = f"p{next(self._ports)}"
        at = ("ip", "-n", namespace, "link")
        run(*at, "add", link, "address", mac, "type", "veth", "peer", "name", port, "netns", switch)
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        run(*at, "set", link, "up")

    def make(self, config: Config) -> list[str]:
        """Make DHCP and DNS what the config says, as the engine would. Gives the units' steps."""
        parts = (compile_dhcp(config, self.facts), compile_dns(config, self.facts))
        files, units = (f for p in parts for f in p.files), (u for p in parts for u in p.units)
        after = moved(State(files=tuple(files), units=tuple(units)), str(self.directory))
        self._check(after)
        steps = []
        for step in plan(self.state, after):
            part = step.after or step.before
            if isinstance(part, File):
                self._file(part, step.verb)
            elif isinstance(part, Unit):
                steps.append(f"{step.verb} {step.name}")
                self._unit(part, step.verb)
        self.state = after
        return steps

    def guard(self, config: Config) -> None:
        """Put the config's packet filter in place."""
        text = whole(compile(config, self.facts).ruleset)
        argv = ("ip", "netns", "exec", self.router, "nft", "-f", "-")
        subprocess.run(argv, input=text, text=True, check=True)

    def _check(self, state: State) -> None:
        contents = {f.path: f.content for f in state.files}
        for unit in state.units:
            argv = list(unit.check)
            for number, path in enumerate(unit.checks):
                copy = self.directory / f"check-{number}"
                copy.write_text(contents[path])
                argv = [word.replace("{" + path + "}", str(copy)) for word in argv]
            run(*argv)

    def _file(self, part: File, verb: str) -> None:
        path = Path(part.path)
        if verb == "remove":
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(part.content)
        new.chmod(part.mode)
        new.rename(path)

    def _unit(self, unit: Unit, verb: str) -> None:
        if verb == "reload":
            self.units[unit.name].send_signal(signal.Signals[f"SIG{unit.reload}"])
            return
        if verb in ("stop", "restart"):
            end(self.units.pop(unit.name))
        if verb in ("start", "restart"):
            for path, mode, _ in unit.directories:
                Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
            argv = ["ip", "netns", "exec", self.router, *unit.command]
            with self.log(unit.name).open("wb") as log:
                self.units[unit.name] = subprocess.Popen(argv, stdout=log, stderr=log)
            until(lambda: "started, version" in self.said(unit.name))

    def log(self, unit: str) -> Path:
        return self.directory / f"{unit}.log"

    def said(self, unit: str) -> str:
        """What a unit has logged since it was started."""
        return self.log(unit).read_text()

    def pids(self) -> dict[str, int]:
        assert all(p.poll() is None for p in self.units.values())
        return {name: process.pid for name, process in self.units.items()}

    def restart(self, unit: str) -> None:
        """What a crash and the runner that sees it do: the same unit, a new process."""
        self._unit(next(u for u in self.state.units if u.name == unit), "restart")

    def rebuilt(self) -> None:
        """A new machine in the place of this one: nothing is left of its disk and its processes."""
        for process in self.units.values():
            end(process)
        self.units, self.state = {}, State()
        for path in self.directory.iterdir():
            if path.suffix not in (".sh", ".seen"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        for process in (*self.units.values(), *(c for g in self.guests for c in g.clients)):
            end(process)
        for name in self.namespaces:
            run("ip", "netns", "delete", name, check=False)
        shutil.rmtree(self.directory)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def moved(state: State, directory: str) -> State:
    """The same State with `directory` wherever it says /etc/narthex."""

    def new(text: str) -> str:
        return text.replace("/etc/narthex", directory)

    return State(
        files=tuple(replace(f, path=new(f.path), content=new(f.content)) for f in state.files),
        units=tuple(
            replace(
                u,
                command=tuple(map(new, u.command)),
                reload_on=tuple(map(new, u.reload_on)),
                restart_on=tuple(map(new, u.restart_on)),
                check=tuple(map(new, u.check)),
                checks=tuple(map(new, u.checks)),
                directories=tuple((new(path), mode, user) for path, mode, user in u.directories),
            )
            for u in state.units
        ),
    )
