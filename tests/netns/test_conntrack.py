"""Live flows in the kernel's table: found, put into words, ended, by every condition that a `Flows` may have."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from appliance import conntrack
from appliance.conntrack import Conntrack
from appliance.plan import Flows
from tests.netns.namespaces import fresh_namespace, tool

# Everything happens on the loopback: 127.0.5.5:53/udp is a forward, 127.0.5.6 a static NAT, 127.0.7.7 a source NAT
# for what goes to 127.0.0.9.
RULES = """
table ip6 t {
    chain tracked { type filter hook output priority 0; ct state new accept; }
}
table ip t {
    chain tracked { type filter hook output priority 0; ct state new accept; }
    chain dstnat { type nat hook output priority -100;
        ip daddr 127.0.5.5 udp dport 53 dnat to 127.0.0.7:1053
        ip daddr 127.0.5.6 dnat to 127.0.0.8
    }
    chain srcnat { type nat hook postrouting priority 100; ip daddr 127.0.0.9 snat to 127.0.7.7; }
}
"""


def send(destination: str, port: int, source: str = "127.0.0.1", source_port: int = 0) -> None:
    with socket.socket(socket.AF_INET6 if ":" in destination else socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind((source, source_port))
        out.sendto(b"x", (destination, port))


@pytest.fixture
def table() -> Iterator[Conntrack]:
    with fresh_namespace():
        tool("nft -f -", RULES)
        send("127.0.5.5", 53, source_port=5001)
        send("127.0.5.5", 53, "127.0.0.2", 5002)
        send("127.0.5.6", 54, source_port=5003)
        send("127.0.0.9", 55, source_port=5004)
        send("127.0.0.3", 53, source_port=5005)
        send("127.0.5.5", 99, source_port=5006)
        tool("ping -c 1 -W 1 127.0.5.6")
        send("::1", 53, "::1", 6001)
        send("::1", 99, "::1", 6002)
        opened = Conntrack()
        yield opened
        opened.close()


PING = 0
CASES = [
    (Flows(), {5001, 5002, 5003, 5004, 5005, 5006, PING, 6001, 6002}),
    (Flows(destination="127.0.5.5"), {5001, 5002, 5006}),
    (Flows(destination="127.0.5.5", protocol="udp", ports="53"), {5001, 5002}),
    (Flows(destination="127.0.5.5", protocol="udp", ports="53", target="127.0.0.7"), {5001, 5002}),
    (Flows(destination="127.0.5.5", protocol="udp", ports="53", target="127.0.0.8"), set()),
    (Flows(destination="127.0.5.5", protocol="tcp", ports="53"), set()),
    (Flows(destination="127.0.5.5", protocol="17", ports="50-60"), {5001, 5002}),
    (Flows(destination="127.0.5.5", ports="99"), {5006}),
    (Flows(destination="127.0.5.5", protocol="udp", ports="54-98"), set()),
    (Flows(destination="127.0.5.5", sources=("127.0.0.2/31",)), {5002}),
    (Flows(destination="127.0.5.5", sources=("10.0.0.0/8", "127.0.0.2")), {5002}),
    (Flows(destination="127.0.5.5", sources=("10.0.0.0/8",)), set()),
    (Flows(sources=("0.0.0.0/0",), protocol="icmp"), {PING}),
    (Flows(source="127.0.0.2"), {5002}),
    (Flows(source="127.0.0.1", translated="127.0.7.7"), {5004}),
    (Flows(source="127.0.0.2", translated="127.0.7.7"), set()),
    (Flows(target="127.0.0.8"), {5003, PING}),
    (Flows(address="127.0.5.6"), {5003, PING}),
    (Flows(address="127.0.7.7"), {5004}),
    (Flows(address="127.0.0.1"), {5001, 5003, 5005, 5006, PING}),
    (Flows(address="192.0.2.1"), set()),
    (Flows(address="::1"), {6001, 6002}),
    (Flows(destination="::1", protocol="udp", ports="53"), {6001}),
    (Flows(source="::1", ports="90-100"), {6002}),
    (Flows(source="::1", sources=("2001:db8::/32", "::/127")), {6001, 6002}),
    (Flows(source="::1", sources=("2001:db8::/32",)), set()),
    (Flows(address="2001:db8::1"), set()),
    (Flows(network="127.0.0.2/32"), {5002}),
    (Flows(network="127.0.0.8/31"), {5003, 5004, PING}),
    (Flows(network="127.0.5.0/24"), {5001, 5002, 5003, 5006, PING}),
    (Flows(network="10.0.0.0/8"), set()),
    (Flows(network="::/64"), {6001, 6002}),
    (Flows(network="2001:db8::/32"), set()),
]


@pytest.mark.parametrize(("wanted", "ports"), CASES, ids=str)
def test_flows_are_found(table: Conntrack, wanted: Flows, ports: set[int]) -> None:
    assert {flow.source_port for flow in table.flows([wanted])} == ports
    # many questions at once go another way: one listing for all of them
    others = [Flows(destination=f"192.0.2.{i}", protocol="tcp", ports="1") for i in range(20)]
    assert {flow.source_port for flow in table.flows([*others, wanted])} == ports


@pytest.mark.parametrize(("wanted", "ports"), CASES, ids=str)
def test_ended_flows_are_gone_and_all_others_live(table: Conntrack, wanted: Flows, ports: set[int]) -> None:
    before = {flow.source_port for flow in table.flows([Flows()])}
    assert table.end_flows([wanted, wanted]) == len(ports)
    assert {flow.source_port for flow in table.flows([Flows()])} == before - ports
    assert table.end_flows([wanted]) == 0


def test_a_flow_in_words(table: Conntrack) -> None:
    (flow,) = table.flows([Flows(source="127.0.0.2")])
    assert str(flow) == "udp 127.0.0.2:5002 -> 127.0.5.5:53 (answers 127.0.0.7:1053)"
    (flow,) = table.flows([Flows(source="::1", ports="99")])
    assert str(flow) == "udp [::1]:6002 -> [::1]:99 (answers [::1]:99)"
    (flow,) = table.flows([Flows(translated="127.0.7.7")])
    assert (flow.reply_destination, flow.reply_source) == ("127.0.7.7", "127.0.0.9")


def test_at_most_so_many_are_told(table: Conntrack) -> None:
    assert len(table.flows([Flows()], most=2)) == 2


def test_nothing_wanted_nothing_ended(table: Conntrack) -> None:
    assert table.end_flows([]) == 0
    assert table.flows([]) == []


def test_the_agents_own_view(monkeypatch: pytest.MonkeyPatch, table: Conntrack) -> None:
    monkeypatch.setattr(conntrack, "_kept", lambda: table)
    assert conntrack.flows(Flows(destination="127.0.5.5"), Flows(source="127.0.0.2"), most=1)[0].startswith("udp")
    assert conntrack.end_flows(Flows(destination="127.0.5.5"), Flows(address="127.0.5.6")) == 5


def test_in_ten_thousand_flows_one_is_found_and_all_are_ended(table: Conntrack) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.bind(("127.0.0.4", 5007))
        for number in range(10_000):
            try:
                out.sendto(b"x", (f"127.1.{number >> 8}.{number & 255}", 1000 + number))
            except ConnectionRefusedError:  # an earlier one's answer
                out.sendto(b"x", (f"127.1.{number >> 8}.{number & 255}", 1000 + number))
    assert len(table.flows([Flows(destination="127.1.0.7", protocol="udp", ports="1007")])) == 1
    assert table.end_flows([Flows(source="127.0.0.4")]) == 10_000
    assert len(table.flows([Flows()])) == 9
