"""The closed machine lets the manager in, and nobody else."""

from __future__ import annotations

from appliance.closed import closed
from appliance.fake import FakeHost, facts
from appliance.plan import plan
from appliance.ruleset import whole
from appliance.state import Facts, State

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


def test_the_only_door_is_the_control_interface_s() -> None:
    text = whole(closed(facts(*MACS), "169.254.2.10/24").ruleset)
    accepted = [line.strip().partition(" comment")[0] for line in text.splitlines() if " accept" in line]
    assert accepted == [
        "ct state established,related accept",
        'iifname "lo" accept',
        'iifname "eth0" meta l4proto tcp th dport 3922 accept',
        'iifname "eth0" meta l4proto icmp icmp type 8 accept',
    ]
    assert text.count("policy drop") == 2


def test_its_way_in_has_its_address() -> None:
    state = closed(facts(*MACS), "169.254.2.10/24")
    assert [(link.name, link.up, link.mtu) for link in state.links] == [("eth0", True, 0)]
    assert [(a.link, a.cidr) for a in state.addresses] == [("eth0", "169.254.2.10/24")]


def test_without_a_control_interface_it_is_shut() -> None:
    state = closed(Facts("r", {}, MACS[0]), "169.254.2.10/24")
    assert (state.links, state.addresses) == ((), ())
    assert "eth" not in whole(state.ruleset)


def test_a_machine_can_be_made_so() -> None:
    host = FakeHost(facts(*MACS))
    state = closed(host.known, "169.254.2.10/24")
    for step in plan(State(), state):
        host.commit(step)
    assert not plan(host.observe(state, []), state)
