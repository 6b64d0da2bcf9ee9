"""The transaction: check, journal, commit, verify, confirm or undo. The same for every role, and it knows none.

    decode -> generation guard -> checks -> compile -> plan -> dry checks
        -> journal -> commit -> verify -> confirm -> keep

One push at a time. Whatever fails, the machine is the generation before or the one pushed: an undo is the same commit
with the previous State as its end. Verification is a second plan that must be empty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, Generic, TypeVar

from pydantic_core import to_json

from appliance.apart import folder_of, standing
from appliance.changes import Applied, apply_operations
from appliance.closed import closed
from appliance.decode import decode_change, decode_document
from appliance.document import DocumentError, Envelope, Model, parse, validate
from appliance.log import Log
from appliance.machine import CheckError, Host, HostError
from appliance.metrics import Metrics
from appliance.plan import Step, diff, digest, outline, plan
from appliance.roles import Role
from appliance.settings import Settings
from appliance.state import Facts, Peer, Pool, Problem, Ruleset, State, Unit
from appliance.store import Record, Store, StoreError
from appliance.usage import SOURCE, Usage, source_of, source_of_peer
from appliance.vitals import Trouble

ROUNDS = 2  # of making a machine what it was: a removal may take along what stays, as a link's last address its routes
SECONDS_TO_CONFIRM = 60  # where the plan demands a confirmation and the document names no time


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and the JSON that goes with it."""

    status: int
    body: Mapping[str, Any]


