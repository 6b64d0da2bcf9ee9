"""A charon in a namespace: the router's, told by Charon as the engine tells it, or a far end of a swanctl.conf by hand.

ESP is charon's own here (kernel-libipsec): not every kernel has it, and what is shown is what the two agree upon.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vici import Session

from appliance.charon import Charon
from appliance.plan import Step, plan
from appliance.state import Entry, Facts, LinkFact, State
from router.config import Config
from router.ipsec import compile_ipsec
from tests.netns.segment import end, run, until

PLUGINS = (
    "random nonce openssl gcrypt pem pkcs1 pkcs8 x509 pubkey constraints revocation curve25519 hmac kdf "
    "kernel-libipsec kernel-netlink socket-default vici eap-identity eap-mschapv2"
)
_CONF = """charon {
  load = %s
  filelog { stderr { path = stderr
    default = 1
    flush_line = yes
  } }
  journal { default = -1 }
  plugins { vici { socket = unix://%s } }
}
"""


class Daemon:
    """A charon in the namespace `where`, with everything in `folder`."""

    def __init__(self, where: str, folder: Path) -> None:
        self.where, self.folder = where, folder
        self.socket = folder / "vici"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, conf: str = "") -> None:
        path = self.folder / "strongswan.conf"
        path.write_text(conf or _CONF % (PLUGINS, self.socket))
        argv = ("ip", "netns", "exec", self.where, "env", f"STRONGSWAN_CONF={path}", "charon-systemd")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process:
            end(self.process)
            self.process = None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def load(self, text: str, **files: str) -> None:
        """Load a swanctl.conf and nothing else; `files` are certificates and keys, by folder and name."""
        (self.folder / "swanctl.conf").write_text(text)
        for name, content in files.items():
            folder, _, file = name.partition("__")
            (self.folder / folder).mkdir(exist_ok=True)
            (self.folder / folder / file).write_text(content)
        until(lambda: self.socket.exists())
        argv = ("swanctl", "--load-all", "--noprompt", "--file", str(self.folder / "swanctl.conf"))
        done = subprocess.run(
            (*argv, "--uri", f"unix://{self.socket}"), capture_output=True, text=True, check=False,
            env={**os.environ, "SWANCTL_DIR": str(self.folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def begin(self, child: str, seconds: float = 5.0) -> str:
        """Try to bring a child up, as `swanctl --initiate` does; "" where it came up, else what it said."""
        argv = ("swanctl", "--initiate", "--child", child, "--timeout", str(int(seconds)))
        done = subprocess.run((*argv, "--uri", f"unix://{self.socket}"), capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    @contextmanager
    def vici(self) -> Iterator[Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self.socket))
            yield Session(sock)

    def sas(self) -> dict[str, Any]:
        """The established IKE SAs by their connection's name; the newest of one."""
        with self.vici() as vici:
            found = {name: sa for told in vici.list_sas() for name, sa in told.items()}
        return {name: sa for name, sa in found.items() if sa["state"] == b"ESTABLISHED"}

    def children(self) -> dict[str, str]:
        """The networks of each child that is up: `ours - theirs`, by `connection child`."""
        return {
            f"{name} {child['name'].decode()}": f"{_joined(child['local-ts'])} - {_joined(child['remote-ts'])}"
            for name, sa in self.sas().items()
            for child in sa["child-sas"].values()
            if child["state"] == b"INSTALLED"
        }


def _joined(selectors: list[bytes]) -> str:
    return " ".join(s.decode() for s in selectors)


class RouterDaemon(Daemon):
    """The router's charon: started from the State's own file, told what the plan says."""

    def __init__(self, where: str, folder: Path, facts: Facts) -> None:
        super().__init__(where, folder)
        self.facts = replace(facts, run_dir=str(folder))
        self.socket = folder / "ipsec" / "vici"
        self.charon = Charon(folder / "told")
        self.state = State()

    def make(self, config: Config) -> list[str]:
        """Make it what a config says, as the engine would: verified. Gives the steps of what was told."""
        after = compile_ipsec(config, self.facts)
        steps = [s for s in plan(self.state, after) if s.kind in ("entry", "unit")]
        for step in steps:
            self._take(step, after)
        self.state = after
        assert not self.drift()
        return [f"{s.verb} {s.name}" for s in steps if s.kind == "entry"]

    def seen(self) -> tuple[Entry, ...]:
        """What stands in it, by what is observed."""
        return self.charon.observe("ipsec", str(self.socket), self.state.entries) if self.state.units else ()

    def drift(self) -> list[str]:
        """What the daemon is not, or too much, by what is observed."""
        seen = replace(self.state, entries=self.seen())
        return [f"{s.verb} {s.name}" for s in plan(seen, self.state)]

    def heal(self) -> None:
        seen = replace(self.state, entries=self.seen())
        for step in plan(seen, self.state):
            self._take(step, self.state)

    def _take(self, step: Step, state: State) -> None:
        part = step.after or step.before
        if isinstance(part, Entry):
            (self.charon.withdraw if step.after is None else self.charon.tell)(part)
        elif step.verb == "stop":
            self.stop()
        else:
            self.stop()
            self.socket.parent.mkdir(mode=0o700, exist_ok=True)
            self.start(state.files[0].content.replace("kernel-netlink", "kernel-libipsec kernel-netlink"))


class Wire:
    """The router's namespace and a far one's, on one wire: 203.0.113.10, and 203.0.113.99 with .98 beside it."""

    def __init__(self) -> None:
        self.prefix = f"nx{os.getpid()}-ike"
        self.router, self.far = f"{self.prefix}-r", f"{self.prefix}-f"
        self.folder = Path(tempfile.mkdtemp(prefix="narthex-ike-"))
        self.daemons: list[Daemon] = []

    def make(self) -> None:
        for name in (self.router, self.far):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.router, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.far)
        for name, cidrs in ((self.router, ("203.0.113.10/24",)), (self.far, ("203.0.113.99/24", "203.0.113.98/24"))):
            for cidr in cidrs:
                run("ip", "-n", name, "address", "add", cidr, "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        for name, cidr in (
            (self.router, "10.1.1.1/24"),
            (self.router, "10.1.2.1/24"),
            (self.far, "10.9.0.1/24"),
            (self.far, "10.10.0.1/24"),
        ):
            run("ip", "-n", name, "address", "add", cidr, "dev", "lo")

    def daemon(self, kind: type[Daemon] = Daemon, **more: Any) -> Any:
        where = self.router if kind is RouterDaemon else self.far
        folder = self.folder / str(len(self.daemons))
        folder.mkdir()
        self.daemons.append(kind(where, folder, **more))
        return self.daemons[-1]

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.stop()
        for name in (self.router, self.far):
            run("ip", "netns", "delete", name, check=False)
        run("rm", "-r", str(self.folder)) if not os.environ.get("KEEP") else print(self.folder)


def facts_of(config: Config) -> Facts:
    links = {i.mac: LinkFact(f"eth{n}", i.mac, n + 2, 1500, True) for n, i in enumerate(config.interfaces)}
    return Facts("r", links)
