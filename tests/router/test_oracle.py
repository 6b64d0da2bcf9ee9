"""What the product means, as a table: packets that start a flow, and what becomes of them (router/README.md, 0-9).

The trace of the compiled document must say the same of every row.
"""

from __future__ import annotations

from typing import Any

import pytest

from router.checks import problems
from router.compile import compile
from router.oracle import answer, verdict
from router.packet import Packet
from router.trace import trace
from tests.router import samples
from tests.router.samples import facts_of, forward, made, ports, rule

A, A2, B = "203.0.113.10", "203.0.113.11", "198.51.100.10"  # public addresses of isp-a and isp.b
WEB, WEB2, DB = "10.1.1.10", "10.1.1.11", "10.1.2.10"  # guests
FRIEND, STRANGER = "192.0.2.7", "8.8.8.8"

DOCUMENT = made(
    networks=[
        {"id": "web", "interface": "web", "cidr": "10.1.1.0/24", "source_nat": A2},
        {
            "id": "db", "interface": "db", "cidr": "10.1.2.0/24", "egress": {"default": "deny"},
            "dhcp": {"enabled": False}, "dns": False,
        },
    ],
    forwards=[
        forward("ssh", sources=["192.0.2.0/24"]),
        forward("ssh-all", target=WEB2),
        forward("https", ports=ports(443), target_ports=ports(8443)),
        forward("many", protocol="udp", ports=ports(5000, 5010), target_ports=None, target=DB),
    ],
    static_nats=[{"id": "mail", "address": B, "target": WEB2}],
    firewall=[
        rule("fw-ssh"),
        rule("fw-https", ports=ports(443), sources=["192.0.2.0/24", "10.1.0.0/16", "172.16.0.0/24"]),
        rule("fw-many", protocol="udp", ports=ports(5000, 5005)),
        rule("fw-own", ports=ports(9000)),
        rule("fw-ping", protocol="icmp", ports=None, icmp_type=8, icmp_code=0),
        rule("fw-mail", address=B, ports=ports(25)),
        rule("fw-gre", address=B, protocol=47, ports=None),
    ],
    egress=[
        {"id": "no-mail", "network": "web", "protocol": "tcp", "ports": ports(25), "sources": [f"{WEB}/32"]},
        {"id": "db-dns", "network": "db", "protocol": "udp", "ports": ports(53), "destinations": ["172.16.0.0/24"]},
    ],
    routes=[{"id": "far", "destination": "10.9.0.0/16", "via": "172.16.0.9"}],
)  # fmt: skip
FACTS = facts_of(DOCUMENT)
STATE = compile(DOCUMENT, FACTS)


def tcp(came_by: str, source: str, destination: str, port: int) -> Packet:
    return Packet(came_by, source, destination, "tcp", 40000, port)


def udp(came_by: str, source: str, destination: str, port: int) -> Packet:
    return Packet(came_by, source, destination, "udp", 40000, port)


def icmp(came_by: str, source: str, destination: str, kind: int = 8, code: int = 0) -> Packet:
    return Packet(came_by, source, destination, "icmp", icmp_type=kind, icmp_code=code)


def gre(came_by: str, source: str, destination: str) -> Packet:
    return Packet(came_by, source, destination, 47)


def test_the_document_is_sound() -> None:
    assert not problems(DOCUMENT)


