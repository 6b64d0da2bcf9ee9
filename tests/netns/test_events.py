"""What the kernel tells when this machine changes: by whom, and in which words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from appliance.events import Event, Events
from appliance.netlink import Netlink
from appliance.nftelement import Elements
from appliance.state import Address, Route, Rule
from tests.netns.namespaces import fresh_namespace, tool


@pytest.fixture
def events() -> Iterator[Events]:
    """In a namespace with the veth pair wan and far, both up; nothing is waiting to be heard."""
    with fresh_namespace():
        tool("ip link add wan type veth peer name far")
        tool("ip link set far up")
        tool("ip link set wan up")
        while tool("ip link show up").count("state UP") < 2:  # the kernel tells of a carrier when it finds the time
            time.sleep(0.01)
        opened = Events()
        yield opened
        opened.close()


def heard(events: Events) -> list[Event]:
    """All that comes until it is quiet."""
    found: list[Event] = []
    while more := events.read(0.1):
        found += more
    return found


@pytest.mark.parametrize(
    ("command", "kind", "what"),
    [
        ("ip link set wan mtu 1400", "link", "wan set"),
        ("ip link set wan down", "link", "wan set"),
        ("ip link del far", "link", "wan removed"),
        ("ip address add 10.1.1.1/24 dev wan", "address", "10.1.1.1/24 on wan added"),
        ("ip address del 127.0.0.1/8 dev lo", "address", "127.0.0.1/8 on lo removed"),
        ("ip route add 10.0.0.0/8 dev wan", "route", "10.0.0.0/8 table 254 added"),
        ("ip route add default dev wan table 7000123", "route", "default table 7000123 added"),
        ("ip rule add pref 9 fwmark 5 table 77", "rule", "9 to table 77 added"),
        ("ip rule del pref 32767", "rule", "32767 to table 253 removed"),
    ],
)
def test_a_change_is_told(events: Events, command: str, kind: str, what: str) -> None:
    tool(command)
    assert (kind, what) in {(event.kind, event.what) for event in heard(events)}


def test_what_the_kernel_adds_by_itself_is_not_told(events: Events) -> None:
    tool("ip address add 10.1.1.1/24 dev wan")
    assert [event.kind for event in heard(events)] == ["address"]


def test_a_ruleset_that_changes_names_its_generation_and_its_process(events: Events) -> None:
    elements = Elements()
    tool("nft add table inet narthex")
    (event,) = heard(events)
    assert (event.kind, event.generation, event.process) == ("ruleset", elements.generation(), "nft")
    assert event.by == f"nft (pid {event.pid})"
    elements.close()


def test_one_transaction_of_many_elements_is_one_event(events: Events) -> None:
    tool("nft add table inet narthex")
    tool("nft add set inet narthex many { type ipv4_addr; }")
    assert len(heard(events)) == 2
    many = ", ".join(f"10.{i >> 8}.{i & 255}.1" for i in range(20_000))
    tool("nft -f -", f"add element inet narthex many {{ {many} }}")
    (event,) = heard(events)
    assert event.kind == "ruleset"


def test_our_own_changes_carry_our_port(events: Events) -> None:
    netlink = Netlink()
    netlink.add_address(Address("wan", "10.1.1.1/24"))
    netlink.add_route(Route("0.0.0.0/0", "wan", "10.1.1.9"))
    netlink.add_rule(Rule(100, 254))
    told = heard(events)
    assert {event.kind for event in told} == {"address", "route", "rule"}
    assert {event.port for event in told} == {netlink.port}
    tool("ip rule add pref 101 table 254")
    assert netlink.port not in {event.port for event in heard(events)}
    netlink.close()


def test_too_many_changes_are_told_as_an_overrun(events: Events) -> None:
    routes = "\n".join(f"route add 10.{i >> 8}.{i & 255}.0/24 dev wan" for i in range(20_000))
    tool("ip -batch -", routes)
    told = heard(events)
    assert "overrun" in {event.kind for event in told}
    tool("ip link set wan mtu 1400")
    assert "link" in {event.kind for event in heard(events)}


def test_without_changes_it_waits_as_long_as_told(events: Events) -> None:
    start = time.monotonic()
    assert events.read(0.2) == []
    assert 0.15 < time.monotonic() - start < 2


def test_another_thread_can_end_the_waiting(events: Events) -> None:
    timer = threading.Timer(0.1, events.wake)
    timer.start()
    start = time.monotonic()
    assert events.read(20) == []
    assert time.monotonic() - start < 5
    timer.join()


def test_unheard_for_a_while(events: Events) -> None:
    """What happens meanwhile is not told; what follows is; and what was missed can be said."""
    with events.unheard():
        tool("nft add table inet quiet")
    assert heard(events) == []
    events.miss()
    assert [event.kind for event in heard(events)] == ["overrun"]
    tool("nft add table inet loud")
    assert [event.kind for event in heard(events)] == ["ruleset"]
