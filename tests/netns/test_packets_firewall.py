"""Ingress: what comes in to a public address, and what doesn't; by packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.calls import both, echo, raw, tcp, udp
from tests.netns.stage import (
    L10,
    L20,
    LEFT,
    R10,
    WEB,
    WORLD,
    WORLD_HIGH,
    WORLD_LOW,
    Stage,
    allow,
    forward,
    static,
)

GRE, STRANGE = 47, 99


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


def test_nothing_comes_in_by_default(stage: Stage) -> None:
    """With a forward, a static NAT and the router itself behind the addresses, and not one rule."""
    stage.push(forward("f", L10, 80, WEB), static("s", L20, WEB))
    w = stage.world
    for address in (LEFT, L10, L20, R10):
        stage.silent(*both(w, address, 80), echo(w, address), raw(w, address, GRE), raw(w, address, STRANGE))


def test_tcp(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("a", L20, "tcp", 80))
    stage.meets("web", tcp(stage.world, L20, 80))
    w = stage.world
    stage.silent(udp(w, L20, 80), tcp(w, L20, 22), echo(w, L20), raw(w, L20, STRANGE), tcp(w, L10, 80))


def test_udp(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("a", L20, "udp", (5000, 5001)))
    w = stage.world
    stage.meets("web", udp(w, L20, 5000), udp(w, L20, 5001))
    stage.silent(udp(w, L20, 5002), tcp(w, L20, 5000), echo(w, L20))


def test_a_protocol_whole(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("a", L20, "tcp"), allow("b", L10, "udp"), forward("f", L10, 22, WEB))
    w = stage.world
    stage.meets("web", *(tcp(w, L20, port) for port in (22, 80, 7000)))
    stage.silent(udp(w, L20, 80), echo(w, L20), tcp(w, L10, 22))
    stage.meets("refused", udp(w, L10, 9))  # it is let in, and the router itself has nothing there


def test_a_wide_range(stage: Stage) -> None:
    """Wider than what is kept as elements."""
    stage.push(static("s", L20, WEB), allow("a", L20, "tcp", (5000, 6000)), allow("b", L20, "udp", (6001, 65535)))
    w = stage.world
    stage.meets("web", tcp(w, L20, 5000), tcp(w, L20, 6000), udp(w, L20, 6001), udp(w, L20, 7000))
    stage.silent(tcp(w, L20, 80), tcp(w, L20, 6001), udp(w, L20, 6000), udp(w, L20, 5000))


def test_icmp_by_type_and_code(stage: Stage) -> None:
    stage.push(
        static("s", L20, WEB),
        allow("echo", L20, "icmp", icmp_type=8, icmp_code=0),
        allow("all-codes", L10, "icmp", icmp_type=8),
        allow("all", R10, "icmp"),
        allow("clock", LEFT, "icmp", icmp_type=13),
    )
    w = stage.world
    stage.meets("web", echo(w, L20))
    stage.silent(echo(w, L20, icmp=(8, 1)), echo(w, L20, icmp=(13, 0)), tcp(w, L20, 80))
    stage.meets("router", echo(w, L10), echo(w, L10, icmp=(8, 1)), echo(w, R10), echo(w, R10, icmp=(13, 0)))
    stage.meets("router", echo(w, LEFT, icmp=(13, 0)))
    stage.silent(echo(w, L10, icmp=(13, 0)), echo(w, LEFT))


def test_protocols_by_number(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("gre", L20, GRE), allow("six", L10, 6), forward("f", L10, 80, WEB))
    w = stage.world
    stage.meets("web", raw(w, L20, GRE))
    stage.silent(raw(w, L20, STRANGE), tcp(w, L20, 80), echo(w, L20))
    stage.meets("web", tcp(w, L10, 80))  # 6 is tcp
    stage.silent(raw(w, L10, GRE), udp(w, L10, 80))


def test_any(stage: Stage) -> None:
    stage.push(static("s", L20, WEB), allow("all", L20, sources=[f"{WORLD}/32"]))
    asked = (*both(stage.world, L20, 80, WORLD), echo(stage.world, L20, WORLD))
    stage.meets("web", *asked, raw(stage.world, L20, GRE, WORLD), raw(stage.world, L20, STRANGE, WORLD), seen=WORLD)
    w = stage.world
    stage.silent(*both(w, L20, 80, WORLD_LOW), echo(w, L20, WORLD_LOW), raw(w, L20, STRANGE, WORLD_LOW))


def test_sources(stage: Stage) -> None:
    stage.push(
        static("s", L20, WEB),
        allow("lower", L20, "tcp", 80, sources=["198.51.100.0/25"]),
        allow("upper", L20, "udp", 80, sources=["198.51.100.128/25"]),
        allow("one", L20, "icmp", sources=[f"{WORLD_LOW}/32"], icmp_type=8),
        allow("two", L20, "tcp", 22, sources=[f"{WORLD}/32", f"{WORLD_HIGH}/32"]),
    )
    w = stage.world
    stage.meets("web", tcp(w, L20, 80, WORLD), udp(w, L20, 80, WORLD_HIGH), echo(w, L20, WORLD_LOW))
    stage.meets("web", tcp(w, L20, 22, WORLD), tcp(w, L20, 22, WORLD_HIGH))
    stage.silent(
        tcp(w, L20, 80, WORLD_HIGH), udp(w, L20, 80, WORLD), echo(w, L20, WORLD), tcp(w, L20, 22, WORLD_LOW),
        tcp(stage.near, L20, 80),
    )  # fmt: skip


def test_rules_of_one_port_unite(stage: Stage) -> None:
    """Any of them may let it in; taking one out again leaves the others."""
    one = allow("one", L10, "tcp", 80, sources=[f"{WORLD}/32"])
    two = allow("two", L10, "tcp", 80, sources=[f"{WORLD_HIGH}/32"])
    stage.push(forward("f", L10, 80, WEB), one, two)
    w = stage.world
    stage.meets("web", tcp(w, L10, 80, WORLD), tcp(w, L10, 80, WORLD_HIGH))
    stage.silent(tcp(w, L10, 80, WORLD_LOW))
    stage.push(forward("f", L10, 80, WEB), two)
    stage.meets("web", tcp(w, L10, 80, WORLD_HIGH))
    stage.silent(tcp(w, L10, 80, WORLD))


def test_five_thousand_sources_are_one_set(stage: Stage) -> None:
    """Every other address of 198.18.0.0/16 upwards, and two of the world's: hits and misses at the list's edges."""
    many = [f"198.{18 + (i >> 15)}.{i >> 7 & 255}.{i * 2 & 255}/32" for i in range(5000)]
    stage.push(
        static("s", L20, WEB),
        allow("a", L20, "tcp", 80, sources=[*many, f"{WORLD}/32"]),
        allow("b", L20, "udp", 80, sources=[*many, f"{WORLD}/32"]),
    )
    first, last = many[0].partition("/")[0], many[-1].partition("/")[0]
    inside = [first, last, WORLD, many[2500].partition("/")[0]]
    outside = [_next(first), _next(last), WORLD_LOW, _next(many[2500].partition("/")[0]), "198.17.255.255"]
    for address in (*inside, *outside):
        if not address.startswith("198.51"):
            stage.world.run(("ip", "address", "add", f"{address}/32", "dev", "eth0"))
    w = stage.world
    stage.meets("web", *(call for a in inside for call in both(w, L20, 80, a)))
    stage.silent(*(call for a in outside for call in both(w, L20, 80, a)))
    shown = stage.run("nft list sets table inet narthex")
    assert shown.count("set s_list_") == 1


def _next(address: str) -> str:
    head, _, last = address.rpartition(".")
    return f"{head}.{int(last) + 1}"


def test_a_guest_is_judged_as_an_outside_host_is(stage: Stage) -> None:
    """Rule 2: to a public address, wherever the packet comes from."""
    stage.push(static("s", L20, WEB), allow("a", L20, "tcp", 80, sources=["10.1.2.0/24"]))
    stage.meets("web", tcp(stage.db, L20, 80))
    stage.silent(tcp(stage.mail, L20, 80), tcp(stage.world, L20, 80), tcp(stage.db, L20, 22))
