"""Documents at the door: what is refused, and what the answer says about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import appliance.document
from appliance.document import Change, Document, DocumentError, Envelope, Model, parse, path_of, validate
from appliance.values import Identifier, Port
from tests.appliance import toy
from tests.appliance.rig import BASE

ENVELOPE: dict[str, Any] = {"version": 1, "role": "router", "generation": 1}


def refusals(model: type[Model], raw: object) -> dict[str, str]:
    with pytest.raises(DocumentError) as caught:
        validate(model, raw)
    return {p.path: p.message for p in caught.value.problems}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON: EOF"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": ' + b"9" * 6000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "recursion limit"),
        (b'{"a": "\n"}', "line 2"),
    ],
)
def test_what_is_no_json_object(body: bytes, words: str) -> None:
    with pytest.raises(DocumentError, match=words) as caught:
        parse(body)
    assert [p.path for p in caught.value.problems] == [""]


def test_a_body_over_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance.document, "MAX_BYTES", 10)
    with pytest.raises(DocumentError, match="the body is 11 bytes; the limit is 10"):
        parse(b"[" * 11)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
        ({"version": 1.0}, "version"),
        ({"version": "1"}, "version"),
        ({"role": "toaster"}, "role"),
        ({"generation": 0}, "generation"),
        ({"generation": True}, "generation"),
        ({"generation": 1.5}, "generation"),
        ({"generation": "1"}, "generation"),
        ({"generation": 2**53}, "generation"),
        ({"confirm": 5}, "confirm"),
        ({"confirm": {"seconds": 0}}, "confirm.seconds"),
        ({"confirm": {"seconds": 3601}}, "confirm.seconds"),
        ({"plan": "x"}, "plan"),
        ({"plan": "a" * 65}, "plan"),
        ({"plan": "a" * 64 + "\n"}, "plan"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_envelopes_that_are_refused(fields: dict[str, Any], path: str) -> None:
    assert list(refusals(Envelope, {**ENVELOPE, **fields})) == [path]


def test_all_that_is_wrong_at_once() -> None:
    assert list(refusals(Document[toy.Config], {})) == ["version", "role", "generation", "config"]
    broken = {**BASE, "doors": [{"id": "a", "port": "80"}, {"id": "b\n", "port": 1, "target": "10.0.0.256"}, 7]}
    told = refusals(Document[toy.Config], {**ENVELOPE, "config": broken})
    assert list(told) == [
        "config.doors[a].port", "config.doors[a].target", "config.doors[1].id", "config.doors[1].target",
        "config.doors[2]",
    ]  # fmt: skip
    assert "write it as 192.0.2.1" in told["config.doors[1].target"]


def test_unknown_fields_say_so() -> None:
    assert refusals(Envelope, {**ENVELOPE, "rolle": "x"}) == {"rolle": "unknown field; remove it or correct its name"}


def test_problems_are_told_up_to_a_thousand() -> None:
    doors = [{"id": f"d{i}", "port": 0, "target": "10.0.0.1"} for i in range(3000)]
    assert len(refusals(Document[toy.Config], {**ENVELOPE, "config": {**BASE, "doors": doors}})) == 1000


def test_operations_are_named_by_their_number() -> None:
    operations: list[Any] = [
        {"op": "remove", "collection": "doors", "id": "\n"}, {"op": "put", "collection": "doors", "object": 1},
        {"op": "move"}, {"collection": "doors"}, None,
    ]  # fmt: skip
    told = refusals(Change, {**ENVELOPE, "base": 1, "operations": operations})
    assert list(told)[:5] == [
        "operations[0].id", "operations[1].object", "operations[2]", "operations[3]", "operations[4]",
    ]  # fmt: skip
    assert list(refusals(Change, {**ENVELOPE, "base": 1, "operations": []})) == ["operations"]


def test_a_union_s_tags_are_no_places() -> None:
    class Thing(Model):
        id: Identifier
        size: Port | list[Port]

    class Box(Model):
        things: tuple[Thing, ...]

    told = refusals(Box, {"things": [{"id": "a", "size": "big"}, {"id": "b", "size": [0]}]})
    assert list(told) == ["things[a].size", "things[b].size", "things[b].size[0]"]


def test_a_path_is_fit_to_be_printed() -> None:
    told = refusals(Envelope, {**ENVELOPE, "\x1b[2J\n": 1, "x" * 500: 1, "é": 1})
    assert list(told) == ["\\x1b[2J\\n", "x" * 64, "\\xe9"]


def test_path_of_an_unknown_place() -> None:
    assert path_of(("a", 3, "b"), {"a": []}, "config") == "config.a[3]"
    assert path_of((), {}, "config") == "config"


def test_older_versions_are_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    lifts = {-1: lambda raw: {**raw, "version": 0}, 0: lambda raw: {**raw, "version": 1, "config": raw["conf"]}}
    monkeypatch.setattr(appliance.document, "UPGRADES", lifts)
    body = json.dumps({**ENVELOPE, "version": -1, "conf": {"x": 1}}).encode()
    assert parse(body)["config"] == {"x": 1}
    assert parse(body)["version"] == 1


def test_models_are_frozen() -> None:
    door = toy.Door(id="a", port=1, target="10.0.0.1")
    with pytest.raises(ValueError, match="frozen"):
        door.port = 2  # type: ignore[misc]
