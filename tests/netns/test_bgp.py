"""BGP with a second FRR outside, by hand: what passes, what never does, and what a push does to a session."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.calls import tcp
from tests.netns.machines import Machine
from tests.netns.peer import Peer
from tests.netns.stage import WORLD, WORLD_LOW, Stage, config, interface, left, office, put, remove, servers

PASSWORD = "bgp.Secret-1"
OURS, THEIRS = "203.0.113.2", "203.0.113.1"
OURS6, THEIRS6 = "2001:db8:1::2", "2001:db8:1::1"
TELLS = [
    "198.18.0.0/24", "198.18.1.0/24", "198.19.0.0/16", "10.1.1.128/25", "169.254.240.0/24", "203.0.113.128/25",
    "2001:db8:a::/48", "2001:db8:b::/48", "2001:db8:64::/66",
]  # fmt: skip
BGP = {"asn": 65001}
LAN6 = interface("lan", "guest", "10.1.1.1/24", "2001:db8:64::1/64")
OFFICE = office(None, routed=True, cidr6="2001:db8:64::/64", advertise={"addresses": "off"})


def peer(name: str, address: str, **more: Any) -> dict[str, Any]:
    fast = {"keepalive": 5, "hold": 15}
    return {"_": "bgp_peers", "id": name, "address": address, "asn": 65000, "password": PASSWORD, **fast, **more}


def v4(**more: Any) -> dict[str, Any]:
    accept = [{"cidr": "198.18.0.0/15", "longest": 24}, {"cidr": "10.0.0.0/8", "longest": 32}]
    return peer("isp.v4", THEIRS, **{"networks": ["office"], "accept": accept, **more})


def v6(**more: Any) -> dict[str, Any]:
    accept = [{"cidr": "2001:db8::/32", "longest": 128}]
    return peer("isp-v6", THEIRS6, **{"networks": ["office"], "accept": accept, **more})


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as made:
        made.world.run(("ip", "address", "add", f"{THEIRS6}/64", "dev", "eth0", "nodad"))
        yield made


@pytest.fixture(scope="module")
def isp(stage: Stage) -> Iterator[Peer]:
    with Peer(stage.world, [(OURS, PASSWORD), (OURS6, PASSWORD)], TELLS) as made:
        yield made


def push(stage: Stage, *objects: dict[str, Any], **bgp: Any) -> None:
    """The document with these objects; the uplink has a gateway in IPv6 unless a default is to be learned there."""
    learns = any(o.get("default") and ":" in o["address"] for o in objects)
    uplink = left(f"{OURS6}/64", **({} if learns else {"gateway6": THEIRS6}))
    whole = config(uplink, LAN6, OFFICE, *objects)
    stage.bed.push({**whole, "bgp": {**BGP, **bgp}})


@pytest.fixture
def both(stage: Stage, isp: Peer) -> None:
    push(stage, v4(), v6())
    wait_for(lambda: isp.is_up(OURS) and isp.is_up(OURS6), 20.0 * stage.bed.where.slower, "no session came up")


def learned(stage: Stage, *families: str) -> set[str]:
    """What FRR has put into the kernel."""
    found = [json.loads(stage.run(f"ip -j {f} route show proto bgp") or "[]") for f in families or ("-4", "-6")]
    return {r["dst"] for some in found for r in some}


def begun(isp: Peer) -> list[int]:
    """How often each session has come up: the same after a push that ended none."""
    return [isp.session(a)["connectionsEstablished"] for a in (OURS, OURS6)]


def test_both_families_stand_by_password_and_tell_exactly_what_is_named(stage: Stage, isp: Peer, both: None) -> None:
    wait_for(lambda: isp.told(OURS) == {"10.1.1.0/24"} and isp.told(OURS6) == {"2001:db8:64::/64"}, 40.0)


def test_what_is_named_is_taken_and_neither_a_default_nor_a_way_into_our_own(
    stage: Stage, isp: Peer, both: None
) -> None:
    """The peer tells of a default, of half a guest network, of the control network and of its own subnet's half."""
    expected = {"198.18.0.0/24", "198.18.1.0/24", "198.19.0.0/16", "2001:db8:a::/48", "2001:db8:b::/48"}
    wait_for(lambda: learned(stage) == expected, 40.0, f"{learned(stage)}, not {expected}")


