"""What a packet is at one moment of its way, and whether a rule's conditions hold of it. For trace.py.

Every field of appliance/state.py is known here, and every kind of condition; what isn't ends in NotImplementedError,
because a trace that guesses is worse than none. A field that the packet does not have (a port of an ICMP message, an
IPv6 address) matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.state import Field, Masked, Match, NftSet
from appliance.values import address_text, bounds, dotted, number
from router.fib import Fib
from router.packet import NUMBERS, Packet

# ICMP messages that connection tracking takes for the start of a flow (nf_conntrack_proto_icmp.c, valid_new).
QUESTIONS = frozenset({8, 13, 15, 17})
QUESTIONS6 = frozenset({128, 139})  # nf_conntrack_proto_icmpv6.c: echo, node information
UNTRACKED6 = frozenset({*range(130, 138), 143})  # the same: multicast listeners, neighbour discovery
_STATES = frozenset({"new", "established", "related", "invalid", "untracked"})
_STATUSES = frozenset({"expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "dying"})
_NAMES = frozenset(
    {"iifname", "oifname", "meta l4proto", "meta nfproto", "ct direction", "fib daddr type", "meta priority"}
)
_ADDRESSES = frozenset({"ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr"})
_ICMP = frozenset({"icmp type", "icmp code", "icmpv6 type", "icmpv6 code"})
_PROTOCOLS = {**NUMBERS, "ipv6-icmp": NUMBERS["icmpv6"]}

Span = tuple[int, int]  # first and last


class Sets:
    """The sets and maps of a ruleset, ready to be asked."""

    def __init__(self, sets: Mapping[str, NftSet]) -> None:
        self._sets = sets
        self._spans: dict[str, list[tuple[tuple[Span, ...], str]]] = {}

    def find(self, name: str, values: tuple[str, ...]) -> str | None:
        """The key of the element that holds these values, one per field."""
        found = self._sets[name]
        if not found.interval:
            key = " . ".join(values)
            return key if key in found.elements else None
        if name not in self._spans:
            self._spans[name] = [(tuple(map(span, key.split(" . "))), key) for key in found.elements]
        wanted = tuple(map(_ordered, values))
        for spans, key in self._spans[name]:
            if all(first <= value <= last for value, (first, last) in zip(wanted, spans, strict=True)):
                return key
        return None

    def value(self, name: str, key: str) -> str:
        return self._sets[name].elements[key]

    def owner(self, name: str, key: str) -> str:
        """The object that an element came from, "" for none."""
        return self._sets[name].owners.get(key, "")


@dataclass(slots=True)
class Moment:
    """A packet as it is now, and the flow it starts. `came_by` and `leaves_by` are names of links, "" for none."""

    packet: Packet
    fib: Fib
    sets: Sets
    came_by: str
    leaves_by: str = ""
    source: int = 0
    destination: int = 0
    port: int = 0
    mark: int = 0
    flow_mark: int = 0
    shaped: str = "0:0"  # the class that it is put into
    has_flow: bool = True
    translated: set[str] = field(default_factory=set)  # dnat, snat: where a translation changed something

    def __post_init__(self) -> None:
        self.source, self.destination = number(self.packet.source), number(self.packet.destination)
        self.port = self.packet.destination_port
        questions = QUESTIONS6 if self.packet.is_v6 else QUESTIONS
        self.has_flow = not self.packet.is_icmp or self.packet.icmp_type in questions

    def find(self, fields: tuple[Field, ...], name: str) -> str | None:
        """The key under which a set holds these fields of the packet, None where it does not."""
        values = self._values(fields)
        return None if values is None else self.sets.find(name, values)

    def holds(self, match: Match) -> bool:
        """Does a condition hold?"""
        values = self._values(match.fields)
        if values is None:
            if match.negate and any(name in ("th sport", "th dport") for name in match.fields):
                # nft(8) would compare whatever stands at that place in the packet.
                raise NotImplementedError("a negated port, of a protocol without ports")
            return False
        if match.set:
            return (self.sets.find(match.set, values) is not None) != match.negate
        (name,) = match.fields
        return any(_is(str(name), values[0], literal) for literal in match.values) != match.negate

    def _values(self, fields: tuple[Field, ...]) -> tuple[str, ...] | None:
        found = tuple(value for name in fields if (value := self.value(name)) is not None)
        return found if len(found) == len(fields) else None

    def value(self, name: Field) -> str | None:
        """A field in the canonical text of state.NftSet; None where the packet has none."""
        packet = self.packet
        if isinstance(name, Masked):
            end = self.source if name.field == "ip saddr" else self.destination
            return None if packet.is_v6 else dotted(end & name.mask)
        if name in ("iifname", "oifname"):
            return self.came_by if name == "iifname" else self.leaves_by
        if name in _ADDRESSES:
            if name.startswith("ip6 ") is not packet.is_v6:
                return None
            return address_text(self.source if name.endswith("saddr") else self.destination, packet.is_v6)
        if name in ("th sport", "th dport"):
            return str(packet.source_port if name == "th sport" else self.port) if packet.has_ports else None
        if name == "meta l4proto":
            return "ipv6-icmp" if packet.number == NUMBERS["icmpv6"] else str(packet.protocol)
        if name in _ICMP:
            if packet.number != NUMBERS[name.partition(" ")[0]] or not packet.is_icmp:  # each in its own family
                return None
            return str(packet.icmp_type if name.endswith("type") else packet.icmp_code)
        if name == "meta mark":
            return str(self.mark)
        if name == "meta priority":
            return self.shaped
        if name in ("ct original ip daddr", "ct reply ip daddr"):  # a new packet goes with its flow, not against it
            return packet.destination if name.startswith("ct original") and not packet.is_v6 else None
        if name == "ct state":
            untracked = packet.is_v6 and packet.is_icmp and packet.icmp_type in UNTRACKED6
            return "new" if self.has_flow else "untracked" if untracked else "invalid"
        if name in ("ct mark", "ct status", "ct direction"):
            flow = {"ct mark": str(self.flow_mark), "ct status": " ".join(self.translated), "ct direction": "original"}
            return flow[name] if self.has_flow else None
        if name == "meta nfproto":
            return "ipv6" if packet.is_v6 else "ipv4"
        if name == "fib daddr type":
            return self.fib.kind(self.destination)
        raise NotImplementedError(f"trace does not know the field {name}")


def _is(name: str, value: str, literal: str) -> bool:
    """Is the value of a field this literal, or in it: an address in a network, a number in a range?"""
    if name in ("ct state", "ct status"):
        if literal not in (_STATES if name == "ct state" else _STATUSES):
            raise NotImplementedError(f"trace does not know {name} {literal}")
        return literal in value.split()
    if name in _NAMES:
        return value == literal
    first, last = span(literal)
    return first <= _ordered(value) <= last


def _ordered(value: str) -> int:
    """A number, an address or a protocol as a number: what an interval is made of."""
    if value.isascii() and value.isdigit():
        return int(value)
    if value.startswith("0x"):
        return int(value, 16)
    if value.count(".") == 3 or ":" in value:
        return number(value)
    if value not in _PROTOCOLS:
        raise NotImplementedError(f"trace does not know {value} in an interval")
    return _PROTOCOLS[value]


def span(text: str) -> Span:
    """The literal of an interval: a number, an address, a network, or a range."""
    first, dash, last = text.partition("-")
    if dash:
        return _ordered(first), _ordered(last)
    if "/" in text:
        return bounds(text)
    return _ordered(text), _ordered(text)
