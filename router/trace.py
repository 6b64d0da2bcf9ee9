"""Walk a packet through a compiled State: what would happen to it, and which object of the document decides.

It serves GET /v1/trace, and the tests, which hold it against the oracle and the kernel. The packet meets what the
kernel would let it meet, in that order: connection tracking; the chains of each hook by priority; routing (fib.py);
address translation, once for the destination and once for the source.

    from a link   prerouting ── route ─┬─ local:     input
                                       └─ elsewhere: forward ── postrouting
    our own       route ── output (route again, where a mark or the destination changed) ── postrouting
                                       └─ to ourselves: by lo, prerouting ── input

Every kind of match and statement of appliance/state.py is evaluated here. One that isn't known ends in
NotImplementedError: a trace that guesses is worse than none. A field that the packet doesn't have (a port of an ICMP
message) matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from appliance.state import Chain, Facts, FieldName, FilterRule, Match, Nat, NftSet, SetMark, State, Verdict, VerdictMap
from appliance.values import bounds, dotted, number
from router.fib import Fib, Way
from router.packet import NUMBERS, Outcome, Packet

# ICMP messages that connection tracking takes for the start of a flow (nf_conntrack_proto_icmp.c, valid_new).
_QUESTIONS = frozenset({8, 13, 15, 17})
_STATES = frozenset({"new", "established", "related", "invalid", "untracked"})
_STATUSES = frozenset({"expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "dying"})
_V6 = frozenset({"ip6 saddr", "ip6 daddr", "icmpv6 type", "icmpv6 code"})
_CONNTRACK = -200  # the priority at which connection tracking sees a packet

Span = tuple[int, int]
Ending = Literal["accept", "drop"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened to the packet: where (a chain's name, or `route`), what, by which rule and element.

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
        self.fib = Fib(state)
        self.chains = {chain.name: chain for chain in state.ruleset.chains}
        self.ids = {link.name: link.owner or link.name for link in state.links}
        self._links = {ident: name for name, ident in self.ids.items()} | {name: name for name in self.ids}
        self._spans: dict[str, list[tuple[tuple[Span, ...], str]]] = {}
        hooked: dict[str, list[Chain]] = {}
        for chain in state.ruleset.chains:
            if chain.hook:
                if chain.hook.priority <= _CONNTRACK and chain.hook.hook in ("prerouting", "output"):
                    raise NotImplementedError(f"chain {chain.name} comes before connection tracking")
                hooked.setdefault(chain.hook.hook, []).append(chain)
        self._hooked = {name: sorted(found, key=_priority) for name, found in hooked.items()}

    def trace(self, packet: Packet) -> Trace:
        """What would happen to a new packet."""
        if packet.in_interface and packet.in_interface not in self._links:
            known = ", ".join(sorted(self.ids.values()))
            raise ValueError(f"there is no interface {packet.in_interface}; the interfaces are: {known}")
        walk = _Walk(self, packet, self._links.get(packet.in_interface, ""))
        outcome = walk.from_a_link() if packet.in_interface else walk.from_ourselves()
        return Trace(tuple(walk.steps), outcome)

    def hooked(self, hook: str) -> list[Chain]:
        return self._hooked.get(hook, [])

    def element(self, name: str, values: tuple[str, ...]) -> str | None:
        """The key of the element of a set that holds these values, one per field."""
        found = self.state.ruleset.sets[name]
        if not found.interval:
            key = " . ".join(values)
            return key if key in found.elements else None
        if name not in self._spans:
            self._spans[name] = [(tuple(map(_span, key.split(" . "))), key) for key in found.elements]
        wanted = tuple(map(_plain, values))
        for spans, key in self._spans[name]:
            if all(first <= value <= last for value, (first, last) in zip(wanted, spans, strict=True)):
                return key
        return None

    def set(self, name: str) -> NftSet:
        return self.state.ruleset.sets[name]


def _priority(chain: Chain) -> int:
    return chain.hook.priority if chain.hook else 0


# --- the way of a packet ---


@dataclass(slots=True)
class _Walk:
    """A packet on its way, and the flow it starts."""

    on: Tracer
    packet: Packet
    came_by: str
    leaves_by: str = ""
    steps: list[Step] = field(default_factory=list)
    source: int = 0
    destination: int = 0
    port: int = 0
    mark: int = 0
    flow_mark: int = 0
    has_flow: bool = True
    translated: set[str] = field(default_factory=set)  # dnat, snat: what changed an address or a port
    settled: set[str] = field(default_factory=set)  # dnat, snat: what has been asked
    owners: list[str] = field(default_factory=list)
    why: str = ""

    def __post_init__(self) -> None:
        self.source, self.destination = number(self.packet.source), number(self.packet.destination)
        self.port = self.packet.destination_port
        self.has_flow = self.packet.number != 1 or self.packet.icmp_type in _QUESTIONS

    def from_a_link(self) -> Outcome:
        if not self._hook("prerouting"):
            return self._ended("dropped")
        if why := self.on.fib.refusal(self.source, self.destination, self.came_by):
            self._decide("", why)
            self.steps.append(Step("route", f"drop: {why}"))
            return self._ended("dropped")
        way = self.on.fib.arrive(self.source, self.destination, self.came_by, self.mark)
        self._note(way)
        if way.kind == "nowhere":
            return self._ended("dropped")
        if way.kind != "unicast":
            return self._ended("local" if self._hook("input") else "dropped")
        self.leaves_by = way.link
        return self._ended("forwarded" if self._hook("forward") and self._hook("postrouting") else "dropped")

    def from_ourselves(self) -> Outcome:
        if not self._routed():
            return self._ended("dropped")
        if not self._hook("output") or not self._hook("postrouting"):
            return self._ended("dropped")
        if self.leaves_by != "lo":
            return self._ended("forwarded")
        self.came_by, self.leaves_by = "lo", ""
        return self._ended("local" if self._hook("prerouting") and self._hook("input") else "dropped")

    def _routed(self) -> bool:
        """Route a packet of ours; False where there is no way."""
        way = self.on.fib.look(self.destination, self.source, self.mark)
        self._note(way)
        self.leaves_by = way.link
        return way.kind != "nowhere"

    def _note(self, way: Way) -> None:
        if way.kind == "nowhere":
            self._decide("", f"there is no way to {dotted(self.destination)}")
            self.steps.append(Step("route", "drop: no route", rule=dotted(self.destination)))
        elif way.kind == "unicast":
            via = f" via {way.via}" if way.via else ""
            self.steps.append(Step("route", f"out by {self._id(way.link)}{via}", way.destination, owner=way.owner))
        else:
            self.steps.append(Step("route", f"to the router ({way.kind})", way.destination, owner=way.owner))

    def _id(self, link: str) -> str:
        return self.on.ids.get(link, link)

    def _ended(self, verdict: Literal["forwarded", "local", "dropped"]) -> Outcome:
        packet, owners = self.packet, tuple(dict.fromkeys(filter(None, self.owners)))
        if verdict == "dropped":
            source, destination, port = packet.source, packet.destination, packet.destination_port
        else:
            source, destination, port = dotted(self.source), dotted(self.destination), self.port
        sport, dport = (packet.source_port, port) if packet.has_ports else (None, None)
        out = self._id(self.leaves_by) if verdict == "forwarded" else ""
        return Outcome(verdict, out, source, destination, sport, dport, owners, self.why)

    # --- chains ---

    def _hook(self, hook: str) -> bool:
        """All chains of a hook, by priority; False where one drops the packet."""
        for chain in self.on.hooked(hook):
            assert chain.hook is not None
            before = (self.mark, self.source, self.destination)
            if not self._base(chain, chain.hook.type, hook):
                return False
            changed = before != (self.mark, self.source, self.destination)
            if hook == "output" and chain.hook.type in ("route", "nat") and changed and not self._routed():
                return False
        return True

    def _base(self, chain: Chain, kind: str, hook: str) -> bool:
        if kind == "nat":
            side = "dnat" if hook in ("prerouting", "output") else "snat"
            if not self.has_flow or side in self.settled:
                return True
            self.settled.add(side)
        ending = self._chain(chain)
        if ending is None:
            assert chain.hook is not None
            ending = chain.hook.policy
            if ending == "drop":
                self._decide("", f"nothing in {chain.name} accepts it")
                self.steps.append(Step(chain.name, "drop", "policy"))
        return ending == "accept"

    def _chain(self, chain: Chain) -> Ending | None:
        """The end that a chain brings, None where it brings none."""
        for rule in chain.rules:
            keys = [self._holds(match) for match in rule.matches]
            if not all(keys):
                continue
            kind, target = self._do(chain, rule, next((k for k in reversed(keys) if k not in (None, "-")), None) or "")
            if kind == "accept":
                return "accept"
            if kind == "drop":
                return "drop"
            if kind == "return":
                return None
            if kind in ("jump", "goto"):
                ending = self._chain(self.on.chains[target])
                if ending or kind == "goto":
                    return ending
        return None

    def _do(self, chain: Chain, rule: FilterRule, matched: str) -> tuple[str, str]:
        """Carry out a rule's statement: (accept drop return jump goto or "", chain)."""
        statement = rule.statement
        owner = rule.owner
        if isinstance(statement, Verdict):
            if matched:
                owner = owner or self._owner_of(rule, matched)
            return self._verdict(chain, rule, statement.kind, statement.chain, "", owner)
        if isinstance(statement, VerdictMap):
            key = self._key(statement.fields, statement.map)
            if key is None:
                return "", ""
            found = self.on.set(statement.map)
            kind, _, target = found.elements[key].partition(" ")
            return self._verdict(chain, rule, kind, target, key, found.owners.get(key, owner))
        if isinstance(statement, Nat):
            return self._nat(chain, rule, statement)
        if isinstance(statement, SetMark):
            self._set_mark(chain, rule, statement)
            return "", ""
        raise NotImplementedError(f"{chain.name}: trace does not know {type(statement).__name__}")

    def _verdict(self, chain: Chain, rule: FilterRule, kind: str, target: str, key: str, owner: str) -> tuple[str, str]:
        if kind not in ("accept", "drop", "return", "jump", "goto"):
            raise NotImplementedError(f"{chain.name}: trace does not know the verdict {kind}")
        self.steps.append(Step(chain.name, f"{kind} {target}".rstrip(), rule.why, key, owner))
        self._decide(owner, rule.why)
        return kind, target

    def _decide(self, owner: str, why: str) -> None:
        self.owners.append(owner)
        self.why = why or self.why

    def _owner_of(self, rule: FilterRule, key: str) -> str:
        """The object that the set's element in a rule's match came from."""
        sets = [self.on.set(match.set) for match in rule.matches if match.set]
        return next((s.owners[key] for s in sets if key in s.owners), "")

    # --- statements ---

    def _nat(self, chain: Chain, rule: FilterRule, nat: Nat) -> tuple[str, str]:
        if nat.family != "ip":
            return "", ""
        key, owner = "", rule.owner
        if nat.kind == "masquerade":
            way = self.on.fib.look(self.destination, 0, self.mark)
            to = self.on.fib.source_for(Way("unicast", self.leaves_by, source=way.source))
        elif nat.map:
            found = self._key(nat.fields, nat.map)
            if found is None:
                return "", ""
            key, owner = found, self.on.set(nat.map).owners.get(found, owner)
            to = self.on.set(nat.map).elements[found]
        else:
            to = nat.to
        address, port = _target(to)
        before = (self.source, self.destination, self.port)
        if nat.kind == "dnat":
            self.destination = number(address)
            self.port = port if port is not None else self.port
        else:
            self.source = number(address)
        if before != (self.source, self.destination, self.port):
            self.translated.add("dnat" if nat.kind == "dnat" else "snat")
        self.steps.append(Step(chain.name, f"{nat.kind} to {to}", rule.why, key, owner))
        self._decide(owner, rule.why)
        return "accept", ""

    def _set_mark(self, chain: Chain, rule: FilterRule, set_mark: SetMark) -> None:
        key, owner = "", rule.owner
        if not self.has_flow and "ct mark" in (set_mark.field, set_mark.copy):
            return
        if set_mark.map:
            found = self._key(set_mark.fields, set_mark.map)
            if found is None:
                return
            key, owner = found, self.on.set(set_mark.map).owners.get(found, owner)
            value = int(self.on.set(set_mark.map).elements[found], 0)
        elif set_mark.copy:
            value = self.flow_mark if set_mark.copy == "ct mark" else self.mark
        else:
            value = int(set_mark.value, 0)
        if set_mark.field == "meta mark":
            changed, self.mark = self.mark != value, value
        else:
            changed, self.flow_mark = self.flow_mark != value, value
        if changed:
            self.steps.append(Step(chain.name, f"{set_mark.field} {value:#x}", rule.why, key, owner))

    # --- matches ---

    def _holds(self, match: Match) -> str | None:
        """The element or literal that a match finds ("-" for a negated one that holds), None where it does not hold."""
        if match.set:
            values = self._values(match.fields)
            found = None if values is None else self.on.element(match.set, values)
        else:
            (name,) = match.fields
            values = self._values(match.fields)
            found = None if values is None else next((v for v in match.values if _is(name, values[0], v)), None)
        if not match.negate:
            return found
        if values is None:
            if any(name in ("th sport", "th dport") for name in match.fields):
                raise NotImplementedError("a negated port, for a protocol without ports")
            return None
        return "-" if found is None else None

    def _key(self, fields: tuple[FieldName, ...], name: str) -> str | None:
        values = self._values(fields)
        return None if values is None else self.on.element(name, values)

    def _values(self, fields: tuple[FieldName, ...]) -> tuple[str, ...] | None:
        found = tuple(value for name in fields if (value := self._value(name)) is not None)
        return found if len(found) == len(fields) else None

    def _value(self, name: FieldName) -> str | None:
        """A field of the packet as it is now, in the canonical text of state.NftSet; None where it has none."""
        packet = self.packet
        if name in ("iifname", "oifname"):
            return self.came_by if name == "iifname" else self.leaves_by
        if name in ("ip saddr", "ip daddr"):
            return dotted(self.source if name == "ip saddr" else self.destination)
        if name in ("th sport", "th dport"):
            return str(packet.source_port if name == "th sport" else self.port) if packet.has_ports else None
        if name == "meta l4proto":
            return str(packet.protocol)
        if name in ("icmp type", "icmp code"):
            return str(packet.icmp_type if name == "icmp type" else packet.icmp_code) if packet.number == 1 else None
        if name == "ct state":
            return "new" if self.has_flow else "invalid"
        if name == "ct status":
            return " ".join(sorted(self.translated)) if self.has_flow else None
        if name == "meta mark":
            return str(self.mark)
        if name == "ct mark":
            return str(self.flow_mark) if self.has_flow else None
        if name == "ct direction":
            return "original" if self.has_flow else None
        if name == "meta nfproto":
            return "ipv4"
        if name == "fib daddr type":
            return self.on.fib.kind(self.destination)
        if name in _V6:
            return None
        raise NotImplementedError(f"trace does not know the field {name}")


