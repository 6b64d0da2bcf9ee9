"""What GET /v1/trace says of a packet is what becomes of it: hundreds of calls, traced, then made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from mgmt.hosts.namespace import Ground
from tests.netns.calls import Call, Reply, met, raw
from tests.netns.stage import (
    BACK,
    DB,
    DEPOT,
    DESK,
    DMZ,
    FAR,
    L10,
    L20,
    L30,
    LAN,
    LEFT,
    MAIL,
    NEAR,
    R10,
    R20,
    RIGHT,
    STORE,
    WEB,
    WORLD,
    WORLD_HIGH,
    Json,
    Stage,
    allow,
    exception,
    forward,
    office,
    route,
    servers,
    static,
)

STRANGE = 99
OBJECTS = (
    office(L30, egress={"default": "allow"}),
    servers(egress={"default": "deny"}),
    forward("http", L10, 80, WEB),
    forward("by-source", L10, 22, MAIL, sources=["198.51.100.0/25"]),
    forward("by-source-udp", L10, 80, MAIL, protocol="udp", sources=["203.0.113.99/32", "10.1.0.0/16"]),
    forward("other-net", R10, (5000, 5002), DB, protocol="udp"),
    forward("shifted", R10, (80, 82), DESK, (5000, 5002)),
    static("mail", L20, MAIL),
    static("db", R20, DB),
    allow("l10", L10),
    allow("l20-tcp", L20, "tcp", (20, 100)),
    allow("l20-ping", L20, "icmp", icmp_type=8, sources=["198.51.100.0/24", "10.1.2.0/24"]),
    allow("l20-strange", L20, STRANGE, sources=[f"{WORLD}/32"]),
    allow("r10", R10, "udp"),
    allow("r10-tcp", R10, "tcp", 80),
    allow("r20", R20, sources=["198.51.100.0/25"]),
    allow("left-ping", LEFT, "icmp"),
    exception("no-25", "office", "tcp", 25),
    exception("no-high", "office", destinations=["198.51.100.128/25"]),
    exception("only-80", "servers", "tcp", 80),
    exception("pings", "servers", "icmp", icmp_type=8),
    route("depot", "172.20.0.0/16", STORE),
)
HOLDERS = {
    WEB: "web", MAIL: "mail", DESK: "desk", DB: "db", STORE: "store", DEPOT: "store", NEAR: "near", FAR: "far",
    WORLD: "world", WORLD_HIGH: "world",
}  # fmt: skip
OURS = (LEFT, L10, L20, L30, RIGHT, R10, R20, LAN, DMZ, BACK)
ASKED = (*OURS, *HOLDERS)
# Who calls: the machine, by which interface its packets come in, its source, and what of `ASKED` is its neighbour.
CALLERS = (
    ("world", "left", WORLD, (NEAR, FAR, WORLD, WORLD_HIGH)),
    ("world", "left", WORLD_HIGH, (NEAR, FAR, WORLD, WORLD_HIGH)),
    ("world", "right", WORLD, (NEAR, FAR, WORLD, WORLD_HIGH)),
    ("near", "left", NEAR, (NEAR,)),
    ("far", "right", FAR, (FAR,)),
    ("web", "lan", WEB, (WEB, MAIL, DESK)),
    ("mail", "lan", MAIL, (WEB, MAIL, DESK)),
    ("db", "dmz", DB, (DB,)),
    ("store", "back", STORE, (STORE, DEPOT)),
    ("", "", LEFT, ()),
    ("", "", R20, ()),
)
HOMES = {NEAR: "left", FAR: "right"}
LINKS = {"left": "eth0", "right": "eth1"}


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        # Roundabout ways for who is bound to a link: to all of the router by either uplink.
        for to in (RIGHT, R10, R20):
            stage.world.run(("ip", "route", "add", to, "via", LEFT, "dev", "eth0", "onlink", "metric", "500"))
        for to in (LEFT, L10, L20, L30, "10.1.0.0/16", "172.16.0.0/12"):
            stage.world.run(("ip", "route", "add", to, "via", RIGHT, "dev", "eth1", "onlink", "metric", "500"))
        stage.push(*OBJECTS)
        yield stage


def traced(stage: Stage, call: Call, came_by: str) -> Json:
    """The outcome that the router tells for a call's first packet."""
    query = {"src": call.source, "dst": call.to, "proto": str(call.protocol)}
    if came_by:
        query["in"] = came_by
    if call.port:
        query |= {"sport": "40000", "dport": str(call.port)}
    if call.protocol == "icmp":
        query |= {"icmp_type": str(call.icmp[0]), "icmp_code": str(call.icmp[1])}
    answer = stage.bed.appliance.trace(query)
    assert answer.status == 200, (query, answer.body)
    found: Json = answer.body.get("outcome", answer.body)
    return found