class Refused(Exception):
    """A push that is answered without touching the machine."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.answer = Answer(status, body)
        super().__init__(str(body))


@dataclass(frozen=True, slots=True)
class Generation:
    """What the machine is: the number, the config it came from (None: no document yet) and its State."""

    number: int
    digest: str
    config: Model | None
    state: State
    record: Record | None = None

    @property
    def refused(self) -> list[Any]:
        """What of the document stands apart, was refused, and is as it was before: {folder, path, message}."""
        return self.record.refused if self.record else []


@dataclass(slots=True)
class Drift:
    """A difference between the machine and its generation that nobody pushed."""

    at: float
    steps: list[Mapping[str, Any]]
    reason: str
    healed: bool
    by: str = ""


@dataclass(slots=True)
class Awaiting:
    """A generation that waits for its confirmation; `previous` comes back when it doesn't come.

    `until` is the monotonic clock's: whoever sets the wall's clock neither ends nor prolongs a wait.
    """

    generation: Generation
    previous: Generation
    seconds: int
    until: float
    deadline: float  # the same by the wall's clock, as it was then: for people
    connection: str


T = TypeVar("T")


@dataclass(slots=True)
class Pushed(Generic[T]):
    """A decoded push on its way through the transaction."""

    kind: str
    number: int
    config: T
    digest: str
    state: State
    confirm: int | None
    demanded_plan: str | None
    document: bytes | None = None
    operations: list[Any] = field(default_factory=list)
    connection: str = ""
    refused: list[Any] = field(default_factory=list)


class Engine:
    """Makes the machine equal to documents. Thread-safe: every public method takes the one lock."""

    def __init__(self, role: Role, host: Host, store: Store, settings: Settings, log: Log, metrics: Metrics) -> None:
        self.role, self.host, self.store, self.settings = role, host, store, settings
        self.log, self.metrics = log, metrics
        self.lock = threading.RLock()
        self.drifts: list[Drift] = []
        self.legacy: list[str] = []  # rules of the old iptables beside our table, as the watch found them last
        self.troubles: tuple[Trouble, ...] = ()  # of the machine, as `examine` found them last
        self.awaiting: Awaiting | None = None
        self._facts = host.facts()
        self.current = Generation(0, "", None, closed(self._facts, settings.control_address))
        self._trouble = ""  # why the machine is not `current`: an undo or a heal that failed
        self._drifted = False  # the machine is not `current`, by another's hand, and the policy is to report that
        self._unmade = ""  # why the last kept generation is not `current`: it cannot be made any more
        self._given_up: list[tuple[Record, State | None]] = []  # tried, and the machine may still hold parts of them
        self._timings: dict[str, float] = {}
        self.usage = Usage(store.folder / "usage.json", host.now)
        if self.usage.unreadable:
            log.error("usage", error=self.usage.unreadable)

    @property
    def broken(self) -> str:
        """Why the machine is not the last generation that was kept; "" where it is."""
        return self._trouble or self._unmade

    @property
    def unmade(self) -> str:
        """Why the last generation that was kept cannot be made by this agent; "" where it can."""
        return self._unmade

    # --- start

    def start(self) -> None:
        """Make the machine its last kept generation, whatever a crash left; closed where there is none.

        A kept document that this agent cannot make any more leaves the machine closed and says so in `broken`.
        """
        with self.lock:
            if self.store.unreadable:
                self.log.error("journal", error=f"{self.store.unreadable} lines cannot be read; they were left out")
            for record in self.store.open_ended():
                record.why = record.why or "the agent stopped before it was kept; undone at start"
                self._given_up.append((record, self._recompiled(record.generation)))
            self._resume()
            self._converge(self.current.state, "start")

    def _resume(self) -> None:
        """Take up the last kept generation. Where it cannot be made, `_unmade` says why, and nothing else changes."""
        head = self.store.head()
        if head is None:
            return
        try:
            self.current = self._load(head.generation)
            self._unmade = ""
        except Exception as error:  # an agent that does not start would be worse than a closed machine
            self._unmade = f"generation {head.generation} cannot be made: {_words(error)}"
            self.log.error("start", generation=head.generation, error=_words(error))

    def _recompiled(self, generation: int) -> State | None:
        """The State that a crashed push was making: it names the files and links that may be left over."""
        try:
            return self._load(generation).state
        except Exception:  # it may be the very document that ended the agent
            return None

    def _load(self, number: int) -> Generation:
        """Generation `number` from the disk, compiled. Raises LookupError, OSError, HostError or DocumentError."""
        config = self._config(number)
        self._facts = self.host.facts()
        record = self.store.records[number]
        state = self.role.compile(config, self._facts)
        if record.refused:
            state = self._standing(state, record.stands, {str(r["folder"]) for r in record.refused})
        return Generation(number, record.digest, config, state, record)

    def _standing(self, state: State, number: int, folders: set[str]) -> State:
        """`state` with what was refused as generation `number` had it; where that is forgotten, with nothing there."""
        try:
            before = self._load(number).state
        except (LookupError, OSError, DocumentError):
            before = State()
        for folder in folders:
            state = standing(state, before, folder)
        return state

    def _config(self, number: int) -> Any:
        """The config of generation `number` from the disk. Raises KeyError, OSError or DocumentError."""
        body, changes = self.store.way_to(number)
        config = decode_document(self.role.Config, parse(body)).config
        for operations in changes:
            config = apply_operations(config, decode_change({**_CHANGE, "operations": operations}).operations).config
        return config

    def _converge(self, state: State, reason: str) -> None:
        """Observe the machine and make it `state`. A step that fails stops no other; `_trouble` says what is left.

        But for the packet filter of a machine that has none, as at boot: it comes first, without it nothing is let up.
        """
        failed: list[str] = []
        rest: tuple[Step, ...] = ()
        try:
            rest = plan(self.host.observe(state, self._leftovers()), state)
            for _ in range(ROUNDS):
                for step in sorted(rest, key=_is_first_filter, reverse=True):
                    try:
                        self._take(step)
                    except Exception as error:
                        failed.append(_words(error))
                        if _is_first_filter(step):
                            break
                rest = _of_machine(plan(self.host.observe(state, self._leftovers()), state))
                if not rest:
                    break
        except Exception as error:
            failed.append(_words(error))
            self._trouble = f"{reason}: {failed[0]}"
        else:
            still = f"still not as it should be: {', '.join(map(str, rest[:5]))}"
            self._trouble = f"{reason}: {'; '.join([*failed[:3], still])}" if rest else ""
        if failed or self._trouble:
            self.log.error(reason, error=self._trouble or f"converged all the same: {'; '.join(failed[:3])}")
        if not self._trouble:
            self._settled()

    def _leftovers(self) -> list[State]:
        return [state for _, state in self._given_up if state]

    def _settled(self) -> None:
        """The machine is as it should be. Only now is what was given up undone: an agent that dies before must know."""
        self._trouble, self._drifted = "", False
        for record, _ in self._given_up:
            self._note(record, status="undone", why=record.why)
        self._given_up = []

    def _steps_to(self, state: State) -> tuple[Step, ...]:
        """The plan from what the machine is: what was verified last, or, where that does not hold, what is observed."""
        if self._trouble or self._drifted:
            return plan(self.host.observe(state, [self.current.state, *self._leftovers()]), state)
        return plan(self.current.state, state)

    # --- pushes

    def put(self, body: bytes, connection: str = "") -> Answer:
        """A whole document."""
        return self._push(lambda: self._put(body, connection))

    def patch(self, body: bytes, connection: str = "") -> Answer:
        """Operations by object id against the generation they were made from."""
        return self._push(lambda: self._patch(body, connection))

    def rollback(self, number: int, connection: str = "") -> Answer:
        """Any kept generation again, under a new number."""
        return self._push(lambda: self._rollback(number, connection))

    def plan(self, body: bytes) -> Answer:
        """What a document (or a change) would do: nothing is touched."""
        with self.lock:
            try:
                pushed = self._put(body, "") if "config" in parse(body) else self._patch(body, "")
                demanded = self._steps_to(pushed.state)
                steps = self._checked(demanded, pushed)
                flows = self.host.flows(steps)
            except Refused as refused:
                return refused.answer
            except DocumentError as error:
                return refusal(error)
            except HostError as error:
                return _untouched(error)
            return Answer(
                200,
                {
                    "generation": pushed.number,
                    "steps": outline(steps),
                    "diff": diff(self.current.state, pushed.state),
                    "units": [f"{s.verb} {s.name}" for s in steps if s.kind == "unit"],
                    "flows": flows,
                    "confirm": self._demands(steps),
                    "plan": digest(demanded),
                    **_refused(pushed.refused),
                },
            )

    def _push(self, decode: Callable[[], Pushed[Any]]) -> Answer:
        with self.lock:
            self._timings = {}
            started = self.host.monotonic()
            try:
                with self._timed("decode"):
                    pushed = decode()
                is_same = pushed.config is self.current.config
                answer = self._unchanged(pushed) if is_same else self._transact(pushed)
            except Refused as refused:
                answer = refused.answer
            except DocumentError as error:
                answer = refusal(error)
            except HostError as error:  # before the first step: what comes after it answers for itself
                answer = _untouched(error)
            seconds = self.host.monotonic() - started
            self.metrics.pushed(answer.status, seconds)
            self.log.info(
                "push",
                generation=answer.body.get("generation", 0),
                status=answer.status,
                result=answer.body.get("result", ""),
                ms=round(seconds * 1000, 1),
            )
            return answer

    def _read(self, body: bytes) -> dict[str, Any]:
        """The JSON object in `body`, meant for this role. Raises DocumentError."""
        raw = parse(body)
        role = raw.get("role")
        if isinstance(role, str) and role != self.settings.role:
            raise DocumentError([Problem("role", f"this appliance is a {self.settings.role}, not a {role[:64]}")])
        return raw

    def _put(self, body: bytes, connection: str) -> Pushed[Any]:
        raw, current = self._read(body), self.current
        found = sha256(to_json(raw.get("config"))).hexdigest()
        envelope: Envelope
        if found == current.digest:
            envelope, config = validate(Envelope, {k: v for k, v in raw.items() if k != "config"}), current.config
        else:
            envelope = document = decode_document(self.role.Config, raw)
            config = current.config if document.config == current.config else document.config
        self._guard(envelope.generation, same=config is current.config)
        pushed: Pushed[Any] = Pushed(
            "put", envelope.generation, config, found, current.state,
            envelope.confirm.seconds if envelope.confirm else None, envelope.plan, body, connection=connection,
        )  # fmt: skip
        if config is not current.config:
            pushed.state = self._compiled(config)
        return pushed

    def _compiled(self, config: Any) -> State:
        """The State of a whole config. Raises DocumentError with its problems."""
        self._facts = self.host.facts()
        with self._timed("checks"):
            if problems := self.role.problems(config, self._facts):
                raise DocumentError(_under("config", problems))
        with self._timed("compile"):
            return self.role.compile(config, self._facts)

    def _patch(self, body: bytes, connection: str) -> Pushed[Any]:
        raw = self._read(body)
        change = decode_change(raw)
        current = self.current
        self._guard(change.generation)
        if change.base != current.number:
            made = f"made against generation {change.base}; the machine is at {current.number}"
            raise Refused(409, {"error": f"{made}: read it, make the change anew", "current": current.number})
        if current.config is None:
            raise Refused(409, {"error": "there is no document to change; push a whole one", "current": 0})
        applied = apply_operations(current.config, change.operations)
        seconds = change.confirm.seconds if change.confirm else None
        if not applied.touched:
            same = current.config, current.digest, current.state
            return Pushed("patch", change.generation, *same, seconds, change.plan)
        with self._timed("checks"):
            problems = self.role.revised_problems(applied.config, applied.touched)
            if problems is None:
                self._facts = self.host.facts()  # what the change is about may have been plugged in since
                problems = self.role.problems(applied.config, self._facts)
            if problems:
                raise DocumentError(_under("config", problems))
        operations = raw["operations"]
        with self._timed("compile"):
            state = self._revised(applied)
        found = sha256((current.digest + "+").encode() + to_json(operations)).hexdigest()
        pushed: Pushed[Any] = Pushed(
            "patch", change.generation, applied.config, found, state, seconds, change.plan, None, operations, connection
        )
        if self.store.wants_whole():
            pushed.document = self._whole(pushed.number, applied.config)
        return pushed

    def _revised(self, applied: Applied) -> State:
        if self.current.refused:  # the current State is not what its document says: nothing to start from
            return self.role.compile(applied.config, self._facts)
        state = self.role.revise(self.current.state, applied.config, applied.touched, self._facts)
        return state if state is not None else self.role.compile(applied.config, self._facts)

    def _rollback(self, number: int, connection: str) -> Pushed[Any]:
        record = self.store.records.get(number)
        if record is None or record.status != "kept":
            kept = sorted(g for g, r in self.store.records.items() if r.status == "kept")
            words = f"generation {number} is not kept; those that are: {_spans(kept)}"
            raise Refused(404, {"error": words, "current": self.current.number})
        self._guard_confirmation()
        config, new = self._config(number), self.store.last() + 1
        return Pushed(
            "rollback", new, config, record.digest, self._compiled(config), None, None,
            self._whole(new, config), connection=connection,
        )  # fmt: skip

    def _whole(self, number: int, config: Any) -> bytes:
        return to_json({"version": 1, "role": self.settings.role, "generation": number, "config": config})

    def _guard(self, number: int, same: bool = False) -> None:
        """Refuse what is older than what we have, and anything while a confirmation is awaited. Raises Refused."""
        if not (self.awaiting and same and number == self.awaiting.generation.number):
            self._guard_confirmation()
        last = self.current.number if same else max(self.current.number, self.store.last())
        if number < last or (number == last and not same):
            words = f"generation {number} is stale; the machine is at {last}: use {last + 1} or higher"
            raise Refused(409, {"error": words, "current": self.current.number})

    def _guard_confirmation(self) -> None:
        if self.awaiting:
            number = self.awaiting.generation.number
            words = f"generation {number} waits for its confirmation; confirm it or let it lapse"
            raise Refused(409, {"error": words, "current": self.current.number})

    def _unchanged(self, pushed: Pushed[Any]) -> Answer:
        """Answer a document that is already so: remember its number, touch nothing that is right."""
        if self.awaiting:
            return Answer(202, self._waiting(0))
        if self._trouble or self._drifted:
            self._converge(self.current.state, "push")
        if self._trouble:
            words = "the document is as it was, and the machine is not as it says"
            return Answer(500, {"error": words, "broken": self._trouble, "current": self.current.number})
        if pushed.number > self.current.number:
            base = self.current.number
            record = Record(pushed.number, self.host.now(), "same", pushed.digest, base=base, status="kept")
            if before := self.current.record:
                record.refused, record.stands = before.refused, before.stands
            try:
                self.store.begin(record, None)
            except StoreError as error:
                return _untouched(error)
            self.current = replace(self.current, number=pushed.number, digest=pushed.digest, record=record)
            self.metrics.generation(pushed.number)
        told = {"generation": pushed.number, "result": "unchanged", "timings": self._rounded()}
        return Answer(200, {**told, **_refused(self.current.refused)})

    # --- the transaction itself

    def _transact(self, pushed: Pushed[Any]) -> Answer:
        before = self.current
        with self._timed("plan"):
            steps = self._steps_to(pushed.state)
        if pushed.demanded_plan is not None and digest(steps) != pushed.demanded_plan:
            words = "the plan is not the one demanded any more; ask for it again"
            raise Refused(412, {"error": words, "plan": digest(steps), "steps": outline(steps)})
        with self._timed("check"):
            steps = self._checked(steps, pushed)
        seconds = pushed.confirm or (SECONDS_TO_CONFIRM if self._demands(steps) else 0)
        kind: Any = pushed.kind
        record = Record(
            pushed.number, self.host.now(), kind, pushed.digest,
            base=before.number, operations=pushed.operations, plan=outline(steps[:200]),
        )  # fmt: skip
        if pushed.document is not None:
            record.base, record.operations = 0, []
        self._note_refused(record, pushed, before)
        try:
            with self._timed("journal"):
                self.store.begin(record, pushed.document)
        except StoreError as error:
            return _untouched(error)
        after = Generation(pushed.number, pushed.digest, pushed.config, pushed.state, record)
        failed = self._commit(steps, pushed.state)
        if failed and failed["folder"]:
            steps, failed = self._without(steps, pushed, failed)
            self._note_refused(record, pushed, before)
            after = replace(after, state=pushed.state)
        failed = failed or self._verify(steps, pushed.state)
        if failed and failed.get("refused"):
            self._note(record, status="undone", why=str(failed["error"])[:2000])
            told = [{"path": failed["step"], "message": failed["evidence"]}]
            raise Refused(422, {"error": "the kernel refused it; nothing was touched", "problems": told})
        if failed:
            return self._undone(before, after, failed)
        if seconds:
            return self._await(before, after, seconds, pushed.connection, len(steps))
        return self._kept(before, after, len(steps))

    def _checked(self, steps: tuple[Step, ...], pushed: Pushed[Any]) -> tuple[Step, ...]:
        """The steps that the dry checks take. What stands apart and is refused stays as it was. Raises Refused."""
        try:
            self.host.check(steps, pushed.state)
        except CheckError as error:
            problems = error.problems
            if not all(p.get("folder") for p in problems) or pushed.refused:
                raise Refused(
                    422, {"error": "a dry check refused it; nothing was touched", "problems": problems}
                ) from None
            return self._checked(self._apart(pushed, problems), pushed)
        return steps

    def _apart(self, pushed: Pushed[Any], problems: list[dict[str, str]]) -> tuple[Step, ...]:
        """Leave what was refused as it is. The steps to what is left."""
        pushed.refused = [*pushed.refused, *problems]
        for folder in {p["folder"] for p in problems}:
            pushed.state = standing(pushed.state, self.current.state, folder)
        self.log.error("refused", generation=pushed.number, problems=str(problems)[:2000])
        return self._steps_to(pushed.state)

    def _without(
        self, steps: tuple[Step, ...], pushed: Pushed[Any], failed: dict[str, Any]
    ) -> tuple[tuple[Step, ...], dict[str, Any] | None]:
        """A step failed of what stands apart: that becomes what it was, and all else what it shall be. The steps that
        were taken, and the evidence where one fails again."""
        tried = pushed.state
        told = {"folder": failed["folder"], "path": failed["step"], "message": str(failed["evidence"])[:1000]}
        self._apart(pushed, [told])
        try:
            again = plan(self.host.observe(pushed.state, [tried, *self._leftovers()]), pushed.state)
        except HostError as error:
            return steps, {"step": "observe", "object": "", "folder": "", **_told(error)}
        return (*steps, *again), self._commit(again, pushed.state)

    def _note_refused(self, record: Record, pushed: Pushed[Any], before: Generation) -> None:
        if pushed.refused:
            record.refused = pushed.refused
            stands = before.record.stands if before.refused and before.record else before.number
            record.stands = stands
            if record.generation in self.store.records:
                self._note(record, refused=pushed.refused, stands=stands)

    def _commit(self, steps: tuple[Step, ...], state: State) -> dict[str, Any] | None:
        """Take the steps to `state`. Returns the evidence where one fails."""
        for step in steps:
            with self._timed(step.kind):
                try:
                    self._take(step)
                except Exception as error:  # whatever it is, the machine is half changed
                    refused = isinstance(error, HostError) and error.refused and step is steps[0]
                    told = {"step": str(step), "object": step.owner, **_told(error), "refused": refused}
                    return {**told, "folder": folder_of(step, state)}
        return None

    def _take(self, step: Step) -> None:
        """One step. What counts traffic takes its counters along when it goes: they are read before."""
        if step.kind == "meters" and isinstance(step.before, Ruleset) and not step.before.sets:
            pass  # nothing is lost: there was no table
        elif step.kind == "meters" and not step.whole:
            sets = self.current.state.meters.sets
            self._add_up({name: keys[0] for name, keys in step.elements.items() if name in sets})
        elif _takes_counters(step):
            self._add_up()
        self.host.commit(step)
        if isinstance(peer := step.before or step.after, Peer) and (step.before is None or step.after is None):
            gone = source_of_peer(peer.link, peer.public_key)
            self.usage.forget(lambda source: source == gone)
        if step.kind != "meters":
            return
        named = {source_of(name, key) for name, keys in step.elements.items() for key in (*keys[0], *keys[1])}
        self.usage.forget(lambda source: source.startswith(SOURCE) if step.whole else source in named)

    def _verify(self, steps: tuple[Step, ...], state: State) -> dict[str, Any] | None:
        """Observe again what was touched; the second plan must be empty. Returns the evidence where it isn't."""
        with self._timed("verify"):
            try:
                rest = _of_machine(plan(self.host.look(steps, state), state))
            except Exception as error:
                return {"step": "verify", "object": "", **_told(error)}
        if not rest:
            return None
        names = sorted({s.owner for s in rest if s.owner})
        return {
            "step": "verify",
            "object": names[0] if names else rest[0].name,
            "evidence": outline(rest[:20]),
            "error": f"did not converge: {', '.join(map(str, rest[:5]))}",
        }

    def _kept(self, before: Generation, after: Generation, taken: int) -> Answer:
        record = after.record
        assert record is not None
        try:
            with self._timed("keep"):
                self.store.note(record, status="kept", deadline=0.0, timings=self._rounded())
        except StoreError as error:
            return self._undone(before, after, {"step": "keep", "object": "", "evidence": "", "error": str(error)})
        self._adopt(after)
        try:
            self.store.prune()
        except StoreError as error:
            self.log.error("journal", error=str(error))  # it is as it was, and is tried again with the next push
        return Answer(
            200,
            {
                "generation": after.number, "result": "applied", "steps": taken, "timings": self._rounded(),
                **_refused(after.refused),
            },
        )  # fmt: skip

    def _await(self, before: Generation, after: Generation, seconds: int, connection: str, taken: int) -> Answer:
        record, deadline = after.record, self.host.now() + seconds
        assert record is not None
        try:
            self.store.note(record, status="awaiting", deadline=deadline)
        except StoreError as error:
            return self._undone(before, after, {"step": "keep", "object": "", "evidence": "", "error": str(error)})
        self._adopt(after)
        self.awaiting = Awaiting(after, before, seconds, self.host.monotonic() + seconds, deadline, connection)
        return Answer(202, self._waiting(taken))

    def _waiting(self, taken: int) -> Mapping[str, Any]:
        assert self.awaiting is not None
        seconds = round(self.awaiting.until - self.host.monotonic(), 1)
        return {
            "generation": self.awaiting.generation.number,
            "result": "applied, awaiting confirmation",
            "confirm": {"seconds": seconds, "deadline": self.awaiting.deadline},
            "steps": taken,
            "timings": self._rounded(),
            **_refused(self.awaiting.generation.refused),
        }

    def _adopt(self, after: Generation) -> None:
        self.current, self._unmade = after, ""
        self._settled()
        self.metrics.generation(after.number)

    def _undone(self, before: Generation, after: Generation, failed: Mapping[str, Any]) -> Answer:
        """Make the machine `before` again and say why."""
        broken = self._undo(before, after, str(failed["error"]))
        body = {
            "error": failed["error"],
            "result": "undone" if not broken else "undo failed",
            "step": failed["step"],
            "object": failed["object"],
            "evidence": failed["evidence"],
            "current": before.number,
            "timings": self._rounded(),
        }
        if broken:
            body["broken"] = broken
        self.log.error("undone", generation=after.number, **{k: str(v)[:500] for k, v in failed.items()})
        return Answer(500, body)

    def _undo(self, before: Generation, after: Generation, why: str) -> str:
        """Previous State, same code, from what is observed. Returns what is wrong where it cannot be reached."""
        assert after.record is not None
        self.metrics.undone()
        self.current = before
        after.record.why = why[:2000]
        self._given_up.append((after.record, after.state))
        with self._timed("undo"):
            self._converge(before.state, "undo")
        return self._trouble

    def _note(self, record: Record, **changes: Any) -> None:
        """Note what became of a record where a full disk must not stop us: begun and not kept is undone anyway."""
        try:
            self.store.note(record, **changes)
        except StoreError as error:
            for key, value in changes.items():
                setattr(record, key, value)
            self.log.error("journal", error=str(error))

    # --- confirm

    def confirm(self, number: int, connection: str = "") -> Answer:
        """Keep the generation that waits. It must come over another connection than the push."""
        with self.lock:
            waiting = self.awaiting
            if waiting is None or waiting.generation.number != number:
                if number == self.current.number and waiting is None:
                    return Answer(200, {"generation": number, "result": "already confirmed"})
                what = f"generation {waiting.generation.number} does" if waiting else "none does"
                words = f"generation {number} does not wait for a confirmation; {what}"
                return Answer(409, {"error": words, "current": self.current.number})
            if self.host.monotonic() >= waiting.until:
                self.expire()
                return Answer(
                    409, {"error": f"too late: generation {number} was undone", "current": self.current.number}
                )
            if connection and connection == waiting.connection:
                words = "confirm over a new connection: this one is the push's own, and proves nothing"
                return Answer(403, {"error": words, "current": self.current.number})
            self.awaiting, self._timings = None, {}
            return self._kept(waiting.previous, waiting.generation, 0)

    def expire(self) -> bool:
        """Undo the generation that waits when its deadline has passed. Returns whether it was so."""
        with self.lock:
            waiting = self.awaiting
            if waiting is None or self.host.monotonic() < waiting.until:
                return False
            try:
                evidence = self.host.probe(waiting.generation.state)
            except Exception as error:  # no evidence is no reason to leave it standing
                evidence = _words(error)
            self.awaiting, self._timings = None, {}
            words = f"not confirmed within {waiting.seconds} s"
            self._undone(
                waiting.previous,
                waiting.generation,
                {"step": "confirm", "object": "", "evidence": evidence, "error": words},
            )
            return True

    def _demands(self, steps: tuple[Step, ...]) -> bool:
        """Does the plan touch the manager's own way in?"""
        control = next((f.name for f in self._facts.links.values() if f.mac == self._facts.control), "")
        return any(_on_way_in(step, control) for step in steps)

    # --- drift

    def heal(self, reason: str, by: str = "") -> Drift | None:
        """Observe the whole machine; heal or report what differs, by name. None where nothing does."""
        with self.lock:
            if self._unmade:
                self._resume()
            state = self.current.state
            try:
                steps = _of_machine(plan(self.host.observe(state, self._leftovers()), state))
            except HostError as error:
                self.log.error("observe", error=str(error))
                return None
            if not steps:
                self._settled()
                return None
            healed = False
            # What an undo of ours left is put right whatever the policy about others is.
            if self.settings.heal == "heal" or self._trouble:
                self._converge(state, "heal")
                healed = not self._trouble
            drift = Drift(self.host.now(), outline(steps[:100]), reason, healed, by)
            if self._drifted and self.drifts and self.drifts[-1].steps == drift.steps:
                return drift  # reported already, and left as it is
            self._drifted = not healed
            self.drifts = [*self.drifts[-99:], drift]
            self.metrics.drifted(healed)
            self.log.warning(
                "drift", reason=reason, healed=healed, by=by, objects=sorted({s.owner or s.name for s in steps})[:20]
            )
            return drift

    # --- what it all lives on

    def examine(self) -> tuple[Trouble, ...]:
        """What is wrong with disks, memory and clock. What has come or gone since the last time is logged."""
        with self.lock:
            newest = max((r.at for r in self.store.records.values()), default=0.0)
            found = tuple(self.host.troubles(newest))
            before, now = ({t.what: t.words for t in some} for some in (self.troubles, found))
            for what in now.keys() - before.keys():
                self.log.warning("trouble", what=what, words=now[what])
            for what in before.keys() - now.keys():
                self.log.info("trouble", what=what, words="is over")
            self.troubles = found
            return found

    # --- members

    def ask_members(self) -> None:
        """Ask the State's members, and where one has become ill or well, make the State anew: of the same document, and
        of what is a fact now. Not while a generation waits for its confirmation, nor while the machine is broken."""
        with self.lock:
            if not self.current.state.members or self.current.config is None:
                return
            down = self.host.ask_members(self.current.state)
            if down == self._facts.down or self.awaiting or self.broken or self._drifted:
                return
            before, facts, self._facts = self.current, self._facts, self.host.facts()
            state = self.role.compile(before.config, self._facts)
            if before.record and before.refused:
                state = self._standing(state, before.record.stands, {str(r["folder"]) for r in before.refused})
            steps = plan(before.state, state)
            failed = self._commit(steps, state) or self._verify(steps, state)
            if failed:
                self._facts = replace(self._facts, down=facts.down)  # so that it is tried again
                self._converge(before.state, "members")
            else:
                self.current = replace(before, state=state)
            self.log.warning("members", down=sorted(down), error=str(failed["error"]) if failed else "")

    # --- usage

    def count(self) -> None:
        """Add up what the counters have counted, and put it on disk: what is told afterwards is never taken back."""
        with self.lock:
            self._add_up()
            try:
                self.usage.save()
            except OSError as error:
                self.log.error("usage", error=f"the sums cannot be written: {error.strerror}")

    def _add_up(self, only: Mapping[str, Collection[str]] | None = None) -> None:
        try:
            self.usage.add(self.host.readings(self.current.state, only), whole=only is None)
        except HostError as error:
            self.log.error("usage", error=str(error))

    # --- answers to questions

    def trace(self, query: Mapping[str, str]) -> Answer:
        """What would happen to a packet, and which object decides."""
        with self.lock:
            try:
                return Answer(200, self.role.trace(self.current.state, self._facts, query))
            except ValueError as error:
                return Answer(422, {"error": str(error)})

    def flows(self, query: Mapping[str, str]) -> Answer:
        """Live flows, and which object allowed each. It may take a second: nobody waits for it."""
        from appliance import flowpage  # most agents are never asked

        with self.lock:
            current, facts = self.current, self._facts
        try:
            asked = flowpage.read(query)
            ends = {asked.guest, *(self.role.addresses(current.config, asked.guest) if current.config else ())}
            explain = partial(self.role.explain, current.state, facts)
            told = flowpage.page(asked, ends, self.host.live_flows, explain, self.host.now())
        except ValueError as error:
            return Answer(422, {"error": str(error)})
        except HostError as error:
            return Answer(500, {"error": str(error), "evidence": error.evidence})
        return Answer(200, told)

    @property
    def facts(self) -> Facts:
        return self._facts

    def document(self, number: int) -> bytes:
        """Generation `number` as a whole document. Raises KeyError, OSError or DocumentError."""
        with self.lock:
            config = self.current.config if number == self.current.number else self._config(number)
            return self._whole(number, config)

    def state_of(self, number: int) -> State:
        """The State of a kept generation, compiled anew. Raises LookupError, OSError or DocumentError."""
        with self.lock:
            return self.current.state if number == self.current.number else self._load(number).state

    # --- timing

    @contextmanager
    def _timed(self, name: str) -> Any:
        started = self.host.monotonic()
        try:
            yield
        finally:
            self._timings[name] = self._timings.get(name, 0.0) + self.host.monotonic() - started

    def _rounded(self) -> dict[str, float]:
        """Milliseconds by phase."""
        return {name: round(seconds * 1000, 2) for name, seconds in self._timings.items()}