def test_a_default_is_taken_where_the_document_says_so_and_told_to_nobody(stage: Stage, isp: Peer, both: None) -> None:
    up = begun(isp)
    push(stage, left(f"{OURS6}/64", gateway=None), v4(default=True), v6(default=True, networks=[]))
    wait_for(lambda: "default" in learned(stage, "-4") and "default" in learned(stage, "-6"), 40.0)
    stage.meets("world", tcp(stage.web, WORLD, 80))
    assert begun(isp) == up
    assert not {"0.0.0.0/0", "::/0"} & (isp.told(OURS) | isp.told(OURS6))
    push(stage, v4(), v6())
    wait_for(lambda: "default" not in learned(stage), 40.0)
    assert begun(isp) == up


def test_what_is_told_changes_and_no_session_ends(stage: Stage, isp: Peer, both: None) -> None:
    up = begun(isp)
    push(
        stage,
        servers(None, routed=True),
        v4(networks=["office", "servers"], prefixes=["192.0.2.128/25"]),
        v6(networks=[]),
    )
    wait_for(lambda: isp.told(OURS) == {"10.1.1.0/24", "10.1.2.0/24", "192.0.2.128/25"}, 40.0)
    wait_for(lambda: isp.told(OURS6) == set(), 40.0)
    stage.bed.patch(put(v4(networks=[])))
    wait_for(lambda: isp.told(OURS) == set(), 40.0)
    stage.bed.patch(put(v4(accept=[])))
    wait_for(lambda: not {r for r in learned(stage) if ":" not in r}, 40.0)
    assert begun(isp) == up


def test_a_peer_that_goes_takes_its_routes_along_and_leaves_the_other_alone(
    stage: Stage, isp: Peer, both: None
) -> None:
    up = begun(isp)
    stage.bed.patch(remove(v6()))
    wait_for(lambda: not isp.is_up(OURS6), 40.0)
    wait_for(lambda: not {r for r in learned(stage) if ":" in r}, 40.0)
    assert isp.session(OURS)["connectionsEstablished"] == up[0]


def test_a_peer_behind_the_gateway(stage: Stage, isp: Peer, both: None) -> None:
    """The session, and the next hops of what is learned by it, lie behind the default route."""
    push(stage, {**v4(multihop=3), "address": WORLD_LOW}, v6())
    wait_for(lambda: "198.18.0.0/24" in learned(stage) and isp.told(OURS) == {"10.1.1.0/24"}, 40.0)
    assert "via 203.0.113.1" in stage.run("ip route show 198.18.0.0/24")


def test_a_wrong_password_is_no_session(stage: Stage, isp: Peer, both: None) -> None:
    push(stage, v4(password="another"), v6())
    wait_for(lambda: not isp.is_up(OURS), 40.0)
    push(stage, v4(), v6())
    wait_for(lambda: isp.is_up(OURS), 30.0)


def test_drift_is_healed_and_learned_routes_are_not_taken_for_it(stage: Stage, isp: Peer, both: None) -> None:
    wait_for(lambda: len(learned(stage)) == 5, 40.0)
    before = learned(stage)
    told = stage.drift_after(lambda: stage.run("ip rule del pref 120"))
    assert not told & before
    assert learned(stage) == before


def test_health_tells_of_each_session(stage: Stage, isp: Peer, both: None) -> None:
    found = stage.bed.appliance.request("GET", "/v1/health?now=1").body["checks"]
    told = {c["object"]: c for c in found if c["kind"] == "bgp"}
    assert told["isp.v4"]["ok"], told
    assert told["isp-v6"]["ok"], told
    stage.bed.patch(put(peer("nobody", "203.0.113.77")))
    found = stage.bed.appliance.request("GET", "/v1/health?now=1").body["checks"]
    (lost,) = [c for c in found if c["object"] == "nobody"]
    assert not lost["ok"]
    assert "203.0.113.77" in lost["why"]


def test_nobody_but_the_peer_may_ask_at_its_port(stage: Stage, isp: Peer, both: None) -> None:
    push(stage, v4(password=None), v6())  # else the kernel drops what is not signed, whoever sends it
    asked = ((stage.world, OURS), (stage.near, OURS), (stage.web, "10.1.1.1"), (stage.web, OURS))
    assert [connects(machine, address) for machine, address in asked] == [True, False, False, False]


def connects(machine: Machine, address: str) -> bool:
    with machine.entered():
        sock = socket.socket()
    sock.settimeout(1.0)
    try:
        sock.connect((address, 179))
    except TimeoutError:
        return False
    finally:
        sock.close()
    return True


def test_the_document_without_bgp_again(stage: Stage, isp: Peer, both: None) -> None:
    stage.push()
    wait_for(lambda: not isp.is_up(OURS), 40.0)
    assert learned(stage) == set()
    assert "frr" not in stage.bed.run("ps", "-e", "-o", "args")
