"""FakeHost: a machine in memory that validates, for tests of everything above the door.

It refuses what the kernel and the daemons would: a route over a link that is down or missing, a jump to no chain, a
reload of a unit that does not run; and it knows, as the real one does, which content of its files a unit has read.
`fail_at` breaks the n-th commit, `lie_at` makes one say yes and do nothing, `refuse` and `refuse_nft` are a tool's no.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from appliance.machine import CheckError, HostError, Told
from appliance.plan import Flows, Lost, Step, peer_key
from appliance.state import (
    Address,
    Advert,
    Check,
    Entry,
    Facts,
    File,
    Link,
    LinkFact,
    LiveFlow,
    Nat,
    Peer,
    Pool,
    Route,
    Rule,
    Ruleset,
    SetMark,
    Shaper,
    State,
    Sysctl,
    Unit,
    Verdict,
    VerdictMap,
    Wireguard,
)
from appliance.usage import Reading, source_of
from appliance.vitals import Trouble


def facts(*macs: str, control: str = "") -> Facts:
    """Facts of a machine whose interfaces eth0, eth1, ... have these MACs; the first is the control interface."""
    links = {mac: LinkFact(f"eth{i}", mac, i + 2, 1500, True) for i, mac in enumerate(macs)}
    return Facts("fake", links, control or (macs[0] if macs else ""))


@dataclass
class FakeHost:
    """Implements appliance.machine.Host. What it is stands in `machine`; what was done in `done`."""

    known: Facts
    machine: State = field(default_factory=State)
    done: list[Step] = field(default_factory=list)
    ended: list[Flows] = field(default_factory=list)
    read: dict[str, tuple[File, ...]] = field(default_factory=dict)  # what each unit read when it was last told to
    clock: float = 1_000_000.0
    fail_at: int = -1  # so many commits from now on, one fails (-1: none)
    fail_for: int = 1  # so many in a row
    lie_at: int = -1  # so many commits from now on, one says yes and does nothing (-1: none)
    blind: bool = False  # nothing can be observed
    refuse: list[dict[str, str]] = field(default_factory=list)  # what the dry check says
    refuse_nft: str = ""  # what nft says to every ruleset
    ill: tuple[Trouble, ...] = ()  # what is wrong with disks, memory and clock
    held: dict[str, str] = field(default_factory=dict)  # units whose processes cannot act, and why
    answers: dict[str, Told | None] = field(default_factory=dict)  # to checks: "kind target"; None: no time for it
    asked: list[tuple[Check, ...]] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)  # boot units that were started anew
    ahead: float = 0.0  # seconds by which the wall's clock was set forward since
    counted: list[Reading] = field(default_factory=list)  # what its counters stand at
    live: list[LiveFlow] = field(default_factory=list)
    on_commit: Callable[[Step], None] | None = None

    def facts(self) -> Facts:
        return self.known

    def now(self) -> float:
        return self.clock + self.ahead

    def monotonic(self) -> float:
        return self.clock

    def run(self, argv: tuple[str, ...], stdin: bytes = b"", seconds: float = 30.0) -> tuple[int, bytes, bytes]:
        raise HostError(f"{argv[0]} is not installed", "a fake machine has no programs")

    def live_flows(self, wanted: Callable[[LiveFlow], bool], most: int, after: int) -> list[LiveFlow]:
        return [f for f in sorted(self.live, key=lambda f: f.id) if f.id > after and wanted(f)][:most]

    def readings(self, state: State, only: Mapping[str, Collection[str]] | None = None) -> list[Reading]:
        if only is None:
            return list(self.counted)
        sources = {source_of(name, key) for name, keys in only.items() for key in keys}
        return [r for r in self.counted if r.source in sources]

    def counters(self) -> dict[str, dict[str, int]]:
        return {}

    def ask_members(self, state: State) -> frozenset[str]:
        return self.known.down

    def legacy(self) -> list[str]:
        return []

    def troubles(self, newest: float) -> tuple[Trouble, ...]:
        return self.ill

    def ask(self, checks: Sequence[Check]) -> list[Told | None]:
        self.asked.append(tuple(checks))
        return [self.answers.get(f"{c.kind} {c.target}", (True, "it is so")) for c in checks]

    def idle(self, units: Sequence[Unit]) -> dict[str, str]:
        running = {u.name for u in self.machine.units}
        return {
            u.name: self.held.get(u.name, "it does not run") for u in units if u.name not in running - set(self.held)
        }

    def stuck(self) -> dict[str, str]:
        return dict(self.held)

    def renew(self, name: str) -> None:
        self.renewed.append(name)
        self.held.pop(name, None)

    def hear(self, events: Any) -> None:
        pass  # it tells nobody anything

    def own(self, event: Any) -> bool:
        return False

    def check(self, steps: Sequence[Step], after: State) -> None:
        told = {s.after.apart for s in steps if isinstance(s.after, Unit)}
        if found := [p for p in self.refuse if p.get("folder", "") in {"", *told}]:
            raise CheckError(found)
        for step in steps:
            if isinstance(step.after, Unit):
                _need(not set(step.after.checks) - {f.path for f in after.files}, f"{step}: a file to check is missing")

    def commit(self, step: Step) -> None:
        if self.on_commit:
            self.on_commit(step)
        if self._is_due_to_lie():
            return
        if self._is_due_to_fail():
            raise HostError(f"{step}: broken on purpose", "evidence of the fake")
        part = step.after if step.after is not None else step.before
        if isinstance(part, Lost):
            self.ended += part.flows
        elif isinstance(part, Ruleset):
            if self.refuse_nft:
                raise HostError(f"{step}: {self.refuse_nft}", self.refuse_nft, refused=True)
            _valid(part)
            m = self.machine
            self.machine = replace(m, meters=part) if step.kind == "meters" else replace(m, ruleset=part)
        else:
            self._change(step, part)
        self.done.append(step)

    def _is_due_to_lie(self) -> bool:
        is_due = self.lie_at == 0
        self.lie_at = max(self.lie_at - 1, -1)
        return is_due

    def _is_due_to_fail(self) -> bool:
        if self.fail_at > 0:
            self.fail_at -= 1
            return False
        if self.fail_at == 0:
            self.fail_for -= 1
            if self.fail_for == 0:
                self.fail_at, self.fail_for = -1, 1
            return True
        return False

    def _change(self, step: Step, part: Any) -> None:
        m = self.machine
        gone = step.after is None
        names = {link.name for link in self.known.links.values()} | {link.name for link in m.links}
        if isinstance(part, Sysctl):
            self.machine = replace(m, sysctls=_with(m.sysctls, part, lambda p: p.key, gone))
        elif isinstance(part, Link):
            _need(gone or part.name in names or part.kind != "", f"{step}: no such device")
            self.machine = replace(m, links=_with(m.links, part, lambda p: p.name, gone))
            if gone and part.kind:
                self._forget(part.name)
        elif isinstance(part, Wireguard):
            made = {link.name for link in m.links if link.kind == "wireguard"}
            taken = {w.port for w in m.wireguards if w.link != part.link}
            _need(part.link in made, f"{step}: no such device")
            _need(part.port not in taken, f"{step}: address in use")
            self.machine = replace(m, wireguards=_with(m.wireguards, part, lambda p: p.link, gone))
        elif isinstance(part, Peer):
            self._peer(step, part, gone)
        elif isinstance(part, Address):
            _need(gone or part.link in names, f"{step}: no such device")
            self.machine = replace(m, addresses=_with(m.addresses, part, lambda p: (p.link, p.cidr), gone))
        elif isinstance(part, Route):
            up = {link.name for link in m.links if link.up}
            _need(gone or part.link in up | {"lo"}, f"{step}: network is down")
            key: Callable[[Route], Any] = lambda p: (p.destination, p.table, p.metric)  # noqa: E731
            self.machine = replace(m, routes=_with(m.routes, part, key, gone))
        elif isinstance(part, Rule):
            self.machine = replace(m, rules=_with(m.rules, part, lambda p: p, gone))
        elif isinstance(part, Shaper):
            _need(gone or part.link in names, f"{step}: no such device")
            _need(gone or _is_tree(part), f"{step}: a class is part of none, or of one that has no parts")
            self.machine = replace(m, shapers=_with(m.shapers, part, lambda p: p.link, gone))
        elif isinstance(part, File):
            _need(gone or part.path.startswith("/"), f"{step}: not an absolute path")
            self.machine = replace(m, files=_with(m.files, part, lambda p: p.path, gone))
        elif isinstance(part, Unit):
            self._order(step, part)
        elif isinstance(part, Entry):
            _need(gone or part.unit in {u.name for u in m.units}, f"{step}: {part.unit} does not run")
            self.machine = replace(m, entries=_with(m.entries, part, lambda p: (p.unit, p.kind, p.name), gone))
        elif isinstance(part, Pool):
            _need(any(u.console == part.console for u in m.units), f"{step}: no haproxy answers on {part.console}")
            self.machine = replace(m, pools=_with(m.pools, part, lambda p: p.name, gone))
        elif isinstance(part, Advert):
            self.machine = replace(m, adverts=_with(m.adverts, part, lambda p: p, gone))

    def _forget(self, link: str) -> None:
        """What goes with a link that is removed."""
        m = self.machine
        self.machine = replace(
            m,
            wireguards=tuple(p for p in m.wireguards if p.link != link),
            peers=tuple(p for p in m.peers if p.link != link),
            addresses=tuple(p for p in m.addresses if p.link != link),
            routes=tuple(p for p in m.routes if p.link != link),
        )

    def _peer(self, step: Step, part: Peer, gone: bool) -> None:
        """A network belongs to one peer of a link: who comes last takes it."""
        m = self.machine
        _need(gone or part.link in {w.link for w in m.wireguards}, f"{step}: no such device")
        _need(not gone or any(peer_key(p) == peer_key(part) for p in m.peers), f"{step}: no such peer")
        taken = set() if gone else set(part.networks)
        others = (
            replace(p, networks=tuple(n for n in p.networks if n not in taken)) if p.link == part.link else p
            for p in m.peers
        )
        self.machine = replace(m, peers=_with(tuple(others), part, peer_key, gone))

    def _order(self, step: Step, unit: Unit) -> None:
        running = {u.name for u in self.machine.units}
        _need(step.verb not in ("reload", "restart", "stop") or unit.name in running, f"{step}: not active")
        _need(step.verb == "stop" or bool(unit.command), f"{step}: no command")
        units = _with(self.machine.units, unit, lambda p: p.name, step.verb == "stop")
        kept = self.machine.entries
        if step.verb != "reload":
            kept = tuple(t for t in kept if t.unit != unit.name)  # it forgets with its end
        is_gone = step.verb == "stop" and bool(unit.console)
        pools = tuple(p for p in self.machine.pools if not is_gone or p.console != unit.console)
        self.machine = replace(self.machine, units=units, pools=pools, entries=kept)
        self.read[unit.name] = self._on_disk(unit)
        self.held.pop(unit.name, None)

    def _on_disk(self, unit: Unit) -> tuple[File, ...]:
        paths = {*unit.restart_on, *unit.reload_on}
        return tuple(sorted((f for f in self.machine.files if f.path in paths), key=lambda f: f.path))

    def observe(self, wished: State, others: Sequence[State]) -> State:
        return self._seen(wished, (f for s in others for f in s.files), {link.name for s in others for link in s.links})

    def look(self, steps: Sequence[Step], wished: State) -> State:
        parts = [p for s in steps for p in (s.before, s.after)]
        links = {p.link for p in parts if isinstance(p, Address)} | {p.name for p in parts if isinstance(p, Link)}
        return self._seen(wished, (p for p in parts if isinstance(p, File)), links)

    def _seen(self, wished: State, files: Iterable[File], links: set[str]) -> State:
        """The machine, as far as it is ours: what is wished, and `files` and `links` that may be left over."""
        if self.blind:
            raise HostError("cannot observe: broken on purpose", "evidence of the fake")
        m = self.machine
        paths = {f.path for f in (*wished.files, *files)}
        managed = {link.name for link in wished.links} | links
        keys = {s.key for s in wished.sysctls}
        return replace(
            m,
            files=tuple(f for f in m.files if f.path in paths),
            links=tuple(link for link in m.links if link.name in managed),
            wireguards=tuple(w for w in m.wireguards if w.link in managed),
            peers=tuple(p for p in m.peers if p.link in managed),
            addresses=tuple(a for a in m.addresses if a.link in managed),
            sysctls=tuple(s for s in m.sysctls if s.key in keys),
            pools=tuple(p for p in m.pools if p.name in {w.name for w in wished.pools}),
            units=tuple(u if self._is_well(u) else replace(u, command=()) for u in m.units),
            entries=tuple(e for e in m.entries if e.unit in {u.name for u in wished.units}),
            probes=wished.probes,
            members=wished.members,
            checks=wished.checks,
        )

    def _is_well(self, unit: Unit) -> bool:
        return unit.name not in self.held and self._has_read(unit)

    def _has_read(self, unit: Unit) -> bool:
        return unit.name not in self.read or self.read[unit.name] == self._on_disk(unit)

    def flows(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        return [{"owner": s.owner, "flow": s.name} for s in steps if s.kind == "flows"]

    def probe(self, state: State) -> str:
        return "a fake machine has no gateways"


def _with(parts: tuple[Any, ...], part: Any, key: Callable[[Any], Any], gone: bool) -> tuple[Any, ...]:
    rest = tuple(p for p in parts if key(p) != key(part))
    return rest if gone else (*rest, part)


def _is_tree(shaper: Shaper) -> bool:
    numbers = shaper.classes.keys()
    return all(
        0 < n < 0xFFFF
        and (not c.parent or c.parent in numbers and c.parent < 0x8000 and c.parent != n)
        and 0 < c.rate_kbit <= c.ceil_kbit
        for n, c in shaper.classes.items()
    )


def _need(good: bool, words: str, refused: bool = False) -> None:
    if not good:
        raise HostError(words, refused=refused)


def _valid(ruleset: Ruleset) -> None:
    """What nft would refuse: a reference to a chain or set that isn't there, a field count that isn't the set's."""
    chains = {c.name for c in ruleset.chains}
    _need(len(chains) == len(ruleset.chains), "two chains of one name", refused=True)
    for chain in ruleset.chains:
        for rule in chain.rules:
            s = rule.statement
            if isinstance(s, Verdict) and s.chain:
                _need(s.chain in chains, f"{chain.name}: jump to {s.chain}, which is not there", refused=True)
            looked = [(m.set, m.fields) for m in rule.matches if m.set]
            if isinstance(s, VerdictMap | Nat | SetMark) and s.map:
                looked.append((s.map, s.fields))
            for name, fields in looked:
                _need(name in ruleset.sets, f"{chain.name}: no set {name}", refused=True)
                alike = len(fields) == len(ruleset.sets[name].key.split(" . "))
                _need(alike, f"{chain.name}: fields of {name}", refused=True)
    for name, item in ruleset.sets.items():
        _need(name == item.name, f"set {item.name} stands under {name}", refused=True)
        if item.value == "verdict":
            for key, value in item.elements.items():
                word, _, target = value.partition(" ")
                _need(not target or target in chains, f"{name} {key}: {word} to {target} is not there", refused=True)
