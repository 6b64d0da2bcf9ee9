"""Which object of the document lets a live flow through: its first packet, traced through today's rules (trace.py).

A flow is judged once, when it begins, and goes on when the rules change. So today's rules may know nothing of it any
more: such a flow is `left over`, and is told with why it would be dropped now, or where it would be led. Where a flow
came in follows from its source: by the interface behind which that is, of several uplinks by the one whose mark the
flow has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.state import Facts, LiveFlow, State
from appliance.values import is_v6, number
from router.likeness import Likeness
from router.packet import Outcome, Packet
from router.trace import Tracer


@dataclass(frozen=True, slots=True)
class Explained:
    """`allowed_by`: ids of the objects that decided, the last one last; none where it is the router's own rule, which
    `why` tells. `came_by` is the interface's id, "" for the router's own. `left_over`: today it would not begin so."""

    came_by: str
    allowed_by: tuple[str, ...]
    why: str
    left_over: bool


def explain(state: State, facts: Facts, flows: Sequence[LiveFlow]) -> list[Explained]:
    """For each flow what allowed it."""
    return Explainer(state).all(flows)


class Explainer:
    """A State, ready to explain many flows: of those that it cannot tell apart (likeness.py), one is traced."""

    def __init__(self, state: State) -> None:
        self._tracer = Tracer(state)
        marks = state.ruleset.sets.get("m_uplink")
        self._uplinks = {int(mark, 0): link for link, mark in marks.elements.items()} if marks else {}
        self._came: dict[tuple[str, int], str] = {}
        self._like = Likeness(state)
        self.outcomes: dict[tuple[str | int, ...], tuple[LiveFlow, Outcome] | str] = {}

    def all(self, flows: Sequence[LiveFlow]) -> list[Explained]:
        return [self._one(flow) for flow in flows]

    def _one(self, flow: LiveFlow) -> Explained:
        came_by = self._way(flow.source, flow.mark)
        like = self._like
        key = (
            came_by, like.address(flow.source), like.address(flow.destination), is_v6(flow.source), flow.protocol,
            like.port(flow.source_port), like.port(flow.destination_port), flow.icmp_type, flow.icmp_code,
        )  # fmt: skip
        known = self.outcomes.get(key)
        if known is None:
            traced = self._traced(came_by, flow)
            known = self.outcomes[key] = traced if isinstance(traced, str) else (flow, traced)
        if isinstance(known, str):
            return Explained(came_by, (), known, False)
        outcome = _as_for(flow, *known)
        if outcome.verdict == "dropped":
            return Explained(came_by, (), f"would be dropped now: {outcome.why}", True)
        if elsewhere := _elsewhere(flow, outcome):
            return Explained(came_by, outcome.owners, elsewhere, True)
        return Explained(came_by, outcome.owners, outcome.why, False)

    def _way(self, source: str, mark: int) -> str:
        """The interface that a flow came by; "" for one of the router's own."""
        if (source, mark) not in self._came:
            tracer = self._tracer
            way = (tracer.fib6 if is_v6(source) else tracer.fib).look(number(source), 0)
            link = "" if way.kind == "local" else way.link
            if link in self._uplinks.values():
                link = self._uplinks.get(mark, link)
            self._came[source, mark] = tracer.ids.get(link, link)
        return self._came[source, mark]

    def _traced(self, came_by: str, flow: LiveFlow) -> Outcome | str:
        """What the rules of today make of a flow's first packet; in words why that cannot be said."""
        protocol: str | int = int(flow.protocol) if flow.protocol.isdigit() else flow.protocol
        packet = Packet(
            came_by, flow.source, flow.destination, protocol, flow.source_port, flow.destination_port,
            flow.icmp_type, flow.icmp_code,
        )  # fmt: skip
        try:
            return self._tracer.trace(packet).outcome
        except (ValueError, NotImplementedError) as error:
            return f"cannot be said: {error}"


def _as_for(flow: LiveFlow, other: LiveFlow, outcome: Outcome) -> Outcome:
    """What became of another packet, for this one: what was not translated is its own."""
    source = flow.source if outcome.source == other.source else outcome.source
    destination = flow.destination if outcome.destination == other.destination else outcome.destination
    port = outcome.destination_port
    if port is not None and port == other.destination_port:
        port = flow.destination_port
    why = outcome.why.replace(other.destination, flow.destination)
    return replace(outcome, source=source, destination=destination, destination_port=port, why=why)


def _elsewhere(flow: LiveFlow, outcome: Outcome) -> str:
    """Where the rules of today would lead a flow that is led elsewhere; "" where they lead it the same way."""
    port = outcome.destination_port
    if outcome.destination != flow.reply_source or port is not None and port != flow.reply_source_port:
        to = outcome.destination if port is None else f"{outcome.destination} port {port}"
        return f"would be led to {to} now"
    if outcome.verdict == "forwarded" and outcome.source != flow.reply_destination:
        return f"would have the source {outcome.source} now"
    return ""
