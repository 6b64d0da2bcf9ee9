"""The engine against whatever comes: documents by the thousand that are not right, and pushes in any order."""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from appliance.document import Change, Document, validate
from appliance.fake import FakeHost, facts
from appliance.plan import plan
from appliance.ruleset import delta, whole
from appliance.state import Ruleset, State
from router import role
from router.config import Config
from tests.appliance import toy
from tests.appliance.malformed import Maker
from tests.appliance.nfttext import Table
from tests.appliance.rig import BASE, MACS, RICH, Rig, document, put_in, remove
from tests.appliance.states import MACS as STATE_MACS
from tests.appliance.states import rulesets, states
from tests.router import samples
from tests.trials import trials


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as found:
        yield Path(found)


SMALL = samples.document(forwards=[samples.forward()], firewall=[samples.rule()], hosts=[samples.host()])


def router_rig(folder: Path, config: Any = None) -> Rig:
    """A router at `config`, confirmed, over a fake machine that has its interfaces."""
    raw = config or SMALL
    rig = Rig(folder, FakeHost(samples.facts_of(validate(Config, raw))), role=role)
    rig.settle(raw)
    return rig


# --- malformed documents ---


def is_told_why(answer: Any, seed: int) -> None:
    told = answer.body.get("problems")
    assert 400 <= answer.status < 500, (seed, answer)
    assert answer.body["error"], seed
    if answer.status == 422:
        assert told, seed
        assert all(isinstance(p["path"], str) and p["message"] for p in told), seed
        assert all(p["path"].isprintable() for p in told), seed


@pytest.mark.soak("router")
@pytest.mark.parametrize("kind", ["put", "patch", "plan"])
def test_malformed_documents_touch_nothing_and_are_told_why(folder: Path, kind: str) -> None:
    rig = router_rig(folder)
    state, machine, done = rig.engine.current.state, rig.host.machine, len(rig.host.done)
    push = getattr(rig.engine, kind)
    schema = (Change if kind == "patch" else Document[Config]).model_json_schema()
    refused = 0
    for seed in range(trials(10_000)):
        chance = random.Random(seed)
        maker = Maker(schema, chance)
        raw = maker.spoil(likely(maker, kind, chance))
        body = json.dumps(raw).encode()
        answer = push(maker.spoil_bytes(body) if chance.random() < 0.2 else body)
        if answer.status in (200, 202):  # what was spoiled meant nothing
            assert kind == "plan" or answer.body["result"].startswith(("unchanged", "applied")), (seed, answer)
            rig = router_rig(folder / str(seed))
            state, machine, done = rig.engine.current.state, rig.host.machine, len(rig.host.done)
            push = getattr(rig.engine, kind)
            continue
        refused += 1
        is_told_why(answer, seed)
        assert rig.host.machine is machine, seed
        assert len(rig.host.done) == done, seed
        assert rig.engine.current.state is state, seed
    assert refused > trials(10_000) * 0.8


def likely(maker: Maker, kind: str, chance: random.Random) -> Any:
    """A document that comes past the envelope, so that what is spoiled lies deeper."""
    if chance.random() < 0.5:
        config = json.loads(json.dumps(SMALL))
        operations: list[Any] = [
            put_in("forwards", **samples.forward("fwd-2")),
            put_in("hosts", **samples.host()),
            remove("firewall", "fw-1"),
        ]
    else:
        made = maker.make()
        config, operations = made.get("config"), made.get("operations")
    told = {"config": config} if kind != "patch" else {"base": 1, "operations": json.loads(json.dumps(operations))}
    return {"version": 1, "role": "router", "generation": 2, **told}


@pytest.mark.soak("router")
def test_random_bytes_by_every_door(folder: Path) -> None:
    rig = router_rig(folder)
    client = rig.app().test_client()
    done = len(rig.host.done)
    doors = [client.put, client.patch, client.post, client.post]
    paths = ["/v1/config", "/v1/config", "/v1/plan", "/v1/diagnostics"]
    for seed in range(trials(2_000)):
        chance = random.Random(seed)
        body = chance.randbytes(chance.randint(0, 300)) if seed % 2 else bytes(chance.choices(b'{}[]":,0 \\nu', k=60))
        for door, path in zip(doors, paths, strict=True):
            answer = door(path, data=body)
            assert answer.status_code == 422, (seed, path)
            assert answer.get_json()["error"], (seed, path)
    assert len(rig.host.done) == done


