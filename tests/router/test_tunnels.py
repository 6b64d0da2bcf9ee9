"""Tunnels: what comes out of them and goes in (router/README.md, 12), as a table; the trace says the same of every row.

By WireGuard: two listeners, one with users that may leave for the internet and a site, both with transit; one without.
"""

from __future__ import annotations

from typing import Any

import pytest

from appliance.state import Facts
from router.checks import problems
from router.compile import compile
from router.config import Config
from router.oracle import answer, verdict
from router.packet import Packet
from router.trace import trace
from tests.router.samples import INTERFACES, facts_of, forward, made, ports, rule
from tests.router.test_oracle import told

A, A2, B = "203.0.113.10", "203.0.113.11", "198.51.100.10"
KEYS = [f"{letter * 42}A=" for letter in "bcdefghijkl"]
WEB, DB, STRANGER = "10.1.1.10", "10.1.2.10", "8.8.8.8"
ALICE, BOB, CAROL, OFFICE = "10.99.0.2", "10.99.0.3", "10.98.0.2", "10.50.0.7"
WEB6, ALICE6, OFFICE6, STRANGER6 = "2001:db8:1::a", "fd00:99::2", "fd00:50::7", "2001:db8:8888::8"


def user(ident: str, *addresses: str, wireguard: str = "road", key: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": ident, "wireguard": wireguard, "public_key": KEYS[key], "addresses": list(addresses), **more}


def listener(ident: str = "road", **more: Any) -> dict[str, Any]:
    plain = {"address": A, "private_key": KEYS[9], "addresses": ["10.99.0.1/24", "fd00:99::1/64"], "dns": "web"}
    return {"id": ident, **plain, **more}


def site(ident: str = "office", **more: Any) -> dict[str, Any]:
    plain = {"wireguard": "road", "public_key": KEYS[5], "networks": ["10.50.0.0/16", "fd00:50::/48"]}
    return {"id": ident, **plain, "endpoint": "192.0.2.77", **more}


def document(**collections: Any) -> Config:
    interfaces = [dict(i) for i in INTERFACES]
    interfaces[1] = {**interfaces[1], "addresses": [*interfaces[1]["addresses"], "2001:db8::10/64"]}
    interfaces[1]["gateway6"] = "2001:db8::1"
    interfaces[3] = {**interfaces[3], "addresses": ["10.1.1.1/24", "2001:db8:1::1/64"]}
    plain: dict[str, Any] = {
        "interfaces": interfaces,
        "networks": [
            {
                "id": "web", "interface": "web", "cidr": "10.1.1.0/24", "cidr6": "2001:db8:1::/64", "source_nat": A,
                "egress": {"default": "deny"},
            },
            {"id": "db", "interface": "db", "cidr": "10.1.2.0/24", "acl": "db"},
        ],
        "acls": [
            {
                "id": "db",
                "ingress": [
                    {"id": "a", "action": "allow", "protocol": "tcp", "ports": ports(80), "cidrs": [f"{ALICE}/32"]}
                ],
                "egress": [{"id": "o", "action": "deny", "protocol": "any", "cidrs": ["10.50.0.0/16"]}],
            }
        ],
        "forwards": [forward("f", ports=ports(80), target_ports=None, target=WEB)],
        "firewall": [rule("fw", ports=ports(80), sources=["10.99.0.0/24"])],
        "wireguard": [
            listener(internet=A2, transit=True),
            listener("plain", port=51821, addresses=["10.98.0.1/24"], dns=None, private_key=KEYS[8]),
        ],
        "vpn_users": [
            user("alice", ALICE, ALICE6),
            user("bob", BOB, key=1),
            user("carol", CAROL, wireguard="plain", key=2),
        ],
        "wireguard_sites": [site()],
    }  # fmt: skip
    return made(**{**plain, **collections})


DOCUMENT = document()
FACTS = facts_of(DOCUMENT)
STATE = compile(DOCUMENT, FACTS)


def tcp(came_by: str, source: str, destination: str, port: int = 80) -> Packet:
    return Packet(came_by, source, destination, "tcp", 40000, port)


def udp(came_by: str, source: str, destination: str, port: int = 53) -> Packet:
    return Packet(came_by, source, destination, "udp", 40000, port)


def echo(came_by: str, source: str, destination: str) -> Packet:
    v6 = ":" in source
    return Packet(came_by, source, destination, "icmpv6" if v6 else "icmp", icmp_type=128 if v6 else 8)


def test_the_document_is_sound() -> None:
    assert problems(DOCUMENT, FACTS) == []


TABLE: list[tuple[str, Packet, str]] = [
    ("senders: a user's address from outside", tcp("isp-a", ALICE, A), "dropped"),
    ("senders: from a guest", tcp("web", ALICE, DB), "dropped"),
    ("senders: from another listener", tcp("plain", ALICE, WEB), "dropped"),
    ("senders: a stranger among users", tcp("plain", STRANGER, WEB), "dropped"),
    ("senders: a guest's from a tunnel", tcp("road", WEB, DB), "dropped"),
    ("senders: the router's own", tcp("road", "10.99.0.1", WEB), "dropped"),
    ("senders: a site's, from outside, in IPv6", tcp("isp-a", OFFICE6, WEB6), "dropped"),
    ("senders: the router's own in IPv6", tcp("road", "fd00:99::1", WEB6), "dropped"),
    ("users to guests", tcp("road", ALICE, WEB), f"web {ALICE} {WEB}:80"),
    ("users to guests in IPv6", tcp("road", ALICE6, WEB6), f"web {ALICE6} {WEB6}:80"),
    ("users of the other listener", tcp("plain", CAROL, WEB), f"web {CAROL} {WEB}:80"),
    ("sites to guests", tcp("road", OFFICE, WEB), f"web {OFFICE} {WEB}:80"),
    ("sites to guests in IPv6", echo("road", OFFICE6, WEB6), f"web {OFFICE6} {WEB6}"),
    ("a tier's ACL lets one in", tcp("road", ALICE, DB), f"db {ALICE} {DB}:80"),
    ("and nobody else", tcp("road", BOB, DB), "dropped"),
    ("nor to another port", tcp("road", ALICE, DB, 81), "dropped"),
    ("guests to users, whatever the egress", tcp("web", WEB, ALICE), f"road {WEB} {ALICE}:80"),
    ("guests to sites", tcp("web", WEB, OFFICE), f"road {WEB} {OFFICE}:80"),
    ("guests to sites in IPv6", tcp("web", WEB6, OFFICE6), f"road {WEB6} {OFFICE6}:80"),
    ("a tier's ACL keeps it from a site", tcp("db", DB, OFFICE), "dropped"),
    ("and not from users", tcp("db", DB, CAROL), f"plain {DB} {CAROL}:80"),
    ("user to user with transit", tcp("road", ALICE, BOB), f"road {ALICE} {BOB}:80"),
    ("user to site with transit", tcp("road", ALICE, OFFICE), f"road {ALICE} {OFFICE}:80"),
    ("user to site in IPv6", tcp("road", ALICE6, OFFICE6), f"road {ALICE6} {OFFICE6}:80"),
    ("without transit to nobody", tcp("plain", CAROL, ALICE), "dropped"),
    ("nor to each other", tcp("plain", CAROL, "10.98.0.3"), "dropped"),
    ("nor from who has it", tcp("road", ALICE, CAROL), "dropped"),
    ("to the internet", tcp("road", ALICE, STRANGER), f"isp-a {A2} {STRANGER}:80"),
    ("to the internet in IPv6", tcp("road", ALICE6, STRANGER6), f"isp-a {ALICE6} {STRANGER6}:80"),
    ("only who may", tcp("plain", CAROL, STRANGER), "dropped"),
    ("a site may not", tcp("road", OFFICE, STRANGER), "dropped"),
    ("to a private network", tcp("road", ALICE, "172.16.0.9"), "dropped"),
    ("from a private network", tcp("lan", "172.16.0.9", ALICE), "dropped"),
    ("from outside", tcp("isp-a", STRANGER, ALICE), "dropped"),
    ("from outside in IPv6", tcp("isp-a", STRANGER6, ALICE6), "dropped"),
    ("to the manager's network", tcp("road", ALICE, "169.254.3.9"), "dropped"),
    ("to a forward, as its firewall allows", tcp("road", ALICE, A), f"web {ALICE} {WEB}:80"),
    ("and as it does not", tcp("road", OFFICE, A), "dropped"),
    ("ping of the router", echo("road", ALICE, "10.99.0.1"), "local"),
    ("ping of the router in IPv6", echo("road", ALICE6, "fd00:99::1"), "local"),
    ("not at another's address", echo("road", ALICE, "10.98.0.1"), "dropped"),
    ("DNS of the network", udp("road", ALICE, "10.1.1.1"), "local"),
    ("DNS of the network, by TCP, in IPv6", tcp("road", ALICE6, "2001:db8:1::1", 53), "local"),
    ("where the listener names none", udp("plain", CAROL, "10.1.1.1"), "dropped"),
    ("nothing else there", tcp("road", ALICE, "10.1.1.1", 22), "dropped"),
    ("nor the manager's port", tcp("road", ALICE, "10.99.0.1", 3922), "dropped"),
    ("peers come in without a rule", udp("isp-a", STRANGER, A, 51820), "local"),
    ("by another uplink too", udp("isp.b", STRANGER, A, 51821), "local"),
    ("not by TCP", tcp("isp-a", STRANGER, A, 51820), "dropped"),
    ("not at another address", udp("isp-a", STRANGER, A2, 51820), "dropped"),
    ("the router's own to a user", tcp("", "10.99.0.1", ALICE), f"road 10.99.0.1 {ALICE}:80"),
    ("the router's own to a site", tcp("", "10.1.1.1", OFFICE), f"road 10.1.1.1 {OFFICE}:80"),
]


@pytest.mark.parametrize(("name", "packet", "fate"), TABLE, ids=[row[0] for row in TABLE])
def test_fate(name: str, packet: Packet, fate: str) -> None:
    assert told(verdict(DOCUMENT, packet)) == fate
    assert told(trace(STATE, FACTS, packet).outcome) == fate


@pytest.mark.parametrize(("came_by", "source"), [("road", ALICE), ("plain", CAROL), ("road", OFFICE6)])
def test_an_answer_goes_back_into_the_tunnel(came_by: str, source: str) -> None:
    back = answer(DOCUMENT, tcp(came_by, source, WEB6 if ":" in source else WEB))
    assert (back.out_interface, back.destination) == (came_by, source)


def test_a_document_without_tunnels_has_nothing_of_them() -> None:
    alone = made()
    state = compile(alone, facts_of(alone))
    assert not any("tunnel" in name or "transit" in name or "internet" in name for name in state.ruleset.sets)
    assert not any("tunnel" in chain.name or "beyond" in chain.name for chain in state.ruleset.chains)
    assert not any("default" in setting.key for setting in state.sysctls)


def wrong(facts: Facts | None = None, **collections: Any) -> dict[str, str]:
    return {p.path.removeprefix("config."): p.message for p in problems(document(**collections), facts)}


@pytest.mark.parametrize(
    ("collections", "path", "words"),
    [
        ({"wireguard": [listener(address="10.1.1.1")]}, "wireguard[road].address", "is not an address of a public"),
        ({"wireguard": [listener(port=53)]}, "wireguard[road].port", "the port of DNS"),
        ({"wireguard": [listener(), listener("two", addresses=[])]}, "wireguard[two].port", "road has port 51820"),
        ({"wireguard": [listener("web")]}, "wireguard[web].id", "there is an interface web"),
        ({"wireguard": [listener(internet=WEB)]}, "wireguard[road].internet", "is not an address of a public"),
        ({"wireguard": [listener(dns="none")]}, "wireguard[road].dns", "there is no network none"),
        ({"wireguard": [listener(addresses=["10.99.0.0/24"])]}, "wireguard[road].addresses", "is the network"),
        ({"wireguard": [listener(addresses=["10.1.1.77/26"])]}, "wireguard[road].addresses", "overlaps 10.1.1.0/24"),
        ({"wireguard": [listener(addresses=["169.254.99.1/24"])]}, "wireguard[road].addresses", "interface ctl"),
        ({"vpn_users": [user("a", "10.97.0.2")]}, "vpn_users[a].addresses", "in no subnet of listener road"),
        ({"vpn_users": [user("a", "10.99.0.1")]}, "vpn_users[a].addresses", "the router's own"),
        ({"vpn_users": [user("a", "10.99.0.255")]}, "vpn_users[a].addresses", "broadcast"),
        ({"vpn_users": [user("a", ALICE, BOB)]}, "vpn_users[a].addresses", "one address of a family"),
        ({"vpn_users": [user("a", ALICE), user("b", BOB)]}, "vpn_users[b].public_key", "user a has this key"),
        ({"vpn_users": [user("a", ALICE), user("b", ALICE, key=1)]}, "vpn_users[b].addresses", "user a's already"),
        ({"vpn_users": [user("a", ALICE, key=5)]}, "vpn_users[a].public_key", "site office has this key"),
        ({"vpn_users": [user("office", ALICE)]}, "vpn_users[office].id", "there is a site office"),
        ({"vpn_users": [user("a", ALICE, wireguard="no")]}, "vpn_users[a].wireguard", "no WireGuard listener no"),
        ({"wireguard_sites": [site(networks=["10.1.0.0/16"])]}, "wireguard_sites[office].networks", "overlaps"),
        ({"wireguard_sites": [site(networks=["0.0.0.0/0"])]}, "wireguard_sites[office].networks", "overlaps"),
        ({"wireguard_sites": [site(networks=["fe80::/16"])]}, "wireguard_sites[office].networks", "overlaps fe80::/10"),
        ({"wireguard_sites": [site(), site("z", public_key=KEYS[6])]}, "wireguard_sites[z].networks", "overlaps"),
        ({"wireguard_sites": [site(endpoint="10.50.9.9")]}, "wireguard_sites[office].endpoint", "behind tunnel office"),
        (
            {"routes": [{"id": "r", "destination": "10.50.0.0/16", "via": "172.16.0.9"}]},
            "routes[r].destination",
            "is behind tunnel office",
        ),
        (
            {"forwards": [forward("g", protocol="udp", ports=ports(51000, 52000), target_ports=None)]},
            "forwards[g].ports",
            "WireGuard listener",
        ),
        ({"static_nats": [{"id": "s", "address": A, "target": WEB}]}, "static_nats[s].address", "WireGuard listener"),
    ],
)
def test_what_does_not_fit(collections: dict[str, Any], path: str, words: str) -> None:
    found = wrong(**collections)
    assert words in found.get(path, ""), found
