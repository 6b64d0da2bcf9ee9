"""Egress and isolation: what guests may reach, who may pose as whom, and that the rest stays apart; by packets."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator

import pytest

from mgmt.hosts.namespace import Ground
from tests.netns.calls import Call, both, checksum, echo, met, raw, tcp, udp
from tests.netns.stage import (
    DB,
    DEPOT,
    DESK,
    FAR,
    L10,
    LEFT,
    MAIL,
    NEAR,
    STORE,
    WEB,
    WORLD,
    WORLD_HIGH,
    WORLD_LOW,
    Stage,
    allow,
    exception,
    forward,
    network,
    office,
    route,
    static,
)

GRE, STRANGE = 47, 99
ALLOW, DENY = office(egress={"default": "allow"}), office(egress={"default": "deny"})
_tokens = itertools.count(1)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


# --- the default ------------------------------------------------------------------------------------------------------


def test_default_allow(stage: Stage) -> None:
    stage.push(ALLOW)
    asked = (*both(stage.web, WORLD, 80), echo(stage.web, WORLD), raw(stage.web, WORLD, STRANGE))
    stage.meets("world", *asked, raw(stage.web, WORLD, GRE), seen=LEFT)
    stage.meets("store", *both(stage.web, STORE, 80), echo(stage.web, STORE))


def test_default_deny(stage: Stage) -> None:
    """To private networks as to public ones; the other network has its own default."""
    stage.push(DENY, allow("a", L10), forward("f", L10, 80, MAIL))
    stage.silent(*both(stage.web, WORLD, 80), echo(stage.web, WORLD), raw(stage.web, WORLD, STRANGE))
    stage.silent(*both(stage.web, STORE, 80), echo(stage.web, STORE), tcp(stage.web, NEAR, 80))
    stage.meets("world", *both(stage.db, WORLD, 80), echo(stage.db, WORLD))
    stage.meets("mail", tcp(stage.world, L10, 80), tcp(stage.web, L10, 80))  # answers, and what isn't outside


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_exceptions_by_protocol(stage: Stage, default: str) -> None:
    """An exception is the opposite of the default, for exactly what it names."""
    stage.push(
        office(egress={"default": default}),
        exception("one", "office", "tcp", 80),
        exception("few", "office", "udp", (5000, 5001)),
        exception("wide", "office", "tcp", (6000, 7000)),
        exception("ping", "office", "icmp", icmp_type=8, icmp_code=0),
        exception("gre", "office", GRE),
    )
    w = stage.web
    named = [
        tcp(w, WORLD, 80), udp(w, WORLD, 5000), udp(w, WORLD, 5001), tcp(w, WORLD, 6000), tcp(w, WORLD, 7000),
        echo(w, WORLD), raw(w, WORLD, GRE), tcp(w, STORE, 80),
    ]  # fmt: skip
    others = [
        udp(w, WORLD, 80), tcp(w, WORLD, 22), udp(w, WORLD, 5002), tcp(w, WORLD, 5000), udp(w, WORLD, 6000),
        echo(w, WORLD, icmp=(13, 0)), echo(w, WORLD, icmp=(8, 1)), raw(w, WORLD, STRANGE),
    ]  # fmt: skip
    passing, dropped = (others, named) if default == "allow" else (named, others)
    met(stage.services, passing)
    stage.silent(*dropped)


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_exceptions_by_list(stage: Stage, default: str) -> None:
    """By destinations, by sources, by both; of ports, of icmp, of everything."""
    upper, one = "198.51.100.128/25", f"{WORLD}/32"
    stage.push(
        office(egress={"default": default}),
        exception("to", "office", "tcp", 80, destinations=[upper, one]),
        exception("from", "office", "tcp", 22, sources=[f"{WEB}/32"]),
        exception("from-to", "office", "udp", (5000, 7000), sources=[f"{WEB}/32"], destinations=[upper]),
        exception("ping", "office", "icmp", destinations=[one]),
        exception("all", "office", sources=[f"{DESK}/32"], destinations=[f"{NEAR}/32"]),
    )
    web, mail, desk = stage.web, stage.mail, stage.desk
    named = [
        tcp(web, WORLD_HIGH, 80), tcp(mail, WORLD, 80), tcp(web, WORLD_LOW, 22), udp(web, WORLD_HIGH, 5000),
        udp(web, WORLD_HIGH, 6002), echo(mail, WORLD), *both(desk, NEAR, 80), echo(desk, NEAR),
    ]  # fmt: skip
    others = [
        tcp(web, WORLD_LOW, 80), tcp(mail, WORLD_LOW, 22), udp(web, WORLD, 5000), udp(mail, WORLD_HIGH, 5000),
        echo(mail, WORLD_HIGH), *both(web, NEAR, 80), echo(web, NEAR), tcp(desk, WORLD, 25),
    ]  # fmt: skip
    passing, dropped = (others, named) if default == "allow" else (named, others)
    met(stage.services, passing)
    stage.silent(*dropped)


def test_five_thousand_destinations_are_one_set(stage: Stage) -> None:
    many = [f"198.{18 + (i >> 15)}.{i >> 7 & 255}.{i * 2 & 255}/32" for i in range(5000)]
    to = [*many, "198.51.100.128/25"]
    stage.push(
        DENY, exception("a", "office", "tcp", 80, destinations=to), exception("b", "office", "udp", destinations=to)
    )
    edges = (many[0], many[-1])
    for edge in edges:
        stage.world.run(("ip", "address", "add", edge, "dev", "eth0"))
    hosts = [edge.partition("/")[0] for edge in edges]
    stage.meets("world", *(call for a in (*hosts, WORLD_HIGH) for call in both(stage.web, a, 80)))
    stage.silent(*both(stage.web, WORLD, 80), tcp(stage.web, hosts[0], 22))
    assert stage.run("nft list sets table inet narthex").count("set s_list_") == 1


def test_each_network_has_its_own_exceptions(stage: Stage) -> None:
    stage.push(DENY, exception("a", "office", "tcp", 80), exception("b", "servers", "tcp", 80))
    stage.meets("world", tcp(stage.web, WORLD, 80), tcp(stage.db, WORLD, 22))
    stage.silent(tcp(stage.db, WORLD, 80), tcp(stage.web, WORLD, 22))


def test_a_change_ends_no_flow(stage: Stage) -> None:
    """Rule 1: what was let out goes on; what is new is judged anew."""
    stage.push(ALLOW)
    flow = stage.flow(tcp(stage.web, WORLD, 80))
    stage.push(DENY)
    assert flow.goes_on()
    stage.silent(tcp(stage.web, WORLD, 80))


# --- isolation --------------------------------------------------------------------------------------------------------


def test_networks_are_apart(stage: Stage) -> None:
    """Whatever is forwarded or allowed; by a public address they meet as strangers do."""
    stage.push(allow("a", L10), forward("f", L10, 80, WEB), static("s", "203.0.113.20", DB), allow("b", "203.0.113.20"))
    stage.silent(*both(stage.web, DB, 80), echo(stage.web, DB), raw(stage.web, DB, STRANGE))
    stage.silent(*both(stage.db, WEB, 80), echo(stage.db, WEB), raw(stage.db, WEB, STRANGE))
    stage.meets("web", tcp(stage.db, L10, 80), seen=DB)
    stage.meets("db", *both(stage.web, "203.0.113.20", 80), seen=WEB)


def test_nothing_comes_straight_to_guests(stage: Stage) -> None:
    """From either uplink, from the private network and what is behind it, and between the uplinks."""
    stage.push(route("depot", "172.20.0.0/16", STORE))
    for who in (stage.world, stage.near, stage.far, stage.store):
        stage.silent(*both(who, WEB, 80), *both(who, DB, 80), echo(who, WEB), raw(who, WEB, STRANGE))
    stage.silent(*both(stage.near, STORE, 80), *both(stage.near, DEPOT, 80), echo(stage.near, STORE))
    stage.silent(*both(stage.near, FAR, 80), *both(stage.far, NEAR, 80), echo(stage.near, FAR))


# --- senders that lie -------------------------------------------------------------------------------------------------


def test_spoofed_sources(stage: Stage) -> None:
    """A guest that poses as another network's, as an outside host, as the router, or as a stranger."""
    stage.push(allow("a", L10, "udp"), forward("f", L10, 80, MAIL, protocol="udp"))
    web = stage.web
    for source in (DB, NEAR, WORLD, LEFT, L10, "192.0.2.10", STORE, "10.1.2.1", "10.200.0.1"):
        assert not arrives(stage, web, source, WORLD), source
        assert not arrives(stage, web, source, STORE), source
    assert arrives(stage, web, WEB, WORLD) == ("world", LEFT)
    assert arrives(stage, web, "10.1.1.77", STORE) == ("store", "10.1.1.77")  # its own network's: that is honest enough


