"""Elements read from the kernel against what nft(8) put there and lists, for every kind of key and value."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from appliance import nftelement
from appliance.nftelement import Elements
from appliance.ruleset import TABLE, whole
from appliance.state import Chain, FilterRule, Hook, Match, NftSet, Ruleset, Verdict
from appliance.wire import NetlinkError
from tests.netns.namespaces import fresh_namespace, tool


@pytest.fixture
def elements() -> Iterator[Elements]:
    with fresh_namespace():
        opened = Elements()
        yield opened
        opened.close()


def mapping(name: str, key: str, value: str, elements: dict[str, str], interval: bool = False) -> NftSet:
    return NftSet(name, key, value, interval, elements)


def plain(name: str, key: str, *keys: str, interval: bool = False) -> NftSet:
    return NftSet(name, key, "", interval, dict.fromkeys(keys, ""))


FORWARD = "ipv4_addr . inet_proto . inet_service"
SETS = (
    plain("addresses", "ipv4_addr", "203.0.113.10", "0.0.0.0", "255.255.255.255"),
    plain("v6", "ipv6_addr", "2001:db8::1", "::", "fe80::1:0:0:1"),
    plain("protocols", "inet_proto", "tcp", "udp", "icmp", "ipv6-icmp", "47", "255"),
    plain("ports", "inet_service", "0", "22", "65535"),
    plain("marks", "mark", "0", "1", "123456789"),
    plain("names", "ifname", "eth0", "wan.100-x", "a23456789012345"),
    plain("icmp_kinds", "ipv4_addr . icmp_type . icmp_code", "1.2.3.4 . 8 . 0", "1.2.3.4 . 3 . 1", "1.2.3.4 . 42 . 3"),
    plain("macs", "ether_addr", "02:00:00:00:00:0a"),
    plain("long", "ifname . ipv6_addr . mark", "eth0 . 2001:db8::1 . 7"),
    mapping("forwards", FORWARD, "ipv4_addr . inet_service", {
        "203.0.113.10 . tcp . 2222": "10.1.1.10 . 22",
        "203.0.113.10 . udp . 2222": "10.1.1.10 . 22",
        "203.0.113.10 . 132 . 1": "10.1.1.11 . 65535",
    }),
    mapping("static", "ipv4_addr", "ipv4_addr", {"203.0.113.11": "10.1.1.11"}),
    mapping("static6", "ipv6_addr", "ipv6_addr", {"2001:db8::1": "fd00::1"}),
    mapping("uplinks", "ifname", "mark", {"eth0": "1", "eth1": "65535"}),
    mapping("by_mark", "mark", "ipv4_addr", {"17": "10.1.1.1"}),
    mapping("verdicts", FORWARD, "verdict", {
        "203.0.113.10 . tcp . 1": "accept",
        "203.0.113.10 . tcp . 2": "drop",
        "203.0.113.10 . tcp . 3": "jump one",
        "203.0.113.10 . tcp . 4": "goto two",
        "203.0.113.10 . tcp . 5": "return",
    }),
    plain("networks", "ipv4_addr", "0.0.0.0/8", "10.0.0.0/8", "11.0.0.0/25", "192.0.2.1", "192.0.2.3-192.0.2.9",
          "198.51.100.0/24", "198.51.101.0-198.51.101.9", "240.0.0.0/4", interval=True),
    plain("everything", "ipv4_addr", "0.0.0.0/0", interval=True),
    plain("networks6", "ipv6_addr", "2001:db8::/32", "::1", "fd00::1-fd00::9", "ff00::/8", interval=True),
    plain("port_ranges", "inet_service", "0-1", "80-81", "90", "1000-65535", interval=True),
    mapping("by_network", "ipv4_addr", "mark", {"10.1.1.0/24": "1", "10.1.2.0-10.1.2.5": "2"}, interval=True),
    mapping("network_verdicts", "ipv4_addr", "verdict", {
        "10.1.1.0/24": "accept",
        "10.1.2.7": "jump one",
    }, interval=True),
    mapping("ranges", FORWARD, "ipv4_addr", {
        "203.0.113.10 . tcp . 5000-5010": "10.1.1.10",
        "203.0.113.10 . tcp . 80-81": "10.1.1.10",
        "203.0.113.10 . udp . 7": "10.1.1.11",
        "203.0.113.0/28 . 132 . 0-65535": "10.1.1.12",
    }, interval=True),
    plain("pairs", "ipv4_addr . ipv4_addr", "10.0.0.0/8 . 192.0.2.1-192.0.2.3", "0.0.0.0/0 . 198.51.100.0/24",
          interval=True),
    mapping("spoofed", "ifname . ipv4_addr", "verdict", {"eth0 . 10.1.1.0/24": "accept"}, interval=True),
    plain("pairs6", "ipv6_addr . inet_service", "fd00::/64 . 80", "::/0 . 3-4", interval=True),
    plain("empty", "ipv4_addr"),
    mapping("empty_map", FORWARD, "verdict", {}, interval=True),
)  # fmt: skip
RULESET = Ruleset({s.name: s for s in SETS}, (Chain("one", ()), Chain("two", ())))


@pytest.fixture
def loaded(elements: Elements) -> Elements:
    tool("nft -f -", whole(RULESET))
    return elements


@pytest.mark.parametrize("s", SETS, ids=lambda s: s.name)
def test_a_set_is_read_back_as_it_was_written(loaded: Elements, s: NftSet) -> None:
    assert loaded.set_elements(s) == dict(s.elements)


@pytest.mark.parametrize("s", SETS, ids=lambda s: s.name)
def test_each_element_is_found_by_its_key(loaded: Elements, s: NftSet) -> None:
    for key, value in s.elements.items():
        assert loaded.set_element(s, key) == value


def said(value: Any) -> str:
    """A key or a value of nft's JSON in our text."""
    match value:
        case {"concat": parts}:
            return " . ".join(map(said, parts))
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"jump": {"target": chain}}:
            return f"jump {chain}"
        case {"goto": {"target": chain}}:
            return f"goto {chain}"
        case dict():
            return str(next(iter(value)))
    return str(value)