_CHANGE = {"version": 1, "role": "router", "base": 0, "generation": 1}


def refusal(error: DocumentError) -> Answer:
    """Of a document, with at most 1000 of its problems."""
    told = [{"path": p.path, "message": p.message} for p in error.problems[:1000]]
    return Answer(422, {"error": "the document is refused; nothing was touched", "problems": told})


def _untouched(error: Exception) -> Answer:
    return Answer(500, {"error": str(error), "evidence": _told(error)["evidence"], "result": "nothing touched"})


def _refused(problems: list[Any]) -> dict[str, Any]:
    """What of a document is not in force, for an answer; nothing where all of it is."""
    return {"refused": [{"path": p["path"], "message": p["message"]} for p in problems]} if problems else {}


def _told(error: Exception) -> dict[str, str]:
    """An error's words, and the evidence where it brings some."""
    return {"error": _words(error), "evidence": str(getattr(error, "evidence", "") or _words(error))}


def _words(error: Exception) -> str:
    """What an error says; those that nobody foresaw are named by their type too."""
    if isinstance(error, HostError | DocumentError | StoreError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _of_machine(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Without the end of flows: those are a deed, and nothing that a machine is."""
    return tuple(s for s in steps if s.kind != "flows")


def _takes_counters(step: Step) -> bool:
    """Does a step end what counts traffic: elements, a peer, a haproxy's worker, or one of its servers?"""
    if isinstance(step.before, Pool) and isinstance(step.after, Pool):
        return not {s.name for s in step.before.servers} <= {s.name for s in step.after.servers}
    if isinstance(step.before, Peer) and step.after is None:
        return True
    return step.kind == "meters" or (isinstance(step.before, Unit) and step.before.console != "")


def _is_first_filter(step: Step) -> bool:
    """Is it the packet filter of a machine that has none?"""
    return step.kind == "ruleset" and isinstance(step.before, Ruleset) and not step.before.chains


def _under(prefix: str, problems: list[Problem]) -> list[Problem]:
    return [p if p.path.startswith(prefix) else Problem(f"{prefix}.{p.path}", p.message) for p in problems]


def _spans(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[-10:])) or "none"


def _on_way_in(step: Step, control: str) -> bool:
    for part in (step.before, step.after):
        if getattr(part, "link", getattr(part, "name", None)) == control and control:
            return True
    if step.kind == "rule":
        return True
    if step.kind == "ruleset" and isinstance(step.before, Ruleset) and isinstance(step.after, Ruleset):
        return _doors(step.before, control) != _doors(step.after, control)
    folder = step.name.rpartition("/")[0]
    return step.kind == "file" and (folder == "/etc/narthex" or folder.startswith("/etc/ssh"))


def _doors(ruleset: Ruleset, control: str) -> list[Any]:
    """What lets the manager in: the hooks, and in each the rules down to the last that names the control interface."""
    doors = []
    for chain in ruleset.chains:
        if chain.hook and chain.hook.hook in ("input", "prerouting", "output"):
            named = [i for i, rule in enumerate(chain.rules) if any(control in m.values for m in rule.matches)]
            last = named[-1] + 1 if named else 0
            doors.append((chain.hook, [(rule.matches, rule.statement) for rule in chain.rules[:last]]))
    return doors
