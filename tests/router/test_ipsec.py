"""IPsec in documents: what is refused, and what is told of what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.document import DocumentError, validate
from appliance.plan import Lost, diff, plan
from appliance.state import Entry
from router.checks import problems
from router.compile import compile
from router.config import Config
from router.ipsec import ike_words
from router.oracle import verdict
from router.packet import Packet
from router.trace import trace
from tests.certificates import Authority
from tests.router.samples import document, facts_of, forward, ports
from tests.router.test_oracle import told as told_of

AUTHORITY = Authority("ours")
ROUTER = AUTHORITY.sign("vpn.example.org")
PUBLIC, OTHER = "203.0.113.10", "198.51.100.10"


def site(ident: str = "paris", **more: Any) -> dict[str, Any]:
    return {
        "id": ident, "address": PUBLIC, "peer": "192.0.2.9", "networks": ["10.1.1.0/24"],
        "peer_networks": ["10.9.0.0/24"], "secret": "between us", **more,
    }  # fmt: skip


def access(ident: str = "road", **more: Any) -> dict[str, Any]:
    return {
        "id": ident, "address": PUBLIC, "name": "vpn.example.org", "certificate": ROUTER.certificate,
        "private_key": ROUTER.private_key, "addresses": ["10.8.0.1/24"], **more,
    }  # fmt: skip


def user(ident: str = "alice", **more: Any) -> dict[str, Any]:
    return {"id": ident, "access": "road", "login": ident, "password": "pass word", **more}


def made(
    *sites: dict[str, Any], access: tuple[dict[str, Any], ...] = (), users: tuple[dict[str, Any], ...] = ()
) -> Config:
    collections = {"ipsec_sites": list(sites), "ipsec_access": list(access), "ipsec_users": list(users)}
    return validate(Config, document(**collections))


def told(config: Config) -> dict[str, Entry]:
    return {f"{t.kind} {t.name}": t for t in compile(config, facts_of(config)).entries}


def content(config: Config, name: str) -> Any:
    return json.loads(told(config)[name].content)


# --- what is refused --------------------------------------------------------------------------------------------------

CERTIFIED = {
    "secret": None, "certificate": ROUTER.certificate, "private_key": ROUTER.private_key,
    "peer_ca": AUTHORITY.certificate, "peer_id": "far.example.org",
}  # fmt: skip
WRONG_SITES = {
    "no public address": ({"address": "10.1.1.1"}, "address", "no address of a public interface"),
    "nothing to prove by": ({"secret": None}, "", "one `secret`, or"),
    "both": ({**CERTIFIED, "secret": "x"}, "", "one `secret`, or"),
    "half of the others": ({**CERTIFIED, "peer_ca": None}, "", "one `secret`, or"),
    "anybody of an authority": ({**CERTIFIED, "peer_id": None}, "peer_id", "whoever has a certificate"),
    "nobody known": ({"peer": None}, "peer_id", "known by what it calls itself"),
    "IKEv1 from anywhere": ({"peer": None, "peer_id": "x", "version": "ikev1"}, "peer", "IKEv1 finds a secret"),
    "another family": ({"peer": "2001:db8::1"}, "peer", "one is IPv6"),
    "networks of another family": ({"peer_networks": ["2001:db8:9::/48"]}, "peer_networks", "same families"),
    "weak for IKE": ({"ike": ["3des-sha256-modp2048"]}, "ike", "3des is broken"),
    "weak for ESP": ({"esp": ["aes256-md5-modp1024"]}, "esp", "md5, modp1024 is broken"),
}


@pytest.mark.parametrize(("changes", "field", "words"), WRONG_SITES.values(), ids=WRONG_SITES)
def test_a_site_that_is_wrong(changes: dict[str, Any], field: str, words: str) -> None:
    found = problems(made(site(**changes)))
    assert [p.path for p in found] == ["config.ipsec_sites[paris]" + (f".{field}" if field else "")], found
    assert words in found[0].message


def test_weak_ciphers_are_had_for_the_asking() -> None:
    assert problems(made(site(ike=["3des-md5-modp1024"], esp=["3des-sha1"], weak=True))) == []


def test_two_sites_that_nobody_could_tell_apart() -> None:
    twins = made(site(), site("lyon", peer_networks=["10.10.0.0/24"]))
    assert [p.path for p in problems(twins)] == ["config.ipsec_sites[lyon]"]
    assert problems(made(site(), site("lyon", peer_networks=["10.10.0.0/24"], peer_id="lyon"))) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ike": ["des-sha256-modp2048"]}, {"ike": ["aes256-sha256"]}, {"ike": ["aes256gcm16-ecp384"]},
        {"ike": ["aes256-sha256-modp2048-modp2048"]}, {"esp": ["aes256gcm16-sha256"]}, {"esp": ["aes256"]},
        {"esp": ["aes256-sha256-modp2048-ecp256"]}, {"esp": []}, {"esp": ["null-sha256"]},
        {"peer_id": "%any"}, {"peer_id": "*"}, {"local_id": "a\nb"}, {"secret": 'with "quotes"'},
        {"peer": "%any"}, {"certificate": "-----BEGIN CERTIFICATE-----\nx;\n-----END CERTIFICATE-----"},
        {"certificate": ROUTER.private_key}, {"version": "ikev3"}, {"peer_networks": []},
    ],
)  # fmt: skip
def test_words_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        made(site(**changes))


WRONG_ACCESS = {
    "no public address": ({"address": "10.1.1.1"}, (), "ipsec_access[road].address"),
    "two subnets": ({"addresses": ["10.8.0.1/24", "10.7.0.1/24"]}, (), "ipsec_access[road].addresses"),
    "no room": ({"addresses": ["10.8.0.1/31"]}, (), "ipsec_access[road].addresses"),
    "first address": ({"addresses": ["10.8.0.0/24"]}, (), "ipsec_access[road].addresses"),
    "no such network": ({"dns": "nowhere"}, (), "ipsec_access[road].dns"),
    "routes of another family": ({"routes": ["2001:db8::/32"]}, (), "ipsec_access[road].routes"),
    "weak": ({"esp": ["aes256-sha1"]}, (), "ipsec_access[road].esp"),
    "a user of nowhere": ({}, (user(access="lane"),), "ipsec_users[alice].access"),
    "no way to prove": ({}, (user(password=None),), "ipsec_users[alice].password"),
    "two of one login": ({}, (user(), user("bob", login="Alice")), "ipsec_users[bob].login"),
}


@pytest.mark.parametrize(("changes", "users", "path"), WRONG_ACCESS.values(), ids=WRONG_ACCESS)
def test_an_access_that_is_wrong(changes: dict[str, Any], users: tuple[dict[str, Any], ...], path: str) -> None:
    found = problems(made(access=(access(**changes),), users=users))
    assert [p.path for p in found] == [f"config.{path}"], found


def test_a_password_would_open_the_other_access_too() -> None:
    two = (access(), access("lane", address=OTHER, addresses=["10.7.0.1/24"], user_ca=AUTHORITY.certificate))
    found = problems(made(access=two, users=(user(), user("bob", access="lane"))))
    assert [p.path for p in found] == ["config.ipsec_users[bob].access"]
    assert problems(made(access=two, users=(user(), user("bob", access="lane", password=None)))) == []


def test_one_port_serves_one_access() -> None:
    found = problems(made(access=(access(), access("lane", addresses=["10.7.0.1/24"]))))
    assert [p.path for p in found] == ["config.ipsec_access[lane].address"]


@pytest.mark.parametrize(
    ("collections", "path"),
    [
        ({"forwards": [forward("f", protocol="udp", ports=ports(400, 600), target_ports=None)]}, "forwards[f].ports"),
        ({"static_nats": [{"id": "n", "address": PUBLIC, "target": "10.1.1.10"}]}, "static_nats[n].address"),
        ({"ipsec_sites": [site(peer="10.9.0.7")]}, "ipsec_sites[paris].peer_networks"),
        ({"ipsec_sites": [site("web")]}, "ipsec_sites[web].id"),
        ({"ipsec_sites": [site(peer_networks=["10.1.0.0/16"])]}, "ipsec_sites[paris].peer_networks"),
        ({"routes": [{"id": "r", "destination": "10.9.0.0/24", "via": "172.16.0.9"}]}, "routes[r].destination"),
    ],
)  # fmt: skip
def test_what_would_take_its_packets(collections: dict[str, Any], path: str) -> None:
    config = validate(Config, document(**{"ipsec_sites": [site()], **collections}))
    assert {p.path for p in problems(config)} == {f"config.{path}"}, problems(config)


# --- packets ----------------------------------------------------------------------------------------------------------

GUARDED = {
    "acls": [
        {
            "id": "web",
            "ingress": [
                {"id": "i", "action": "allow", "protocol": "tcp", "ports": ports(80), "cidrs": ["10.9.0.0/24"]}
            ],
        }
    ],
    "networks": [
        {"id": "web", "interface": "web", "cidr": "10.1.1.0/24", "source_nat": PUBLIC, "acl": "web"},
        {"id": "db", "interface": "db", "cidr": "10.1.2.0/24"},
    ],
    "ipsec_sites": [site()],
    "ipsec_access": [access(addresses=["10.8.0.1/24"], internet=PUBLIC)],
}
WORLD, THERE, USER, GUEST = "192.0.2.9", "10.9.0.5", "10.8.0.2", "10.1.1.10"
PACKETS = [
    (Packet("isp-a", WORLD, PUBLIC, "udp", 500, 500), "local"),
    (Packet("isp-a", WORLD, PUBLIC, "udp", 4500, 4500), "local"),
    (Packet("isp-a", WORLD, PUBLIC, 50), "local"),
    (Packet("isp-a", WORLD, PUBLIC, "tcp", 500, 500), "dropped"),
    (Packet("isp-a", WORLD, PUBLIC, "udp", 1701, 1701), "dropped"),
    (Packet("isp-a", WORLD, "203.0.113.11", "udp", 500, 500), "dropped"),
    (Packet("paris", THERE, GUEST, "tcp", 4000, 80), f"web {THERE} {GUEST}:80"),
    (Packet("paris", THERE, GUEST, "tcp", 4000, 22), "dropped"),
    (Packet("paris", USER, GUEST, "tcp", 4000, 80), "dropped"),
    (Packet("isp-a", THERE, GUEST, "tcp", 4000, 80), "dropped"),
    (Packet("web", GUEST, THERE, "tcp", 4000, 80), f"paris {GUEST} {THERE}:80"),
    (Packet("road", USER, "10.1.2.10", "tcp", 4000, 80), f"db {USER} 10.1.2.10:80"),
    (Packet("road", USER, WORLD, "tcp", 4000, 80), f"isp-a {PUBLIC} {WORLD}:80"),
    (Packet("road", USER, THERE, "tcp", 4000, 80), "dropped"),
]


@pytest.mark.parametrize(("packet", "fate"), PACKETS, ids=str)
def test_fate(packet: Packet, fate: str) -> None:
    config = validate(Config, document(**GUARDED))
    facts = facts_of(config)
    assert problems(config, facts) == []
    assert told_of(verdict(config, packet)) == fate
    assert told_of(trace(compile(config, facts), facts, packet).outcome) == fate


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_a_document_without_ipsec_has_nothing_of_it() -> None:
    state = compile(made(), facts_of(made()))
    assert state.entries == ()
    assert all("ipsec" not in u.name for u in state.units)


def test_a_site_has_a_link_of_its_own_and_routes_into_it() -> None:
    config = made(site(), site("lyon", peer="192.0.2.10", peer_networks=["10.10.0.0/24"]))
    state = compile(config, facts_of(config))
    links = {link.owner: link for link in state.links if link.kind == "xfrm"}
    assert links.keys() == {"paris", "lyon"}
    assert links["paris"].if_id != links["lyon"].if_id
    ours = {r.destination: r.link for r in state.routes if r.destination.startswith("10.")}
    assert ours == {"10.9.0.0/24": links["paris"].name, "10.10.0.0/24": links["lyon"].name}
    child = content(config, "connection site.paris")["config"]
    assert child["if_id_in"] == child["if_id_out"] == str(links["paris"].if_id)


def test_an_if_id_is_the_object_s_whatever_comes_beside_it() -> None:
    alone, beside = (
        next(link.if_id for link in compile(c, facts_of(c)).links if link.owner == "paris")
        for c in (made(site()), made(site("a", peer="192.0.2.10", peer_networks=["10.10.0.0/24"]), site()))
    )
    assert alone == beside


def test_who_waits_and_who_begins() -> None:
    begins = content(made(site()), "connection site.paris")
    assert begins["initiate"] == ["all"]
    assert begins["config"]["children"]["all"]["start_action"] == "trap"
    named = content(made(site(peer="far.example.org")), "connection site.paris")
    assert named["initiate"] == ["all"]
    assert named["config"]["children"]["all"]["start_action"] == "none"  # a trap would look the name up in the push
    waits = content(made(site(passive=True)), "connection site.paris")
    assert (waits["initiate"], waits["config"]["children"]["all"]["dpd_action"]) == ([], "clear")


@pytest.mark.parametrize("changes", [{"version": "ikev1"}, {"version": "any"}, {"split": True}])
def test_a_child_for_each_pair_of_networks(changes: dict[str, Any]) -> None:
    both = {"networks": ["10.1.1.0/24", "10.1.2.0/24"], "peer_networks": ["10.9.0.0/24", "10.10.0.0/24"]}
    children = content(made(site(**both, **changes)), "connection site.paris")["config"]["children"]
    assert sorted(children) == sorted(f"{a} {b}" for a in both["networks"] for b in both["peer_networks"])
    assert all(len(c["local_ts"]) == len(c["remote_ts"]) == 1 for c in children.values())


def test_an_aead_derives_its_keys_by_what_stands_in_the_place_of_integrity() -> None:
    assert ike_words(["aes256gcm16-sha384-ecp384", "aes256-sha256-modp2048"]) == [
        "aes256gcm16-prfsha384-ecp384", "aes256-sha256-modp2048",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "span"),
    [
        ("10.8.0.1/24", "10.8.0.2-10.8.0.254"), ("10.8.0.254/24", "10.8.0.1-10.8.0.253"),
        ("10.8.0.1/29", "10.8.0.2-10.8.0.6"), ("2001:db8:8::1/64", "2001:db8:8::2-2001:db8:8::1:1"),
    ],
)  # fmt: skip
def test_users_get_the_addresses_behind_the_router_s(own: str, span: str) -> None:
    assert f"pool road {span}" in told(made(access=(access(addresses=[own]),)))


def test_what_is_led_into_the_tunnel() -> None:
    def led(**changes: Any) -> list[str]:
        whole = content(made(access=(access(**changes),)), "connection access.road")
        return whole["config"]["children"]["all"]["local_ts"]  # type: ignore[no-any-return]

    assert led() == ["10.1.1.0/24", "10.1.2.0/24"]
    assert led(routes=["10.0.0.0/8"]) == ["10.0.0.0/8"]
    assert led(internet=PUBLIC) == ["0.0.0.0/0"]


def test_users_and_what_ends_with_them() -> None:
    users = (user(), user("bob", enabled=False), user("eve", password=None))
    config = made(access=(access(user_ca=AUTHORITY.certificate),), users=users)
    assert sorted(told(config)) == [
        "connection access.road", "connection user.eve", "key access.road", "pool road 10.8.0.2-10.8.0.254",
        "secret user.alice",
    ]  # fmt: skip
    assert content(config, "secret user.alice")["ends"] == ["access.road", "alice"]
    assert content(config, "connection user.eve")["config"]["remote"]["id"] == "eve"


def test_one_more_user_is_one_part_and_nobody_else_s() -> None:
    before, after = (made(access=(access(),), users=u) for u in ((user(),), (user(), user("bob"))))
    steps = plan(compile(before, facts_of(before)), compile(after, facts_of(after)))
    assert [str(s) for s in steps] == ["set entry secret user.bob of ipsec (bob)"]


def test_flows_end_with_their_tunnel() -> None:
    """Else they would go on by an uplink, in the clear."""
    before, after = (made(site(peer_networks=list(n))) for n in (("10.9.0.0/24", "10.10.0.0/24"), ("10.9.0.0/24",)))
    for config, lost in ((after, ["10.10.0.0/24"]), (made(), ["10.9.0.0/24", "10.10.0.0/24"])):
        steps = plan(compile(before, facts_of(before)), compile(config, facts_of(config)))
        ended = [f.network for s in steps if isinstance(s.before, Lost) for f in s.before.flows]
        assert ended == lost


def test_what_others_stand_on_is_told_first() -> None:
    config = made(site(), access=(access(),), users=(user(),))
    kinds = [t.kind for t in compile(config, facts_of(config)).entries]
    assert kinds == sorted(kinds, key=("pool", "key", "secret", "connection").index)


def test_a_chain_is_told_certificate_by_certificate() -> None:
    chain = ROUTER.certificate + AUTHORITY.certificate
    own = content(made(access=(access(certificate=chain),)), "connection access.road")["config"]["local"]
    assert own["certs"] == [ROUTER.certificate, AUTHORITY.certificate]


def test_no_secret_is_shown() -> None:
    config = made(site(), access=(access(),), users=(user(),))
    state = compile(config, facts_of(config))
    shown = diff(compile(made(), facts_of(config)), state) + repr(state.entries) + repr(config)
    for secret in ("between us", "pass word", ROUTER.private_key.splitlines()[2]):
        assert secret not in shown
    assert "site.paris" in shown
