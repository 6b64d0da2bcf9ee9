"""The API: every answer is JSON with its status, whatever was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from appliance.machine import HostError
from tests.appliance.rig import BASE, RICH, Rig, document, put_in


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.settle(BASE)
    return rig


@pytest.fixture
def client(rig: Rig) -> FlaskClient:
    return rig.app().test_client()


def by(connection: str) -> Any:
    return {"narthex.connection": connection}


def test_put_and_confirm(client: FlaskClient) -> None:
    answer = client.put("/v1/config", data=document(RICH, 2), environ_overrides=by("a"))
    assert answer.status_code == 202
    assert answer.get_json()["confirm"]["seconds"] == 60
    assert client.get("/v1/state").get_json()["awaiting"]["generation"] == 2
    assert client.post("/v1/config/2/confirm", environ_overrides=by("a")).status_code == 403
    assert client.post("/v1/config/2/confirm", environ_overrides=by("b")).status_code == 200
    assert client.get("/v1/state").get_json()["awaiting"] is None


def test_patch_plan_rollback(rig: Rig, client: FlaskClient) -> None:
    body = rig.change(put_in("notes", id="hello", text="HELLO"))
    told = client.post("/v1/plan", data=body).get_json()
    assert told["steps"] == [
        {"kind": "file", "verb": "write", "name": "/etc/toy/notes/hello", "owner": "hello"},
        {"kind": "unit", "verb": "reload", "name": "toyd", "owner": ""},
    ]
    assert client.patch("/v1/config", data=body).get_json()["result"] == "applied"
    assert client.post("/v1/rollback/1").get_json()["generation"] == 3
    assert client.post("/v1/rollback/77").status_code == 404


def test_what_is_too_large_is_not_read(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.document.MAX_BYTES", 10)
    monkeypatch.setattr("flask.Request.get_data", lambda self, **options: pytest.fail("it was read"))
    for ask, path in ((client.put, "config"), (client.patch, "config"), (client.post, "plan")):
        answer = ask(f"/v1/{path}", data=b"x" * 11)
        (problem,) = answer.get_json()["problems"]
        assert (answer.status_code, problem["message"]) == (422, "the body is 11 bytes; the limit is 10")
    answer = client.post("/v1/diagnostics", data=b"x" * 11)
    assert (answer.status_code, answer.get_json()["error"]) == (422, ": the body is 11 bytes; the limit is 10")


def test_reading(rig: Rig, client: FlaskClient) -> None:
    rig.patch(put_in("notes", id="hello", text="HELLO"))
    config = client.get("/v1/config").get_json()
    assert (config["generation"], config["config"]["notes"][0]["text"]) == (2, "HELLO")
    state = client.get("/v1/state").get_json()
    assert (state["generation"], state["converged"], state["name"], state["role"]) == (2, True, "r-1", "router")
    assert "link eth0 02:00:00:00:00:01 mtu 1500 up" in client.get("/v1/state?view=machine").get_json()["lines"]
    assert client.get("/v1/state?view=document").get_json()["document"] == config
    told = client.get("/v1/generations").get_json()
    assert [(g["generation"], g["kind"], g["status"]) for g in told["generations"]] == [
        (1, "put", "kept"),
        (2, "patch", "kept"),
    ]
    one = client.get("/v1/generations/1").get_json()
    assert one["document"]["config"]["notes"][0]["text"] == "hello"
    assert one["plan"][0] == {"kind": "sysctl", "verb": "set", "name": "net.ipv4.ip_forward", "owner": ""}
    assert "+file /etc/toy/notes/hello: HELLO" in client.get("/v1/generations/2?against=1").get_json()["diff"]
    assert client.get("/v1/generations/9").status_code == 404
    assert client.get("/v1/generations/2?against=9").status_code == 404
    assert client.get("/v1/trace?port=80").get_json()["object"] == "web"
    assert client.get("/v1/trace").status_code == 422
    assert client.get("/v1/version").get_json()["role"] == "router"
    assert client.get("/v1/usage").get_json()["resident_bytes"] > 0


def test_a_generation_that_was_undone_is_told_without_its_document(rig: Rig, client: FlaskClient) -> None:
    rig.host.fail_at = 0
    rig.patch(put_in("notes", id="hello", text="HELLO"))
    told = client.get("/v1/generations").get_json()["generations"][1]
    assert told["status"] == "undone"
    assert "broken on purpose" in told["why"]


def test_before_any_document(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    client = rig.app().test_client()
    assert client.get("/v1/config").get_json() is None
    assert client.get("/v1/state?view=document").get_json()["generation"] == 0
    assert client.get("/v1/health").status_code == 200
    assert client.get("/v1/generations").get_json() == {"current": 0, "generations": []}
    assert client.post("/v1/rollback/0").status_code == 404


def test_health_and_metrics(rig: Rig, client: FlaskClient) -> None:
    assert client.get("/v1/health").get_json()["healthy"] is True
    rig.host.fail_at, rig.host.fail_for = 6, 1000
    assert client.put("/v1/config", data=document(RICH, 2)).status_code == 500
    told = client.get("/v1/health")
    assert (told.status_code, told.get_json()["healthy"]) == (503, False)
    text = client.get("/metrics").get_data(as_text=True)
    assert "narthex_converged 0" in text
    assert 'narthex_pushes_total{status="500"} 1' in text
    assert "narthex_undone_total 1" in text
    rig.host.fail_at = -1
    rig.engine.heal("timer")
    assert client.get("/v1/health").status_code == 200
    assert "narthex_generation 1" in client.get("/metrics").get_data(as_text=True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/config", 404),
        ("DELETE", "/v1/config", 405),
        ("POST", "/v1/config/x/confirm", 404),
        ("POST", "/v1/config/-1/confirm", 404),
        ("POST", "/v1/rollback/" + "9" * 40, 404),
        ("GET", "/v1/plan", 405),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1/generations/1%00", 404),
    ],
)
def test_wrong_ways(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert path.split("?")[0].split("%")[0] in answer.get_json()["error"] or status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff",
        b'"\\ud800"',
        b"{}",
        b'{"kind": "ping"}',
        b'{"kind": "sh", "address": "::1"}',
        b'{"kind": "ping", "address": "-f"}',
        b'{"kind": "ping", "address": "192.0.2.1", "count": 1000}',
        b'{"kind": "arping", "address": "192.0.2.1"}',
        b'{"kind": "arping", "address": "192.0.2.1", "link": "-e"}',
        b'{"kind": "arping", "address": "::1", "link": "eth1"}',
        b'{"kind": "ping6", "address": "192.0.2.1"}',
        b'{"kind": "ping", "address": "192.0.2.1", "source": "::1"}',
        b'{"kind": "dns", "name": "a b", "server": "192.0.2.1"}',
        b'{"kind": "dns", "name": "a.example", "server": "@192.0.2.1"}',
        b'{"kind": "capture", "link": "any -w /etc/passwd"}',
        b'{"kind": "capture", "link": "eth1", "filter": "port 22"}',
        b'{"kind": "capture", "link": "eth1", "packets": 10000, "bytes": 65535}',
        b'{"kind": "capture", "link": "eth1", "seconds": 3600}',
        b'{"kind": "capture", "link": "eth1", "hosts": ["192.0.2.1 or host 192.0.2.2"]}',
        b'{"kind": "capture", "link": "eth1", "protocol": "icmp", "port": 53}',
    ],
)
def test_diagnostics_that_are_refused(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/v1/diagnostics", data=body)
    assert answer.status_code == 422
    assert answer.get_json()["error"]


@pytest.mark.parametrize(
    ("question", "argv"),
    [
        ({"kind": "ping", "address": "192.0.2.1"}, "ping -n -c 3 -w 5 192.0.2.1"),
        ({"kind": "arping", "address": "192.0.2.1", "link": "eth1", "count": 1}, "arping -c 1 -w 3 -I eth1 192.0.2.1"),
        ({"kind": "traceroute", "address": "2001:db8::1"}, "traceroute -n -w 1 -q 1 -m 20 2001:db8::1"),
        (
            {"kind": "ping6", "address": "2001:db8::1", "count": 1, "source": "2001:db8::2"},
            "ping -n -c 1 -w 3 -I 2001:db8::2 2001:db8::1",
        ),
        ({"kind": "arping", "address": "192.0.2.1", "link": "outside"}, "arping -c 3 -w 5 -I eth1 192.0.2.1"),
    ],
)
def test_diagnostics(rig: Rig, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, question: Any, argv: str) -> None:
    monkeypatch.setattr(rig.host, "run", lambda argv, stdin, seconds: (1, b"no answer\n", b""))
    told = client.post("/v1/diagnostics", data=json.dumps(question)).get_json()
    assert told == {"argv": argv.split(), "status": 1, "output": "no answer\n"}


def test_a_tool_that_is_missing(client: FlaskClient) -> None:
    answer = client.post("/v1/diagnostics", data=b'{"kind": "ping", "address": "192.0.2.1"}')
    assert (answer.status_code, answer.get_json()["error"]) == (422, "ping is not installed")


def test_a_machine_that_cannot_say_its_facts(rig: Rig, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def facts() -> None:
        raise HostError("cannot list links", "netlink: no buffer space")

    monkeypatch.setattr(rig.host, "facts", facts)
    answer = client.put("/v1/config", data=document({**BASE, "doors": []}, 2))
    assert (answer.status_code, answer.get_json()["result"]) == (500, "nothing touched")
    assert answer.get_json()["evidence"] == "netlink: no buffer space"


def test_what_nobody_foresaw_is_logged_and_answered(
    rig: Rig, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig.engine, "trace", lambda query: 1 / 0)
    answer = client.get("/v1/trace?port=80")
    assert (answer.status_code, answer.get_json()["error"]) == (500, "ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in rig.log.getvalue()
