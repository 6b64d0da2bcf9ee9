"""Doors: what a feature opens is open there and nowhere else; without one nothing is different."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.state import Facts, State
from router import doors as room
from router.compile import compile
from router.config import Config
from router.doors import Door
from router.packet import Packet
from router.trace import Tracer
from tests.router.samples import facts_of, made

CONFIG = made()
DOORS = (
    Door("eth3", "10.1.1.1", "tcp", 80, "web"),
    Door("eth5", "224.0.0.18", "112", 0, "pair"),
    Door("eth1", "203.0.113.10", "udp", 500, "vpn", public=True),
    Door("eth1", "203.0.113.10", "50", 0, "vpn", public=True),
)


@pytest.fixture(name="opened")
def opened_fixture(monkeypatch: pytest.MonkeyPatch) -> State:
    def feature(config: Config, facts: Facts) -> Iterator[Door]:
        assert config is CONFIG
        assert facts.links
        yield from DOORS

    monkeypatch.setattr(room, "FEATURES", (*room.FEATURES, feature))
    return compile(CONFIG, facts_of(CONFIG))


@pytest.mark.parametrize(
    "packet",
    [
        Packet("web", "10.1.1.10", "10.1.1.1", "tcp", 40000, 80),
        Packet("isp-a", "192.0.2.7", "203.0.113.10", "udp", 500, 500),
        Packet("isp-a", "192.0.2.7", "203.0.113.10", 50),
    ],
)
def test_open(opened: State, packet: Packet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tracer(opened).trace(packet).outcome.verdict == "local"
    monkeypatch.setattr(room, "FEATURES", ())
    closed = compile(CONFIG, facts_of(CONFIG))
    assert Tracer(closed).trace(packet).outcome.verdict == "dropped"


@pytest.mark.parametrize(
    "packet",
    [
        Packet("db", "10.1.2.10", "10.1.1.1", "tcp", 40000, 80),
        Packet("web", "10.1.1.10", "10.1.1.1", "tcp", 40000, 81),
        Packet("web", "10.1.1.10", "10.1.1.1", "udp", 40000, 80),
        Packet("isp-a", "192.0.2.7", "203.0.113.11", "udp", 500, 500),
        Packet("isp-a", "192.0.2.7", "203.0.113.10", 51),
    ],
)
def test_shut(opened: State, packet: Packet) -> None:
    assert Tracer(opened).trace(packet).outcome.verdict == "dropped"


def test_a_protocol_without_ports_has_its_own_set(opened: State) -> None:
    assert opened.ruleset.sets["s_protocol"].elements == {"eth5 . 224.0.0.18 . 112": ""}
    assert opened.ruleset.sets["s_protocol"].owners == {"eth5 . 224.0.0.18 . 112": "pair"}


def test_none() -> None:
    names = {"s_protocol", "s_protocol6", "s_public_port", "s_public_protocol"}
    assert not names & compile(CONFIG, facts_of(CONFIG)).ruleset.sets.keys()
