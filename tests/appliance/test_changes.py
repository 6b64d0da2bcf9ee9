"""A PATCH's operations: by id, in their order, at the cost of the change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.changes import apply_operations, collections
from appliance.document import Change, DocumentError, validate
from appliance.state import Touched
from tests.appliance import toy
from tests.appliance.rig import BASE, put_in, remove

CONFIG = toy.Config.model_validate_json(json.dumps(BASE))


def change(*operations: Any) -> Change:
    told = {"version": 1, "role": "router", "generation": 2, "base": 1, "operations": operations}
    return validate(Change, told)


def applied(config: toy.Config, *operations: Any) -> tuple[toy.Config, tuple[Touched, ...]]:
    found = apply_operations(config, change(*operations).operations)
    return found.config, found.touched


def test_collections_are_the_tuples_of_objects_with_an_id() -> None:
    assert collections(toy.Config) == {
        "wires": toy.Wire, "doors": toy.Door, "ways": toy.Way, "notes": toy.Note, "accounts": toy.Account,
    }  # fmt: skip


def test_put_remove_replace() -> None:
    config, touched = applied(
        CONFIG,
        put_in("doors", id="ssh", port=22, target="10.0.0.1"),
        put_in("notes", id="hello", text="changed"),
        remove("ways", "far"),
    )
    assert [d.id for d in config.doors] == ["web", "ssh"]
    assert config.notes == (toy.Note(id="hello", text="changed"),)
    assert config.ways == ()
    assert touched == (
        Touched("doors", "ssh", None, config.doors[1]),
        Touched("notes", "hello", CONFIG.notes[0], config.notes[0]),
        Touched("ways", "far", CONFIG.ways[0], None),
    )
    assert CONFIG.ways


def test_what_is_not_touched_is_the_same_object() -> None:
    config, _ = applied(CONFIG, put_in("notes", id="n", text="x"))
    assert config.doors is CONFIG.doors
    assert config.notes[0] is CONFIG.notes[0]


def test_each_object_is_told_once() -> None:
    _, touched = applied(
        CONFIG, remove("notes", "hello"), put_in("notes", id="hello", text="a"), put_in("notes", id="hello", text="b")
    )
    assert touched == (Touched("notes", "hello", CONFIG.notes[0], toy.Note(id="hello", text="b")),)


def test_removed_and_put_back_is_nothing_and_keeps_its_place() -> None:
    two, _ = applied(CONFIG, put_in("notes", id="bye", text="bye"))
    config, touched = applied(two, remove("notes", "hello"), put_in("notes", id="hello", text="hello"))
    assert touched == ()
    assert config == two


def test_put_and_removed_is_nothing() -> None:
    config, touched = applied(CONFIG, put_in("notes", id="x", text="x"), remove("notes", "x"))
    assert touched == ()
    assert config == CONFIG


def test_removed_twice_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"operations\[1\].id: there is no 'hello' in notes"):
        applied(CONFIG, remove("notes", "hello"), remove("notes", "hello"))


def test_every_problem_by_operation() -> None:
    with pytest.raises(DocumentError) as caught:
        applied(
            CONFIG, put_in("doors", id="x", port=0, target="no"), remove("windows", "x"), put_in("notes", text="no id")
        )
    assert [p.path for p in caught.value.problems] == [
        "operations[0].object.port", "operations[0].object.target", "operations[1].collection",
        "operations[2].object.id",
    ]  # fmt: skip


idents = st.sampled_from("abcd")
operations = st.one_of(
    st.builds(lambda i, t: put_in("notes", id=i, text=t), idents, st.sampled_from("xyz")),
    st.builds(lambda i: remove("notes", i), idents),
)


@settings(max_examples=50)
@given(st.lists(operations, min_size=1, max_size=8), st.lists(operations, max_size=8))
def test_operations_are_what_a_dictionary_would_do(first: list[Any], second: list[Any]) -> None:
    config, wanted = CONFIG, {"hello": "hello"}
    for batch in filter(None, (first, second)):
        start, missing = dict(wanted), False
        for operation in batch:
            if operation["op"] == "put":
                wanted[operation["object"]["id"]] = operation["object"]["text"]
            else:
                missing |= wanted.pop(operation["id"], None) is None
        if missing:
            with pytest.raises(DocumentError):
                applied(config, *batch)
            return
        config, touched = applied(config, *batch)
        assert {n.id: n.text for n in config.notes} == wanted
        assert {t.id for t in touched} == {k for k in {*start, *wanted} if start.get(k) != wanted.get(k)}
