"""What allowed a live flow: as the trace says, one by one or ten thousand at once; and a page of the answer."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import flowpage
from appliance.fake import FakeHost
from appliance.state import LiveFlow, State
from router.compile import compile
from router.config import Config
from router.explain import Explainer, explain
from router.likeness import Likeness
from router.role import addresses
from router.trace import Tracer
from tests.router.samples import PUBLIC, configs, facts_of, forward, host, made, ports, rule

WORLD = "192.0.2.7"


def flow(ident: int = 1, **changes: Any) -> LiveFlow:
    """From the world by the first forward of the samples to its guest."""
    plain = LiveFlow(ident, "tcp", WORLD, 40000, PUBLIC[0], 2222, "10.1.1.10", 22, WORLD, 40000, mark=1)
    return replace(plain, **changes)


def explained(config: Config, *flows: LiveFlow) -> list[Any]:
    return explain(compile(config, facts_of(config)), facts_of(config), flows)


SMALL = made(forwards=[forward()], firewall=[rule()], hosts=[host()])


def test_a_forward_and_its_firewall_rule() -> None:
    (found,) = explained(SMALL, flow())
    assert found.allowed_by == ("fw-1", "fwd-1")
    assert found.came_by == "isp-a"
    assert not found.left_over


def test_a_guest_s_own_way_out() -> None:
    out = flow(
        source="10.1.1.10", destination=WORLD, destination_port=80, reply_source=WORLD, reply_source_port=80,
        reply_destination=PUBLIC[0],
    )  # fmt: skip
    (found,) = explained(SMALL, out)
    assert (found.came_by, found.left_over) == ("web", False)
    assert "web" in found.allowed_by


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"destination_port": 2223}, "would be dropped now: no firewall rule lets it in"),
        ({"reply_source": "10.1.1.11"}, "would be led to 10.1.1.10 port 22 now"),
        ({"reply_source_port": 23}, "would be led to 10.1.1.10 port 22 now"),
        ({"reply_destination": "10.1.1.1"}, f"would have the source {WORLD} now"),
    ],
)
def test_left_over(change: dict[str, Any], words: str) -> None:
    (found,) = explained(SMALL, flow(**change))
    assert found.left_over
    assert found.why.startswith(words)


def test_the_uplink_is_the_one_whose_mark_the_flow_has() -> None:
    marks = compile(SMALL, facts_of(SMALL)).ruleset.sets["m_uplink"].elements
    found = [explained(SMALL, flow(mark=int(marks[link]), destination="198.51.100.10"))[0] for link in ("eth1", "eth2")]
    assert [f.came_by for f in found] == ["isp-a", "isp.b"]


def test_one_that_comes_from_nowhere_is_said_to_be_so() -> None:
    (found,) = explained(SMALL, flow(protocol="udp", source="0.0.0.0", destination="255.255.255.255"))
    assert not found.allowed_by


# --- one for many -----------------------------------------------------------------------------------------------

_addresses = st.one_of(
    st.sampled_from([*PUBLIC, "10.1.1.10", "10.1.1.11", "10.1.2.10", "10.1.1.1", "192.0.2.127", "192.0.2.128"]),
    st.integers(0, 2**10 - 1).map(lambda n: f"192.0.{n >> 8}.{n & 255}"),
)
_ports = st.one_of(st.sampled_from([79, 80, 81, 82, 83, 90, 91, 999, 1000, 1063, 1064, 1065]), st.integers(1, 65535))


@st.composite
def flows(draw: st.DrawFn) -> LiveFlow:
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp", "47", "6"]))
    has_ports = protocol in ("tcp", "udp")
    source, destination = draw(_addresses), draw(_addresses)
    port = draw(_ports) if has_ports else 0
    return LiveFlow(
        1, protocol, source, draw(_ports) if has_ports else 0, destination, port, destination, port, source, 0,
        icmp_type=8 if protocol == "icmp" else 0, mark=draw(st.integers(0, 2)),
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(configs(), st.lists(flows(), min_size=10, max_size=30))
def test_what_is_alike_is_traced_alike(config: Config, some: list[LiveFlow]) -> None:
    """Explained together, where one stands for all that are like it, as each by itself."""
    alone = Explainer(compile(config, facts_of(config)))
    apart = []
    for one in some:
        alone.outcomes.clear()
        apart += alone.all([one])
    assert alone.all(some) == apart


def test_ten_thousand_strangers_are_a_few_to_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = 0
    trace = Tracer.trace

    def counted(self: Tracer, packet: Any) -> Any:
        nonlocal traced
        traced += 1
        return trace(self, packet)

    monkeypatch.setattr(Tracer, "trace", counted)
    chance = random.Random(1)
    found = explained(
        SMALL,
        *(flow(i, source=f"100.{chance.randrange(256)}.{chance.randrange(256)}.9", source_port=1024 + i)
          for i in range(10_000)),
    )  # fmt: skip
    assert {f.allowed_by for f in found} == {("fw-1", "fwd-1")}
    assert traced < 10


def test_spans_end_where_the_document_says() -> None:
    config = made(firewall=[rule(ports=ports(1000, 2000), sources=["100.64.0.0/25", "100.64.0.200"])])
    like = Likeness(compile(config, facts_of(config)))
    assert like.port(999) != like.port(1000) == like.port(1500) == like.port(2000) != like.port(2001)
    assert like.address("100.64.0.1") == like.address("100.64.0.127") != like.address("100.64.0.128")
    assert like.address("100.64.0.199") != like.address("100.64.0.200") != like.address("100.64.0.201")


# --- a page -----------------------------------------------------------------------------------------------------


def asked(machine: FakeHost, state: State, **query: str) -> dict[str, Any]:
    question = flowpage.read(query)
    ends = {question.guest, *addresses(SMALL, question.guest)}
    return flowpage.page(question, ends, machine.live_flows, partial(explain, state, machine.known), 1000.0)


def test_pages_sieves_and_what_is_told() -> None:
    machine, state = FakeHost(facts_of(SMALL)), compile(SMALL, facts_of(SMALL))
    machine.live = [
        flow(3, began=990.0, sent=(100, 2), received=(50, 1)), flow(1), flow(2, destination_port=9, mark=1),
        flow(4, protocol="udp", destination="203.0.113.11", reply_source="203.0.113.11"),
    ]  # fmt: skip
    first = asked(machine, state, most="2")
    assert ([f["id"] for f in first["flows"]], first["next"]) == ([1, 2], 2)
    rest = asked(machine, state, most="3", after="2")
    assert ([f["id"] for f in rest["flows"]], rest["next"]) == ([3, 4], None)
    assert rest["flows"][0]["age_s"] == 10.0
    assert rest["flows"][0]["sent"] == {"bytes": 100, "packets": 2}
    assert first["flows"][0]["age_s"] is first["flows"][0]["sent"] is None
    assert [f["id"] for f in asked(machine, state, object="fwd-1")["flows"]] == [1, 3]
    assert [f["id"] for f in asked(machine, state, left_over="1")["flows"]] == [2, 4]
    assert [f["id"] for f in asked(machine, state, guest="vm-1")["flows"]] == [1, 2, 3]
    assert [f["id"] for f in asked(machine, state, protocol="udp")["flows"]] == [4]


@pytest.mark.parametrize("query", [{"gest": "x"}, {"most": "0"}, {"most": "10001"}, {"most": "ten"}, {"after": "-1"}])
def test_a_wrong_question(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        flowpage.read(query)
