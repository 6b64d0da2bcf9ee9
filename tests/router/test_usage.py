"""What is counted for whom: the table of counters, whole and at the cost of a change; and the engine over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.plan import Step, plan
from appliance.ruleset import METERS, whole
from appliance.state import Chain, Ruleset, State, Touched
from appliance.usage import Reading, source_of, source_of_peer
from router import role
from router.compile import compile, revise
from router.config import Config
from tests.appliance.rig import CONTROL, MACS, Rig
from tests.router.samples import configs, facts_of, host, made


def counting(**collections: Any) -> Config:
    return made(usage=True, **collections)


def compiled(config: Config) -> State:
    return compile(config, facts_of(config))


def owners(state: State, name: str) -> dict[str, str]:
    return dict(state.meters.sets[name].owners)


def test_without_it_there_is_no_second_table() -> None:
    assert compiled(made()).meters == Ruleset()


def test_whose_is_what() -> None:
    state = compiled(counting(hosts=[host(address6=None)]))
    assert owners(state, "guests_in") == owners(state, "guests_out") == {"10.1.1.10": "vm-1"}
    assert owners(state, "networks_in") == {"10.1.1.0/24": "web", "10.1.2.0/24": "db.1"}
    assert owners(state, "addresses_out") == {a: a for a in ("203.0.113.10", "203.0.113.11", "198.51.100.10")}


def test_it_decides_nothing() -> None:
    """No rule has another verdict than `continue`, and each chain accepts."""
    for chain in compiled(counting(hosts=[host()])).meters.chains:
        assert chain.hook is not None
        assert chain.hook.policy == "accept"
        assert {getattr(r.statement, "kind", "") for r in chain.rules} == {"continue"}


def test_the_packet_filter_is_the_same_with_it() -> None:
    assert compiled(counting(hosts=[host()])).ruleset == compiled(made(hosts=[host()])).ruleset


def test_a_whole_push_leaves_the_counters_alone() -> None:
    """A table of another shape replaces the filter, and of the counters names what comes and goes."""
    before = compiled(counting(hosts=[host()]))
    after = compiled(counting(hosts=[host(), host("vm-2", mac="02:01:00:00:00:02", address="10.1.1.11", name="b")]))
    after = replace(after, ruleset=Ruleset(after.ruleset.sets, (Chain("new", ()),)))
    (step,) = [s for s in plan(before, after) if s.kind == "meters"]
    assert not step.whole
    assert step.elements == {"guests_in": ([], ["10.1.1.11"]), "guests_out": ([], ["10.1.1.11"])}
    assert step.owner == "vm-2"


def test_the_table_comes_whole_and_goes_whole() -> None:
    off, on = compiled(made()), compiled(counting())
    (step,) = [s for s in plan(off, on) if s.kind == "meters"]
    assert step.whole
    assert step.text == whole(on.meters, METERS)
    (step,) = [s for s in plan(on, off) if s.kind == "meters"]
    assert step.text == f"add table {METERS}\ndelete table {METERS}\n"


@settings(max_examples=50)
@given(configs(), configs(), st.booleans())
def test_revise_is_compile(before: Config, other: Config, counts: bool) -> None:
    before = before.model_copy(update={"usage": counts})
    after = before.model_copy(update={"hosts": other.hosts})
    old, new = ({h.id: h for h in c.hosts} for c in (before, after))
    touched = [Touched("hosts", i, old.get(i), new.get(i)) for i in {**old, **new} if old.get(i) != new.get(i)]
    revised = revise(compiled(before), after, tuple(touched), facts_of(after))
    if revised is not None:
        assert revised.meters == compiled(after).meters
        assert {n: dict(s.owners) for n, s in revised.meters.sets.items()} == {
            n: dict(s.owners) for n, s in compiled(after).meters.sets.items()
        }


# --- the engine over it -----------------------------------------------------------------------------------------


def _config(*hosts: dict[str, Any], **more: Any) -> dict[str, Any]:
    interfaces = [
        {"id": "ctl", "mac": MACS[0], "use": "control", "addresses": [CONTROL]},
        {"id": "lan", "mac": MACS[1], "use": "guest", "addresses": ["10.1.1.1/24"]},
    ]
    networks = [{"id": "web", "interface": "lan", "cidr": "10.1.1.0/24", "dhcp": {"enabled": False}, "dns": False}]
    return {"interfaces": interfaces, "networks": networks, "hosts": list(hosts), "usage": True, **more}


def _counter(value: int) -> Reading:
    return Reading("guests", "vm-1", source_of("guests_out", "10.1.1.10"), (0, value, 0, 1), "1")


def _sent(rig: Rig) -> int:
    rig.engine.count()
    return int(rig.engine.usage.told()["guests"]["vm-1"]["sent_bytes"])


def test_a_guest_that_goes_is_read_before_and_begins_anew_when_it_is_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, role=role)
    rig.settle(_config(host()))
    rig.host.counted = [_counter(100)]
    assert _sent(rig) == 100
    rig.host.counted = [_counter(150)]

    def gone(step: Step) -> None:
        if step.kind == "meters":
            rig.host.counted = []

    rig.host.on_commit = gone
    rig.settle(_config())
    assert _sent(rig) == 150
    rig.host.on_commit = None
    rig.settle(_config(host()))
    rig.host.counted = [_counter(170)]  # new, and further than the old one was: not 20 more
    assert _sent(rig) == 320


def test_an_undone_push_takes_nothing_and_adds_nothing_twice(tmp_path: Path) -> None:
    rig = Rig(tmp_path, role=role)
    rig.settle(_config(host()))
    rig.host.counted = [_counter(100)]
    assert _sent(rig) == 100
    other = host("vm-2", mac="02:01:00:00:00:02", address="10.1.1.11", name="b")
    for kept in range(6):
        rig.host.fail_at = kept
        rig.put(_config(host(), other, networks=_config()["networks"]))
        rig.host.fail_at = -1
        assert _sent(rig) == 100
    rig.restart()
    assert _sent(rig) == 100


def test_a_vpn_user_that_goes_is_read_before_and_begins_anew(tmp_path: Path) -> None:
    key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
    public = {"id": "isp", "mac": MACS[2], "use": "public", "addresses": ["203.0.113.2/24"], "gateway": "203.0.113.1"}
    base = _config()
    listener = {"id": "w", "address": "203.0.113.2", "private_key": key.replace("x", "y"), "addresses": ["10.9.0.1/24"]}
    user = {"id": "anna", "wireguard": "w", "public_key": key, "addresses": ["10.9.0.2"]}

    def document(*users: dict[str, Any]) -> dict[str, Any]:
        interfaces = [*base["interfaces"], public]
        return {**base, "interfaces": interfaces, "wireguard": [listener], "vpn_users": list(users)}

    rig = Rig(tmp_path, role=role)
    (peer,) = rig.settle(document(user)).peers
    source = source_of_peer(peer.link, peer.public_key)

    def stands_at(value: int) -> None:
        rig.host.counted = [Reading(peer.counted, peer.owner, source, (value, 0, 0, 0), "7")]

    stands_at(100)
    rig.settle(document())
    rig.host.counted = []
    rig.settle(document(user))
    stands_at(130)
    rig.engine.count()
    assert rig.engine.usage.told()["vpn_users"]["anna"]["received_bytes"] == 230
