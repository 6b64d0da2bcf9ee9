"""Changes under live traffic: what ends, what goes on, what is refused, and the way back; by packets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mgmt.push import Answer
from tests.netns.calls import Call, both, echo, tcp, udp
from tests.netns.stage import (
    DB,
    DESK,
    L10,
    L20,
    LEFT,
    MAIL,
    R10,
    WEB,
    WORLD,
    WORLD_LOW,
    Json,
    Stage,
    allow,
    config,
    forward,
    interface,
    office,
    put,
    remove,
    static,
)

OPEN = (allow("open-10", L10), allow("open-20", L20))


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def digest(stage: Stage) -> str:
    """What the machine is, by the engine's own lines and by the kernel's table."""
    lines = stage.bed.appliance.state("machine").body["lines"]
    return "\n".join([*sorted(lines), *sorted(stage.run("nft -s list table inet narthex").splitlines())])


# --- flows that end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("way", ["put", "patch"])
def test_a_forward_that_goes_takes_its_flows_and_no_others(stage: Stage, protocol: str, way: str) -> None:
    ask = tcp if protocol == "tcp" else udp
    gone = forward("gone", L10, 80, WEB, protocol=protocol)
    ranged = forward("ranged", L10, (6000, 6002), WEB, (5000, 5002), protocol=protocol)
    rest = (
        forward("same-guest", L10, 22, WEB, protocol=protocol),
        forward("same-port", L20, 80, WEB, protocol=protocol),
        forward("range", L10, (5000, 5002), WEB, protocol=protocol),
        forward("sourced", L10, 7000, WEB, protocol=protocol, sources=["198.51.100.0/24"]),
    )
    stage.push(*OPEN, gone, ranged, *rest)
    w = stage.world
    ended = [stage.flow(ask(w, L10, 80)), stage.flow(ask(stage.mail, L10, 80)), stage.flow(ask(w, L10, 6001))]
    others = [stage.flow(ask(w, L10, port)) for port in (22, 5001)]
    others += [stage.flow(ask(w, L20, 80)), stage.flow(ask(w, L10, 7000, WORLD)), stage.flow(ask(stage.web, WORLD, 80))]
    assert all(flow.goes_on() for flow in (*ended, *others))
    if way == "put":
        stage.push(*OPEN, *rest)
    else:
        stage.bed.patch(remove(gone), remove(ranged))
    assert not any(flow.goes_on(0.5) for flow in ended)
    assert all(flow.goes_on() for flow in others)
    stage.meets("refused", ask(w, L10, 80), ask(w, L10, 6000))


def test_a_forward_that_leads_elsewhere(stage: Stage) -> None:
    """Its flows end, and who asks again is led to the new guest."""
    stage.push(*OPEN, forward("f", L10, 80, WEB), forward("s", L10, 22, WEB, sources=["198.51.100.0/25"]))
    old = [stage.flow(tcp(stage.world, L10, port, WORLD)) for port in (80, 22)]
    stage.bed.patch(put(forward("f", L10, 80, MAIL)), put(forward("s", L10, 22, MAIL, sources=["198.51.100.0/25"])))
    assert not any(flow.goes_on(0.5) for flow in old)
    stage.meets("mail", tcp(stage.world, L10, 80), tcp(stage.world, L10, 22, WORLD))


def test_a_source_that_is_taken_from_a_forward(stage: Stage) -> None:
    """The flows of who is still allowed go on."""
    stage.push(*OPEN, forward("f", L10, 80, WEB, sources=[f"{WORLD}/32", f"{WORLD_LOW}/32"]))
    kept, gone = stage.flow(tcp(stage.world, L10, 80, WORLD)), stage.flow(tcp(stage.world, L10, 80, WORLD_LOW))
    stage.bed.patch(put(forward("f", L10, 80, WEB, sources=[f"{WORLD}/32"])))
    assert kept.goes_on()
    assert not gone.goes_on(0.5)


def test_a_forward_beside_that_comes_for_a_source(stage: Stage) -> None:
    """Flows of the forward for all go on (rule 1), also of a source that has a forward of its own from now on."""
    stage.push(*OPEN, forward("all", L10, 80, WEB))
    flow = stage.flow(tcp(stage.world, L10, 80, WORLD))
    stage.bed.patch(put(forward("one", L10, 80, MAIL, sources=[f"{WORLD}/32"])))
    assert flow.goes_on()
    stage.meets("mail", tcp(stage.world, L10, 80, WORLD))
    stage.meets("web", tcp(stage.world, L10, 80, WORLD_LOW))


def test_a_firewall_rule_that_goes_ends_no_flow(stage: Stage) -> None:
    """Rule 1 again: only new ones are dropped."""
    rule = allow("a", L10, "tcp", 80)
    stage.push(rule, forward("f", L10, 80, WEB))
    flow = stage.flow(tcp(stage.world, L10, 80))
    stage.bed.patch(remove(rule))
    assert flow.goes_on()
    stage.silent(tcp(stage.world, L10, 80))


# --- nothing is lost --------------------------------------------------------------------------------------------------


def streams(stage: Stage) -> list[Call]:
    """In by a forward and a static NAT, out by source NAT, and between two guests of one network."""
    w = stage.world
    return [tcp(w, L10, 80), udp(w, L10, 80), udp(w, L20, 22), tcp(stage.db, WORLD, 80), udp(stage.desk, WORLD, 5000)]


CARRIED = (*OPEN, forward("t", L10, 80, WEB), forward("u", L10, 80, WEB, protocol="udp"), static("s", L20, MAIL))


@pytest.mark.parametrize("kind", ["nothing", "one-more", "whole-table", "patches", "interfaces"])
def test_a_push_loses_no_packet(stage: Stage, kind: str) -> None:
    """Live flows at a thousand packets a second each while documents are pushed over them."""
    stage.push(*CARRIED)
    running = [stage.stream(call) for call in streams(stage)]
    for stream in running:
        stream.wait(50)
    many = [f"198.{18 + (i >> 15)}.{i >> 7 & 255}.{i * 2 & 255}/32" for i in range(5000)]
    for turn in range(3):
        if kind == "nothing":
            stage.push(*CARRIED)
        elif kind == "one-more":
            stage.push(*CARRIED, *(forward(f"more-{n}", L10, 10000 + n, DESK) for n in range(10 + turn * 10)))
        elif kind == "whole-table":
            stage.push(*CARRIED, allow("many", L10, "tcp", 81 + turn, sources=many[turn:]))
        elif kind == "patches":
            item = forward("more", R10, 9000 + turn, DESK)
            stage.bed.patch(put(item), put(allow("many", R10, "tcp", 9000 + turn)))
        else:
            stage.push(*CARRIED, interface("back", "private", "172.16.0.1/24", f"172.17.{turn}.1/24"))
        for stream in running:
            stream.wait(20)
    lost = [stream.lost() for stream in running]
    assert lost == [0] * len(running)
    assert all(stream.sent > 100 for stream in running)


def test_the_push_of_many_replaced_the_table(stage: Stage) -> None:
    """What the test above means by it: the table has another handle afterwards."""
    many = [f"198.{18 + (i >> 15)}.{i >> 7 & 255}.{i * 2 & 255}/32" for i in range(5000)]
    stage.push(*CARRIED)
    before = stage.run("nft -j list tables")
    stage.push(*CARRIED, forward("small", L10, 9000, WEB))
    assert stage.run("nft -j list tables") == before
    stage.push(*CARRIED, allow("many", L10, "tcp", 81, sources=many))
    assert stage.run("nft -j list tables") != before


# --- refused ----------------------------------------------------------------------------------------------------------


def raw_put(stage: Stage, wanted: Json, **envelope: object) -> Answer:
    return stage.bed.appliance.put(json.dumps(stage.bed.document(wanted, **envelope)).encode())


REFUSED = {
    "a target in no network": ([forward("f", L10, 81, "10.9.9.9")], "config.forwards[f].target"),
    "a foreign address": ([forward("f", "203.0.113.77", 81, WEB)], "config.forwards[f].address"),
    "a clash": ([forward("f", L10, (79, 81), WEB), forward("a", L10, 80, MAIL)], "config.forwards[f].ports"),
    "a mismatch": ([forward("f", L10, (81, 83), WEB, (81, 82))], "config.forwards[f].target_ports"),
    "a whole address twice": ([static("x", L10, DESK), forward("f", L10, 81, WEB)], "config.forwards[f].address"),
    "an absent link": ([{**office(), "interface": "nowhere"}], "config.networks[office].interface"),
    "an unknown field": ([{**forward("f", L10, 81, WEB), "comment": "x"}], "config.forwards[f].comment"),
    "no port": ([forward("f", L10, 70000, WEB)], "config.forwards[f].ports.first"),
    "IPv6": ([allow("f", L10, "tcp", 81, sources=["2001:db8::/32"])], "config.firewall[f].sources"),
    "a foreign source NAT": ([office("198.51.100.1")], "config.networks[office].source_nat"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_document_leaves_everything_running(stage: Stage, name: str) -> None:
    stage.push(*CARRIED)
    flow, before = stage.flow(tcp(stage.world, L10, 80)), digest(stage)
    objects, path = REFUSED[name]
    answer = raw_put(stage, config(*CARRIED, *objects))
    assert answer.status == 422
    assert path in [problem["path"] for problem in answer.body["problems"]]
    assert digest(stage) == before
    assert flow.goes_on()
    stage.meets("web", *both(stage.world, L10, 80))


def test_every_error_is_told_at_once(stage: Stage) -> None:
    stage.push(*CARRIED)
    bad = (forward("one", L10, 81, "10.9.9.9"), forward("two", L10, 82, "10.9.9.9"), allow("three", "203.0.113.77"))
    answer = raw_put(stage, config(*CARRIED, *bad))
    assert answer.status == 422
    assert {p["path"] for p in answer.body["problems"]} == {
        "config.forwards[one].target", "config.forwards[two].target", "config.firewall[three].address",
    }  # fmt: skip


def test_a_stale_generation(stage: Stage) -> None:
    stage.push(*CARRIED)
    now = stage.bed.generation
    for number in (now, now - 1):
        answer = raw_put(stage, config(*CARRIED, forward("x", L10, 81, WEB)), generation=number)
        assert answer.status == 409
        assert answer.body["current"] == now
    operation = put(forward("x", L10, 81, WEB))
    change = {"version": 1, "role": "router", "base": now - 1, "generation": now + 1, "operations": [operation]}
    assert stage.bed.appliance.patch(json.dumps(change).encode()).status == 409
    stage.meets("refused", tcp(stage.world, L10, 81))
    stage.meets("web", tcp(stage.world, L10, 80))


# --- plan, rollback, patch --------------------------------------------------------------------------------------------


def test_a_plan_shows_the_flows_that_it_would_break(stage: Stage) -> None:
    """And breaks none."""
    stage.push(*CARRIED)
    flow, other = stage.flow(tcp(stage.world, L10, 80, WORLD)), stage.flow(tcp(stage.db, WORLD, 80))
    before = digest(stage)
    wanted = config(*OPEN, forward("u", L10, 80, WEB, protocol="udp"), static("s", L20, MAIL))
    answer = stage.bed.appliance.plan(json.dumps(stage.bed.document(wanted)).encode())
    assert answer.status == 200
    told = json.dumps(answer.body["flows"])
    assert WORLD in told
    assert str(flow.socket.getsockname()[1]) in told
    assert DB not in told
    assert digest(stage) == before
    assert flow.goes_on()
    assert other.goes_on()
    pushed = raw_put(stage, wanted, plan=answer.body["plan"])
    assert stage.bed.settled(pushed).good
    assert not flow.goes_on(0.5)
    assert other.goes_on()


def test_rollback_brings_the_packets_back(stage: Stage) -> None:
    stage.push(*CARRIED)
    good, before = stage.bed.generation, digest(stage)
    stage.push(allow("only", L10, "icmp"), office(L20))
    stage.silent(*both(stage.world, L10, 80), tcp(stage.world, L20, 22))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=L20)
    answer = stage.bed.settled(stage.bed.appliance.rollback(good))
    assert answer.good, answer.body
    assert digest(stage) == before
    stage.meets("web", *both(stage.world, L10, 80))
    stage.meets("mail", tcp(stage.world, L20, 22), echo(stage.world, L20))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)


def test_patch_and_patch_back(stage: Stage) -> None:
    """Comes out where it began, for each kind of object, and in between it is so."""
    stage.push(*CARRIED)
    before, w = digest(stage), stage.world
    flow = stage.flow(tcp(w, L10, 80))
    steps: list[tuple[Json, Json, str, Call]] = [
        (f := forward("x", L10, 22, DESK), remove(f), "desk", tcp(w, L10, 22)),
        (f := forward("x", L10, 22, DESK, sources=[f"{WORLD}/32"]), remove(f), "desk", tcp(w, L10, 22, WORLD)),
        (f := forward("x", L10, (5000, 5002), DESK), remove(f), "desk", tcp(w, L10, 5001)),
        (static("s", L20, DESK), put(static("s", L20, MAIL)), "desk", tcp(w, L20, 22)),
        (f := allow("x", LEFT, "icmp"), remove(f), "router", echo(w, LEFT)),
        (f := static("x", R10, DB), remove(f), "world", tcp(stage.db, WORLD, 80)),
        (office(L20), put(office()), "world", tcp(stage.web, WORLD, 80)),
    ]
    for item, back, name, call in steps:
        stage.bed.patch(put(item))
        stage.meets(name, call)
        assert digest(stage) != before
        stage.bed.patch(back)
        assert digest(stage) == before, item
    assert flow.goes_on()
