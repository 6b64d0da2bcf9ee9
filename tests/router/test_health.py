"""Which checks a document asks for, and that it asks for no others."""

from __future__ import annotations

from appliance.state import Check
from router.compile import compile
from tests.router.samples import NETWORKS, facts_of, made


def checks(**collections: object) -> list[Check]:
    config = made(**collections)
    return list(compile(config, facts_of(config)).checks)


def owners(kind: str, **collections: object) -> dict[str, str]:
    return {c.target: c.owner for c in checks(**collections) if c.kind == kind}


def test_gateways_of_uplinks_and_next_hops() -> None:
    assert owners("gateway") == {"203.0.113.1": "isp-a", "198.51.100.1": "isp.b"}
    routes = [{"id": "far", "destination": "172.20.0.0/16", "via": "172.16.0.9"}]
    assert owners("gateway", routes=routes)["172.16.0.9"] == "far"


def test_name_servers() -> None:
    web, db = NETWORKS
    found = [c for c in checks() if c.kind == "dns"]
    assert [(c.target, c.expect, c.owner) for c in found] == [
        ("10.1.2.1", "10.1.2.1", "db.1"),
        ("10.1.1.1", "10.1.1.1", "web"),
    ]
    assert [c.name.endswith(".web.test") for c in found] == [False, True]
    assert owners("dns", networks=[{**web, "dns": False}, {**db, "dns": False}], upstream=["9.9.9.9"]) == {}
    asked = owners("dns", networks=[{**web, "upstream": ["9.9.9.10"]}, db], upstream=["9.9.9.9"])
    assert asked["9.9.9.10"] == "web"
    assert asked["9.9.9.9"] == ""


def test_dhcp_is_asked_for_one_known_host_of_each_network() -> None:
    hosts = [
        {"id": f"vm-{n}", "network": "web", "mac": f"02:00:00:00:01:0{n}", "address": f"10.1.1.2{n}", "name": f"vm-{n}"}
        for n in (3, 1, 2)
    ]
    assert [c for c in checks() if c.kind == "dhcp"] == []
    (found,) = [c for c in checks(hosts=hosts) if c.kind == "dhcp"]
    assert (found.owner, found.name, found.expect) == ("web", "02:00:00:00:01:01", "10.1.1.21")
    off = [{**NETWORKS[0], "dhcp": {"enabled": False}}, NETWORKS[1]]
    assert [c for c in checks(hosts=hosts, networks=off) if c.kind == "dhcp"] == []