def test_outside_hosts_that_pose_as_guests(stage: Stage) -> None:
    """Neither inwards nor back out do they get any further than others."""
    stage.push(allow("a", L10, "udp"), forward("f", L10, 80, MAIL, protocol="udp"))
    assert not arrives(stage, stage.near, WEB, STORE)
    assert not arrives(stage, stage.near, WEB, FAR)
    assert not arrives(stage, stage.near, MAIL, WEB)
    assert not arrives(stage, stage.store, WEB, NEAR)
    assert arrives(stage, stage.near, NEAR, L10) == ("mail", NEAR)


def test_a_network_behind_another_link(stage: Stage) -> None:
    """A guest of lan with an address of a network that has the same link as nobody here."""
    stage.push(network("servers", "dmz", "10.1.2.0/24", None))
    assert not arrives(stage, stage.desk, DB, NEAR)
    assert arrives(stage, stage.db, DB, NEAR) == ("near", DB)


def arrives(stage: Stage, sender: Ground, source: str, to: str, port: int = 80) -> tuple[str, str] | None:
    """Who gets a datagram with a made-up source, and what source he sees; None where nobody does.

    An honest one goes after it and is answered: then the other has been handled.
    """
    token = b"spoof %d" % next(_tokens)
    datagram = struct.pack("!HHHH", 4444, port, 8 + len(token), 0) + token
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(to)
    )
    with sender.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
        out.sendto(head[:10] + struct.pack("!H", checksum(head)) + head[12:] + datagram, (to, 0))
    met(stage.services, [_honest(stage, sender)])
    return stage.services.heard.get(token)


def _honest(stage: Stage, sender: Ground) -> Call:
    """A call that must be answered and goes through the router."""
    inside = sender in (stage.web, stage.mail, stage.desk, stage.db)
    return udp(sender, WORLD, 80) if inside else udp(sender, L10, 80)
