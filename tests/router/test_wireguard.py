"""WireGuard: the peers of a document, what a user more or less changes and ends, and what is not shown."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.checkup import _shaken
from appliance.fake import FakeHost
from appliance.plan import Flows, Lost, Step, diff, digest, plan
from appliance.state import Check, Peer, State, Touched, Wireguard
from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config
from router.config_wireguard import VpnUser
from router.wireguard import clamped
from tests.router.test_tunnels import ALICE, BOB, FACTS, KEYS, document, listener, site, user

WITH, WITHOUT = document(), document(vpn_users=[user("alice", ALICE)])


def state(**collections: Any) -> State:
    return compile(document(**collections), FACTS)


def peers(found: State) -> dict[str, Peer]:
    return {p.owner: p for p in found.peers}


def steps(before: State, after: State) -> list[str]:
    return [str(step) for step in plan(before, after)]


def test_what_a_document_becomes() -> None:
    found = state(vpn_users=[user("alice", ALICE, "fd00:99::2", preshared_key=KEYS[7])])
    assert [(x.name, x.kind, x.mtu) for x in found.links if x.kind] == [
        ("wg-plain", "wireguard", 1420),
        ("wg-road", "wireguard", 1420),
    ]
    road = next(w for w in found.wireguards if w.owner == "road")
    mark = next(r.mark for r in found.rules if r.owner == "isp-a" and r.mark)
    assert (road.link, road.port, road.mark, road.private_key) == ("wg-road", 51820, mark, clamped(KEYS[9]))
    assert peers(found)["alice"] == Peer("wg-road", KEYS[0], (f"{ALICE}/32", "fd00:99::2/128"), KEYS[7])
    assert peers(found)["office"] == Peer(
        "wg-road", KEYS[5], ("10.50.0.0/16", "fd00:50::/48"), "", "192.0.2.77:51820", 0
    )
    assert {(r.destination, r.link) for r in found.routes if r.link == "wg-road"} == {
        ("10.99.0.0/24", "wg-road"), ("fd00:99::/64", "wg-road"), ("10.50.0.0/16", "wg-road"),
        ("fd00:50::/48", "wg-road"),
    }  # fmt: skip


def test_an_endpoint_of_ipv6() -> None:
    found = state(wireguard_sites=[site(endpoint="2001:db8::77", endpoint_port=7, keepalive=25)])
    assert (peers(found)["office"].endpoint, peers(found)["office"].keepalive) == ("[2001:db8::77]:7", 25)


def test_a_link_with_a_long_name() -> None:
    found = state(wireguard=[listener("a-rather-long-name")], vpn_users=[], wireguard_sites=[])
    name = next(x.name for x in found.links if x.kind)
    assert name.startswith("wg-")
    assert len(name) <= 15


def test_a_key_is_clamped_as_the_kernel_does() -> None:
    """Else it would be read back as another, and be drift for ever."""
    raw = b64decode(clamped(b64encode(b"\xff" * 32).decode()))
    assert (raw[0], raw[31]) == (0xF8, 0x7F)
    assert clamped(clamped(KEYS[3])) == clamped(KEYS[3])


@pytest.mark.parametrize("key", ["", "A" * 43 + "=", "x" * 44, KEYS[0][:-1], KEYS[0] + "\n", "a b" + KEYS[0][3:]])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ValidationError):
        VpnUser.model_validate(
            {"id": "a", "wireguard": "w", "public_key": KEYS[0], "preshared_key": key, "addresses": [ALICE]}
        )
    if key != "A" * 43 + "=":
        with pytest.raises(ValidationError):
            VpnUser.model_validate({"id": "a", "wireguard": "w", "public_key": key, "addresses": [ALICE]})


def test_a_site_that_is_kept_alive_is_asked_for() -> None:
    def asked(keepalive: int) -> list[Check]:
        return [c for c in state(wireguard_sites=[site(keepalive=keepalive)]).checks if c.kind == "wireguard"]

    assert asked(0) == []
    assert asked(25) == [Check("wireguard", KEYS[5], link="wg-road", owner="office")]


@pytest.mark.parametrize(
    ("told", "is_well", "words"),
    [
        (None, False, "knows no peer"),
        ({"handshake": 0, "endpoint": ""}, False, "never"),
        ({"handshake": -300, "endpoint": "a:1"}, False, "ago"),
        ({"handshake": -100, "endpoint": "a:1"}, True, "at a:1"),
    ],
)
def test_what_a_handshake_says(told: dict[str, int | str] | None, is_well: bool, words: str) -> None:
    if told and told["handshake"]:
        told = {**told, "handshake": int(time.time()) + int(told["handshake"])}
    found, said = _shaken("key", told)
    assert found is is_well
    assert words in said


# --- a user more or less ----------------------------------------------------------------------------------------------


def touched(before: Config, after: Config) -> tuple[Touched, ...]:
    was, now = ({u.id: u for u in c.vpn_users} for c in (before, after))
    return tuple(Touched("vpn_users", i, was.get(i), now.get(i)) for i in {*was, *now} if was.get(i) != now.get(i))


CHANGES = {
    "added": [user("alice", ALICE), user("zoe", "10.99.0.9", key=3)],
    "removed": [],
    "another key": [user("alice", ALICE, key=3)],
    "another address": [user("alice", BOB)],
    "another listener": [user("alice", "10.98.0.9", wireguard="plain")],
    "cut off": [user("alice", ALICE, enabled=False)],
}


@pytest.mark.parametrize("name", CHANGES)
def test_revise_is_compile(name: str) -> None:
    after = document(vpn_users=CHANGES[name])
    what = touched(WITHOUT, after)
    before = compile(WITHOUT, FACTS)
    found = revise(before, after, what, FACTS)
    assert found == compile(after, FACTS)
    assert found is not None
    assert found.ruleset is before.ruleset
    assert revised(after, what) == problems(after) == []


def test_a_change_is_judged_alone_as_in_the_whole() -> None:
    for users in ([user("alice", ALICE), user("z", ALICE, key=2)], [user("alice", ALICE), user("z", BOB)]):
        after = document(vpn_users=users)
        assert revised(after, touched(WITHOUT, after)) == problems(after) != []


def test_a_user_more_is_one_step_and_concerns_nobody_else() -> None:
    before, after = compile(WITHOUT, FACTS), state(vpn_users=[user("alice", ALICE), user("bob", BOB, key=1)])
    assert steps(before, after) == [f"set peer {KEYS[1]} on wg-road (bob)"]
    assert steps(after, before) == [f"remove peer {KEYS[1]} on wg-road (bob)", "end flows of bob (bob)"]


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("added", []),
        ("removed", [f"{ALICE}/32"]),
        ("another key", [f"{ALICE}/32"]),
        ("another address", [f"{ALICE}/32"]),
        ("cut off", [f"{ALICE}/32"]),
    ],
)
def test_whose_flows_end(name: str, lost: list[str]) -> None:
    taken = plan(compile(WITHOUT, FACTS), state(vpn_users=CHANGES[name]))
    found = [f for s in taken if isinstance(s.before, Lost) for f in s.before.flows]
    assert found == [Flows(network=cidr) for cidr in lost]


def test_a_new_key_comes_before_the_old_one_goes() -> None:
    """So that the address is never nobody's; the kernel gives it to whom has it last."""
    taken = steps(compile(WITHOUT, FACTS), state(vpn_users=CHANGES["another key"]))
    assert [words.partition(" peer ")[0] for words in taken] == ["set", "remove", "end flows of alice (alice)"]


