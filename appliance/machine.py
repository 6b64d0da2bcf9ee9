"""A machine as the engine sees it: the Host protocol, and the two ways in which it says no.

LinuxHost (host.py) is the real one, FakeHost (fake.py) one in memory. This file needs neither, so that the engine can
be run, and read, without a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from appliance.events import Event, Events
from appliance.plan import Step
from appliance.state import Check, Facts, LiveFlow, State, Unit
from appliance.usage import Reading
from appliance.vitals import Trouble


class HostError(Exception):
    """A step that failed. `evidence` is the tool's or the kernel's own words; `refused`: it touched nothing."""

    def __init__(self, message: str, evidence: str = "", refused: bool = False) -> None:
        self.evidence = evidence or message
        self.refused = refused
        super().__init__(message)


class HaproxyError(Exception):
    """What a running haproxy could not be brought to, in its own words (haproxy.py)."""


class CheckError(Exception):
    """A daemon's own dry check refused: `problems` are {path, message}, path being the file or "firewall"."""

    def __init__(self, problems: list[dict[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p['path']}: {p['message']}" for p in problems))


# Is it so, and what was seen, in words.
Told = tuple[bool, str]


class Host(Protocol):
    """A machine as the engine sees it. Every method may raise HostError, `check` CheckError too."""

    def facts(self) -> Facts: ...
    def check(self, steps: Sequence[Step], after: State) -> None: ...
    def commit(self, step: Step) -> None: ...
    def observe(self, wished: State, others: Sequence[State]) -> State:
        """The whole machine in the words of `wished`; `others` name the files and links that may be left over."""

    def look(self, steps: Sequence[Step], wished: State) -> State:
        """Only what `steps` touched; all else is taken as wished."""

    def flows(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """The live flows that `steps` would end."""

    def probe(self, state: State) -> str:
        """Evidence, in words, of whether the state's gateways answer."""

    def run(self, argv: tuple[str, ...], stdin: bytes = b"", seconds: float = 30.0) -> tuple[int, bytes, bytes]:
        """Run a tool: (exit status, output, error output)."""

    def live_flows(self, wanted: Callable[[LiveFlow], bool], most: int, after: int) -> list[LiveFlow]:
        """The flows that are wanted, at most so many, by their ids above `after`."""

    def readings(self, state: State, only: Mapping[str, Collection[str]] | None = None) -> list[Reading]:
        """What the counters of `state`'s objects stand at; `only` of these elements, by set. See appliance/usage.py."""

    def counters(self) -> dict[str, dict[str, int]]:
        """Bytes and packets of every link, both ways."""

    def ask_members(self, state: State) -> frozenset[str]:
        """Go on asking the state's members. Those that are not well, as the next facts have them. Waits for nobody."""

    def legacy(self) -> list[str]:
        """Rules of the kernel's old iptables tables, in words: what hides beside our table."""

    def troubles(self, newest: float) -> Sequence[Trouble]:
        """What is wrong with disks, memory and clock; `newest` is when the newest generation was pushed."""

    def ask(self, checks: Sequence[Check]) -> list[Told | None]:
        """What each of `checks` comes to, in their order; None where there was no time to ask. Bounded in time."""

    def idle(self, units: Sequence[Unit]) -> dict[str, str]:
        """Those of `units` that do not run, or cannot act, and why."""

    def stuck(self) -> dict[str, str]:
        """Units, boot units too, that have a process which cannot act, and why. Starts no process."""

    def renew(self, name: str) -> None:
        """Start a boot unit anew."""

    def hear(self, events: Events) -> None:
        """Whose ears are to be covered while a large transaction is made."""

    def own(self, event: Event) -> bool:
        """Did we cause this event ourselves?"""

    def now(self) -> float: ...
    def monotonic(self) -> float: ...
