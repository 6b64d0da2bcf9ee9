"""Which packets a State cannot tell apart: their ends lie between the same boundaries.

Everything that a State says of addresses and ports (elements, conditions, routes, its own addresses) are ranges.
Sorted, their first numbers and those behind their last cut all numbers into spans, and within a span every question has
one answer. So ten thousand flows of strangers to one service are one flow to explain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from appliance.state import Field, FilterRule, Masked, Nat, SetMark, State, VerdictMap
from appliance.values import bounds, is_v6, number
from router.fields import Span, span

# What the kernel itself knows: this network, loopback, link-local, groups, reserved, everyone.
_KNOWN = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
    "::/128", "::1/128", "fe80::/10", "ff00::/8",
)  # fmt: skip
_ENDS = frozenset({"ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "ct original ip daddr", "ct reply ip daddr"})


class Likeness:
    """A State's spans. Whoever compares packets must compare their protocol and interface as they are."""

    def __init__(self, state: State) -> None:
        cuts: dict[str, set[int]] = {"port": set(), "4": set(), "6": set()}
        for kind, (first, last) in _spans(state):
            cuts[kind] |= {first, last + 1}
        self._ports, self._v4, self._v6 = (sorted(cuts[kind]) for kind in ("port", "4", "6"))

    def address(self, text: str) -> int:
        """In which span an address lies, of its own family's."""
        return bisect_right(self._v6 if is_v6(text) else self._v4, number(text))

    def port(self, port: int) -> int:
        return bisect_right(self._ports, port)


def _spans(state: State) -> Iterator[tuple[str, Span]]:
    texts = [*_KNOWN, *(r.destination for r in state.routes), *(r.source for r in state.rules if r.source)]
    texts += [text for a in state.addresses for text in (a.cidr, a.cidr.partition("/")[0])]
    for text in texts:
        yield _family(text), bounds(text) if "/" in text else (number(text), number(text))
        if "/" in text:  # a subnet's broadcasts
            first, last = bounds(text)
            yield from ((_family(text), (end, end)) for end in (first, last))
    asked: set[tuple[tuple[Field, ...], str]] = set()
    for chain in state.ruleset.chains:
        for rule in chain.rules:
            yield from _of_conditions(rule)
            asked.update(_asked(rule))
    for fields, name in asked:
        found = state.ruleset.sets[name]
        places = [(place, name_of) for place, f in enumerate(fields) if (name_of := _what(f))]
        for key in found.elements if places else ():
            parts = key.split(" . ")
            for place, field in places:
                yield _of_part(parts[place], field)


def _what(field: Field) -> Field | None:
    if isinstance(field, Masked) or field in _ENDS or field in ("th sport", "th dport"):
        return field
    return None


def _of_part(text: str, field: Field) -> tuple[str, Span]:
    if field in ("th sport", "th dport"):
        return "port", span(text)
    if isinstance(field, Masked):
        first = number(text)
        return "4", (first, first | ~field.mask & 0xFFFFFFFF)
    return _family(text), span(text)


def _family(text: str) -> str:
    return "6" if is_v6(text) else "4"


def _of_conditions(rule: FilterRule) -> Iterator[tuple[str, Span]]:
    for match in rule.matches:
        for field in match.fields:
            if match.values and (what := _what(field)):
                yield from (_of_part(text, what) for text in match.values)


def _asked(rule: FilterRule) -> Sequence[tuple[tuple[Field, ...], str]]:
    """The sets and maps that a rule looks into, each with the fields it looks for."""
    found = [(m.fields, m.set) for m in rule.matches if m.set]
    statement = rule.statement
    if isinstance(statement, VerdictMap | Nat | SetMark) and statement.map:
        found.append((statement.fields, statement.map))
    return found