# (what it shows, the packet, its fate: dropped, local, or OUT SOURCE DESTINATION[:PORT])
TABLE: list[tuple[str, Packet, str]] = [
    ("0 a guest's address from outside is a lie", tcp("isp-a", WEB, A, 2222), "dropped"),
    ("0 a private neighbour's from outside too", tcp("isp-a", "172.16.0.9", A, 443), "dropped"),
    ("0 another network's from a guest", tcp("web", DB, A, 443), "dropped"),
    ("0 a stranger's from a guest", tcp("web", FRIEND, A, 443), "dropped"),
    ("0 the router's own from outside", tcp("isp.b", A2, A, 2222), "dropped"),
    ("0 who has no address yet may ask all", udp("web", "0.0.0.0", "255.255.255.255", 67), "local"),
    ("0 but not one", udp("web", "0.0.0.0", "10.1.1.1", 67), "dropped"),
    ("0 a lost echo reply starts nothing", icmp("isp-a", STRANGER, A, kind=0), "dropped"),
    ("2 no firewall rule, no way in", tcp("isp-a", STRANGER, A, 80), "dropped"),
    ("2 the firewall's sources", tcp("isp-a", STRANGER, A, 443), "dropped"),
    ("2 a forward changes the port", tcp("isp-a", FRIEND, A, 443), f"web {FRIEND} {WEB}:8443"),
    ("2 the forward with sources is asked first", tcp("isp-a", FRIEND, A, 2222), f"web {FRIEND} {WEB}:22"),
    ("2 then the one for all", tcp("isp-a", STRANGER, A, 2222), f"web {STRANGER} {WEB2}:22"),
    ("2 a range keeps its ports", udp("isp-a", STRANGER, A, 5005), f"db {STRANGER} {DB}:5005"),
    ("2 a forward opens nothing by itself", udp("isp-a", STRANGER, A, 5006), "dropped"),
    ("2 nor the other protocol", tcp("isp-a", STRANGER, A, 5005), "dropped"),
    ("2 by the other uplink it is the same", tcp("isp.b", FRIEND, A, 2222), f"web {FRIEND} {WEB}:22"),
    ("2 static NAT, all that the firewall lets in", tcp("isp.b", STRANGER, B, 25), f"web {STRANGER} {WEB2}:25"),
    ("2 any protocol by its number", gre("isp.b", STRANGER, B), f"web {STRANGER} {WEB2}"),
    ("2 static NAT opens nothing by itself", tcp("isp.b", STRANGER, B, 26), "dropped"),
    ("2 what nobody translates is the router's", tcp("isp-a", STRANGER, A, 9000), "local"),
    ("2 ping, of the very code", icmp("isp-a", STRANGER, A), "local"),
    ("2 and no other", icmp("isp-a", STRANGER, A, code=1), "dropped"),
    ("2 another address has rules of its own", icmp("isp-a", STRANGER, A2), "dropped"),
    ("2 from a private network alike", tcp("lan", "172.16.0.9", A, 443), f"web 172.16.0.9 {WEB}:8443"),
    ("3 straight to a guest, past the forward", tcp("isp-a", FRIEND, WEB, 22), "dropped"),
    ("4 hairpin: the router stands between", tcp("web", WEB2, A, 443), f"web 10.1.1.1 {WEB}:8443"),
    ("4 to another network there is no need", tcp("db", DB, A, 443), f"web {DB} {WEB}:8443"),
    ("5 the router's own are translated", tcp("", A, A, 443), f"web {A} {WEB}:8443"),
    ("5 and not judged", udp("", A, A, 5010), f"db {A} {DB}:5010"),
    ("5 to itself", tcp("", A, A2, 22), "local"),
    ("6 a guest goes out by its network's address", tcp("web", WEB, STRANGER, 80), f"isp-a {A2} {STRANGER}:80"),
    ("6 but for the exception", tcp("web", WEB, STRANGER, 25), "dropped"),
    ("6 which is one guest's", tcp("web", "10.1.1.12", STRANGER, 25), f"isp-a {A2} {STRANGER}:25"),
    ("6 static NAT is a guest's own address", tcp("web", WEB2, STRANGER, 80), f"isp.b {B} {STRANGER}:80"),
    ("6 denied by default", tcp("db", DB, STRANGER, 80), "dropped"),
    ("6 but for the exception, untranslated", udp("db", DB, "172.16.0.53", 53), f"lan {DB} 172.16.0.53:53"),
    ("6 which has a destination", udp("db", DB, STRANGER, 53), "dropped"),
    ("7 between guest networks", tcp("web", WEB, DB, 80), "dropped"),
    ("7 from a private network to a guest", tcp("lan", "172.16.0.9", WEB, 80), "dropped"),
    ("7 from a private network outwards", tcp("lan", "172.16.0.9", STRANGER, 80), "dropped"),
    ("7 from outside to a private network", tcp("isp-a", STRANGER, "172.16.0.9", 80), "dropped"),
    ("8 the manager", tcp("ctl", "169.254.0.1", "169.254.3.4", 3922), "local"),
    ("8 and nothing else of it", tcp("ctl", "169.254.0.1", "169.254.3.4", 22), "dropped"),
    ("8 from nowhere else", tcp("web", WEB, "10.1.1.1", 3922), "dropped"),
    ("8 DNS of a network", udp("web", WEB, "10.1.1.1", 53), "local"),
    ("8 only behind its own interface", udp("web", WEB, "10.1.2.1", 53), "dropped"),
    ("8 none where the network has none", udp("db", DB, "10.1.2.1", 53), "dropped"),
    ("8 nor DHCP", udp("db", DB, "255.255.255.255", 67), "dropped"),
    ("8 ping of a gateway", icmp("db", DB, "10.1.2.1"), "local"),
    ("8 and of a private address", icmp("lan", "172.16.0.9", "172.16.0.2"), "local"),
    ("8 which offers nothing else", udp("lan", "172.16.0.9", "172.16.0.2", 53), "dropped"),
    ("9 a static route wins over uplinks", tcp("web", WEB, "10.9.9.9", 80), f"lan {WEB} 10.9.9.9:80"),
    (
        "9 a guest's uplink, also to the other's subnet",
        tcp("web", WEB, "198.51.100.1", 80),
        f"isp-a {A2} 198.51.100.1:80",
    ),
    ("9 the router's own go by their source's uplink", tcp("", B, STRANGER, 80), f"isp.b {B} {STRANGER}:80"),
    ("9 else by the first, as its guests", tcp("", "10.1.1.1", STRANGER, 80), f"isp-a {A2} {STRANGER}:80"),
]


