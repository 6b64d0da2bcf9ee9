"""Walk a packet through a compiled State: what would happen to it, and which object of the document decides.

It serves GET /v1/trace (question.py), and the tests, which hold it against the oracle and the kernel. The packet meets
what the kernel would let it meet, in that order: connection tracking; the chains of each hook by priority; routing
(fib.py); address translation, once for the destination and once for the source.

    from a link   prerouting ── route ─┬─ to the router: input
                                       └─ elsewhere:     forward ── postrouting
    our own       route ── output (route again, where a mark or an address changed) ── postrouting
                                       └─ to ourselves:  by lo, prerouting ── input

Every kind of statement of appliance/state.py is carried out here, every kind of condition in fields.py. One that isn't
known ends in NotImplementedError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from appliance.state import Chain, Facts, FilterRule, Hook, Nat, SetMark, State, Verdict, VerdictMap
from appliance.values import address_text, number
from router.fib import Fib, Way
from router.fields import Moment, Sets
from router.packet import Outcome, Packet

_CONNTRACK = -200  # the priority at which connection tracking sees a packet

Ending = Literal["accept", "drop"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to the packet: in which chain (or `route`), what, by which rule and element.

    `owner` is the id of the object that the rule or the element came from, "" for the router's own rules.
    """

    chain: str
    did: str
    rule: str = ""
    element: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """The steps of a packet and what became of it."""

    steps: tuple[Step, ...]
    outcome: Outcome


def trace(state: State, facts: Facts, packet: Packet) -> Trace:
    """What would happen to a new packet. `packet.in_interface` is an interface's id or a link's name.

    Raises ValueError where there is no such interface, NotImplementedError for a rule that is not understood here.
    """
    return Tracer(state).trace(packet)


