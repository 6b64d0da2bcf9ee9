"""Limits: who shares which class, and which packet is put where; the change of one at its own cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.document import DocumentError, validate
from appliance.fake import FakeHost
from appliance.machine import HostError
from appliance.nftdata import layout
from appliance.plan import Step, plan
from appliance.state import Class, Facts, Shaper, State, Touched
from appliance.tc import HANDLE, changes
from router.bandwidth import LEAF, QDISC, SLOTS, numbers
from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config
from router.config_bandwidth import Limit
from router.packet import Packet
from router.trace import Tracer
from tests.router.samples import document, facts_of, host, made

P, Q = "203.0.113.10", "203.0.113.11"
GUEST = host()
OTHER = host("vm-2", mac="02:01:00:00:00:02", address="10.1.1.11", name="vm-2")


def limit(ident: str, up: int | None = 1000, down: int | None = 2000, **what: str) -> dict[str, Any]:
    return {"id": ident, "up_kbit": up, "down_kbit": down, **what}


def compiled(*limits: dict[str, Any], **more: Any) -> State:
    config = made(limits=list(limits), hosts=[GUEST, OTHER], **more)
    assert problems(config) == []
    return compile(config, facts_of(config))


def tree(state: State, link: str) -> dict[str, str]:
    """For each class of a link, by the limit's id ("leaf" behind it where it is one): what it is a part of."""
    classes = next((s.classes for s in state.shapers if s.link == link), {})
    name = {n: c.owner + (" leaf" if n >= LEAF else "") for n, c in classes.items()}
    return {name[n]: name.get(c.parent, "") for n, c in classes.items()}


# eth1 and eth2 are the uplinks, eth3 the network web, eth4 db.1, eth5 private


def test_a_guest_is_a_part_of_its_network_and_that_of_its_address() -> None:
    state = compiled(limit("of-p", address=P), limit("of-web", network="web"), limit("of-vm", host="vm-1"))
    whole = {
        "of-p": "", "of-p leaf": "of-p", "of-web": "of-p", "of-web leaf": "of-web", "of-vm leaf": "of-web",
    }  # fmt: skip
    assert tree(state, "eth3") == whole  # down
    assert tree(state, "eth1") == whole  # up, by the uplink of P
    alone = {"of-web": "", "of-web leaf": "of-web", "of-vm leaf": "of-web"}
    assert tree(state, "eth2") == tree(state, "eth5") == alone
    assert tree(state, "eth4") == {"of-p": "", "of-p leaf": "of-p"}


def test_a_guest_with_a_static_nat_is_a_part_of_that_address() -> None:
    state = compiled(
        limit("of-q", address=Q), limit("of-web", network="web"), limit("of-vm", host="vm-1"),
        static_nats=[{"id": "s", "address": Q, "target": GUEST["address"]}],
    )  # fmt: skip
    assert tree(state, "eth1")["of-vm leaf"] == tree(state, "eth3")["of-vm leaf"] == "of-q"
    assert tree(state, "eth2")["of-vm leaf"] == "of-web"


def test_a_part_lives_on_what_its_parent_lends() -> None:
    state = compiled(limit("of-web", network="web"), limit("of-vm", 500, 700, host="vm-1"))
    classes = next(s.classes for s in state.shapers if s.link == "eth3")
    found = {c.owner + str(n >= LEAF): (c.rate_kbit, c.ceil_kbit) for n, c in classes.items()}
    assert found == {"of-webFalse": (2000, 2000), "of-webTrue": (1, 2000), "of-vmTrue": (1, 700)}


def test_one_direction_alone() -> None:
    state = compiled(limit("of-vm", None, 700, host="vm-1"))
    assert {s.link for s in state.shapers} == {"eth3"}
    assert not state.ruleset.sets["m_shape_up"].elements


def test_what_leads_to_a_class_leads_to_one_that_is_there() -> None:
    state = compiled(limit("of-p", address=P), limit("of-web", network="web"), limit("of-vm", host="vm-1"))
    there = {f"{QDISC:x}:{n:x}" for s in state.shapers for n in s.classes if n >= LEAF}
    values = {v for name, s in state.ruleset.sets.items() if name.startswith("m_shape") for v in s.elements.values()}
    assert values == there
    assert QDISC == HANDLE
    assert all(layout("classid").text(layout("classid").pack(v)) == v for v in values)