def test_the_machine_takes_it_and_gives_it_back() -> None:
    """On a fake that validates as the kernel: links before peers, an address of one peer, nothing left in the end."""
    host, wished = FakeHost(FACTS), compile(WITH, FACTS)
    none = compile(document(wireguard=[], vpn_users=[], wireguard_sites=[]), FACTS)
    for before, after in ((none, wished), (wished, state(vpn_users=CHANGES["another key"])), (wished, none)):
        for step in plan(host.observe(before, [wished]), after):
            host.commit(step)
        assert not [s for s in plan(host.observe(after, [wished]), after) if s.kind != "flows"]
    assert not host.machine.peers
    assert not [link for link in host.machine.links if link.kind]


def test_a_network_belongs_to_the_peer_that_had_it_last() -> None:
    host = FakeHost(FACTS)
    for step in plan(State(), compile(WITHOUT, FACTS)):
        host.commit(step)
    mine = Peer("wg-road", KEYS[3], (f"{ALICE}/32",))
    host.commit(Step("peer", "set", "x", None, mine))
    assert peers(host.machine)["alice"].networks == ()


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_keys_are_not_shown_and_their_change_is() -> None:
    one = state(vpn_users=[user("alice", ALICE, preshared_key=KEYS[7])])
    two = state(vpn_users=[user("alice", ALICE, preshared_key=KEYS[6])])
    shown = diff(State(), one) + diff(one, two) + repr(one) + repr(plan(one, two)) + repr(document())
    for secret in (KEYS[9], clamped(KEYS[9]), KEYS[7], KEYS[6]):
        assert secret not in shown
    assert diff(one, two)
    assert digest(plan(State(), one)) != digest(plan(State(), two))
    assert repr(Wireguard("a", KEYS[1], 1)) != repr(Wireguard("a", KEYS[2], 1))
