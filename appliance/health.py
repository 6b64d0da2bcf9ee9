"""Health: what a State has to be well, asked again and again, apart from every push; what failed, since when and why.

Asked are the State's checks (state.py) and what any State brings along: its units, the certificates in its files,
disks, memory, clock, and whether the machine is what it should be. Nothing that a State does not have is asked, so
nothing warns of it. Of the forwards a sample is asked in turn, whatever their number; those that fail are named until
they are asked again. The asking is a child's (checkup.py): a dead gateway delays this thread, and nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from appliance import certificate
from appliance.engine import Engine
from appliance.log import Log
from appliance.machine import HostError, Told
from appliance.metrics import Metrics
from appliance.state import Check, NftSet, Ruleset, State

EVERY_S = 60.0  # between two rounds
EARLIEST_S = 10.0  # of a round after the one before, whatever has changed
SAMPLE = 32  # forwards asked in a round
NAMED = 100  # failing forwards that are named
DAYS = 21  # a certificate that ends within so many is told of

_REMEDY = {
    "unit": "read its log (GET /v1/support); push the document again to start it anew",
    "gateway": "look at the link, the address and the gateway itself; ask by POST /v1/diagnostics (ping, arping)",
    "dns": "look at the server; ask by POST /v1/diagnostics (dns)",
    "dhcp": "read the log of this link's DHCP unit",
    "tcp": "start what should listen there, or take the object out of the document",
    "forward": "start what should listen there, or take the forward out of the document",
    "wireguard": "compare keys, preshared key and endpoint with the far end; is its UDP port open on the way?",
    "bgp": "compare AS numbers, password and addresses with the peer; is TCP port 179 open on the way?",
    "ipsec": "compare secrets, ids, ciphers and networks with the peer; are UDP 500 and 4500 open on the way?",
    "report": "read the log of the unit that reports",
    "certificate": "push a document with a renewed certificate",
    "disk": "remove something, or make it larger",
    "memory": "give the machine more",
    "clock": "name NTP servers that answer in the seed",
    "machine": "read `broken` and `drift`; push the document again",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a check came to. `since`: when it became so; `last`: when it was asked last; both in seconds since 1970."""

    kind: str
    object: str
    target: str
    ok: bool
    why: str
    since: float
    last: float
    days: float | None = None  # until a certificate ends

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.object, self.target

    @property
    def labels(self) -> str:
        return f'kind="{self.kind}",object="{self.object}",target="{self.target}"'

    def told(self) -> dict[str, Any]:
        """As JSON; `remedy` where it failed."""
        told = {name: getattr(self, name) for name in ("kind", "object", "target", "ok", "why", "since", "last")}
        return told if self.ok else {**told, "remedy": _REMEDY[self.kind]}


Results = dict[tuple[str, str, str], Result]


class Health:
    """The results of one engine's checks. Thread-safe: one round at a time, and reading waits for none."""

    def __init__(self, engine: Engine, log: Log, metrics: Metrics) -> None:
        self.engine, self.log, self.metrics = engine, log, metrics
        self.results: Results = {}
        self._round = threading.Lock()
        self._forwards: dict[str, Result] = {}  # those that were asked, by their keys
        self._next = self._total = 0  # whose turn it is, of how many

    def told(self) -> dict[str, Any]:
        """As JSON: how many failed, and all results, those first."""
        found = sorted(self.results.values(), key=lambda r: (r.ok, r.key))
        return {"failing": sum(not r.ok for r in found), "checks": [r.told() for r in found]}

    # --- a round

    def look(self) -> None:
        """Ask everything once. It takes some seconds where somebody does not answer."""
        with self._round:
            state, now = self.engine.current.state, self.engine.host.now()
            found = [
                *self._machine(now),
                *self._units(state, now),
                *_certificates(state, now),
                *self._asked(state, now),
            ]
            before = self.results
            self.results = {r.key: _with_since(r, before.get(r.key)) for r in found}
            self._tell(before)

    def _machine(self, now: float) -> Iterator[Result]:
        engine = self.engine
        troubles = {t.what.partition(" ")[0]: t for t in engine.troubles}
        for kind in ("disk", "memory", "clock"):
            trouble = troubles.get(kind)
            what, words = (trouble.what, trouble.words) if trouble else (kind, "it is as it should be")
            yield Result(kind, "", what, not trouble, words, now, now)
        left = engine.drifts[-1].reason if engine.drifts and not engine.drifts[-1].healed else ""
        words = engine.broken or (f"it was found changed ({left}), and is left so" if left else "")
        yield Result("machine", "", "machine", not words, words or "it is what the document says", now, now)

    def _units(self, state: State, now: float) -> Iterator[Result]:
        try:
            idle = self.engine.host.idle(state.units)
        except HostError as error:
            idle = {unit.name: str(error) for unit in state.units}
        for unit in state.units:
            why = idle.get(unit.name, "")
            yield Result("unit", unit.owner, unit.name, not why, why or "it runs", now, now)

    def _asked(self, state: State, now: float) -> Iterator[Result]:
        """The State's checks; what there was no time for keeps the result that it had."""
        sample = next((check for check in state.checks if check.kind == "forwards"), None)
        turn = self._turn(state.ruleset if sample else Ruleset())
        turn = {key: replace(check, here=sample.here if sample else "") for key, check in turn.items()}
        checks = [check for check in state.checks if check.kind != "forwards"]
        told = self._ask([*checks, *turn.values()])
        for check, answer in zip(checks, told, strict=False):
            if answer is not None:
                yield Result(check.kind, check.owner, _target(check), *answer, now, now)
            elif kept := self.results.get((check.kind, check.owner, _target(check))):
                yield kept
        for (key, check), answer in zip(turn.items(), told[len(checks) :], strict=True):
            if answer is not None:
                self._forwards[key] = Result("forward", check.owner, _target(check), *answer, now, now)
        if self._forwards:
            yield from self._of_forwards(now)

    def _ask(self, checks: list[Check]) -> list[Told | None]:
        try:
            return self.engine.host.ask(checks) if checks else []
        except HostError as error:
            self.log.error("health", error=str(error))
            return [None] * len(checks)

    # --- forwards

    def _turn(self, ruleset: Ruleset) -> dict[str, Check]:
        """The next forwards in turn, by the map and the key of each; those that are gone are forgotten."""
        maps = {s.name: s for s in ruleset.sets.values() if s.value.startswith("ipv4_addr") and "inet_proto" in s.key}
        self._forwards = {k: r for k, r in self._forwards.items() if _is_there(maps, k)}
        self._total = sum(len(s.elements) for s in maps.values())
        if not self._total:
            return {}
        start = self._next % self._total
        self._next = start + SAMPLE
        both = chain.from_iterable(((s, key) for s in maps.values() for key in s.elements) for _ in range(2))
        some = islice(both, start, start + min(SAMPLE, self._total))
        return {f"{s.name} {key}": check for s, key in some if (check := _translated(s, key))}

    def _of_forwards(self, now: float) -> Iterator[Result]:
        failing = [r for r in self._forwards.values() if not r.ok]
        yield from failing[:NAMED]
        if not failing:
            words = f"the {len(self._forwards)} that were asked, of {self._total}, take connections"
            yield Result("forward", "", "", True, words, now, now)

    # --- telling

    def _tell(self, before: Results) -> None:
        """Log what has changed, and set the gauges."""
        for key, result in self.results.items():
            was = before.get(key)
            if result.ok != (was is None or was.ok):
                say = self.log.info if result.ok else self.log.warning
                say("check", kind=result.kind, object=result.object, target=result.target, why=result.why)
        found = list(self.results.values())
        self.metrics.replace("narthex_check_ok", {r.labels: int(r.ok) for r in found})
        said = {f'report="{r.target}",words="{_label(r.why)}"': 1 for r in found if r.kind == "report"}
        self.metrics.replace("narthex_report", said)
        self.metrics.replace("narthex_check_since_seconds", {r.labels: r.since for r in found})
        self.metrics.replace("narthex_certificate_days", {r.labels: r.days for r in found if r.days is not None})
        self.metrics.set("narthex_checks_failing", sum(not r.ok for r in found))


