"""Usage: bytes and packets of each object, as sums that only grow. Pure but for the file they are kept in.

A kernel's or a daemon's counter starts again whenever what carries it does: a rule is replaced, a tunnel is made anew,
a machine starts. So what we tell of is never a counter but a sum of ours: at each reading we add by how much every
counter has grown since the one before. One that stands lower than it did, or whose `epoch` is another, began at zero
meanwhile.

What a counter counted after its last reading and before it went is lost; so it is read, too, right before a step that
takes counters away (Engine). The sums are on disk before they are told to anybody, together with the readings they were
made from: an agent that dies goes on from there, and a power cut loses what was counted since, at most SECONDS of it.

A sum outlives its object, for whoever asks late: DAYS days. An object that comes back goes on from its sum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.store import write_durably

SECONDS = 30.0  # between two readings of nobody's asking
DAYS = 31
_VERSION = 1

SOURCE = "meters "  # what the names of the packet filter's counters begin with

Four = tuple[int, int, int, int]  # bytes received, bytes sent, packets received, packets sent
NOTHING: Four = (0, 0, 0, 0)
NAMES = ("received_bytes", "sent_bytes", "received_packets", "sent_packets")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one counter stands at: `source` names the counter, once and for ever; `kind` and `id` whose traffic it is.

    Received and sent are the object's: a guest receives what the router sends it. Several counters may be of one object
    (its two addresses, its two directions): they add up. Whenever a counter starts again at zero and could have
    overtaken its old value before the next reading, its `epoch` must have changed (a process' start, a link's index).
    """

    kind: str  # addresses, networks, guests, vpn_users, vpn_sites, balancers
    id: str
    source: str
    values: Four
    epoch: str = ""


def source_of(name: str, key: str) -> str:
    """What a counter of the packet filter is called: by its set and its key."""
    return f"{SOURCE}{name} {key}"


def source_of_peer(link: str, public_key: str) -> str:
    """What a counter of WireGuard is called."""
    return f"wireguard {link} {public_key}"


class Usage:
    """The sums, kept in `path` (None: nowhere). `now` gives seconds since the epoch. Not thread-safe: the engine is."""

    def __init__(self, path: Path | None, now: Callable[[], float]) -> None:
        self._path, self._now = path, now
        self._sums: dict[tuple[str, str], Four] = {}
        self._seen: dict[tuple[str, str], float] = {}  # when an object was read last: those that are not any more
        self._last: dict[str, tuple[str, Four, str, str]] = {}  # counter -> epoch, values, kind, id
        self.since = now()
        self.unreadable = ""  # why the sums on disk could not be read
        self._changed = False
        if path is not None:
            self._load(path)

    # --- counting

    def add(self, readings: Iterable[Reading], whole: bool = True) -> None:
        """Add by how much the counters have grown. `whole`: the readings are of all objects that there are."""
        now, last, sums = self._now(), self._last, self._sums
        current = set()
        for r in readings:
            whose = r.kind, r.id
            current.add(whose)
            was = last.get(r.source)
            if was is not None and was[1] == r.values and was[0] == r.epoch:
                continue
            grown = r.values if was is None or was[0] != r.epoch else _growth(was[1], r.values)
            last[r.source] = r.epoch, r.values, *whose
            self._changed = True
            if grown != NOTHING or whose not in sums:
                sums[whose] = _sum(sums.get(whose, NOTHING), grown)
        for whose in current:
            self._seen.pop(whose, None)
        for whose in sums.keys() - current if whole else ():
            self._changed |= whose not in self._seen
            self._seen.setdefault(whose, now)
        self._prune(now)

    def forget(self, sources: Callable[[str], bool]) -> None:
        """The counters named so are gone, or new and at zero: what they stood at says nothing any more."""
        for source in [source for source in self._last if sources(source)]:
            del self._last[source]
            self._changed = True

    def _prune(self, now: float) -> None:
        gone = {whose for whose, at in self._seen.items() if not 0 <= now - at < DAYS * 86400}
        if not gone:
            return
        for whose in gone:
            del self._sums[whose], self._seen[whose]
        self._last = {source: was for source, was in self._last.items() if (was[2], was[3]) not in gone}
        self._changed = True

    # --- telling

    def told(self) -> dict[str, Any]:
        """The sums by kind and object, as JSON for the API."""
        kinds: dict[str, dict[str, Any]] = {}
        for (kind, ident), four in sorted(self._sums.items()):
            told: dict[str, Any] = dict(zip(NAMES, four, strict=True))
            if (at := self._seen.get((kind, ident))) is not None:
                told["gone_since"] = at
            kinds.setdefault(kind, {})[ident] = told
        return {"since": self.since, **kinds}

    def text(self) -> str:
        """The sums as Prometheus reads them."""
        lines = []
        sums = sorted(self._sums.items())
        for place, name in enumerate(NAMES):
            metric = f"narthex_usage_{name}_total"
            way, unit = name.split("_")
            lines += [f"# HELP {metric} {unit.capitalize()} {way}, by object.", f"# TYPE {metric} counter"]
            lines += [f'{metric}{{kind="{k}",id="{_quoted(i)}"}} {four[place]}' for (k, i), four in sums]
        return "\n".join([*lines, ""]) if sums else ""

    # --- the file

    def save(self) -> None:
        """Put the sums on disk, where they changed. Raises OSError with the old ones in place."""
        if self._path is None or not self._changed:
            return
        content = {
            "version": _VERSION,
            "since": self.since,
            "sums": [[*whose, *four, self._seen.get(whose, 0)] for whose, four in self._sums.items()],
            "last": [[source, epoch, *four, *whose] for source, (epoch, four, *whose) in self._last.items()],
        }
        write_durably(self._path, json.dumps(content, separators=(",", ":")).encode())
        self._changed = False

    def _load(self, path: Path) -> None:
        try:
            found = json.loads(path.read_bytes())
            self._take(found)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._sums, self._seen, self._last = {}, {}, {}
            self.unreadable = f"the sums in {path} cannot be read, and begin at zero: {type(error).__name__}: {error}"

    def _take(self, found: Mapping[str, Any]) -> None:
        self.since = float(found["since"])
        for kind, ident, *numbers, seen in found["sums"]:
            self._sums[kind, ident] = _four(numbers)
            if seen:
                self._seen[kind, ident] = float(seen)
        for source, epoch, *rest in found["last"]:
            self._last[source] = epoch, _four(rest[:4]), rest[4], rest[5]


def _four(numbers: list[Any]) -> Four:
    a, b, c, d = map(int, numbers)
    return a, b, c, d


def _growth(was: Four, now: Four) -> Four:
    """By how much a counter grew; all of it where it stands lower than it did."""
    if any(n < w for n, w in zip(now, was, strict=True)):
        return now
    return now[0] - was[0], now[1] - was[1], now[2] - was[2], now[3] - was[3]


def _sum(a: Four, b: Four) -> Four:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