def told(outcome: Any) -> str:
    if outcome.verdict != "forwarded":
        return str(outcome.verdict)
    port = f":{outcome.destination_port}" if outcome.destination_port is not None else ""
    return f"{outcome.out_interface} {outcome.source} {outcome.destination}{port}"


@pytest.mark.parametrize(("name", "packet", "fate"), TABLE, ids=[row[0] for row in TABLE])
def test_fate(name: str, packet: Packet, fate: str) -> None:
    assert told(verdict(DOCUMENT, packet)) == fate
    assert told(trace(STATE, FACTS, packet).outcome) == fate


@pytest.mark.parametrize(
    ("packet", "owners"),
    [
        (tcp("isp-a", FRIEND, A, 2222), ("fw-ssh", "ssh")),
        (tcp("isp.b", STRANGER, B, 25), ("fw-mail", "mail")),
        (tcp("web", WEB, STRANGER, 25), ("web", "no-mail")),
        (tcp("web", WEB2, STRANGER, 80), ("web", "mail")),
        (udp("db", DB, "172.16.0.53", 53), ("db", "db-dns")),
        (udp("web", WEB, "10.1.1.1", 53), ("web",)),
    ],
)
def test_who_decides(packet: Packet, owners: tuple[str, ...]) -> None:
    assert verdict(DOCUMENT, packet).owners == owners


@pytest.mark.parametrize(
    ("packet", "way_back"),
    [
        (tcp("isp-a", FRIEND, A, 443), "isp-a"),
        (tcp("isp.b", FRIEND, A, 443), "isp.b"),
        (tcp("web", WEB, STRANGER, 80), "web"),
        (tcp("lan", "10.9.1.1", A, 9000), "lan"),
    ],
)
def test_an_answer_goes_back(packet: Packet, way_back: str) -> None:
    back = answer(DOCUMENT, packet)
    assert (back.out_interface, back.source, back.destination) == (way_back, packet.destination, packet.source)


def test_without_an_uplink_guests_go_nowhere() -> None:
    alone = made(
        interfaces=[i for i in samples.INTERFACES if i["use"] != "public"],
        networks=[{"id": "web", "interface": "web", "cidr": "10.1.1.0/24"}],
    )
    assert verdict(alone, tcp("web", WEB, STRANGER, 80)).why == f"there is no way to {STRANGER}"
    assert told(verdict(alone, tcp("web", WEB, "172.16.0.9", 80))) == f"lan {WEB} 172.16.0.9:80"


def test_out_by_an_uplink_that_does_not_hold_the_source() -> None:
    by_b = made(
        networks=[{"id": "web", "interface": "web", "cidr": "10.1.1.0/24", "source_nat": A}],
        routes=[{"id": "there", "destination": "192.0.2.0/24", "via": "198.51.100.1"}],
    )
    assert told(verdict(by_b, tcp("web", WEB, FRIEND, 80))) == f"isp.b {B} {FRIEND}:80"


def test_no_source_nat_no_translation() -> None:
    routed = made(networks=[{"id": "web", "interface": "web", "cidr": "10.1.1.0/24"}])
    assert told(verdict(routed, tcp("web", WEB, STRANGER, 80))) == f"isp-a {WEB} {STRANGER}:80"
