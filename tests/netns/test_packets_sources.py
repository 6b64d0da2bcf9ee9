"""Sources of every prefix length, for firewall rules and forwards: who gets through; by packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.calls import Call, tcp
from tests.netns.stage import L10, NEAR, WEB, WORLD, WORLD_HIGH, WORLD_LOW, Stage, allow, forward

MANY = [f"100.{i >> 8}.{i & 255}.0/25" for i in range(5000)]
LISTS: tuple[tuple[list[str], set[str]], ...] = (
    (["0.0.0.0/0"], {WORLD, WORLD_LOW, WORLD_HIGH, NEAR}),
    (["0.0.0.0/1"], set()),
    (["128.0.0.0/1"], {WORLD, WORLD_LOW, WORLD_HIGH, NEAR}),
    (["198.0.0.0/8"], {WORLD, WORLD_LOW, WORLD_HIGH}),
    (["203.0.113.0/24"], {NEAR}),
    (["198.51.100.0/25"], {WORLD, WORLD_LOW}),
    (["198.51.100.6/31"], {WORLD}),
    ([f"{WORLD_HIGH}/32"], {WORLD_HIGH}),
    (["10.0.0.0/8", "198.51.100.0/24", f"{NEAR}/32"], {WORLD, WORLD_LOW, WORLD_HIGH, NEAR}),
    ([*MANY[:15], f"{WORLD}/32"], {WORLD}),
    ([*MANY[:16], f"{WORLD}/32"], {WORLD}),
    ([*MANY, "198.51.100.0/25"], {WORLD, WORLD_LOW}),
)
PORTS = range(8000, 8000 + len(LISTS))


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def sorted_out(stage: Stage) -> tuple[list[Call], list[Call]]:
    """The calls that shall get through, and those that shall not."""
    good: list[Call] = []
    bad: list[Call] = []
    for port, (_, allowed) in zip(PORTS, LISTS, strict=True):
        for source in (WORLD, WORLD_LOW, WORLD_HIGH, NEAR):
            call = tcp(stage.near if source == NEAR else stage.world, L10, port, source)
            (good if source in allowed else bad).append(call)
    return good, bad


def test_a_firewall_rule_by_source(stage: Stage) -> None:
    rules = (allow(f"a-{p}", L10, "tcp", p, sources=s) for p, (s, _) in zip(PORTS, LISTS, strict=True))
    stage.push(*rules, *(forward(f"f-{p}", L10, p, WEB, 80) for p in PORTS))
    good, bad = sorted_out(stage)
    stage.meets("web", *good)
    stage.silent(*bad)


def test_a_forward_by_source(stage: Stage) -> None:
    forwards = (forward(f"f-{p}", L10, p, WEB, 80, sources=s) for p, (s, _) in zip(PORTS, LISTS, strict=True))
    stage.push(allow("open", L10), *forwards)
    good, bad = sorted_out(stage)
    stage.meets("web", *good)
    stage.meets("refused", *bad)


def test_the_narrower_of_two_sources_on_one_port(stage: Stage) -> None:
    """Any of several rules may let a packet in, whichever is asked first; and none is missed when another goes."""
    wide, narrow = allow("wide", L10, "tcp", 80, sources=["198.0.0.0/8"]), allow("own", L10, "tcp", 80, [f"{WORLD}/32"])
    stage.push(wide, narrow, forward("f", L10, 80, WEB))
    stage.meets("web", tcp(stage.world, L10, 80, WORLD), tcp(stage.world, L10, 80, WORLD_HIGH))
    stage.push(narrow, forward("f", L10, 80, WEB))
    stage.meets("web", tcp(stage.world, L10, 80, WORLD))
    stage.silent(tcp(stage.world, L10, 80, WORLD_HIGH))
    stage.push(wide, forward("f", L10, 80, WEB))
    stage.meets("web", tcp(stage.world, L10, 80, WORLD), tcp(stage.world, L10, 80, WORLD_HIGH))


def test_only_flows_of_the_lost_sources_end(stage: Stage) -> None:
    kept, gone = [WORLD, WORLD_LOW], [WORLD_HIGH]
    stage.push(allow("open", L10), forward("f", L10, 80, WEB, sources=["198.51.100.0/24"]))
    flows = {source: stage.flow(tcp(stage.world, L10, 80, source)) for source in (*kept, *gone)}
    stage.push(allow("open", L10), forward("f", L10, 80, WEB, sources=["198.51.100.0/25"]))
    assert {source for source, flow in flows.items() if flow.goes_on(1.0)} == set(kept)