def ground(stage: Stage, name: str) -> Ground:
    return stage.machines[name] if name else stage.router


def disagreement(call: Call, told: Json, reply: Reply) -> str:
    """How an answer that came differs from what was told, "" where it doesn't."""
    if told["verdict"] == "local":
        return "" if reply.name in ("router", "refused") else f"{call}: told local, answered {reply}"
    link = LINKS[told["out_interface"]] if HOLDERS[told["destination"]] == "world" and reply.link else reply.link
    expected = Reply(HOLDERS[told["destination"]], told["source"], link)
    return "" if reply == expected else f"{call}: told {expected}, answered {reply}"


@pytest.mark.parametrize(
    "what", [("tcp", 80), ("udp", 80), ("tcp", 22), ("tcp", 25), ("udp", 5001), ("icmp", 0)], ids=str
)
def test_what_it_says_is_what_happens(stage: Stage, what: tuple[str, int]) -> None:
    protocol, port = what
    passing: list[tuple[Call, Json]] = []
    dropped: list[Call] = []
    for (name, came_by, source, near), to in itertools.product(CALLERS, ASKED):
        if to in near:
            continue
        link = LINKS[came_by] if name == "world" else ""
        call = Call(ground(stage, name), to, port, protocol, source, link)
        told = traced(stage, call, came_by)
        if told["verdict"] == "dropped":
            dropped.append(call)
        elif HOMES.get(told["destination"], told["out_interface"]) == told["out_interface"]:
            passing.append((call, told))  # else world had to carry it on to the other uplink's neighbour
    assert len(passing) > 10
    assert len(dropped) > 10
    replies = met(stage.services, [call for call, _ in passing])
    wrong = [d for (call, told), r in zip(passing, replies, strict=True) if (d := disagreement(call, told, r))]
    assert not wrong, "\n".join(wrong)
    stage.silent(*dropped)


@pytest.mark.parametrize(
    ("name", "came_by", "source", "to", "verdict"),
    [
        ("world", "left", WORLD, L20, "forwarded"),
        ("world", "left", WORLD_HIGH, L20, "dropped"),
        ("world", "left", WORLD, R10, "dropped"),
        ("web", "lan", WEB, WORLD, "forwarded"),
        ("web", "lan", WEB, WORLD_HIGH, "dropped"),
        ("db", "dmz", DB, WORLD, "dropped"),
    ],
)
def test_a_protocol_by_number(stage: Stage, name: str, came_by: str, source: str, to: str, verdict: str) -> None:
    """One at a time: there is one flow between two hosts."""
    stage.forget()
    call = raw(stage.machines[name], to, STRANGE, source)
    told = traced(stage, call, came_by)
    assert told["verdict"] == verdict
    if verdict == "dropped":
        stage.silent(call)
        return
    (reply,) = met(stage.services, [call])
    assert not disagreement(call, told, reply)


@pytest.mark.parametrize(
    ("came_by", "source", "to", "port", "owner"),
    [
        ("left", WORLD, L10, 80, "http"),
        ("left", WORLD, L10, 22, "by-source"),
        ("left", WORLD, L20, 80, "mail"),
        ("lan", WEB, WORLD, 25, "no-25"),
        ("lan", WEB, WORLD_HIGH, 80, "no-high"),
        ("lan", WEB, WORLD, 80, "office"),
        ("dmz", DB, WORLD, 22, "servers"),
    ],
)
def test_it_names_the_object_that_decides(
    stage: Stage, came_by: str, source: str, to: str, port: int, owner: str
) -> None:
    call = Call(stage.world, to, port, "tcp", source)
    assert owner in traced(stage, call, came_by)["owners"]


def test_a_bad_question_is_refused(stage: Stage) -> None:
    for query in ({"dst": "nowhere"}, {"in": "nowhere", "src": WORLD, "dst": L10}, {"dst": L10, "proto": "smtp"}):
        answer = stage.bed.appliance.trace(query)
        assert answer.status == 422, (query, answer.body)
        assert answer.body["error"]