def _is(name: FieldName, value: str, literal: str) -> bool:
    """Is the value of a field this literal, or in it: an address in a network, a number in a range?"""
    if name in ("ct state", "ct status"):
        if literal not in (_STATES if name == "ct state" else _STATUSES):
            raise NotImplementedError(f"trace does not know {name} {literal}")
        return literal in value.split()
    if name in ("iifname", "oifname", "meta l4proto", "meta nfproto", "ct direction", "fib daddr type"):
        return value == literal
    first, last = _span(literal)
    return first <= _plain(value) <= last


def _plain(value: str) -> int:
    """A number, an address or a protocol as a number: what an interval is made of."""
    if value.isascii() and value.isdigit():
        return int(value)
    if value.count(".") == 3:
        return number(value)
    if value not in NUMBERS:
        raise NotImplementedError(f"trace does not know {value} in an interval")
    return NUMBERS[value]


def _span(text: str) -> Span:
    """The literal of an interval: a number, an address, a network, a range of either, or a name."""
    first, dash, last = text.partition("-")
    if dash and first[0].isdigit():
        return _plain(first), _plain(last)
    if "/" in text:
        return bounds(text)
    value = int(text, 16) if text.startswith("0x") else _plain(text)
    return value, value


def _target(text: str) -> tuple[str, int | None]:
    """Where a translation leads: `10.1.1.10`, `10.1.1.10:22` or, from a map, `10.1.1.10 . 22`."""
    address, _, port = text.replace(" . ", ":").partition(":")
    return address, int(port) if port else None


# --- questions from outside ---


def answer(state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, object]:
    """GET /v1/trace: `in` (an interface's id), `src`, `dst`, `proto`, `sport`, `dport`, `icmp_type`, `icmp_code`.

    Without `in` it comes by the interface that leads back to `src`; without both it is the router's own. Raises
    ValueError that says what is wrong with the question.
    """
    raise NotImplementedError
