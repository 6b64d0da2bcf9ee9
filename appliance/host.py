"""The only door out: LinuxHost, the real machine behind the Host protocol of machine.py.

The engine asks for five things: facts, a dry check, a step, an observation (of the whole machine, or of what some steps
touched), and the clock. Links, addresses, routes and rules go to netlink.py, the packet filter to nft.py, processes to
units.py; files and sysctls are here.
"""

from __future__ import annotations

import json
import operator
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import conntrack, meters, nftelement, nftlist, probe
from appliance.adverts import Adverts
from appliance.events import Event, Events
from appliance.machine import CheckError, HaproxyError, HostError, Told
from appliance.members import Members
from appliance.metrics import Metrics
from appliance.netlink import Netlink, NetlinkError
from appliance.nft import Nft, NftError
from appliance.plan import Lost, Step
from appliance.pulse import Pulse
from appliance.ruleset import METERS, TABLE, UNKNOWN, observed, rule_digest
from appliance.settings import Settings
from appliance.state import (
    Address,
    Advert,
    Chain,
    Check,
    Entry,
    Facts,
    File,
    Link,
    LiveFlow,
    NftSet,
    Peer,
    Pool,
    Route,
    Rule,
    Ruleset,
    Shaper,
    State,
    Sysctl,
    Unit,
    Wireguard,
)
from appliance.store import write_durably
from appliance.tc import Shapers, changes
from appliance.units import UnitError, UnitRunner, UnitStatus, definition
from appliance.usage import Reading, source_of_peer
from appliance.vitals import Trouble, Vitals

if TYPE_CHECKING:
    from appliance.charon import Charon
    from appliance.haproxy import Haproxy
    from appliance.wireguard import WireguardLinks

TABLES = {"ruleset": TABLE.partition(" ")[2], "meters": METERS.partition(" ")[2]}  # by the kind of step
BLOCK = 4096  # of a disk: what the smallest file takes
CHECKUP_S = 30.0  # until the asking of all checks is ended: it keeps to half of that by itself
_BEFORE_NFT = frozenset({"sysctl", "link", "wireguard", "peer", "address", "route", "rule"})
LARGE = 16384  # characters of nft text: some hundred elements
LET_GO_S = 3.0  # until a unit must have let go of an address that it was told to


