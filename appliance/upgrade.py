"""A newer release of the agent, taken by the running one: installed, tried by a child process, switched to, confirmed.

    PUT -> unpack beside the others -> a child of the new code makes the machine's State: it must be ours -> trial.json,
    a timer of systemd's, the switch -> the agent restarts -> confirm over a new connection, or all the way back

The packet filter, addresses and daemons are not the agent's process: nothing of them is touched by its restart. While a
release is on trial no document is taken: the older agent, if it comes back, might not understand what the newer one
kept. The seed's release is confirmed by the agent itself, as soon as it is ready.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from appliance.bundle import BUNDLE_BYTES, ReleaseError
from appliance.difference import difference
from appliance.engine import Answer, Engine
from appliance.log import Log
from appliance.plan import lines
from appliance.release import Releases
from appliance.settings import VARIABLE

SECONDS = 60  # to confirm within
LEAST_SECONDS, MOST_SECONDS = 10, 3600
TOOLS, CHECK_S = 2, 60.0  # a trial is a whole agent's start: it may take as long as so many tools, and never less
CHECK_BYTES = 1 << 30  # of address space, for the child
SAID_BYTES = 32 << 20  # by the child, which this process has to hear: 10,000 of each object are 3 MB
WORDS_BYTES = 4000  # of its last words
RESTART_DELAY_S = 0.3  # the answer goes first
DIFF_LINES = 400
REFUSED = "/run/narthex/refused"  # why the seed's bundle was not taken (seed.py)

Check = Callable[[str, float], dict[str, Any]]


_BOUNDS: tuple[Callable[[int], object], ...] = (
    lambda pid: Path(f"/proc/{pid}/oom_score_adj").write_text("1000"),  # it goes first, never the router
    lambda pid: resource.prlimit(pid, resource.RLIMIT_AS, (CHECK_BYTES, CHECK_BYTES)),
    lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 10),
)


class TrialError(Exception):
    """A release that does not work here; the words are its own, or tell how it ended."""


def check(path: str, seconds: float) -> dict[str, Any]:
    """Try the release with this PYTHONPATH in a child process (trial.py). Raises TrialError."""
    keep = {name: os.environ[name] for name in ("PATH", "LANG", VARIABLE) if name in os.environ}
    argv = (sys.executable, "-P", "-m", "appliance.trial")
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env={**keep, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise TrialError(f"{sys.executable} cannot be started: {error.strerror}") from None
    out, err = bytearray(), bytearray()
    with child:
        for bound in _BOUNDS:
            with suppress(OSError):  # it has ended already, or our own confinement forbids it
                bound(child.pid)
        try:
            trouble = _listen(child, seconds, out, err)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    words = err.decode(errors="replace").strip()
    if trouble:
        raise TrialError(_with_last(trouble, words))
    return _read(child.returncode, bytes(out), words)


def _listen(child: subprocess.Popen[bytes], seconds: float, out: bytearray, err: bytearray) -> str:
    """Hear it until it ends: its answer to `out`, its last words to `err`. What was wrong, if it did not end by itself.

    Whatever it says, this process does not grow by more than SAID_BYTES: it is the router's, and goes on.
    """
    deadline, said = time.monotonic() + seconds, 0
    with selectors.DefaultSelector() as pipes:
        for pipe, into in ((child.stdout, out), (child.stderr, err)):
            assert pipe is not None
            pipes.register(pipe, selectors.EVENT_READ, into)
        while pipes.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in pipes.select(left):
                if not (some := os.read(key.fd, 1 << 16)):
                    pipes.unregister(key.fileobj)
                said += len(some)
                key.data.extend(some)
            del err[:-WORDS_BYTES]
            if said > SAID_BYTES:
                return f"it says more than {SAID_BYTES >> 20} MiB, and was ended"
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"it did not end within {seconds:g} s, and was ended"
    return ""


def _read(status: int, out: bytes, words: str) -> dict[str, Any]:
    try:
        told = json.loads(out)
        if status == 0:
            lines_made = [str(line) for line in told["lines"]]
            return {"version": told["version"], "generation": int(told["generation"]), "lines": lines_made}
        said = str(told["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = ""
    ended = f"was killed by signal {-status}; is there memory for it?" if status < 0 else f"ended in {status}"
    raise TrialError(_with_last(said or f"its trial {ended}", words))


def _with_last(trouble: str, words: str) -> str:
    return "\n".join((trouble, *words.splitlines()[-20:]))


class Upgrade:
    """What the API asks about releases. Thread-safe."""

    def __init__(
        self, engine: Engine, releases: Releases, log: Log, check: Check = check,
        later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.releases, self.log, self.check = engine, releases, log, check
        self.later = later or _later
        self._busy = threading.Lock()

    # --- at the start

    def ready(self) -> None:
        """The agent has started. Ends a trial that needs no manager: the seed's, one that was cut before the switch,
        and one that cannot make what the older agent could."""
        try:
            with self._busy:
                self._ready()
        except Exception as error:  # nothing of this is worth an agent that does not run
            self.log.error("release", error=str(error))

    def _ready(self) -> None:
        trial, running = self.releases.trial, self.releases.running
        if trial is None or not running:
            return
        if trial["release"] != running:
            if self.releases.current == running:
                self.releases.take_back("the agent ended before it was switched to")
            return
        if self.engine.unmade:
            gone = self.releases.take_back(self.engine.unmade)
            self.log.error("release", release=gone, error=f"taken back: {self.engine.unmade}")
            self.later(self.releases.restart)
        elif not trial["seconds"]:
            self.releases.confirm(running)
            self.log.info("release", release=running, result="confirmed: it is ready")

    # --- what there is

    def told(self) -> dict[str, Any]:
        """For GET /v1/version; `release` is "" in a cell."""
        releases = self.releases
        if not releases.running:
            return {"release": "", "previous": "", "trial": None, "returned": None, "refused": ""}
        trial = releases.trial
        try:
            refused = Path(REFUSED).read_text().strip()
        except OSError:
            refused = ""
        return {
            "release": releases.running,
            "previous": trial["previous"] if trial else releases.previous,
            "trial": {key: trial[key] for key in ("release", "since", "seconds", "failures")} if trial else None,
            "returned": releases.returned,
            "refused": refused,
        }

    def blocks(self) -> Answer | None:
        """The refusal of a document while a release waits for its confirmation; None where none does."""
        trial = self.releases.trial if self.releases.running else None
        if trial is None or not trial["seconds"]:
            return None
        words = f"release {trial['release']} waits for its confirmation; confirm it, return it, or let it lapse"
        return self._conflict(words)

    # --- pushes

    def put(self, bundle: IO[bytes], size: int, query: Mapping[str, str], connection: str) -> Answer:
        """A bundle of `size` bytes. `query`: `change` ("allow": another State will do), `seconds` to confirm within."""
        if not self._busy.acquire(blocking=False):
            return self._conflict("another release is being installed; ask GET /v1/version, then try again")
        try:
            if refusal := self._refusal():
                return refusal
            if size > BUNDLE_BYTES:
                return self._refused(f"the bundle is {size} bytes; the limit is {BUNDLE_BYTES}", "bundle")
            try:
                seconds = int(query.get("seconds", SECONDS))
            except ValueError:
                seconds = 0
            if not LEAST_SECONDS <= seconds <= MOST_SECONDS or query.get("change", "") not in ("", "allow"):
                words = f"seconds is {LEAST_SECONDS} to {MOST_SECONDS}, change is allow or not there"
                return self._refused(words, "query")
            try:
                release = self.releases.install(bundle)
            except ReleaseError as error:
                return self._refused(str(error), "bundle")
            return self._try(release, seconds, query.get("change") == "allow", connection)
        finally:
            self._busy.release()

    def confirm(self, release: str, connection: str) -> Answer:
        """Keep the release on trial: it runs, and a new connection has reached it. `release` "": whichever it is."""
        with self._busy:
            trial, running = self.releases.trial, self.releases.running
            if trial is None:
                if running and release == running:
                    return Answer(200, {"release": running, "result": "already confirmed"})
                return self._conflict(f"no release is on trial{self._what_became(release)}")
            if release not in ("", trial["release"]):
                return self._conflict(f"release {trial['release']} is on trial, not {release}")
            if trial["release"] != running:
                return self._conflict(f"release {trial['release']} does not run yet; ask again when it does")
            if connection and connection == trial.get("connection"):
                words = "confirm over a new connection: this one is the push's own, and proves nothing"
                return Answer(403, {"error": words, "release": running})
            if not self.releases.confirm(running):
                return self._conflict(f"too late: release {running} was taken back")
            self.log.info("release", release=running, result="confirmed")
            return Answer(200, {"release": running, "result": "confirmed", "previous": self.releases.previous})

    def give_back(self, query: Mapping[str, str], connection: str) -> Answer:
        """Back to the previous release: at once from a trial, else by a trial of that one."""
        with self._busy:
            if not self.releases.running:
                return self._in_a_cell()
            try:
                gone = self.releases.take_back("the manager asked for it")
            except ReleaseError as error:
                return self._conflict(str(error))
            if gone:
                self.later(self.releases.restart)
                return Answer(202, {"release": self.releases.current, "previous": "", "returned": gone, "seconds": 0})
            previous = self.releases.previous
            if not previous or previous == self.releases.running:
                return self._conflict("there is no release before this one")
            if refusal := self._refusal():
                return refusal
            return self._try(previous, SECONDS, query.get("change") == "allow", connection)

    def _try(self, release: str, seconds: int, is_change_allowed: bool, connection: str) -> Answer:
        running = self.releases.running
        if release == running == self.releases.current:
            return Answer(200, {"release": release, "result": "unchanged", "previous": self.releases.previous})
        try:
            seconds_to_try = max(CHECK_S, TOOLS * self.engine.settings.tool_seconds)
            found = self.check(self.releases.path(release), seconds_to_try)
        except TrialError as error:
            return self._refused(str(error), f"release {release}")
        with self.engine.lock:  # no push between the comparison and the switch
            if refusal := self._refusal() or self._differs(release, found, is_change_allowed):
                return refusal
            # Who is on the machine itself has no connection that outlives the restart.
            ours = connection if connection.startswith("sshd ") else ""
            try:
                self.releases.start_trial(release, seconds, ours)
            except ReleaseError as error:
                return Answer(500, {"error": str(error), "result": "nothing touched", "release": running})
        self.log.info("release", release=release, previous=running, seconds=seconds, result="on trial")
        self.later(self.releases.restart)
        return Answer(202, {"release": release, "previous": running, "seconds": seconds, "version": found["version"]})

    def _differs(self, release: str, found: Mapping[str, Any], is_change_allowed: bool) -> Answer | None:
        number = self.engine.current.number
        if found["generation"] != number and not self.engine.unmade:
            words = f"it was tried on generation {found['generation']}, the machine is at {number} by now; try again"
            return self._conflict(words)
        ours, theirs = list(lines(self.engine.current.state)), found["lines"]
        if is_change_allowed or ours == theirs:
            return None
        changed = list(difference(ours, theirs, "running", release))
        if len(changed) > DIFF_LINES:
            changed = [*changed[:DIFF_LINES], f"... and {len(changed) - DIFF_LINES} lines more"]
        answer = self._conflict(f"release {release} makes another machine of generation {number}; allow the change")
        return Answer(409, {**answer.body, "diff": "\n".join(changed)})

    # --- refusals

    def _refusal(self) -> Answer | None:
        if not self.releases.running:
            return self._in_a_cell()
        if trial := self.releases.trial:
            words = f"release {trial['release']} is on trial; confirm it, return it, or let it lapse"
            return self._conflict(words)
        if waiting := self.engine.awaiting:
            words = f"generation {waiting.generation.number} waits for its confirmation; confirm it or let it lapse"
            return self._conflict(words)
        return None

    def _in_a_cell(self) -> Answer:
        words = "a cell runs its host's own code; restart it for a newer one, or put the router into a VM"
        return Answer(409, {"error": words, "release": ""})

    def _refused(self, words: str, place: str) -> Answer:
        told = {"error": "the release is refused; nothing was touched", "problems": [{"path": place, "message": words}]}
        return Answer(422, {**told, "release": self.releases.running})

    def _conflict(self, words: str) -> Answer:
        return Answer(409, {"error": words, "release": self.releases.running})

    def _what_became(self, release: str) -> str:
        running, returned = self.releases.running, self.releases.returned
        if returned and returned["release"] == release:
            return f"; {release} was taken back: {returned['why']}; {running} runs"
        return f"; {running} runs" if running else ""


def _later(deed: Callable[[], None]) -> None:
    """Do it when the answer that says so is on its way."""
    timer = threading.Timer(RESTART_DELAY_S, deed)
    timer.daemon = True
    timer.start()