class Tracer:
    """A State, ready to trace many packets."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.fib, self.fib6 = Fib(state), Fib(state, v6=True)
        self.sets = Sets(state.ruleset.sets)
        self.chains = {chain.name: chain for chain in state.ruleset.chains}
        self.ids = {link.name: link.owner or link.name for link in state.links}
        self._links = {name: name for name in self.ids} | {ident: name for name, ident in self.ids.items()}
        hooked: dict[str, list[tuple[Hook, Chain]]] = {}
        for chain in state.ruleset.chains:
            if chain.hook:
                if chain.hook.priority <= _CONNTRACK and chain.hook.hook in ("prerouting", "output"):
                    raise NotImplementedError(f"chain {chain.name} comes before connection tracking")
                hooked.setdefault(chain.hook.hook, []).append((chain.hook, chain))
        self._hooked = {name: sorted(found, key=lambda f: f[0].priority) for name, found in hooked.items()}

    def hooked(self, hook: str) -> list[tuple[Hook, Chain]]:
        """The base chains of a hook in the order in which a packet meets them."""
        return self._hooked.get(hook, [])

    def link(self, interface: str) -> str:
        """The link of an interface, by its id or by its own name. Raises ValueError that names those there are."""
        if interface not in self._links:
            known = ", ".join(sorted(self.ids.values()))
            raise ValueError(f"there is no interface {interface}; the interfaces are: {known}")
        return self._links[interface]

    def trace(self, packet: Packet) -> Trace:
        """What would happen to a new packet."""
        came_by = self.link(packet.in_interface) if packet.in_interface else ""
        walk = _Walk(self, Moment(packet, self.fib6 if packet.is_v6 else self.fib, self.sets, came_by))
        outcome = walk.from_a_link() if packet.in_interface else walk.from_ourselves()
        return Trace(tuple(walk.steps), outcome)


@dataclass(slots=True)
class _Walk:
    """A packet on its way: `now` is what it is, `asked` which translations its flow has been through."""

    on: Tracer
    now: Moment
    asked: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    decided: list[Step] = field(default_factory=list)

    # --- the way ---

    def from_a_link(self) -> Outcome:
        now = self.now
        if not self._hook("prerouting"):
            return self._ended("dropped")
        if why := now.fib.refusal(now.source, now.destination, now.came_by):
            self._tell("route", "drop", why)
            return self._ended("dropped")
        way = now.fib.arrive(now.source, now.destination, now.came_by, now.mark)
        self._tell_way(way)
        if way.kind == "nowhere":
            return self._ended("dropped")
        if way.kind != "unicast":
            return self._ended("local" if self._hook("input") else "dropped")
        now.leaves_by = way.link
        return self._ended("forwarded" if self._hook("forward") and self._hook("postrouting") else "dropped")

    def from_ourselves(self) -> Outcome:
        now = self.now
        if not self._routed() or not self._hook("output") or not self._hook("postrouting"):
            return self._ended("dropped")
        if now.leaves_by != "lo":
            return self._ended("forwarded")
        now.came_by, now.leaves_by = "lo", ""
        return self._ended("local" if self._hook("prerouting") and self._hook("input") else "dropped")

    def _routed(self) -> bool:
        """Route a packet of ours; False where there is no way."""
        way = self.now.fib.look(self.now.destination, self.now.source, self.now.mark)
        self._tell_way(way)
        self.now.leaves_by = way.link
        return way.kind != "nowhere"

    def _ended(self, verdict: Literal["forwarded", "local", "dropped"]) -> Outcome:
        now, packet = self.now, self.now.packet
        decided = self.decided[-1:] if verdict == "dropped" else self.decided
        owners = tuple(dict.fromkeys(step.owner for step in decided if step.owner))
        why = "; ".join(dict.fromkeys(step.rule for step in decided if step.rule))
        source, destination, port = self._text(now.source), self._text(now.destination), now.port
        if verdict == "dropped":
            source, destination, port = packet.source, packet.destination, packet.destination_port
        sport, dport = (packet.source_port, port) if packet.has_ports else (None, None)
        out = self._id(now.leaves_by) if verdict == "forwarded" else ""
        return Outcome(verdict, out, source, destination, sport, dport, owners, why)

    # --- what is told ---

    def _tell(self, chain: str, did: str, rule: str, element: str = "", owner: str = "") -> None:
        """A step that decides."""
        self.steps.append(Step(chain, did, rule, element, owner))
        self.decided.append(self.steps[-1])

    def _tell_way(self, way: Way) -> None:
        if way.kind == "nowhere":
            self._tell("route", "drop", f"there is no way to {self._text(self.now.destination)}")
        elif way.kind == "unicast":
            via = f" via {way.via}" if way.via else ""
            self.steps.append(Step("route", f"out by {self._id(way.link)}{via}", way.destination, owner=way.owner))
        else:
            self.steps.append(Step("route", f"to the router ({way.kind})", way.destination, owner=way.owner))

    def _text(self, address: int) -> str:
        return address_text(address, self.now.packet.is_v6)

    def _id(self, link: str) -> str:
        return self.on.ids.get(link, link)

    # --- chains ---

    def _hook(self, name: str) -> bool:
        """All chains of a hook, by priority; False where one drops the packet."""
        now = self.now
        for hook, chain in self.on.hooked(name):
            before = (now.mark, now.source, now.destination)
            if hook.type == "nat" and not self._asks_nat(name):
                continue
            if self._base(hook, chain) == "drop":
                return False
            # The kernel looks for another way after a chain of type route, and after nat, at the output alone.
            moved = before != (now.mark, now.source, now.destination)
            if name == "output" and hook.type != "filter" and moved and not self._routed():
                return False
        return True

    def _asks_nat(self, name: str) -> bool:
        """A flow is asked once where to, and once where from; what has no flow is not translated."""
        side = "dnat" if name in ("prerouting", "output") else "snat"
        if not self.now.has_flow or side in self.asked:
            return False
        self.asked.add(side)
        return True

    def _base(self, hook: Hook, chain: Chain) -> Ending:
        ending = self._chain(chain)
        if ending is not None:
            return ending
        if hook.policy == "drop":
            self._tell(chain.name, "drop", f"nothing in {chain.name} accepts it")
        return hook.policy

    def _chain(self, chain: Chain) -> Ending | None:
        """The end that a chain brings, None where it brings none."""
        for rule in chain.rules:
            if not all(self.now.holds(match) for match in rule.matches):
                continue
            kind, target = self._do(chain.name, rule)
            if kind == "accept":
                return "accept"
            if kind == "drop":
                return "drop"
            if kind == "return":
                return None
            if kind in ("jump", "goto"):
                ending = self._chain(self.on.chains[target])
                if ending is not None or kind == "goto":
                    return ending
        return None

    # --- statements ---

    def _do(self, chain: str, rule: FilterRule) -> tuple[str, str]:
        """Carry out a rule's statement: (accept, drop, return, jump, goto or "", the chain to go to)."""
        statement = rule.statement
        if isinstance(statement, Verdict):
            return self._verdict(chain, rule, f"{statement.kind} {statement.chain}", *self._met(rule))
        if isinstance(statement, VerdictMap):
            key = self.now.find(statement.fields, statement.map)
            if key is None:
                return "", ""
            owner = self.now.sets.owner(statement.map, key) or rule.owner
            return self._verdict(chain, rule, self.now.sets.value(statement.map, key), key, owner)
        if isinstance(statement, Nat):
            return self._nat(chain, rule, statement)
        if isinstance(statement, SetMark):
            return self._set_mark(chain, rule, statement)
        raise NotImplementedError(f"{chain}: trace does not know {type(statement).__name__}")

    def _met(self, rule: FilterRule) -> tuple[str, str]:
        """The last element of a set that a rule's conditions met, and its owner; the rule's where there is none."""
        for match in reversed(rule.matches):
            if match.set and not match.negate and (key := self.now.find(match.fields, match.set)):
                return key, rule.owner or self.now.sets.owner(match.set, key)
        return "", rule.owner

    def _verdict(self, chain: str, rule: FilterRule, text: str, element: str, owner: str) -> tuple[str, str]:
        kind, _, target = text.strip().partition(" ")
        if kind not in ("accept", "drop", "return", "jump", "goto"):
            raise NotImplementedError(f"{chain}: trace does not know the verdict {kind}")
        self.steps.append(Step(chain, f"{kind} {target}".strip(), rule.why, element, owner))
        if kind in ("accept", "drop"):
            self.decided.append(self.steps[-1])
        return kind, target

    def _nat(self, chain: str, rule: FilterRule, nat: Nat) -> tuple[str, str]:
        if self.now.packet.is_v6 is not (nat.family == "ip6"):
            return "", ""
        found = self._destined(rule, nat)
        if found is None:
            return "", ""
        to, key, owner = found
        now = self.now
        address, _, port = to.replace(" . ", ":").partition(":")
        before = (now.source, now.destination, now.port)
        if nat.kind == "dnat":
            now.destination, now.port = number(address), int(port or now.port)
        else:
            now.source = number(address)
        if before != (now.source, now.destination, now.port):
            now.translated.add("dnat" if nat.kind == "dnat" else "snat")
        self._tell(chain, f"{nat.kind} to {to}", rule.why, key, owner)
        return "accept", ""

    def _destined(self, rule: FilterRule, nat: Nat) -> tuple[str, str, str] | None:
        """What a translation translates to, by which element and whose; None where its map has nothing."""
        now = self.now
        if nat.kind == "masquerade":
            return now.fib.source_for(now.fib.look(now.destination, 0, now.mark), now.leaves_by), "", rule.owner
        if nat.spread:
            return nat.targets[0], *self._met(rule)  # any of them: a walk takes the first
        if not nat.map:
            return nat.to, *self._met(rule)
        key = now.find(nat.fields, nat.map)
        return None if key is None else (now.sets.value(nat.map, key), key, now.sets.owner(nat.map, key) or rule.owner)

    def _shape(self, chain: str, rule: FilterRule, mark: SetMark) -> tuple[str, str]:
        now = self.now
        if (key := now.find(mark.fields, mark.map)) is not None:
            now.shaped = now.sets.value(mark.map, key)
            owner = now.sets.owner(mark.map, key) or rule.owner
            self.steps.append(Step(chain, f"limited, class {now.shaped}", rule.why, key, owner))
        return "", ""

    def _set_mark(self, chain: str, rule: FilterRule, mark: SetMark) -> tuple[str, str]:
        now, key, owner = self.now, "", rule.owner
        if mark.field == "meta priority":
            return self._shape(chain, rule, mark)
        if not now.has_flow and "ct mark" in (mark.field, mark.copy):
            return "", ""
        if mark.map:
            if (found := now.find(mark.fields, mark.map)) is None:
                return "", ""
            key, owner = found, now.sets.owner(mark.map, found) or owner
            value = int(now.sets.value(mark.map, found), 0)
        elif mark.copy:
            value = now.flow_mark if mark.copy == "ct mark" else now.mark
        else:
            value = int(mark.value, 0)
        was = now.mark if mark.field == "meta mark" else now.flow_mark
        if mark.field == "meta mark":
            now.mark = value
        else:
            now.flow_mark = value
        if was != value:
            self.steps.append(Step(chain, f"{mark.field} {value}", rule.why, key, owner))
        return "", ""