def test_the_trace_says_which_limit_holds() -> None:
    state = compiled(limit("of-web", network="web"), limit("of-vm", host="vm-1"), limit("of-q", address=Q))
    tracer = Tracer(state)

    def last(packet: Packet) -> str:
        shaped = [s.owner for s in tracer.trace(packet).steps if s.did.startswith("limited")]
        return shaped[-1] if shaped else ""

    assert last(Packet("web", GUEST["address"], "192.0.2.1", "tcp", destination_port=80)) == "of-vm"
    assert last(Packet("web", OTHER["address"], "192.0.2.1", "tcp", destination_port=80)) == "of-web"
    assert last(Packet("", Q, "192.0.2.1", "tcp", destination_port=80)) == "of-q"
    assert last(Packet("", P, "192.0.2.1", "tcp", destination_port=80)) == ""


def test_without_limits_nothing_is_there() -> None:
    state = compiled()
    assert state.shapers == ()
    assert not [name for name in state.ruleset.sets if "shape" in name]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        limit("x"), limit("x", host="vm-1", network="web"), limit("x", None, None, host="vm-1"),
        limit("x", 7, host="vm-1"), limit("x", 10_000_001, host="vm-1"),
    ],
)  # fmt: skip
def test_a_limit_says_one_thing(wrong: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        validate(Limit, wrong)


@pytest.mark.parametrize(
    ("limits", "where", "words"),
    [
        ([limit("x", host="vm-9")], "config.limits[x].host", "there is no host vm-9"),
        ([limit("x", network="lan")], "config.limits[x].network", "there is no network lan"),
        ([limit("x", address="10.1.1.1")], "config.limits[x].address", "no address of a public interface"),
        ([limit("x", host="vm-1"), limit("y", host="vm-1")], "config.limits[y].host", "has a limit already, x"),
    ],
)
def test_meaning(limits: list[dict[str, Any]], where: str, words: str) -> None:
    config = validate(Config, document(limits=limits, hosts=[GUEST]))
    (found,) = problems(config)
    assert found.path == where
    assert words in found.message
    told = revised(config, [Touched("limits", one.id, None, one) for one in config.limits])
    assert told == [found]


def test_a_host_that_is_limited_does_not_go() -> None:
    config = validate(Config, document(limits=[limit("x", host="vm-1")]))
    gone = validate(Config, document(hosts=[GUEST])).hosts[0]
    told = revised(config, [Touched("hosts", "vm-1", gone, None)])
    assert told is not None
    assert [p.path for p in told] == ["config.limits[x].host"]


# --- numbers ----------------------------------------------------------------------------------------------------


def test_every_limit_has_a_number_of_its_own_whatever_the_order() -> None:
    ids = tuple(f"limit-{i}" for i in range(10_000))
    found = numbers(ids)
    assert sorted(found) == sorted(ids)
    assert len(set(found.values())) == len(ids)
    assert all(0 < n <= SLOTS for n in found.values())
    assert numbers(ids[::-1]) == found


def test_one_more_moves_hardly_any() -> None:
    ids = tuple(f"limit-{i}" for i in range(10_000))
    before, after = numbers(ids), numbers((*ids, "one-more"))
    assert sum(before[i] != after[i] for i in ids) < 10


# --- changes ----------------------------------------------------------------------------------------------------

_rates = st.sampled_from([None, 100, 200])
_whats = st.sampled_from(
    [{"host": "vm-1"}, {"host": "vm-2"}, {"host": "vm-3"}, {"network": "web"}, {"network": "db.1"}, {"address": P}]
)
_limits = st.lists(
    st.tuples(st.integers(0, 5), _whats, _rates, _rates), max_size=5, unique_by=(lambda t: t[0], lambda t: str(t[1]))
)
_addresses = st.sampled_from(["10.1.1.20", "10.1.1.21", "10.1.1.22"])
_static = st.one_of(st.just([]), _addresses.map(lambda a: [{"id": "s", "address": P, "target": a}]))


@st.composite
def configs(draw: st.DrawFn) -> Config:
    places = draw(st.permutations(["10.1.1.20", "10.1.1.21", "10.1.1.22"]))
    hosts = [host(f"vm-{i}", mac=f"02:01:00:00:00:{i:02x}", address=a, name=f"n{i}") for i, a in enumerate(places, 1)]
    found = [limit(f"l{i}", up, down if up or down else 100, **what) for i, what, up, down in draw(_limits)]
    return made(limits=found, hosts=hosts, static_nats=draw(_static))


@settings(max_examples=200)
@given(configs(), configs())
def test_revise_is_compile(before: Config, after: Config) -> None:
    facts = facts_of(before)
    touched = [
        Touched(name, i, old.get(i), new.get(i))
        for name in ("limits", "hosts", "static_nats")
        for old, new in [({o.id: o for o in getattr(c, name)} for c in (before, after))]
        for i in {**old, **new}
        if old.get(i) != new.get(i)
    ]
    whole = compile(after, facts)
    found = revise(compile(before, facts), after, tuple(touched), facts)
    if found is None:
        return
    assert found.ruleset == whole.ruleset
    assert found.shapers == whole.shapers
    assert {n: dict(s.owners) for n, s in found.ruleset.sets.items()} == {
        n: dict(s.owners) for n, s in whole.ruleset.sets.items()
    }


def test_one_of_many_touches_no_other() -> None:
    hosts = [host(f"vm-{i}", mac=f"02:01:00:00:{i >> 8:02x}:{i & 255:02x}", address=f"10.1.1.{i}", name=f"n{i}")
             for i in range(20, 220)]  # fmt: skip
    limits = [limit(f"l-{h['id']}", host=h["id"]) for h in hosts]
    before, after = made(hosts=hosts, limits=limits[:-1]), made(hosts=hosts, limits=limits)
    facts = facts_of(before)
    state = compile(before, facts)
    found = revise(state, after, (Touched("limits", after.limits[-1].id, None, after.limits[-1]),), facts)
    assert found is not None
    assert found == compile(after, facts)
    for was, now in zip(state.shapers, found.shapers, strict=True):
        assert len([n for n, c in now.classes.items() if was.classes.get(n) is not c]) == 1


# --- steps ------------------------------------------------------------------------------------------------------


def test_what_is_a_part_comes_last_and_goes_first() -> None:
    before = Shaper("eth3", {1: Class(0, 9, 9, 1), 2: Class(1, 1, 9, 1), 0x8003: Class(2, 1, 9, 1)})
    assert changes(None, before) == ([], [1, 2, 0x8003])
    assert changes(before, Shaper("eth3", {})) == ([0x8003, 2, 1], [])


def test_what_moves_takes_its_parts_along() -> None:
    before = Shaper("eth3", {1: Class(0, 9, 9, 1), 2: Class(1, 1, 9, 1), 0x8003: Class(2, 1, 9, 1)})
    after = replace(before, classes={**before.classes, 2: Class(0, 9, 9, 1)})
    assert changes(before, after) == ([0x8003, 2], [2, 0x8003])


def test_a_plan_names_the_limit_and_undoes_itself() -> None:
    plain, shaped = compiled(), compiled(limit("of-vm", host="vm-1"))
    there = [s for s in plan(plain, shaped) if s.kind == "shaper"]
    assert [(s.verb, s.name, s.owner) for s in there] == [("set", f"eth{n}", "of-vm") for n in (1, 2, 5, 3)] or {
        (s.verb, s.owner) for s in there
    } == {("set", "of-vm")}
    assert {(s.verb, s.name) for s in plan(shaped, plain) if s.kind == "shaper"} == {("remove", s.name) for s in there}


@pytest.mark.parametrize(
    "classes", [{0x8001: Class(7, 1, 9, 1)}, {0x8001: Class(0, 9, 9, 1), 0x8002: Class(0x8001, 1, 9, 1)}]
)
def test_the_fake_refuses_what_the_kernel_would(classes: dict[int, Class]) -> None:
    facts: Facts = facts_of(made())
    machine = FakeHost(facts)
    with pytest.raises(HostError):
        machine.commit(Step("shaper", "set", "eth1", None, Shaper("eth1", classes)))
