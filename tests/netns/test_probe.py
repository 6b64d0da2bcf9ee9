"""Evidence from neighbours that answer ping, only ARP, nothing, or lie behind a gateway; and from name servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from appliance.probe import probe_dns, probe_gateways, probe_management
from tests.netns.namespaces import Namespace, fresh_namespace, tool

# .2 answers ping; .3 drops it; nobody is .4; 192.0.2.9 is behind .2, 192.0.2.8 nowhere behind it
NEAR = """
link set peer up
address add 10.0.0.2/24 dev peer
address add 10.0.0.3/24 dev peer
address add 192.0.2.9/32 dev lo
"""
DROPS = """
table inet t {
    chain input { type filter hook input priority 0; ip daddr 10.0.0.3 drop; }
}
"""


@pytest.fixture
def neighbour() -> Iterator[Namespace]:
    """We are 10.0.0.1 on wan, and who is yielded is the other end."""
    with fresh_namespace():
        other = Namespace()
        try:
            tool("ip link add wan type veth peer name peer")
            tool(f"ip link set peer netns {other.path}")
            tool("ip -batch -", "link set wan up\naddress add 10.0.0.1/24 dev wan\nroute add 192.0.2.0/24 via 10.0.0.2")
            with other.entered():
                tool("ip -batch -", NEAR)
                tool("nft -f -", DROPS)
            yield other
        finally:
            other.close()


def test_a_gateway_that_answers_ping(neighbour: Namespace) -> None:
    start = time.monotonic()
    (found,) = probe_gateways(["10.0.0.2"], 5.0)
    assert (found.target, found.ok, found.how) == ("10.0.0.2", True, "ping")
    assert str(found).startswith("10.0.0.2 answers ping on wan")
    assert time.monotonic() - start < 3.0


def test_a_gateway_that_answers_only_arp(neighbour: Namespace) -> None:
    start = time.monotonic()
    (found,) = probe_gateways(["10.0.0.3"], 5.0)
    assert (found.ok, found.how) == (True, "arp")
    assert "answers ARP on wan" in found.words
    assert time.monotonic() - start < 4.0


def test_our_packet_filter_does_not_hide_a_neighbour(neighbour: Namespace) -> None:
    tool("nft -f -", "table inet t { chain o { type filter hook output priority 0; policy drop; }; }")
    (found,) = probe_gateways(["10.0.0.2"], 3.0)
    assert (found.ok, found.how) == (True, "arp")


def test_all_are_asked_at_once_and_the_time_is_kept(neighbour: Namespace) -> None:
    asked = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "192.0.2.9", "192.0.2.8", "198.51.100.1"]
    start = time.monotonic()
    found = probe_gateways(asked, 1.0)
    took = time.monotonic() - start
    assert [e.target for e in found] == asked
    assert [e.how for e in found] == ["ping", "arp", "", "ping", "", ""]
    assert [e.ok for e in found] == [True, True, False, True, False, False]
    assert "no answer within 1 s" in found[2].words
    assert "no way to it (ENETUNREACH" in found[5].words
    assert 0.9 < took < 2.5


def test_nobody_asked_nobody_waited_for() -> None:
    with fresh_namespace():
        assert probe_gateways([], 5.0) == []


def test_a_link_that_is_down_is_no_evidence(neighbour: Namespace) -> None:
    tool("ip link set wan down")
    (found,) = probe_gateways(["10.0.0.2"], 0.5)
    assert not found.ok


def test_a_gateway_that_answers_late_is_asked_again(neighbour: Namespace) -> None:
    with neighbour.entered():
        tool("ip link set peer down")
    timer = threading.Timer(0.5, _enable, [neighbour])
    timer.start()
    (found,) = probe_gateways(["10.0.0.2"], 5.0)
    timer.join()
    assert found.ok
    assert found.seconds > 0.4


def _enable(other: Namespace) -> None:
    with other.entered():
        tool("ip link set peer up")


@pytest.mark.parametrize(
    ("address", "ok", "words"),
    [
        ("10.0.0.3", True, "10.0.0.3 answers ARP on wan"),
        ("192.0.2.8", True, "192.0.2.8 is reached through 10.0.0.2 answers ARP on wan"),
        ("10.0.0.4", False, "no answer within 0.5 s"),
        ("198.51.100.1", False, "ENETUNREACH"),
    ],
)
def test_the_managers_side(neighbour: Namespace, address: str, ok: bool, words: str) -> None:
    found = probe_management(address, 0.5)
    assert found.ok is ok
    assert words in found.words


def serve(listening: socket.socket, rcode: dns.rcode.Rcode, ignore: int) -> None:
    """Answer one question, after `ignore` ones that are not answered."""
    for number in range(ignore + 1):
        question, asker = listening.recvfrom(512)
        if number == ignore:
            answer = dns.message.make_response(dns.message.from_wire(question))
            answer.set_rcode(rcode)
            listening.sendto(answer.to_wire(), asker)


@pytest.mark.parametrize(
    ("rcode", "ignore", "ok"),
    [
        (dns.rcode.NOERROR, 0, True),
        (dns.rcode.NXDOMAIN, 0, True),
        (dns.rcode.NOERROR, 1, True),
        (dns.rcode.SERVFAIL, 0, False),
        (dns.rcode.REFUSED, 0, False),
    ],
)
def test_a_name_server(neighbour: Namespace, rcode: dns.rcode.Rcode, ignore: int, ok: bool) -> None:
    with neighbour.entered():
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # it stays there, wherever its thread is
        listening.bind(("10.0.0.2", 53))
    with listening:
        listening.settimeout(5)
        server = threading.Thread(target=serve, args=(listening, rcode, ignore))
        server.start()
        found = probe_dns("10.0.0.2", "a.example", 3.0)
        server.join()
    assert found.ok is ok
    assert dns.rcode.to_text(rcode) in found.words


def test_a_name_server_that_is_not_there(neighbour: Namespace) -> None:
    start = time.monotonic()
    found = probe_dns("10.0.0.2", "a.example", 0.6)
    assert not found.ok
    assert "10.0.0.2 does not answer for a.example" in found.words
    assert time.monotonic() - start < 2.0
