"""What a document may say of BGP, what is refused, and that no default can be told to anybody."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.document import DocumentError, validate
from appliance.state import State
from router.checks import problems
from router.compile import compile
from router.config import Config
from tests.router.samples import INTERFACES, NETWORKS, document, facts_of, made

ROUTED = ({**NETWORKS[0], "source_nat": None, "routed": True}, NETWORKS[1])
PEER = {"id": "isp", "address": "203.0.113.1", "asn": 65000, "password": "a-Secret.1", "networks": ["web"]}


def with_peer(**fields: Any) -> dict[str, Any]:
    return document(networks=list(ROUTED), bgp={"asn": 65001}, bgp_peers=[{**PEER, **fields}])


def compiled(**fields: Any) -> State:
    config = validate(Config, with_peer(**fields))
    assert problems(config) == []
    return compile(config, facts_of(config))


def bgpd(state: State) -> str:
    (file,) = [f for f in state.files if f.path.endswith("bgpd.conf")]
    assert file.secret
    assert file.mode == 0o600
    return file.content


def lines(text: str, start: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(start)]


def refused(**fields: Any) -> list[str]:
    try:
        config = validate(Config, with_peer(**fields))
    except DocumentError as error:
        return [p.path for p in error.problems]
    return [p.path for p in problems(config)]


def test_a_document_without_bgp_has_nothing_of_it() -> None:
    config = made()
    state = compile(config, facts_of(config))
    assert not [u for u in state.units if u.name in ("zebra", "bgpd", "mgmtd")]
    assert not [c for c in state.checks if c.kind == "bgp"]
    assert "s_public_from" not in state.ruleset.sets


def test_exactly_the_named_networks_are_told_and_a_default_never() -> None:
    text = bgpd(compiled(prefixes=["198.51.100.128/28"]))
    out = lines(text, "ip prefix-list out-isp")
    assert [line.split(" ", 3)[3] for line in out] == [
        "seq 5 deny 0.0.0.0/0", "seq 10 permit 10.1.1.0/24", "seq 15 permit 198.51.100.128/28",
    ]  # fmt: skip
    assert "route-map out-isp permit 10" in text
    assert lines(text, "neighbor 203.0.113.1 route-map out-isp") == ["neighbor 203.0.113.1 route-map out-isp out"]
    assert "default-originate" not in text
    assert "redistribute" not in text


def test_nothing_is_taken_unless_it_is_named_and_never_a_way_into_our_own() -> None:
    taken = lines(bgpd(compiled()), "ip prefix-list in-isp")
    assert not [line for line in taken if "permit" in line]
    taken = lines(bgpd(compiled(accept=[{"cidr": "10.0.0.0/8", "longest": 24}])), "ip prefix-list in-isp")
    assert taken[-1].endswith("permit 10.0.0.0/8 le 24")
    for own in ("169.254.0.0/16", "10.1.1.0/24", "10.1.2.0/24", "172.16.0.0/24"):
        assert any(line.endswith(f"deny {own} le 32") for line in taken[:-1])


def test_a_change_is_a_reload_and_no_restart() -> None:
    (unit,) = [u for u in compiled().units if u.name == "bgpd"]
    assert unit.reload_by[0] == "/usr/lib/frr/frr-reload.py"
    assert unit.reload_on == unit.checks
    assert unit.restart_on == ()


def test_only_the_peer_may_ask() -> None:
    sets = compiled().ruleset.sets
    assert set(sets["s_public_from"].elements) == {
        "203.0.113.1 . 203.0.113.10 . tcp . 179",
        "203.0.113.1 . 203.0.113.11 . tcp . 179",
    }
    inner = compiled(address="172.16.0.9").ruleset.sets
    assert "s_public_from" not in inner
    assert re.fullmatch(r"\w+ . 172.16.0.2 . 172.16.0.9 . tcp . 179", *inner["s_service_from"].elements)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prefixes": ["0.0.0.0/0"]}, "prefixes"),
        ({"prefixes": ["2001:db8::/32"]}, "prefixes"),
        ({"networks": ["nobody"]}, "networks"),
        ({"networks": ["db.1"]}, "networks"),  # translated
        ({"address": "2001:db8::1"}, "address"),
        ({"address": "203.0.113.10"}, "address"),
        ({"address": "192.0.2.1"}, "address"),  # not a neighbour
        ({"address": "169.254.3.9"}, "address"),  # the manager's network
        ({"asn": 23456}, "asn"),
        ({"asn": 0}, "asn"),
        ({"default": True}, "default"),  # the uplink's gateway would win
        ({"accept": [{"cidr": "10.1.1.128/25"}]}, "accept"),
        ({"accept": [{"cidr": "0.0.0.0/0"}]}, "accept"),
        ({"accept": [{"cidr": "192.0.2.0/24", "longest": 8}]}, "accept"),
        ({"password": "two words"}, "password"),
        ({"password": "x" * 81}, "password"),
        ({"password": 'x"\nneighbor 1.2.3.4 remote-as 1'}, "password"),
        ({"hold": 10}, ""),
        ({"multihop": 1}, "multihop"),
    ],
)
def test_refused(fields: dict[str, Any], path: str) -> None:
    assert any(path in found for found in refused(**fields)), refused(**fields)


def test_a_peer_some_hops_away_and_one_in_ipv6() -> None:
    assert "ebgp-multihop 3" in bgpd(compiled(address="192.0.2.1", multihop=3))
    outside = {**INTERFACES[1], "addresses": [*INTERFACES[1]["addresses"], "2001:db8:1::2/64"]}
    inside = {**INTERFACES[3], "addresses": ["10.1.1.1/24", "2001:db8:64::1/64"]}
    interfaces = [INTERFACES[0], outside, INTERFACES[2], inside, *INTERFACES[4:]]
    networks = [{**ROUTED[0], "cidr6": "2001:db8:64::/64"}, ROUTED[1]]
    peer = {**PEER, "address": "2001:db8:1::1"}
    config = made(interfaces=interfaces, networks=networks, bgp={"asn": 65001}, bgp_peers=[peer])
    assert problems(config) == []
    state = compile(config, facts_of(config))
    assert lines(bgpd(state), "network") == ["network 2001:db8:64::/64"]
    assert lines(bgpd(state), "ipv6 prefix-list out-isp")[0].endswith("deny ::/0")
    assert [r.link for r in state.routes if r.destination == "2001:db8:1::/64" and r.table == 254]


def test_a_public_interface_may_learn_its_way_out() -> None:
    raw = with_peer(default=True)
    raw["interfaces"] = [{k: v for k, v in i.items() if k != "gateway" or i["id"] != "isp-a"} for i in INTERFACES]
    assert problems(validate(Config, raw)) == []
    raw["bgp_peers"] = []
    assert [p.path for p in problems(validate(Config, raw))] == ["config.interfaces[isp-a].gateway"]


def test_two_peers_of_one_address_and_peers_without_a_number() -> None:
    raw = with_peer()
    raw["bgp_peers"] = [PEER, {**PEER, "id": "other"}]
    assert [p.path for p in problems(validate(Config, raw))] == ["config.bgp_peers[other].address"]
    assert [p.path for p in problems(validate(Config, {**with_peer(), "bgp": None}))] == ["config.bgp"]
