"""Drift: what nobody pushed. Events from the kernel and a timer; the engine observes, heals or reports.

An event is only a reason to look: it carries no truth. What our own commits cause is let pass, because the engine has
verified it; whatever slips through, the timer finds.
"""

from __future__ import annotations

import threading

from appliance import usage
from appliance.engine import Engine
from appliance.events import Events
from appliance.log import Log
from appliance.memory import give_back
from appliance.units import BOOT_UNITS

SETTLE = 0.2  # seconds after the first event in which more may come: one look for all of them
QUIET = 1.0  # seconds without a push after which memory is given back
PULSE = 2.0  # seconds between two looks for processes that cannot act: it costs a fraction of a millisecond
EXAMINATION = 10.0  # seconds between two looks at disks, memory and clock
PAUSE = 1.0  # seconds between two looks, so that a quarrel with another program costs little


class Watch(threading.Thread):
    """Runs until `stop()`. `seconds` between two looks of the timer."""

    def __init__(self, engine: Engine, log: Log, seconds: float, events: Events | None = None) -> None:
        super().__init__(name="watch", daemon=True)
        self.engine, self.log, self.seconds = engine, log, seconds
        self.events = events
        self._stop = threading.Event()
        self._seen, self._quiet_since = -1, 0.0
        self._next_pulse = self._next_look = self._next_count = 0.0
        self._stuck: dict[str, str] = {}

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        if self.events is None:
            self.events = Events()
        self.engine.host.hear(self.events)
        next_look = self.engine.host.monotonic() + self.seconds
        while not self._stop.is_set():
            self._give_back()
            wait = max(0.0, min(0.5, next_look - self.engine.host.monotonic()))
            reason, by = self._heard(wait)
            self.engine.expire()
            self.pulse()
            self._ask()
            self._count()
            due = self.engine.host.monotonic() >= next_look
            if not reason and not due:
                continue
            try:
                self.engine.heal(reason or "timer", by)
                self._look_for_legacy()
            except Exception as error:  # the watch must outlive whatever it meets
                self.log.error("watch", error=f"{type(error).__name__}: {error}")
            next_look = self.engine.host.monotonic() + self.seconds
            if reason:
                self._stop.wait(PAUSE)

    def pulse(self) -> None:
        """Start anew what is there and cannot act. What that does not help is left to the timer's look."""
        now = self.engine.host.monotonic()
        if now < self._next_pulse:
            return
        self._next_pulse = now + PULSE
        try:
            self._examine(now)
            stuck = self.engine.host.stuck()
            if not stuck or stuck == self._stuck:
                self._stuck = stuck
                return
            self._stuck = stuck
            for name in sorted(BOOT_UNITS & stuck.keys()):
                self.log.warning("renewed", unit=name, reason=stuck[name])
                self.engine.host.renew(name)
            if rest := sorted(stuck.keys() - BOOT_UNITS):
                self.engine.heal("; ".join(f"{name}: {stuck[name]}" for name in rest))
        except Exception as error:
            self.log.error("pulse", error=f"{type(error).__name__}: {error}")

    def _examine(self, now: float) -> None:
        if now >= self._next_look:
            self._next_look = now + EXAMINATION
            self.engine.examine()

    def _ask(self) -> None:
        try:
            self.engine.ask_members()
        except Exception as error:
            self.log.error("members", error=f"{type(error).__name__}: {error}")

    def _count(self) -> None:
        now = self.engine.host.monotonic()
        if now < self._next_count:
            return
        self._next_count = now + usage.SECONDS
        try:
            self.engine.count()
        except Exception as error:
            self.log.error("usage", error=f"{type(error).__name__}: {error}")

    def _give_back(self) -> None:
        """Once after each push, when it has been quiet for a while: it takes the interpreter some milliseconds."""
        now, number = self.engine.host.monotonic(), self.engine.current.number
        if number != self._seen:
            self._seen, self._quiet_since = number, now
        elif self._quiet_since and now - self._quiet_since > QUIET:
            self._quiet_since = 0.0
            give_back()

    def _look_for_legacy(self) -> None:
        """Rules that drop packets and stand in no nft listing: health tells of them; they aren't ours to remove."""
        found = self.engine.host.legacy()
        if found != self.engine.legacy:
            self.log.warning("legacy", rules=found)
            self.engine.legacy = found

    def _heard(self, wait: float) -> tuple[str, str]:
        """(the kinds of what changed, who did it) among the events of others; empty where there were none."""
        assert self.events is not None
        first = self.events.read(wait)
        if not first:
            return "", ""
        self._stop.wait(SETTLE)
        heard = [e for e in (*first, *self.events.read(0.0)) if not self.engine.host.own(e)]
        by = sorted({e.by for e in heard if e.by})
        return ", ".join(sorted({e.kind for e in heard})), ", ".join(by)
