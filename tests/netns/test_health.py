"""Health of a real router: who answers is told to, who falls silent is named, and a push waits for neither."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.stage import LEFT, Stage, allow, forward, left, office, put, right, route

V6 = {"gateway6": "2001:db8:1::1"}
HOST = {
    "_": "hosts", "id": "web", "network": "office", "mac": "02:00:00:00:0b:05", "address": "10.1.1.10", "name": "web",
}  # fmt: skip
DOCUMENT = (
    left("2001:db8:1::2/64", **V6),
    right(),
    office(dhcp={}, dns=True, domain="office.example"),
    HOST,
    forward("to-web", LEFT, 80, "10.1.1.10", 80),
    forward("to-nobody", LEFT, 81, "10.1.1.10", 4711),
    forward("by-udp", LEFT, 82, "10.1.1.10", 4711, protocol="udp"),
    allow("web", LEFT, "tcp", 80),
    route("depot", "172.20.0.0/16", "172.16.0.5"),
)

Found = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as made:
        made.world.run(("ip", "address", "add", "2001:db8:1::1/64", "dev", "eth0", "nodad"))
        yield made


@pytest.fixture(autouse=True)
def whole(stage: Stage) -> None:
    stage.push(*DOCUMENT)


def looked(stage: Stage) -> Found:
    """The checks, asked now, by kind and object (or target, where it has none)."""
    answer = stage.bed.appliance.request("GET", "/v1/health?now=1")
    assert answer.status == 200, answer.body
    return {(c["kind"], c["object"] or c["target"]): c for c in answer.body["checks"]}


def failing(found: Found) -> set[tuple[str, str]]:
    return {key for key, c in found.items() if not c["ok"] and key[0] not in ("disk", "memory", "clock")}


def test_all_is_well_but_for_the_forward_that_leads_nowhere(stage: Stage) -> None:
    found = looked(stage)
    assert failing(found) == {("forward", "to-nobody")}, found
    assert "refuses" in found["forward", "to-nobody"]["why"]
    kinds = [c["kind"] for c in stage.bed.appliance.health().body["checks"]]
    assert (kinds.count("gateway"), kinds.count("dns"), kinds.count("dhcp"), kinds.count("unit")) == (4, 1, 1, 2)
    assert "answers ping" in found["gateway", "right"]["why"]
    assert "is offered 10.1.1.10" in found["dhcp", "office"]["why"]
    assert "answers 10.1.1.1 for bed.office.example" in found["dns", "office"]["why"]


def test_asking_for_a_lease_leaves_none_and_wakes_no_guest(stage: Stage) -> None:
    before = stage.run("ip neigh show 10.1.1.10")
    looked(stage)
    assert stage.bed.run("find", "/var/lib/narthex/dhcp", "-name", "*.leases") == ""
    assert stage.run("ip neigh show 10.1.1.10").split()[:5] == before.split()[:5]


def test_a_dead_gateway_is_named_and_delays_no_push(stage: Stage) -> None:
    stage.world.run(("ip", "link", "set", "eth1", "down"))
    try:
        found = looked(stage)
        assert failing(found) == {("gateway", "right"), ("forward", "to-nobody")}
        assert "no answer" in found["gateway", "right"]["why"]
        asking = stage.bed.appliance.anew()

        thread = threading.Thread(target=lambda: asking.request("GET", "/v1/health?now=1"))
        thread.start()
        time.sleep(0.3)  # it is at it now, and takes 2 s
        started = time.monotonic()
        stage.bed.patch(put(forward("more", LEFT, 90, "10.1.1.10", 80)))
        took = time.monotonic() - started
        assert thread.is_alive()
        thread.join()
        asking.close()
        assert took < 1.0
    finally:
        stage.world.run(("ip", "link", "set", "eth1", "up"))
    wait_for(lambda: looked(stage)["gateway", "right"]["ok"], 10.0)


def test_a_gateway_of_ipv6_by_ping_and_by_neighbour_discovery_alone(stage: Stage) -> None:
    found = stage.bed.appliance.request("GET", "/v1/health?now=1").body["checks"]
    (check,) = [c for c in found if c["target"] == "2001:db8:1::1"]
    assert check["ok"]
    assert "answers ping" in check["why"]
    stage.world.run(("nft", "add table inet t; add chain inet t i { type filter hook input priority 0; }"))
    stage.world.run(("nft", "add rule inet t i icmpv6 type echo-request drop"))
    try:
        found = stage.bed.appliance.request("GET", "/v1/health?now=1").body["checks"]
        (check,) = [c for c in found if c["target"] == "2001:db8:1::1"]
        assert check["ok"]
        assert "neighbour discovery, and no ping" in check["why"]
    finally:
        stage.world.run(("nft", "delete table inet t"))
    stage.world.run(("ip", "address", "del", "2001:db8:1::1/64", "dev", "eth0"))
    try:
        stage.run("ip -6 neigh flush all")
        found = stage.bed.appliance.request("GET", "/v1/health?now=1").body["checks"]
        (check,) = [c for c in found if c["target"] == "2001:db8:1::1"]
        assert not check["ok"]
    finally:
        stage.world.run(("ip", "address", "add", "2001:db8:1::1/64", "dev", "eth0", "nodad"))


def test_servers_that_are_stopped_are_named_by_what_their_guests_would_see(stage: Stage) -> None:
    """Daemons that are there and do not act. They are ended for that and started anew, on a busy machine before they
    are asked: then they are stopped again."""

    def are_named() -> bool:
        stage.bed.run("pkill", "-STOP", "dnsmasq")
        try:
            found = looked(stage)
        finally:
            stage.bed.run("pkill", "-CONT", "dnsmasq", check=False)
        return any(kind in ("unit", "dns", "dhcp") for kind, _ in failing(found))

    wait_for(are_named, 60.0)
    wait_for(lambda: failing(looked(stage)) == {("forward", "to-nobody")}, 15.0)


def test_no_alarm_where_there_is_nothing_to_check(stage: Stage) -> None:
    bare = {
        "interfaces": [{"id": "back", "mac": stage.bed.nics["back"], "use": "private", "addresses": ["172.16.0.1/24"]}]
    }
    stage.bed.push(bare)
    found = looked(stage)
    assert {kind for kind, _ in found} == {"disk", "memory", "clock", "machine"}
    text = stage.bed.appliance.metrics().body
    assert "gateway" not in text
    assert "narthex_check_ok{" in text


def test_every_metric_of_the_dashboard_is_there(stage: Stage) -> None:
    """Of the dashboard's file: each name that an expression of it uses is in a real answer."""
    import re

    from tests.lint.files import ROOT

    looked(stage)
    text = stage.bed.appliance.metrics().body
    there = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    assert len(expressions) >= 10
    used = {name for e in expressions for name in re.findall(r"narthex_\w+", e)}
    assert used <= there, used - there