def _target(check: Check) -> str:
    return f"{check.target} port {check.name}" if check.kind == "tcp" else check.target


def _label(words: str) -> str:
    """Words as the value of a label in Prometheus' text."""
    return words.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _with_since(result: Result, before: Result | None) -> Result:
    return replace(result, since=before.since) if before and before.ok == result.ok else result


def _is_there(maps: dict[str, NftSet], key: str) -> bool:
    name, _, rest = key.partition(" ")
    return name in maps and rest in maps[name].elements


def _translated(found: NftSet, key: str) -> Check | None:
    """Where an element of a map leads TCP to, as a check; None where it is no TCP, or a map of something else."""
    fields = dict(zip(found.key.split(" . "), key.split(" . "), strict=False))
    if fields.get("inet_proto") != "tcp":
        return None
    address, _, port = found.elements[key].partition(" . ")
    first = (port or fields.get("inet_service", "")).partition("-")[0]
    return Check("tcp", address, first, owner=found.owners.get(key, "")) if first else None


def _certificates(state: State, now: float) -> Iterator[Result]:
    """Those in files, and in entries, where they stand in JSON."""
    texts = [(file.owner, file.path, file.content) for file in state.files]
    texts += [(e.owner, f"{e.unit} {e.name}", e.content.replace("\\n", "\n")) for e in state.entries]
    for owner, where, text in texts:
        if certificate.BEGIN not in text:
            continue
        try:
            end = certificate.ends(text)
        except certificate.CertificateError as error:
            yield Result("certificate", owner, where, False, str(error), now, now)
            continue
        if end is not None:
            days = (end - now) / 86400
            words = f"it ended {-days:.0f} days ago" if days < 0 else f"it ends in {days:.0f} days"
            yield Result("certificate", owner, where, days >= DAYS, words, now, now, round(days, 2))


class Rounds(threading.Thread):
    """Looks on a timer, and soon after what is to be asked has changed."""

    def __init__(self, health: Health) -> None:
        super().__init__(name="health", daemon=True)
        self.health = health
        self._end = threading.Event()

    def stop(self) -> None:
        self._end.set()

    def run(self) -> None:
        engine = self.health.engine
        seen = engine.current.state
        earliest = engine.host.monotonic() + EARLIEST_S
        latest = earliest + EVERY_S
        while not self._end.wait(1.0):
            state, now = engine.current.state, engine.host.monotonic()
            is_new = (state.checks, state.units) != (seen.checks, seen.units)
            if now < earliest or not (is_new or now >= latest):
                continue
            try:
                self.health.look()
            except Exception as error:  # the next round may fare better
                self.health.log.error("health", error=f"{type(error).__name__}: {error}")
            seen, now = state, engine.host.monotonic()
            earliest, latest = now + EARLIEST_S, now + EVERY_S
