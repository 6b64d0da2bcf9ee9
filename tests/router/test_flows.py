"""Which live flows end when forwards change: those whose translation is gone, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.plan import Flows, plan
from appliance.values import bounds, dotted
from router.compile import compile
from router.config import Config
from tests.router.samples import COLLECTIONS, LONG, PUBLIC, document, facts_of, forward, made, ports, sound

Flow = tuple[str, str, str, int]  # source, address, protocol, port
WIDE, LOW, HIGH = "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25"


def ended(before: Config, after: Config) -> tuple[Flows, ...]:
    facts = facts_of(before)
    steps = plan(compile(before, facts), compile(after, facts))
    return next((s.before.flows for s in steps if s.kind == "flows"), ())  # type: ignore[union-attr]


def matches(flows: Flows, flow: Flow, target: str) -> bool:
    source, address, protocol, port = flow
    first, _, last = flows.ports.partition("-")
    return (
        (flows.destination, flows.protocol, flows.target) == (address, protocol, target)
        and int(first) <= port <= int(last or first)
        and (not flows.sources or any(holds(c, source) for c in flows.sources))
    )


def holds(cidr: str, source: str) -> bool:
    return bounds(cidr)[0] <= bounds(source)[0] <= bounds(cidr)[1]


def of(*sources: str, target: str = "10.1.1.10") -> dict[str, Any]:
    return forward("a", sources=list(sources), target=target)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ([of(WIDE)], [], [WIDE]),
        ([of(WIDE, "198.51.100.7/32")], [of(WIDE)], ["198.51.100.7"]),
        ([of(WIDE)], [of(LOW)], [HIGH]),
        ([of(LOW)], [of(LOW, HIGH)], []),
        ([of(LOW)], [forward("a")], []),
        ([of(LOW)], [of(*LONG)], []),
        ([of(*LONG)], [of(*LONG[1:])], [LONG[0]]),
        ([of(*LONG)], [of(*LONG[:3])], list(LONG[3:])),
        ([of("0.0.0.0/0")], [of("128.0.0.0/1")], ["0.0.0.0/1"]),
        ([of(WIDE)], [of(WIDE, target="10.1.1.11")], [WIDE]),
        ([of(WIDE), forward("b", sources=["10.0.0.0/8"])], [of(WIDE)], ["10.0.0.0/8"]),
    ],
)
def test_lost_sources(before: list[dict[str, Any]], after: list[dict[str, Any]], lost: list[str]) -> None:
    found = ended(made(forwards=before), made(forwards=after))
    assert {(f.destination, f.protocol, f.ports, f.target) for f in found} <= {(PUBLIC[0], "tcp", "2222", "10.1.1.10")}
    assert sorted(c for f in found for c in f.sources) == sorted(lost)


def test_flows_of_others_are_left_alone() -> None:
    rest = [forward("b", sources=[WIDE], ports=ports(2223)), forward("c", sources=[HIGH])]
    (only,) = ended(made(forwards=[of(LOW), *rest]), made(forwards=rest))
    assert only == Flows(PUBLIC[0], "tcp", "2222", "10.1.1.10", (LOW,))
    assert only.owner == "a"


# --- at random -------------------------------------------------------------------------------------------------


@st.composite
def restricted(draw: st.DrawFn) -> Config:
    """A document whose forwards all have sources."""
    found = COLLECTIONS["forwards"].filter(lambda f: bool(f["sources"]))
    return sound(document(forwards=draw(st.lists(found, max_size=5, unique_by=lambda f: f["id"]))))


def place(config: Config, flow: Flow) -> tuple[str, int] | None:
    """Where a flow is translated to."""
    source, address, protocol, port = flow
    for f in config.forwards:
        is_sent_to = (f.address, f.protocol) == (address, protocol) and f.ports.first <= port <= f.ports.last
        if is_sent_to and any(holds(c, source) for c in f.sources):
            return f.target, port + (f.target_ports.first - f.ports.first if f.target_ports else 0)
    return None


def places(config: Config) -> set[Flow]:
    """Flows that are translated: from both ends of each network, to both ends of each range."""
    return {
        (dotted(source), f.address, f.protocol, port)
        for f in config.forwards
        for cidr in f.sources
        for source in bounds(cidr)
        for port in (f.ports.first, f.ports.last)
    }


@given(restricted(), restricted())
def test_a_flow_ends_where_its_translation_does(before: Config, after: Config) -> None:
    lost = ended(before, after)
    for flow in places(before) | places(after):
        was = place(before, flow)
        if was is not None:
            is_ended = any(matches(f, flow, was[0]) for f in lost)
            assert is_ended == (place(after, flow) != was), flow
