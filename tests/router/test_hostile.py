"""Hostile text in every field of every model that takes text is refused by the field's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.document import Change, Document, DocumentError, Model, validate
from appliance.fake import FakeHost
from router import config, role
from router.config import Config
from tests.appliance.rig import Rig, document
from tests.appliance.test_values import HOSTILE
from tests.router import samples


def models() -> list[type[Model]]:
    found = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Model)]
    return [kind for kind in found if kind is not Model] + [Document[Config], Change]


def takes_text(schema: dict[str, Any], place: dict[str, Any]) -> Iterator[str]:
    """How a field takes text: "text" by itself, "list" as one of several."""
    if place.get("type") == "string" or any(isinstance(v, str) for v in (*place.get("enum", ()), place.get("const"))):
        yield "text"
    if place.get("type") == "array" and list(takes_text(schema, place["items"])):
        yield "list"
    for choice in place.get("anyOf", ()):
        yield from takes_text(schema, choice)


def fields() -> list[tuple[type[Model], str, str]]:
    found = []
    for model in models():
        schema = model.model_json_schema()
        root = schema["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        for name, place in root["properties"].items():
            found += [(model, name, how) for how in dict.fromkeys(takes_text(schema, place))]
    return found


def test_the_fields_are_found() -> None:
    known = {(model.__name__, name, how) for model, name, how in fields()}
    assert {("Interface", "id", "text"), ("Interface", "addresses", "list"), ("Interface", "gateway", "text")} <= known
    assert {("Record", "value", "text"), ("Firewall", "protocol", "text"), ("Dhcp", "search", "list")} <= known
    assert len(known) > 50


@pytest.mark.parametrize(("model", "name", "how"), fields(), ids=str)
def test_hostile_text_is_refused_by_name(model: type[Model], name: str, how: str) -> None:
    for text in HOSTILE:
        with pytest.raises(DocumentError) as caught:
            validate(model, {name: [text] if how == "list" else text})
        place = f"{name}[0]" if how == "list" else name
        assert place in [p.path for p in caught.value.problems], repr(text)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a text in a document."""
    for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(inner, str):
            yield node, key
        elif isinstance(inner, dict | list):
            yield from places(inner)


def test_no_hostile_text_comes_past_the_engine(tmp_path: Path) -> None:
    """The same through the door, with a document in which every text stands where it belongs."""
    full = json.loads((Path(__file__).parents[2] / "docs" / "examples" / "router.json").read_text())["config"]
    rig = Rig(tmp_path, FakeHost(samples.facts_of(validate(Config, full))), role=role)
    rig.settle(full)
    done = len(rig.host.done)
    tried = 0
    for box, key in list(places(full)):
        good = box[key]
        for text in (HOSTILE[tried % len(HOSTILE)], f"{good}\n", f'{good}"', f"{{{{{good}}}}}"):
            box[key] = text
            answer = rig.engine.put(document(full, 2))
            assert answer.status == 422, (key, text, answer.body)
            assert all(p["path"].startswith("config.") for p in answer.body["problems"])
            tried += 1
        box[key] = good
    assert tried > 200
    assert len(rig.host.done) == done
    assert rig.put(full, 2).body["result"] == "unchanged"
