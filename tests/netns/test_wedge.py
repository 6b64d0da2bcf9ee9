"""Daemons that are there and do nothing: stopped, each in its turn. Back and answering soon, and no flow minds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import dns.exception
import dns.message
import dns.query
import pytest

from mgmt.push import Appliance
from tests.bed import wait_for
from tests.netns.calls import tcp
from tests.netns.stage import L10, LAN, WEB, WORLD, Stage, allow, forward, office

Record = Callable[[str, float, str], None]
HOST = {"_": "hosts", "id": "web", "network": "office", "mac": "02:00:00:00:0b:05", "address": WEB, "name": "web"}
STRANGERS: dict[str, Any] = {"enabled": True, "first": "10.1.1.200", "last": "10.1.1.250"}
SOON = 15.0  # generous: the machine may be busy. A look is made every two seconds


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    """`watch_seconds` is 60: what is found sooner was not found by the watch's timer."""
    with Stage() as stage:
        stage.push(allow("in", L10), forward("kept", L10, 80, WEB), office(dhcp=STRANGERS, dns=True), HOST)
        yield stage


def answers_dns(stage: Stage) -> bool:
    with stage.web.entered():
        try:
            found = dns.query.udp(dns.message.make_query("web", "A"), LAN, timeout=0.5)
        except (dns.exception.Timeout, OSError):
            return False
    return WEB in str(found.answer)


def stop(stage: Stage, pid: int) -> float:
    """Stop a process of the router; when that was."""
    stage.run(f"kill -STOP {pid}")
    return time.monotonic()


def pids(stage: Stage, pattern: str) -> list[int]:
    return [int(word) for word in stage.bed.run("pgrep", "-f", pattern, check=False).split()]


@pytest.mark.soak("router")
@pytest.mark.parametrize("unit", ["dns", "dhcp"])
def test_a_stopped_daemon(stage: Stage, unit: str, record_figure: Record) -> None:
    flow = stage.flow(tcp(stage.web, WORLD, 80))
    pattern = f"conf-file=/etc/narthex/{unit}/"
    wait_for(lambda: answers_dns(stage))
    before = pids(stage, pattern)
    stopped = stop(stage, before[0])
    if unit == "dns":
        assert not answers_dns(stage)
    wait_for(lambda: bool(now := pids(stage, pattern)) and not set(now) & set(before), SOON)
    wait_for(lambda: answers_dns(stage), SOON)
    record_figure(f"{unit} stopped by SIGSTOP: until another process answers", time.monotonic() - stopped, "s")
    assert flow.goes_on()
    assert stage.bed.appliance.health().body["healthy"]


def test_a_stopped_part_of_a_daemon(stage: Stage) -> None:
    """dnsmasq's helper, which runs the script of the leases: nobody's child but its own, and no guest sees it."""
    pattern = "conf-file=/etc/narthex/dhcp/"
    before = pids(stage, pattern)
    assert len(before) == 2, "the daemon and its helper"
    stop(stage, before[1])
    wait_for(lambda: len(now := pids(stage, pattern)) == 2 and not set(now) & set(before), SOON)
    wait_for(lambda: "is stopped" in str(stage.bed.appliance.state().body["drift"]), SOON)


@pytest.mark.soak("router")
def test_the_way_in_is_stopped(stage: Stage, record_figure: Record) -> None:
    flow = stage.flow(tcp(stage.web, WORLD, 80))
    stopped = stop(stage, stage.bed.pid_of("sshd"))
    with Appliance(stage.bed.target()) as manager:
        manager.wait(SOON * stage.bed.where.slower)
    record_figure("sshd stopped by SIGSTOP: until a new connection is answered", time.monotonic() - stopped, "s")
    assert flow.goes_on()


@pytest.mark.soak("router")
def test_the_agent_is_stopped(stage: Stage, record_figure: Record) -> None:
    flow = stage.flow(tcp(stage.web, WORLD, 80))
    stopped = stop(stage, stage.bed.pid_of("agent"))
    with Appliance(stage.bed.target()) as manager:
        manager.wait((SOON + 15) * stage.bed.where.slower)  # in a VM it is systemd's watchdog that sees it
    record_figure("agent stopped by SIGSTOP: until it answers", time.monotonic() - stopped, "s")
    assert flow.goes_on()
    assert answers_dns(stage)
