"""A second speaker of BGP, in a machine of its own: FRR's bgpd by a configuration written by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.bed import wait_for
from tests.netns.machines import Machine

# It takes and tells everything: what does not pass is the router's doing.
_CONFIGURATION = """
frr defaults traditional
bgp route-map delay-timer 1
router bgp 65000
 bgp router-id 203.0.113.1
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 no bgp network import-check
{neighbours}
 address-family ipv4 unicast
  network 0.0.0.0/0
{networks}
{activate}
 exit-address-family
 address-family ipv6 unicast
  network ::/0
{networks6}
{activate6}
 exit-address-family
exit
"""


class Peer:
    """AS 65000 in `machine`. `neighbours`: (address, password or ""); `tells`: prefixes of both families, and always a
    default route in each."""

    def __init__(self, machine: Machine, neighbours: list[tuple[str, str]], tells: list[str]) -> None:
        self.machine = machine
        self.folder = Path(tempfile.mkdtemp(prefix="narthex-peer-"))
        lines = [f" neighbor {address} remote-as 65001" for address, _ in neighbours]
        lines += [f" neighbor {address} password {password}" for address, password in neighbours if password]
        lines += [f" neighbor {address} timers 5 15\n neighbor {address} timers connect 2" for address, _ in neighbours]
        v4 = [f"  neighbor {a} activate" for a, _ in neighbours if ":" not in a]
        v6 = [f"  neighbor {a} activate" for a, _ in neighbours if ":" in a]
        text = _CONFIGURATION.format(
            neighbours="\n".join(lines),
            networks="\n".join(f"  network {p}" for p in tells if ":" not in p),
            networks6="\n".join(f"  network {p}" for p in tells if ":" in p),
            activate="\n".join(v4),
            activate6="\n".join(v6),
        )
        (self.folder / "bgpd.conf").write_text(text)
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        (self.folder / "zebra.conf").write_text("ip nht resolve-via-default\nipv6 nht resolve-via-default\n")
        self.folder.chmod(0o777)  # zebra is FRR's account
        for daemon, more in (("zebra", ()), ("bgpd", ("-S",))):
            argv = (
                f"/usr/lib/frr/{daemon}", *more, "-f", str(self.folder / f"{daemon}.conf"), "-i",
                str(self.folder / f"{daemon}.pid"), "--vty_socket", str(self.folder), "-z", str(self.folder / "zserv"),
                "--log", "stdout", "-A", "127.0.0.1", "-P", "0",
            )  # fmt: skip
            with self.machine.entered(), (self.folder / f"{daemon}.log").open("wb") as log:
                self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log))
            wait_for((self.folder / "zserv").exists)  # else bgpd knows no interface for its first ten seconds
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(10)
        shutil.rmtree(self.folder)

    def ask(self, command: str) -> Any:
        argv = ("vtysh", "--vty_socket", str(self.folder), "-c", command)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return {}

    def session(self, address: str) -> dict[str, Any]:
        found = self.ask(f"show bgp neighbors {address} json").get(address, {})
        return found if isinstance(found, dict) else {}

    def is_up(self, address: str) -> bool:
        return self.session(address).get("bgpState") == "Established"

    def told(self, address: str) -> set[str]:
        """The prefixes that this neighbour has told of."""
        family = "ipv6" if ":" in address else "ipv4"
        found = self.ask(f"show bgp {family} unicast json").get("routes", {})
        return {prefix for prefix, ways in found.items() for way in ways if way.get("peerId") == address}