def test_it_says_what_nft_lists(loaded: Elements) -> None:
    apart = {"protocols", "icmp_kinds", "forwards", "ranges"}  # nft has names for more than we do
    listed = {}
    for entry in json.loads(tool(f"nft -j list table {TABLE}"))["nftables"]:
        if "set" in entry:
            listed[entry["set"]["name"]] = {said(key): "" for key in entry["set"].get("elem", ())}
        elif "map" in entry:
            listed[entry["map"]["name"]] = {said(k): said(value) for k, value in entry["map"].get("elem", ())}
    assert listed.keys() == RULESET.sets.keys()
    for s in SETS:
        assert s.name in apart or loaded.set_elements(s) == listed[s.name]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("addresses", "203.0.113.11"),
        ("forwards", "203.0.113.10 . tcp . 2223"),
        ("forwards", "203.0.113.11 . tcp . 2222"),
        ("networks", "10.0.0.0/9"),  # inside of one that is there
        ("networks", "10.0.0.0-11.0.0.127"),  # two that are there
        ("networks", "11.0.0.0/24"),
        ("networks", "11.0.0.0"),
        ("networks", "198.51.100.0/23"),
        ("networks", "240.0.0.0/5"),
        ("networks", "0.0.0.0/0"),
        ("networks", "255.255.255.255"),
        ("networks", "12.0.0.0/8"),
        ("everything", "0.0.0.0/1"),
        ("port_ranges", "80"),
        ("port_ranges", "81"),
        ("port_ranges", "80-65535"),
        ("port_ranges", "1000-2000"),
        ("port_ranges", "1001-65535"),
        ("port_ranges", "2-79"),
        ("ranges", "203.0.113.10 . tcp . 5000-5009"),
        ("ranges", "203.0.113.10 . tcp . 5001-5010"),
        ("ranges", "203.0.113.10 . tcp . 5000"),
        ("ranges", "203.0.113.0/29 . 132 . 0-65535"),
        ("pairs", "10.0.0.0/8 . 192.0.2.1-192.0.2.2"),
        ("by_network", "10.1.1.0/25"),
        ("empty", "10.1.1.1"),
        ("empty_map", "203.0.113.10 . tcp . 22"),
    ],
)
def test_what_is_not_an_element_is_none(loaded: Elements, name: str, key: str) -> None:
    assert loaded.set_element(RULESET.sets[name], key) is None