class LinuxHost:
    """The machine this process runs on."""

    def __init__(
        self, settings: Settings, runner: UnitRunner, metrics: Metrics, netlink: Netlink | None = None
    ) -> None:
        self.settings, self.runner, self.metrics = settings, runner, metrics
        self.netlink = netlink or Netlink()
        self.nft = Nft(self.run, settings.tool_seconds)
        self._wireguard: WireguardLinks | None = None
        self._fingerprints: dict[str, str] = {}  # of our tables
        self.shapers = Shapers()
        self._ears: Events | None = None
        self._own: deque[int] = deque(maxlen=64)  # nft generations that we made, to know our own events
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="check")
        self._adverts = Adverts(settings.run_dir)
        self._loaded = Path(settings.run_dir) / "loaded"
        self._members = Members(self.monotonic)
        self._haproxies: dict[str, Haproxy] = {}  # by console
        self._pulse = Pulse(self.monotonic)
        self._vitals = Vitals(settings, metrics)
        self._charon: Charon | None = None

    # --- processes

    def run(self, argv: tuple[str, ...], stdin: bytes = b"", seconds: float = 0.0) -> tuple[int, bytes, bytes]:
        """Run a tool: (exit status, output, error output). Raises HostError where it is missing or hangs.

        `seconds` until it is ended, 0 for the settings' `tool_seconds`.
        """
        seconds = seconds or self.settings.tool_seconds
        self.metrics.process(argv[0])
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise HostError(f"{argv[0]} is not installed", f"no such program: {argv[0]}") from None
        except OSError as error:
            raise HostError(f"{argv[0]} cannot be started: {error.strerror}", " ".join(argv)) from None
        with process:
            try:
                out, err = process.communicate(stdin, seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise HostError(
                    f"{argv[0]} did not answer within {seconds:g} s and was ended", " ".join(argv)
                ) from None
        return process.returncode, out, err

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    # --- facts

    def facts(self) -> Facts:
        try:
            links = self.netlink.facts()
        except NetlinkError as error:
            raise HostError(str(error)) from None
        s = self.settings
        return Facts(s.name, links, s.control_mac, s.state_dir, s.run_dir, self._members.down)

    def ask_members(self, state: State) -> frozenset[str]:
        self._members.tick(state.members)
        return self._members.down

    # --- dry checks

    def check(self, steps: Sequence[Step], after: State) -> None:
        """The daemons' own checks, in parallel, only of what changes. Raises CheckError with all that they said.

        `nft -c` is left out where the nft transaction is the first thing that the commit does: it is its own check,
        all or nothing, and nothing was touched before it.
        """
        _need_room(steps)
        jobs: list[Callable[[], dict[str, str] | None]] = []
        before_nft = any(s.kind in _BEFORE_NFT for s in steps)
        checked = [s for s in steps if s.kind == "unit" and isinstance(s.after, Unit) and s.after.check]
        for step in steps:
            if step.kind == "ruleset" and before_nft:
                jobs.append(lambda text=step.text: self._check_nft(text))  # type: ignore[misc]
        files = {f.path: f for f in after.files}
        changed = {s.name for s in steps if s.kind == "file"}
        for step in checked:
            unit = step.after
            assert isinstance(unit, Unit)
            if step.verb == "start" or changed.intersection(unit.checks):
                jobs.append(lambda unit=unit: self._check_unit(unit, files))  # type: ignore[misc]
        found = (
            [p for p in self._pool.map(lambda job: job(), jobs) if p]
            if len(jobs) > 1
            else [p for j in jobs if (p := j())]
        )
        if found:
            raise CheckError(found)

    def _check_nft(self, text: str) -> dict[str, str] | None:
        try:
            self.nft.check(text)
        except NftError as error:
            return {"path": "firewall", "message": error.words}
        return None

    def _check_unit(self, unit: Unit, files: dict[str, File]) -> dict[str, str] | None:
        try:
            with tempfile.TemporaryDirectory(prefix="check-", dir=self.settings.run_dir) as folder:
                return self._checked(unit, files, Path(folder))
        except OSError as error:
            words = f"cannot check unit {unit.name} in {self.settings.run_dir}: {error.strerror}; make room there"
            raise HostError(words, str(error)) from None

    def _checked(self, unit: Unit, files: dict[str, File], folder: Path) -> dict[str, str] | None:
        """What a unit's own dry check says of copies of its files in `folder`. Raises OSError."""
        copies = {}
        for number, path in enumerate(unit.checks):
            # Files that lie in a folder of their own may name each other: they lie together here too.
            is_beside = unit.apart and Path(path).parent == Path(unit.apart)
            copy = folder / (Path(path).name if is_beside else f"{number}-{Path(path).name}")
            copy.write_text(files[path].content)
            copies["{" + path + "}"] = str(copy)
        if unit.apart:
            copies["{" + unit.apart + "}"] = str(folder)
        status, out, err = self.run(tuple(_filled(word, copies) for word in unit.check))
        if status == 0:
            return None
        words = (err or out).decode(errors="replace").strip()
        for key, copy_path in copies.items():
            words = words.replace(copy_path, key[1:-1])
        named = _sections(words, {Path(path).name: files[path].content for path in unit.checks})
        told = {"path": f"unit {unit.name}{named}", "message": words[:1000]}
        return {**told, "folder": unit.apart} if unit.apart else told

    # --- steps

    def commit(self, step: Step) -> None:
        try:
            self._commit(step)
        except (NetlinkError, UnitError, HaproxyError) as error:
            raise HostError(f"{step}: {error}", getattr(error, "output", "") or str(error)) from None
        except NftError as error:
            raise HostError(f"{step}: {error.words}", error.words, refused=True) from None
        except OSError as error:
            raise HostError(f"{step}: {error.strerror}: {error.filename or ''}", str(error)) from None

    def _commit(self, step: Step) -> None:
        part = step.after if step.after is not None else step.before
        gone = step.after is None
        if isinstance(part, Ruleset):
            self._apply(step.text)
            if step.whole or not (isinstance(step.before, Ruleset) and step.before.chains is part.chains):
                self._fingerprints.pop(TABLES[step.kind], None)
        elif isinstance(part, Sysctl):
            _set_sysctl(part)
        elif isinstance(part, Link):
            if gone and part.kind:
                self.netlink.remove_link(part)
            else:
                self.netlink.set_link(replace(part, up=False) if gone else part)
        elif isinstance(part, Wireguard):
            self.wireguard.set_device(part)
        elif isinstance(part, Peer):
            (self.wireguard.remove_peer if gone else self.wireguard.set_peer)(part)
        elif isinstance(part, Address):
            self._address(step, part, gone)
        elif isinstance(part, Route):
            (self.netlink.remove_route if gone else self.netlink.add_route)(part)
        elif isinstance(part, Rule):
            (self.netlink.remove_rule if gone else self.netlink.add_rule)(part)
        elif isinstance(part, Shaper):
            self._shape(step, part)
        elif isinstance(part, File):
            self._file(part, gone)
        elif isinstance(part, Unit):
            self._unit(step, part)
        elif isinstance(part, Pool):
            self._make_pool(part)
        elif isinstance(part, Advert):
            (self._adverts.take_back if gone else self._adverts.tell)(part)
        elif isinstance(part, Entry):
            self._entry(part, gone)
        elif isinstance(part, Lost):
            conntrack.end_flows(*part.flows)

    def hear(self, events: Events) -> None:
        """Whose ears are to be covered while a large transaction is made."""
        self._ears = events

    def _apply(self, text: str) -> None:
        """One nft transaction; its generation is remembered as ours where no other came between."""
        ears = self._ears if len(text) > LARGE else None
        before = nftelement.generation()
        with ears.unheard() if ears else nullcontext():
            self.nft.apply(text)
        after = nftelement.generation()  # read when the ears are open again, so that nothing falls between
        if after == before + 1:
            self._own.append(after)
        elif ears:
            ears.miss()

    def _address(self, step: Step, part: Address, gone: bool) -> None:
        if gone:
            if part.floating:
                self._wait_for_its_holder(part)
            self.netlink.remove_address(part)
            return
        if isinstance(step.before, Address) and step.before.connected != part.connected:
            self.netlink.remove_address(step.before)  # the flag of a standing address cannot be changed
        self.netlink.add_address(part)
        if part.announce and not part.floating:
            self.netlink.announce(part.link, part.cidr)

    def _shape(self, step: Step, part: Shaper) -> None:
        if step.after is None:
            self.shapers.remove(part.link)
        else:
            self.shapers.set(step.before if isinstance(step.before, Shaper) else None, part)

    def _wait_for_its_holder(self, part: Address) -> None:
        """Until the unit that has a floating address, and was told just now to let it go, has done so."""
        deadline = self.monotonic() + LET_GO_S
        while self.monotonic() < deadline:
            if all(found.cidr != part.cidr for found in self.netlink.observe_addresses([part.link])):
                return
            time.sleep(0.02)

    def _file(self, part: File, gone: bool) -> None:
        path = Path(part.path)
        if gone:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, part.content.encode(), part.mode, _group(part.group) if part.group else -1)

    def _unit(self, step: Step, unit: Unit) -> None:
        if step.verb == "stop":
            self.runner.stop(unit.name)
            (self._loaded / unit.name).unlink(missing_ok=True)
            return
        {"start": self._start, "restart": self._restart, "reload": self._reload}[step.verb](unit)
        self._loaded.mkdir(parents=True, exist_ok=True)
        (self._loaded / unit.name).write_text(self._content_digest(unit))

    def _start(self, unit: Unit) -> None:
        self.runner.start(unit)
        if unit.console:
            self._balancer(unit.console).wait_ready()

    def _restart(self, unit: Unit) -> None:
        self.runner.restart(unit)
        if unit.console:
            self._balancer(unit.console).wait_ready()

    def _reload(self, unit: Unit) -> None:
        if unit.console:
            self._balancer(unit.console).reload(lambda: self.runner.reload(unit))
        elif unit.reload_by:
            self._reload_by(unit)
        else:
            self.runner.reload(unit)

    def _reload_by(self, unit: Unit) -> None:
        """By its own program."""
        status, out, err = self.run(unit.reload_by)
        if status != 0:
            words = (err + out).decode(errors="replace").strip()
            raise UnitError(unit.name, f"{unit.reload_by[0]} ended in {status}", words[-2000:])

    def _balancer(self, console: str) -> Haproxy:
        from appliance.haproxy import Haproxy  # most routers balance nothing: loaded where one does

        return self._haproxies.setdefault(console, Haproxy(console))

    def _make_pool(self, part: Pool) -> None:
        self._balancer(part.console).make(part)

    def _pools(self, wished: tuple[Pool, ...]) -> tuple[Pool, ...]:
        """The pools as they run; those of a haproxy that does not answer are not there."""
        if not wished:
            return ()
        from appliance.haproxy import as_wished

        found: list[Pool] = []
        for console in dict.fromkeys(p.console for p in wished):
            with suppress(HaproxyError):
                mine = tuple(p for p in wished if p.console == console)
                found += as_wished(self._balancer(console).tidied(mine), mine)
        return wished if len(found) == len(wished) and all(map(operator.is_, found, wished)) else tuple(found)

    def _entry(self, part: Entry, gone: bool) -> None:
        from appliance.charon import CharonError

        try:
            (self.charon().withdraw if gone else self.charon().tell)(part)
        except CharonError as error:
            raise UnitError(part.unit, str(error)) from None

    def charon(self) -> Charon:
        """Who speaks with charon: nobody's business in a machine without IPsec, so that it is loaded when it is."""
        from appliance.charon import Charon

        self._charon = self._charon or Charon(Path(self.settings.run_dir) / "told")
        return self._charon

    def _entries(self, wished: State, left: Iterable[object]) -> tuple[Entry, ...]:
        """The entries of all wished units that have some, or had them: `left` are those of before."""
        units = {unit.name for unit in wished.units}
        known = (*wished.entries, *(e for e in left if isinstance(e, Entry)))
        sockets = {e.unit: e.socket for e in known if e.unit in units}
        if not sockets:
            return ()
        from appliance.charon import CharonError

        try:
            return tuple(e for u, s in sockets.items() for e in self.charon().observe(u, s, wished.entries))
        except CharonError as error:
            raise UnitError("", str(error)) from None

    def _content_digest(self, unit: Unit) -> str:
        """A digest of the files that a unit reads, as they are on disk."""
        found = sha256()
        for path in (*unit.restart_on, *unit.reload_on):
            found.update(path.encode() + b"\0" + _content(path))
        return found.hexdigest()

    # --- observing

    def observe(self, wished: State, others: Sequence[State]) -> State:
        try:
            left = [link for s in others for link in s.links]
            names = [link.name for link in (*wished.links, *left)]
            wireguards, peers = self._wireguards(wished, left)
            return State(
                files=self._files(wished, others),
                units=self._units(wished.units),
                pools=self._pools(wished.pools),
                sysctls=_sysctls(wished.sysctls),
                links=self._links(wished, left),
                wireguards=wireguards,
                peers=peers,
                addresses=self.netlink.observe_addresses(names, wished.addresses),
                routes=self.netlink.observe_routes(wished.routes),
                rules=self.netlink.observe_rules(wished.rules),
                shapers=self.shapers.observe(wished.shapers),
                ruleset=self._table(wished.ruleset, TABLES["ruleset"]),
                meters=self._table(wished.meters, TABLES["meters"]),
                adverts=self._adverts.told(wished.adverts),
                entries=self._entries(wished, (e for s in others for e in s.entries)),
                probes=wished.probes,
                members=wished.members,
                checks=wished.checks,
            )
        except (NetlinkError, UnitError, NftError, OSError) as error:
            raise HostError(f"cannot observe: {error}") from None

    def _links(self, wished: State, left: Iterable[Link]) -> tuple[Link, ...]:
        """The links that are wished for, and those of `left` that nobody wishes any more and that are still up."""
        names = {link.name for link in wished.links}
        others = {link.name: link for link in left if link.name not in names}
        still_up = tuple(link for link in self.netlink.observe_links(others.values()) if link.up or link.kind)
        return self.netlink.observe_links(wished.links) + still_up

    def _wireguards(
        self, wished: State, left: Iterable[Link], touched: frozenset[tuple[str, str]] | None = None
    ) -> tuple[tuple[Wireguard, ...], tuple[Peer, ...]]:
        """The links of WireGuard as they are, and their peers: all, or those that were `touched`."""
        names = dict.fromkeys(link.name for link in (*wished.links, *left) if link.kind == "wireguard")
        return self.wireguard.observe(tuple(names), wished, self.now(), touched) if names else ((), ())

    @property
    def wireguard(self) -> WireguardLinks:
        """WireGuard's netlink: loaded when a document has it."""
        if self._wireguard is None:
            from appliance.wireguard import WireguardLinks

            self._wireguard = WireguardLinks()
        return self._wireguard

    def _table(self, wished: Ruleset, table: str) -> Ruleset:
        found = nftlist.listing(wished, table)
        if found is None:
            return Ruleset()
        listing, mark = found
        seen = observed(listing, wished)
        if seen.chains is wished.chains:
            if self._fingerprints.get(table, mark) != mark:
                return replace(seen, chains=())  # the marks are right and the rules are not: replace the table
            self._fingerprints[table] = mark
        return seen

    def _files(self, wished: State, others: Sequence[State]) -> tuple[File, ...]:
        found = []
        known = {f.path: f for s in others for f in s.files} | {f.path: f for f in wished.files}
        for path, file in known.items():
            try:
                info = os.stat(path)
                text, mode = Path(path).read_text(errors="replace"), info.st_mode & 0o7777
                same = not file.group or info.st_gid == _group(file.group)
                found.append(replace(file, content=text, mode=mode, group=file.group if same else f"{info.st_gid}"))
            except FileNotFoundError:
                continue
        return tuple(found)

    def _units(self, wished: Iterable[Unit]) -> tuple[Unit, ...]:
        """The units that are active; one that is stuck, runs otherwise or read other files has no command."""
        known = {u.name: u for u in wished}
        found = []
        for name, status in self.runner.observe().items():
            unit = known.get(name) or Unit(name, ())
            if not status.active:
                if unit.command:
                    continue
                found.append(unit)
            elif unit.command and status.definition == definition(unit) and self._has_read(unit):
                stuck = self._pulse.is_stuck(status.pid)
                found.append(replace(unit, command=()) if stuck else unit)
            else:
                found.append(replace(unit, command=()))
        return tuple(found)

    def _has_read(self, unit: Unit) -> bool:
        return _content(str(self._loaded / unit.name)) == self._content_digest(unit).encode()

    def troubles(self, newest: float) -> Sequence[Trouble]:
        return self._vitals.look(newest)

    def ask(self, checks: Sequence[Check]) -> list[Told | None]:
        asked = json.dumps([{f: getattr(c, f) for f in _OF_A_CHECK} for c in checks]).encode()
        status, out, err = self.run((sys.executable, "-m", "appliance.checkup"), asked, CHECKUP_S)
        if status != 0:
            words = err.decode(errors="replace").strip()
            raise HostError(f"the checks could not be asked: {words.splitlines()[-1] if words else status}", words)
        return [(bool(found[0]), str(found[1])) if found else None for found in json.loads(out)]

    def idle(self, units: Sequence[Unit]) -> dict[str, str]:
        try:
            running = self.runner.observe() if units else {}
        except UnitError as error:
            raise HostError(str(error), error.output) from None
        return {u.name: why for u in units if (why := self._why_idle(running.get(u.name)))}

    def _why_idle(self, status: UnitStatus | None) -> str:
        if status is None or not status.active:
            return "it does not run"
        return f"its process {status.pid} cannot act" if self._pulse.is_stuck(status.pid) else ""

    def stuck(self) -> dict[str, str]:
        try:
            running = self.runner.processes()
        except UnitError as error:
            raise HostError(str(error)) from None
        stuck = self._pulse.look({name: pids for name, pids in running.items() if name != "agent"})
        return {**self._charon.forgetful(running), **stuck} if self._charon else stuck

    def renew(self, name: str) -> None:
        try:
            self.runner.renew(name)
        except UnitError as error:
            raise HostError(str(error), error.output) from None

    def look(self, steps: Sequence[Step], wished: State) -> State:
        """What the steps touched, observed; all else as wished. A whole table or many parts are observed as a whole."""
        try:
            kinds = {s.kind for s in steps}
            left = [s.before for s in steps if isinstance(s.before, Link)]
            names = [link.name for link in wished.links]
            names += [s.before.link for s in steps if isinstance(s.before, Address)]
            seen = wished
            if "sysctl" in kinds:
                seen = replace(seen, sysctls=_sysctls(wished.sysctls))
            if "link" in kinds:
                seen = replace(seen, links=self._links(wished, left))
            if kinds & {"link", "wireguard", "peer"}:
                whole = bool(kinds & {"link", "wireguard"})
                wireguards, peers = self._wireguards(wished, left, None if whole else _peers_of(steps))
                seen = replace(seen, wireguards=wireguards, peers=peers)
            if kinds & {"link", "address"}:
                seen = replace(seen, addresses=self.netlink.observe_addresses(names, wished.addresses))
            if kinds & {"link", "address", "route"}:
                seen = replace(seen, routes=self.netlink.observe_routes(wished.routes))
            if "rule" in kinds:
                seen = replace(seen, rules=self.netlink.observe_rules(wished.rules))
            if "advert" in kinds:
                seen = replace(seen, adverts=self._adverts.told(wished.adverts))
            if "file" in kinds:
                seen = replace(seen, files=self._touched_files(steps, wished))
            if "unit" in kinds:
                seen = replace(seen, units=self._units(wished.units))
            if kinds & {"unit", "pool"}:
                seen = replace(seen, pools=self._pools(wished.pools))
            if "shaper" in kinds:
                seen = replace(seen, shapers=self._look_at_shapers(steps, wished))
            if "entry" in kinds:
                seen = replace(seen, entries=self._entries(wished, (s.before for s in steps)))
            for step in steps:
                if step.kind == "ruleset":
                    seen = replace(seen, ruleset=self._look_at_table(step, wished.ruleset))
                elif step.kind == "meters":
                    seen = replace(seen, meters=self._look_at_table(step, wished.meters))
            return seen
        except (NetlinkError, UnitError, NftError, OSError) as error:
            raise HostError(f"cannot observe: {error}") from None

    def _look_at_shapers(self, steps: Sequence[Step], wished: State) -> tuple[Shaper, ...]:
        touched = {s.name: s for s in steps if s.kind == "shaper"}
        if any(s.before is None or s.after is None for s in touched.values()):
            return self.shapers.observe(wished.shapers)
        found = []
        for shaper in wished.shapers:
            step = touched.get(shaper.link)
            gone, come = changes(step.before, shaper) if step and isinstance(step.before, Shaper) else ([], [])
            found.append(self.shapers.look(shaper, list({*gone, *come})))
        return tuple(found)

    def _touched_files(self, steps: Sequence[Step], wished: State) -> tuple[File, ...]:
        touched = {s.name: s for s in steps if s.kind == "file"}
        part = State(files=tuple(f for f in wished.files if f.path in touched))
        gone = State(files=tuple(s.before for s in touched.values() if isinstance(s.before, File)))
        return (*(f for f in wished.files if f.path not in touched), *self._files(part, [gone]))

    def _look_at_table(self, step: Step, wished: Ruleset) -> Ruleset:
        before, table = step.before, TABLES[step.kind]
        if step.whole or not isinstance(before, Ruleset):
            return self._table(wished, table)
        sets = dict(wished.sets)
        for name, (gone, come) in step.elements.items():
            sets[name] = _looked(wished.sets[name], {*gone, *come}, table)
        chains = wished.chains if before.chains is wished.chains else _looked_chains(before, wished, table)
        if chains is wished.chains and all(sets[n] is s for n, s in wished.sets.items()):
            # What is right now is what later looks are held against; waiting for the timer would take in an edit.
            if table not in self._fingerprints:
                self._fingerprints[table] = nftlist.fingerprint(table)
            return wished
        return Ruleset(sets, chains)

    # --- flows and probes

    def flows(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for lost in (step.before for step in steps if isinstance(step.before, Lost)):
            found += [{"flow": flow} for flow in conntrack.flows(*lost.flows, most=500)]
        return found

    def live_flows(self, wanted: Callable[[LiveFlow], bool], most: int, after: int) -> list[LiveFlow]:
        from appliance.flowlist import live_flows  # most agents are never asked

        try:
            return live_flows(wanted, most, after)
        except NetlinkError as error:
            raise HostError(str(error)) from None

    def readings(self, state: State, only: Mapping[str, Collection[str]] | None = None) -> list[Reading]:
        try:
            if only is not None:
                return meters.readings(state.meters, only)
            return [*meters.readings(state.meters), *self._of_peers(state), *self._of_pools(state)]
        except NetlinkError as error:
            raise HostError(f"cannot read the counters: {error}") from None

    def _of_peers(self, state: State) -> list[Reading]:
        """What WireGuard counted; what the router received, the peer sent."""
        if not state.peers:
            return []
        peers = {(p.link, p.public_key): p for p in state.peers if p.counted}
        counted = self.wireguard.counters(tuple(dict.fromkeys(p.link for p in state.peers)))
        indexes = {link: str(self.netlink.index(link)) for link in {link for link, _ in counted}}
        return [
            Reading(
                peer.counted, peer.owner, source_of_peer(link, key),
                (int(found["bytes_out"]), int(found["bytes_in"]), 0, 0), indexes[link],
            )
            for (link, key), found in counted.items()
            if (peer := peers.get((link, key)))
        ]  # fmt: skip

    def _of_pools(self, state: State) -> list[Reading]:
        """What haproxy counted, all its workers. One that does not answer is read the next time."""
        owners = {(p.console, p.name): p.owner for p in state.pools}
        found = []
        for console in {p.console for p in state.pools}:
            with suppress(HaproxyError):
                for c in self._balancer(console).counts():
                    if owner := owners.get((console, c.pool)):
                        source = f"haproxy {c.slot} {c.pool}/{c.server}"
                        whose = ("backends", f"{owner}/{c.server}") if c.server else ("balancers", owner)
                        found.append(Reading(*whose, source, c.values, c.epoch))
        return found

    def counters(self) -> dict[str, dict[str, int]]:
        found = {}
        for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
            name, _, numbers = line.partition(":")
            n = [int(word) for word in numbers.split()]
            found[name.strip()] = {"bytes_in": n[0], "packets_in": n[1], "bytes_out": n[8], "packets_out": n[9]}
        return found

    def legacy(self) -> list[str]:
        if not any(path.exists() and path.read_text().strip() for path in _LEGACY_NAMES):
            return []
        status, out, err = self.run((sys.executable, "-m", "appliance.legacy"))
        if status != 0:
            words = (err.decode(errors="replace").strip().splitlines() or ["no words"])[-1]
            return [f"there are legacy iptables tables, and they cannot be read: {words}"]
        return [f"{r['table']} {r['chain']}: {r['rule']} ({r['packets']} packets)" for r in json.loads(out)]

    def own(self, event: Event) -> bool:
        if event.kind == "ruleset":
            return event.generation in self._own
        return event.port != 0 and event.port == self.netlink.port

    def probe(self, state: State) -> str:
        results = probe.probe_gateways(state.probes, 2.0) if state.probes else []
        return "; ".join(map(str, results)) or "no gateway to ask"


def _peers_of(steps: Iterable[Step]) -> frozenset[tuple[str, str]]:
    """The peers that steps touched, by link and public key."""
    parts = (part for step in steps for part in (step.before, step.after))
    return frozenset((part.link, part.public_key) for part in parts if isinstance(part, Peer))


def _need_room(steps: Sequence[Step]) -> None:
    """Refuse what the disks have no room for, while nothing is touched: an undo needs room too. Raises HostError.

    A file is written beside the one that it takes the place of, so there must be room for the largest of them twice.
    """
    need: dict[str, tuple[int, int]] = {}  # folder: (by how much its files grow, the largest file)
    for step in steps:
        if step.kind == "file":
            was, comes = (len(part.content) if isinstance(part, File) else 0 for part in (step.before, step.after))
            folder = _standing(step.name.rpartition("/")[0])
            grow, largest = need.get(folder, (0, 0))
            need[folder] = grow + max(0, comes - was) + BLOCK, max(largest, was, comes)
    for folder, sizes in need.items():
        room = os.statvfs(folder)
        if sum(sizes) > room.f_bfree * room.f_frsize or room.f_files > 0 and room.f_ffree < 2:
            words = f"no space left for {sum(sizes) >> 10} KiB of files below {folder}: remove something there"
            raise HostError(words, f"{room.f_bfree * room.f_frsize >> 10} KiB and {room.f_ffree} files are free")


def _group(account: str) -> int:
    """The number of an account's own group. Raises HostError where there is no such account."""
    try:
        return pwd.getpwnam(account).pw_gid
    except KeyError:
        raise HostError(f"there is no account {account}; install what brings it along", account) from None


def _standing(folder: str) -> str:
    """The nearest folder above that is there: what is on no disk yet will be on that one's."""
    while folder and not os.path.isdir(folder):
        folder = folder.rpartition("/")[0]
    return folder or "/"


def _looked(wished: NftSet, keys: Iterable[str], table: str) -> NftSet:
    """The set with the elements of these keys read back, one by one."""
    seen = wished.elements
    for key in keys:
        value = nftelement.set_element(wished, key, table)
        if value != wished.elements.get(key):
            seen = {k: v for k, v in seen.items() if k != key} | ({} if value is None else {key: value})
    return wished if seen is wished.elements else replace(wished, elements=seen)


def _looked_chains(before: Ruleset, wished: Ruleset, table: str) -> tuple[Chain, ...]:
    """The chains, those that changed read back; with those that should be gone and are not."""
    was = {c.name: c for c in before.chains}
    chains = [c if was.get(c.name) is c or was.get(c.name) == c else _looked_chain(c, table) for c in wished.chains]
    for c in wished.chains:
        was.pop(c.name, None)
    chains += [c for c in was.values() if nftelement.chain_comments(c.name, table) is not None]
    same = len(chains) == len(wished.chains) and all(a is b for a, b in zip(chains, wished.chains, strict=True))
    return wished.chains if same else tuple(chains)


def _looked_chain(wished: Chain, table: str) -> Chain:
    comments = nftelement.chain_comments(wished.name, table)
    if comments is not None and [c.rpartition("#")[2] for c in comments] == [rule_digest(r) for r in wished.rules]:
        return wished
    return Chain(wished.name, (UNKNOWN,), wished.hook)


_OF_A_CHECK = ("kind", "target", "name", "expect", "link", "here")
_LEGACY_NAMES = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))


