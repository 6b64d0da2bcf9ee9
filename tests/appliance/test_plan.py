"""plan(before, after): what it names, in which order, and that taking it step by step leads there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from appliance.fake import FakeHost, facts
from appliance.plan import Flows, Step, diff, digest, lines, outline, plan
from appliance.state import (
    Address,
    Chain,
    Entry,
    File,
    FilterRule,
    Hook,
    Link,
    Match,
    Nat,
    NftSet,
    Route,
    Rule,
    Ruleset,
    State,
    Sysctl,
    Unit,
    VerdictMap,
)
from tests.appliance.states import MACS, states


def of_machine(steps: tuple[Step, ...]) -> list[Step]:
    return [s for s in steps if s.kind != "flows"]


def taken(host: FakeHost, steps: tuple[Step, ...]) -> None:
    for step in steps:
        host.commit(step)


@settings(max_examples=25)
@given(states(), states())
def test_taken_step_by_step_it_leads_there(before: State, after: State) -> None:
    host = FakeHost(facts(*MACS))
    taken(host, plan(State(), before))
    steps = plan(host.observe(before, []), after)
    assert not of_machine(plan(host.observe(before, []), before))
    taken(host, steps)
    assert not of_machine(plan(host.look(steps, after), after))
    assert not of_machine(plan(host.observe(after, [host.machine]), after))


@settings(max_examples=25)
@given(states(), states())
def test_and_back(before: State, after: State) -> None:
    host = FakeHost(facts(*MACS))
    taken(host, plan(State(), before))
    taken(host, plan(before, after))
    taken(host, plan(after, before))
    assert not of_machine(plan(host.observe(before, [host.machine]), before))


@settings(max_examples=25)
@given(states())
def test_no_plan_to_oneself(state: State) -> None:
    assert plan(state, state) == ()
    copy = State(**{name: getattr(state, name) for name in State.__slots__})
    assert plan(state, copy) == ()
    assert diff(state, copy) == ""


@settings(max_examples=25)
@given(states(), states())
def test_order(before: State, after: State) -> None:
    steps = plan(before, after)
    places: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        places.setdefault(f"{step.verb} {step.kind}", []).append(place)
    order = [
        ("set sysctl",),
        ("set link",),
        ("set wireguard",),
        ("set peer",),
        ("add address",),
        ("add route",),
        ("add rule",),
        ("apply ruleset",),
        ("write file",),
        ("stop unit", "start unit", "restart unit", "reload unit"),
        ("set entry",),
        ("remove entry",),
        ("add advert",),
        ("remove advert",),
        ("remove peer",),
        ("remove rule",),
        ("remove route",),
        ("remove address",),
        ("remove link",),
        ("remove file",),
        ("end flows",),
    ]
    found = [sorted(p for name in names for p in places.pop(name, [])) for names in order]
    assert not places
    assert [p for group in found for p in group] == list(range(len(steps)))
    assert sum(s.kind == "ruleset" for s in steps) <= 1
    stops = [i for i, s in enumerate(steps) if s.verb == "stop"]
    assert all(s.verb == "stop" or i > max(stops, default=-1) for i, s in enumerate(steps) if s.kind == "unit")


@settings(max_examples=25)
@given(states(), states())
def test_the_hash_is_the_plan_s(before: State, after: State) -> None:
    steps = plan(before, after)
    assert digest(steps) == digest(plan(before, after))
    assert (digest(steps) == digest(())) == (not steps)
    assert len(outline(steps)) == len(steps)


def test_the_hash_sees_a_secret_change() -> None:
    old, new, other = (File("/k", text, 0o600, secret=True) for text in ("a", "b", "c"))
    assert digest(plan(State(files=(old,)), State(files=(new,)))) != digest(
        plan(State(files=(old,)), State(files=(other,)))
    )


# --- units ---

DNSD = Unit("dnsd", ("dnsd",), "HUP", reload_on=("/hosts",), restart_on=("/conf",))
HOSTS, CONF = File("/hosts", "a"), File("/conf", "a")


@pytest.mark.parametrize(
    ("change", "verbs"),
    [
        ({}, []),
        ({"files": (replace(HOSTS, content="b"), CONF)}, ["reload"]),
        ({"files": (HOSTS, replace(CONF, content="b"))}, ["restart"]),
        ({"files": (replace(HOSTS, content="b"), replace(CONF, mode=0o600))}, ["restart"]),
        ({"files": (CONF,)}, ["reload"]),
        ({"units": ()}, ["stop"]),
        ({"units": (replace(DNSD, command=("dnsd", "-x")),)}, ["restart"]),
        ({"units": (replace(DNSD, reload="USR1"),)}, ["restart"]),
        ({"units": (replace(DNSD, directories=(("/run/dnsd", 0o755, "root"),)),)}, ["restart"]),
        ({"units": (replace(DNSD, check=("dnsd", "--test")),)}, []),
        ({"units": (replace(DNSD, reload_on=()),)}, []),
        ({"units": (DNSD, replace(DNSD, name="other"))}, ["start"]),
        ({"units": (replace(DNSD, name="other"),)}, ["stop", "start"]),
        (
            {"files": (HOSTS, CONF, File("/new", "")), "units": (replace(DNSD, reload_on=("/hosts", "/new")),)},
            ["reload"],
        ),
        ({"files": (CONF,), "units": (replace(DNSD, reload_on=()),)}, ["reload"]),
    ],
)
def test_units_are_disturbed_no_more_than_needed(change: dict[str, Any], verbs: list[str]) -> None:
    before = State(files=(HOSTS, CONF), units=(DNSD,))
    assert [s.verb for s in plan(before, replace(before, **change)) if s.kind == "unit"] == verbs


def test_a_unit_without_a_reload_is_restarted() -> None:
    deaf = replace(DNSD, reload="")
    before = State(files=(HOSTS,), units=(deaf,))
    steps = plan(before, replace(before, files=(replace(HOSTS, content="b"),)))
    assert [s.verb for s in steps] == ["write", "restart"]


# --- parts that change in place ---


def test_a_route_is_known_by_destination_table_and_metric() -> None:
    old = Route("0.0.0.0/0", "eth1", "192.0.2.1")
    new = replace(old, via="192.0.2.2", owner="uplink")
    (step,) = plan(State(routes=(old,)), State(routes=(new,)))
    assert (step.verb, step.before, step.after, step.owner) == ("add", old, new, "uplink")
    steps = plan(State(routes=(old,)), State(routes=(replace(old, metric=5),)))
    assert [s.verb for s in steps] == ["add", "remove"]


def test_an_address_that_moves_is_added_before_it_is_removed() -> None:
    before, after = (
        State(addresses=(Address("eth1", "10.0.0.1/24"),)),
        State(addresses=(Address("eth2", "10.0.0.1/24"),)),
    )
    steps = plan(before, after)
    assert [str(s) for s in steps] == ["add address 10.0.0.1/24 on eth2", "remove address 10.0.0.1/24 on eth1"]


def test_owners_alone_are_no_change() -> None:
    before = State(
        links=(Link("eth0", "m", owner="a"),), files=(File("/a", "", owner="a"),), rules=(Rule(1, 2, owner="a"),)
    )
    after = State(
        links=(Link("eth0", "m", owner="b"),), files=(File("/a", "", owner="b"),), rules=(Rule(1, 2, owner="b"),)
    )
    assert plan(before, after) == ()


# --- flows ---

DOORS: tuple[Any, ...] = ("ip daddr", "meta l4proto", "th dport")


def doors(elements: dict[str, str], *chains: Chain, value: str = "ipv4_addr . inet_service") -> State:
    statement: Any = Nat("dnat", DOORS, "m") if value != "verdict" else VerdictMap(DOORS, "m")
    owners = {k: f"fwd-{k.rpartition(' ')[2]}" for k in elements}
    table = NftSet("m", "ipv4_addr . inet_proto . inet_service", value, elements=elements, owners=owners)
    hook = Hook("nat", "prerouting", -100)
    return State(ruleset=Ruleset({"m": table}, (Chain("dstnat", (FilterRule((), statement),), hook), *chains)))


def ended(before: State, after: State) -> tuple[Flows, ...]:
    return next((s.before.flows for s in plan(before, after) if s.kind == "flows"), ())  # type: ignore[union-attr]


def test_flows_of_a_door_that_goes_or_leads_elsewhere_end() -> None:
    before = doors({"192.0.2.1 . tcp . 80": "10.0.0.1 . 8080", "192.0.2.1 . tcp . 81": "10.0.0.2 . 81"})
    after = doors({"192.0.2.1 . tcp . 80": "10.0.0.3 . 8080", "192.0.2.1 . tcp . 82": "10.0.0.2 . 82"})
    assert ended(before, after) == (
        Flows("192.0.2.1", "tcp", "80", "10.0.0.1"), Flows("192.0.2.1", "tcp", "81", "10.0.0.2"),
    )  # fmt: skip
    step = plan(before, after)[-1]
    assert (str(step), step.owner) == ("end flows of fwd-80, fwd-81 (fwd-80)", "fwd-80")
    assert ended(before, before) == ()
    assert ended(before, doors({**before.ruleset.sets["m"].elements, "192.0.2.1 . udp . 5": "10.0.0.9 . 5"})) == ()


def test_flows_of_a_table_that_is_replaced_end_all_the_same() -> None:
    before = doors({"192.0.2.1 . tcp . 80": "10.0.0.1 . 8080"})
    after = replace(before, ruleset=Ruleset({}, (Chain("input", (), Hook("filter", "input", 0)),)))
    assert ended(before, after) == (Flows("192.0.2.1", "tcp", "80", "10.0.0.1"),)


def test_flows_of_a_lost_source_end() -> None:
    def guard(*sources: str) -> Chain:
        match = Match(("ip saddr",), sources)
        return Chain("c", (FilterRule((match,), Nat("dnat", to="10.0.0.1:80")),))

    before = doors({"192.0.2.1 . tcp . 80": "jump c"}, guard("198.51.100.0/24"), value="verdict")
    after = doors({}, value="verdict")
    assert ended(before, after) == (Flows("192.0.2.1", "tcp", "80", "10.0.0.1", ("198.51.100.0/24",)),)


def test_flows_of_a_lost_address_end() -> None:
    before = State(addresses=(Address("eth1", "192.0.2.1/24", owner="public"), Address("eth1", "192.0.2.2/24")))
    assert ended(before, State(addresses=before.addresses[1:])) == (Flows(address="192.0.2.1"),)
    moved = State(addresses=(Address("eth2", "192.0.2.1/25"), before.addresses[1]))
    assert ended(before, moved) == ()


# --- for people ---


def test_diff_tells_a_secret_s_digest_and_never_its_text() -> None:
    def key(text: str) -> State:
        return State(files=(File("/k", text, 0o600, secret=True), File("/f", "one\ntwo\n")))

    text = diff(key("correct horse"), replace(key("battery staple"), sysctls=(Sysctl("a.b", "1"),)))
    assert "+sysctl a.b = 1" in text
    assert text.count("(secret)") == 2
    assert "horse" not in text
    assert "staple" not in text


def test_lines_of_each_part() -> None:
    state = State(
        files=(File("/f", "one\n"),),
        units=(DNSD,),
        sysctls=(Sysctl("a.b", "1"),),
        links=(Link("eth0", "02:00:00:00:00:01", 1400, False),),
        addresses=(Address("eth0", "10.0.0.1/24", connected=False),),
        routes=(Route("10.9.0.0/16", "eth0", "10.0.0.2", 7, "10.0.0.1", 5),),
        rules=(Rule(110, 7, 1, 255, "10.0.0.0/8", 0),),
        ruleset=Ruleset({"s": NftSet("s", "ifname", elements={"eth0": ""})}, (Chain("c", ()),)),
    )
    assert list(lines(state)) == [
        "sysctl a.b = 1",
        "link eth0 02:00:00:00:00:01 mtu 1400 down",
        "address 10.0.0.1/24 on eth0 noprefixroute",
        "route 10.9.0.0/16 table 7 metric 5 dev eth0 via 10.0.0.2 src 10.0.0.1",
        "rule 110: mark 0x1/0xff from 10.0.0.0/8 table 7 suppress 0 ipv4",
        "nft set s ifname : ",
        "nft element s eth0 : ",
        "nft chain c",
        "file /f: one",
        "unit dnsd: dnsd",
    ]


# --- entries ----------------------------------------------------------------------------------------------------------

VPND = Unit("vpnd", ("vpnd",), restart_on=("/etc/vpnd",))
POOL, USER = (Entry("vpnd", "/run/vpnd", kind, "a", "{}") for kind in ("pool", "connection"))


def said(before: State, after: State) -> list[str]:
    return [f"{s.verb} {s.name}" for s in plan(before, after) if s.kind in ("unit", "entry")]


def test_what_others_stand_on_comes_before_them_and_goes_after_them() -> None:
    empty, full = State(units=(VPND,)), State(units=(VPND,), entries=(POOL, USER))
    assert said(empty, full) == ["set pool a of vpnd", "set connection a of vpnd"]
    assert said(full, empty) == ["remove connection a of vpnd", "remove pool a of vpnd"]


def test_a_unit_that_begins_anew_is_given_all_and_one_that_ends_takes_its_entries_along() -> None:
    other = replace(VPND, command=("vpnd", "-v"))
    full = State(units=(VPND,), entries=(POOL, USER))
    everything = ["set pool a of vpnd", "set connection a of vpnd"]
    assert said(full, State(units=(other,), entries=(POOL, USER))) == ["restart vpnd", *everything]
    assert said(full, State(units=(other,), entries=(POOL,))) == ["restart vpnd", *everything[:1]]
    changed = State(units=(VPND,), entries=full.entries, files=(File("/etc/vpnd", "x"),))
    assert said(full, changed) == ["restart vpnd", *everything]
    assert said(full, State()) == ["stop vpnd"]


def test_an_entry_that_is_secret_is_shown_by_its_digest() -> None:
    before, after = (State(entries=(replace(POOL, secret=True, content=c),)) for c in ("one word", "another"))
    assert "word" not in diff(before, after) + repr(before)
    assert diff(before, after).count("(secret)") == 2
    assert digest(plan(State(), before)) != digest(plan(State(), after))