def test_neighbouring_ranges_stay_apart(elements: Elements) -> None:
    s = plain("side_by_side", "ipv4_addr", "10.0.0.0/24", "10.0.1.0/24", "10.0.2.0-10.0.2.6", interval=True)
    tool("nft -f -", whole(Ruleset({s.name: s})))
    assert elements.set_elements(s) == dict(s.elements)
    for key in s.elements:
        assert elements.set_element(s, key) == ""
    assert elements.set_element(s, "10.0.0.0/23") is None


def test_a_removed_element_is_gone_and_an_added_one_there(loaded: Elements) -> None:
    s = RULESET.sets["forwards"]
    tool("nft -f -", f"delete element {TABLE} forwards {{ 203.0.113.10 . tcp . 2222 }}\n"
         f'add element {TABLE} forwards {{ 203.0.113.10 . tcp . 99 comment "fwd-9" : 10.1.1.1 . 9 }}')  # fmt: skip
    assert loaded.set_element(s, "203.0.113.10 . tcp . 2222") is None
    assert loaded.set_element(s, "203.0.113.10 . tcp . 99") == "10.1.1.1 . 9"
    assert "203.0.113.10 . tcp . 99" in loaded.set_elements(s)


def test_of_no_set_there_are_no_elements(elements: Elements) -> None:
    assert elements.set_element(SETS[0], "203.0.113.10") is None
    with pytest.raises(NetlinkError, match=r"list set addresses: ENOENT"):
        elements.set_elements(SETS[0])


def test_the_generation_moves_with_every_transaction(elements: Elements) -> None:
    before = elements.generation()
    tool("nft -f -", whole(RULESET))
    assert elements.generation() == before + 1
    tool("nft add table ip another")
    assert elements.generation() == before + 2
    tool("nft -c add table ip yet_another")
    assert elements.generation() == before + 2


def test_a_chain_tells_the_comments_of_its_rules(elements: Elements) -> None:
    rules = (
        FilterRule((Match(("iifname",), ("lo",)),), Verdict("accept"), why="loopback", owner="if-1"),
        FilterRule((), Verdict("drop")),
    )
    tool("nft -f -", whole(Ruleset(chains=(Chain("input", rules, Hook("filter", "input", 0)), Chain("bare", ())))))
    comments = elements.chain_comments("input")
    assert comments is not None
    assert [c.partition(" #")[0] for c in comments][0] == "loopback if-1"
    assert len(comments) == 2
    tool("nft -f -", f"add rule {TABLE} input counter")
    assert elements.chain_comments("input") == [*comments, ""]
    assert elements.chain_comments("bare") == []
    assert elements.chain_comments("no_such_chain") is None


def test_the_agents_own_view_is_of_its_namespace(monkeypatch: pytest.MonkeyPatch, loaded: Elements) -> None:
    monkeypatch.setattr(nftelement, "_kept", lambda: loaded)
    assert nftelement.set_element(RULESET.sets["static"], "203.0.113.11") == "10.1.1.11"
    assert nftelement.set_elements(RULESET.sets["static"]) == {"203.0.113.11": "10.1.1.11"}
    assert nftelement.chain_comments("one") == []
    assert nftelement.generation() == loaded.generation()


def forwards(count: int) -> NftSet:
    found = {f"203.0.{i >> 8}.{i & 255} . tcp . {1000 + i}": f"10.1.{i >> 8}.{i & 255} . 22" for i in range(count)}
    owners = {key: f"fwd-{i}" for i, key in enumerate(found)}
    return replace(RULESET.sets["forwards"], name=f"many_{count}", elements=found, owners=owners)


def test_one_element_costs_the_same_in_a_set_of_any_size(elements: Elements) -> None:
    few, many = forwards(10), forwards(10_000)
    tool("nft -f -", whole(Ruleset({s.name: s for s in (few, many)})))
    assert elements.set_elements(many) == dict(many.elements)

    def seconds(s: NftSet) -> float:
        key = list(s.elements)[-1]
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(20):
                assert elements.set_element(s, key) is not None
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(many) < 3 * seconds(few)
