"""Marks, tables and routes of uplinks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.state import Route, State
from router.compile import compile
from router.routing import MAIN, UPLINKS_TABLE, marks_of
from tests.router.samples import facts_of, made

macs = st.integers(0, 2**40).map(lambda n: "02:" + ":".join(f"{n >> s & 255:02x}" for s in (32, 24, 16, 8, 0)))


def routed(**collections: object) -> State:
    config = made(**collections)
    return compile(config, facts_of(config))


@given(st.lists(macs, max_size=30, unique=True))
def test_marks_are_distinct_and_fit(found: list[str]) -> None:
    marks = marks_of(found)
    assert len(set(marks.values())) == len(found)
    assert all(1 <= mark <= 0xFFFF for mark in marks.values())


def test_a_mark_stays_when_others_come_and_go() -> None:
    found = [f"02:00:00:00:00:{n:02x}" for n in range(20)]
    alone = {mac: marks_of([mac])[mac] for mac in found}
    assert marks_of(found) == alone
    assert marks_of(found[5:]) == {mac: alone[mac] for mac in found[5:]}


def test_macs_on_one_mark_are_told_apart() -> None:
    seen: dict[int, str] = {}
    for n in range(1 << 16):
        mac = f"02:00:00:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}"
        mark = marks_of([mac])[mac]
        if mark in seen:
            break
        seen[mark] = mac
    assert sorted(marks_of([mac, seen[mark]]).values()) == [mark, mark + 1]


def test_rules_ask_main_then_marks_then_neighbours() -> None:
    rules = routed().rules
    assert [r.priority for r in rules] == [100, 110, 110, 120]
    assert (rules[0].table, rules[0].suppress) == (MAIN, 0)
    assert all(r.table == UPLINKS_TABLE + r.mark and r.mask == 0xFFFF for r in rules[1:3])


def test_every_uplink_has_its_subnets_and_its_gateway() -> None:
    state = routed()
    tables = {r.table for r in state.rules if r.mark}
    found = {(r.destination, r.link, r.via, r.source) for r in state.routes if r.table in tables}
    assert found == {
        ("203.0.113.0/24", "eth1", "", "203.0.113.10"),
        ("0.0.0.0/0", "eth1", "203.0.113.1", "203.0.113.10"),
        ("198.51.100.0/24", "eth2", "", "198.51.100.10"),
        ("0.0.0.0/0", "eth2", "198.51.100.1", "198.51.100.10"),
    }


def test_main_leads_out_by_the_first_public_interface() -> None:
    default = Route("0.0.0.0/0", "eth1", "203.0.113.1", MAIN, "203.0.113.10", owner="isp-a")
    assert [r for r in routed().routes if r.table == MAIN] == [default]
    assert routed().probes == ("203.0.113.1", "198.51.100.1")


def test_static_routes_take_the_interface_of_their_gateway() -> None:
    routes = [
        {"id": "a", "destination": "172.20.0.0/16", "via": "172.16.0.1"},
        {"id": "b", "destination": "192.0.2.0/24", "via": "198.51.100.7"},
    ]
    found = [r for r in routed(routes=routes).routes if r.table == MAIN][1:]
    assert [(r.link, r.via, r.source, r.owner) for r in found] == [
        ("eth5", "172.16.0.1", "172.16.0.2", "a"),
        ("eth2", "198.51.100.7", "198.51.100.10", "b"),
    ]


def test_tables_have_names() -> None:
    (file,) = (f for f in routed().files if "rt_tables" in f.path)
    lines = [line.split() for line in file.content.splitlines()]
    named = {name: number for number, name in lines}
    marks = {r.owner: r.table for r in routed().rules if r.mark}
    assert named["narthex-uplinks"] == str(UPLINKS_TABLE)
    assert int(named["narthex-isp-a"]) == marks["isp-a"]


def test_public_addresses_bring_no_route() -> None:
    assert {a.link: a.connected for a in routed().addresses} == {
        "eth0": True,
        "eth1": False,
        "eth2": False,
        "eth3": True,
        "eth4": True,
        "eth5": True,
    }


def test_a_dot_in_a_link_name_is_a_slash_in_a_key() -> None:
    config = made(interfaces=made().model_dump(mode="json")["interfaces"][:1], networks=[])
    facts = facts_of(config)
    mac, link = next(iter(facts.links.items()))
    dotted = type(facts)("r", {mac: type(link)("eth0.100", mac, 2, 1500, True)})
    keys = [s.key for s in compile(config, dotted).sysctls]
    assert "net.ipv4.conf.eth0/100.rp_filter" in keys
    assert keys[0] == "net.ipv4.ip_forward"