FORWARD = json.dumps(samples.forward("fwd-@"))
# What a large document may be made of, each of about `size` bytes, in the place of its forwards.
HUGE: dict[str, Callable[[int], str]] = {
    "objects that clash": lambda size: listed(size, lambda i: FORWARD.replace("@", str(i))),
    "objects that are nothing": lambda size: listed(size, lambda i: "{}"),
    "objects of the wrong kind": lambda size: listed(size, lambda i: f'{{"id": {i}}}'),
    "numbers": lambda size: listed(size, str),
    "an object with many fields": lambda size: "[{" + listed(size, lambda i: f'"{i}": 1')[1:-1] + "}]",
    "a list in an object": lambda size: '[{"id": "a", "sources": ' + listed(size, lambda i: "1") + "}]",
    "a string": lambda size: '[{"id": "' + "x" * size + '"}]',
    "brackets": lambda size: "[" * (size // 2) + "]" * (size // 2),
}


def listed(size: int, make: Callable[[int], str]) -> str:
    return f"[{','.join(make(i) for i in range(size // (len(make(10**6)) + 1)))}]"


@pytest.mark.parametrize("size", [20_000_000, 15_000_000, 1_000_000, 200_000])
@pytest.mark.parametrize("kind", HUGE)
def test_a_large_document(folder: Path, kind: str, size: int) -> None:
    """Refused by its size alone, or for what is wrong with it, in no more time and memory than a good one takes."""
    rig = router_rig(folder)
    done = len(rig.host.done)
    body = document({**SMALL, "forwards": "@"}, 2).replace(b'"@"', HUGE[kind](size).encode())
    assert len(body) > 0.6 * size
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = rig.engine.put(body)
    took, grown = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    is_told_why(answer, 0)
    assert len(answer.body["problems"]) <= 1000
    assert len(rig.host.done) == done
    assert took < 20
    assert grown < 1_000_000, f"{grown} KiB"
    operation = b'{"op":"put","collection":"forwards","object":{"id":"a","sources":' + HUGE[kind](size).encode() + b"}}"
    is_told_why(rig.engine.patch(rig.change("@").replace(b'"@"', operation)), 0)
    assert rig.put(SMALL).body["result"] == "unchanged"


# --- the plan, over the whole vocabulary ---


@settings(max_examples=trials(3000))
@given(states(), states(), states())
def test_plans_lead_there_one_after_another(first: State, second: State, third: State) -> None:
    host = FakeHost(facts(*STATE_MACS))
    before = State()
    for after in (first, second, third, first):
        for step in plan(before, after):
            host.commit(step)
        assert not [s for s in plan(host.observe(after, [host.machine]), after) if s.kind != "flows"]
        before = after


@settings(max_examples=trials(5000))
@given(rulesets(), rulesets(), rulesets())
def test_deltas_lead_where_the_whole_leads(first: Ruleset, second: Ruleset, third: Ruleset) -> None:
    table = Table().take(whole(first))
    before = first
    for after in (second, third, first):
        change = delta(before, after)
        table.take(whole(after) if change is None else change.text)
        assert table == Table().take(whole(after))
        before = after


# --- any order of pushes ---

notes = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), max_size=4)
doors = st.dictionaries(
    st.integers(1, 5), st.tuples(st.sampled_from(("10.1.1.1", "10.1.1.2")), st.booleans()), max_size=4
)


@st.composite
def toy_configs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        **draw(st.sampled_from((BASE, RICH))),
        "notes": [{"id": i, "text": t} for i, t in draw(notes).items()],
        "doors": [{"id": f"d{p}", "port": p, "target": t, "guarded": g} for p, (t, g) in draw(doors).items()],
    }


def confirmed(rig: Rig, status: int) -> int:
    return rig.engine.confirm(rig.engine.current.number, "another").status if status == 202 else status


@settings(max_examples=trials(1000))
@given(st.lists(toy_configs(), max_size=4), toy_configs(), st.lists(st.integers(0, 25), max_size=3))
def test_any_order_of_pushes_ends_in_the_last_document(
    way: list[dict[str, Any]], last: dict[str, Any], failures: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder))
        for number, config in enumerate(way):
            rig.host.fail_at = failures[number] if number < len(failures) else -1
            confirmed(rig, rig.put(config).status)
            rig.host.fail_at = -1
        state = rig.settle(last)
        assert not plan(state, toy.compile(toy.Config.model_validate_json(json.dumps(last)), facts(*MACS)))
        assert not rig.is_now(state)
        rig.restart()
        assert not rig.is_now(state)


def operations_between(before: Config, after: Config) -> list[dict[str, Any]]:
    """The operations that turn one config into another, by object id."""
    found = []
    for name in ("forwards", "static_nats", "firewall", "egress", "ingress", "acls", "hosts"):
        old, new = ({o.id: o for o in getattr(c, name)} for c in (before, after))
        found += [remove(name, i) for i in old if i not in new]
        found += [put_in(name, **o.model_dump(mode="json")) for i, o in new.items() if old.get(i) != o]
    return found


def as_json(config: BaseModel) -> Any:
    return config.model_dump(mode="json")


@settings(max_examples=trials(1500))
@given(samples.pairs())
def test_patches_there_and_back_are_what_documents_would_be(pair: tuple[Config, Config]) -> None:
    """The router, whose revise() does not compile the whole: PATCH is PUT, and PATCH back is the identity."""
    before, after = pair
    with tempfile.TemporaryDirectory() as folder:
        rig = router_rig(Path(folder), as_json(before))
        start = rig.engine.current.state
        for config in (after, before):
            change = operations_between(rig.engine.current.config, config)  # type: ignore[arg-type]
            if change:
                answer = rig.patch(*change)
                assert answer.status == 200, answer.body
            fresh = role.compile(validate(Config, as_json(config)), rig.engine.facts)
            assert not plan(rig.engine.current.state, fresh)
            assert not rig.is_now(fresh)
        assert not rig.is_now(start)
        answer = rig.put(as_json(before))  # other words at most: the order of what came back
        assert answer.body["result"] == "unchanged" or answer.body["steps"] == 0
