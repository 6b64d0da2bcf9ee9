"""Live flows with the object that allowed each: by real connections, held against what the document says of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.calls import tcp, udp
from tests.netns.stage import (
    DB,
    L10,
    L20,
    LEFT,
    MAIL,
    R10,
    WEB,
    WORLD,
    Json,
    Stage,
    allow,
    config,
    forward,
    interface,
    office,
    put,
    remove,
    servers,
    static,
)

HOSTS = tuple(
    {"_": "hosts", "id": name, "network": where, "mac": f"02:00:00:00:0b:0{n}", "address": address, "name": name}
    for name, where, address, n in (("vm-web", "office", WEB, 5), ("vm-db", "servers", DB, 8))
)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


def push(stage: Stage, *objects: Json) -> None:
    stage.bed.push({**config(*HOSTS, *objects), "usage": True})


def told(stage: Stage, **query: str) -> list[dict[str, Any]]:
    answer = stage.bed.appliance.flows(query)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.body["flows"]
    return found


def one(stage: Stage, **query: str) -> dict[str, Any]:
    (found,) = [flow for flow in told(stage, **query) if flow["destination"] != "169.254.240.10"]
    return found


def test_each_is_told_with_the_object_that_allowed_it(stage: Stage) -> None:
    push(
        stage,
        allow("web-open", L10, "tcp", 80), forward("web", L10, 80, WEB, 5000),
        allow("mail-open", L20), static("mail", L20, MAIL),
        allow("right-open", R10, "udp", 80), forward("other", R10, 80, DB, protocol="udp"),
    )  # fmt: skip
    flows = {
        "web": stage.flow(tcp(stage.world, L10, 80)),
        "mail": stage.flow(tcp(stage.world, L20, 25)),
        "other": stage.flow(udp(stage.far, R10, 80)),
        "office": stage.flow(tcp(stage.web, WORLD, 80)),
    }
    assert {name: flow.name for name, flow in flows.items()} == {
        "web": "web", "mail": "mail", "other": "db", "office": "world",
    }  # fmt: skip
    for name, opened in (("web", "web-open"), ("mail", "mail-open"), ("other", "right-open")):
        found = one(stage, object=name)
        assert opened in found["allowed_by"] or name == "mail"  # by any port: the trace names no rule then
        assert not found["left_over"]
    assert one(stage, object="web")["came_by"] == "left"
    assert one(stage, object="other")["came_by"] == "right"
    out = one(stage, guest="vm-web", object="office")
    assert (out["source"], out["destination"], out["destination_port"]) == (WEB, WORLD, 80)
    assert out["translated"]["from"] == LEFT
    web = one(stage, object="web")
    assert (web["translated"]["to"], web["translated"]["to_port"]) == (WEB, 5000)
    assert len(told(stage, guest="vm-web")) == len(told(stage, guest=WEB)) == 2


def test_what_it_carried_how_old_it_is_and_how_it_stands(stage: Stage) -> None:
    push(stage)
    flow = stage.flow(udp(stage.web, WORLD, 80))
    for _ in range(10):
        flow.socket.send(bytes(1000))
        flow.socket.recv(2048)
    time.sleep(0.3)
    found = one(stage, guest="vm-web")
    assert found["sent"]["packets"] == 11
    assert 10 * 1028 < found["sent"]["bytes"] < 10 * 1028 + 100
    assert found["received"]["packets"] == 11
    assert 0.2 < found["age_s"] < 30
    assert found["state"] in ("answered", "assured")
    assert 0 < found["expires_s"] <= 180
    stage.flow(tcp(stage.web, WORLD, 80))
    assert one(stage, protocol="tcp", guest="vm-web")["state"] == "established"


def test_tiers_and_the_item_of_the_acl(stage: Stage) -> None:
    items = [{"id": "sql", "action": "allow", "protocol": "tcp", "ports": {"first": 5000, "last": 5000}}]
    push(stage, office(acl="o"), servers(acl="s"), {"_": "acls", "id": "o"}, {"_": "acls", "id": "s", "ingress": items})
    stage.flow(tcp(stage.web, DB, 5000))
    found = one(stage, guest="vm-db")
    assert any("s" in owner for owner in found["allowed_by"])
    assert not found["left_over"]


def test_one_of_an_older_document_is_flagged_with_why(stage: Stage) -> None:
    push(stage, allow("open", L10, "tcp", 80), forward("web", L10, 80, WEB), allow("also", L10, "tcp", 22))
    flow = stage.flow(tcp(stage.world, L10, 80))
    assert told(stage, left_over="1") == []
    stage.bed.patch(remove(allow("open", L10)))
    assert flow.goes_on()  # a rule's end is no flow's
    (found,) = told(stage, left_over="1")
    assert found["destination"] == L10
    assert "no firewall rule lets it in" in found["why"]
    stage.bed.patch(put(allow("open", L10, "tcp", 80)))
    assert told(stage, left_over="1") == []


def test_another_source_than_today_s_is_flagged(stage: Stage) -> None:
    push(stage, office(LEFT))
    flow = stage.flow(tcp(stage.web, WORLD, 80))
    push(stage, office(L10))
    assert flow.goes_on()
    (found,) = told(stage, left_over="1", guest="vm-web")
    assert L10 in found["why"]


def test_the_router_s_own_are_told_as_its_own(stage: Stage) -> None:
    push(stage)
    (found,) = [f for f in told(stage, protocol="tcp") if f["destination_port"] == 3922][:1]
    assert not found["left_over"]
    assert "manager" in found["why"]
    assert found["came_by"] == "control"


def test_ipv6(stage: Stage) -> None:
    web6, db6 = "2001:db8:1::10", "2001:db8:2::10"
    push(
        stage,
        interface("lan", "guest", "10.1.1.1/24", "2001:db8:1::1/64"),
        interface("dmz", "guest", "10.1.2.1/24", "2001:db8:2::1/64"),
        office(acl="open", cidr6="2001:db8:1::/64"),
        servers(acl="open", cidr6="2001:db8:2::/64"),
        {"_": "acls", "id": "open", "ingress": [{"id": "all", "action": "allow", "protocol": "any"}]},
    )
    for machine, own, gateway in ((stage.web, web6, "2001:db8:1::1"), (stage.db, db6, "2001:db8:2::1")):
        machine.run(("ip", "addr", "replace", f"{own}/64", "dev", "eth0", "nodad"))
        machine.run(("ip", "-6", "route", "replace", "2001:db8::/32", "via", gateway))
    with stage.web.entered():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        sock.sendto(b"?", (db6, 7001))
        wait_for(lambda: bool(told(stage, guest=db6, protocol="udp")), 5.0, "it was not tracked")
        found = one(stage, guest=db6, protocol="udp")
    assert (found["source"], found["came_by"], found["left_over"]) == (web6, "lan", False)
    assert found["allowed_by"]


def test_pages_tell_each_once(stage: Stage) -> None:
    push(stage)
    with stage.web.entered():
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
    for sock in socks:
        with sock:
            for port in range(20000, 20100):
                sock.sendto(b"?", (WORLD, port))
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        body = stage.bed.appliance.flows({"guest": WEB, "most": "70", "after": str(after)}).body
        assert len(body["flows"]) <= 70
        seen += [flow["id"] for flow in body["flows"]]
        after = body["next"]
    assert len(seen) == len(set(seen)) == 300


def test_a_wrong_question_is_told_so(stage: Stage) -> None:
    push(stage)
    for query in ({"gest": "x"}, {"most": "0"}, {"most": "10001"}, {"after": "-1"}):
        answer = stage.bed.appliance.flows(query)
        assert answer.status == 422, query
        assert answer.body["error"]


def test_ten_thousand_in_seconds(stage: Stage) -> None:
    push(stage, allow("dns", L10, "udp", 1053), forward("dns", L10, 1053, WEB, 7001, protocol="udp"))
    with stage.world.entered():
        for block in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((WORLD, 30000 + block))
                for port in range(500):
                    sock.sendto(b"?", (L10, 1053)) if not port else sock.sendto(b"?", (LEFT, port + 1))
    with stage.web.entered():
        for block in range(20):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for port in range(500):
                    sock.sendto(b"?", (WORLD, 20000 + port + 500 * (block % 10)))
    started = time.monotonic()
    found = told(stage, most="10000")
    seconds = time.monotonic() - started
    assert len(found) > 9000
    assert seconds < 20, seconds
    print(f"{len(found)} flows in {seconds:.2f} s")