def _filled(word: str, copies: dict[str, str]) -> str:
    for key, path in copies.items():
        word = word.replace(key, path)
    return word


def _sections(words: str, contents: Mapping[str, str]) -> str:
    """The sections of files that a tool's words name by line, as [haproxy.cfg:17]; "" for none."""
    found = dict[str, None]()
    for name, number in re.findall(r"\[([\w.-]+):(\d+)\]", words):
        lines = contents.get(name, "").splitlines()[: int(number)]
        found.update((line, None) for line in [x for x in lines if x[:1].isalpha()][-1:])
    return f" ({', '.join(found)})" if found else ""


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""


def _sysctl_path(key: str) -> Path:
    """Where a key lives; as in sysctl(8), dots separate and a dot inside a name is written as a slash."""
    return Path("/proc/sys") / key.translate(_DOTS_AND_SLASHES)


_DOTS_AND_SLASHES = str.maketrans("./", "/.")


def _set_sysctl(part: Sysctl) -> None:
    path = _sysctl_path(part.key)
    if not path.exists() and part.key.startswith("net.ipv6."):
        return  # a kernel without IPv6 has nothing to set
    path.write_text(part.value)


def _sysctls(wished: Iterable[Sysctl]) -> tuple[Sysctl, ...]:
    found = []
    for s in wished:
        try:
            found.append(replace(s, value=_sysctl_path(s.key).read_text().strip().replace("\t", " ")))
        except FileNotFoundError:
            if s.key.startswith("net.ipv6."):
                found.append(s)  # else: the step that sets it says so
    return tuple(found)
