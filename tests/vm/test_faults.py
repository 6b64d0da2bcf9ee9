"""What befalls a machine: its daemons and its agent killed or stopped, its disk full, its memory gone, its clock wrong.

Live flows run on through all of it, and the agent says what is wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from mgmt.push import PushError
from tests.bed import wait_for
from tests.netns.calls import PATIENCE_S, heard, tcp, udp
from tests.netns.flows import Flow, Stream
from tests.netns.stage import L10, WEB, WORLD, Stage, allow, config, forward, office

pytestmark = pytest.mark.soak("image")
Record = Callable[[str, float, str], None]
OBJECTS = (allow("in", L10), forward("kept", L10, 80, WEB), office(dhcp={"enabled": True}, dns=True))
BACK_S = 60.0  # emulated; the watchdog's 15 s are in it


@pytest.fixture(scope="module", name="flows")
def flows_fixture(stage: Stage) -> list[Flow]:
    """In by a forward, out by source NAT, TCP and UDP."""
    stage.push(*OBJECTS)
    return [
        stage.flow(tcp(stage.world, L10, 80)),
        stage.flow(tcp(stage.web, WORLD, 80)),
        stage.flow(udp(stage.web, WORLD, 5000)),
    ]


@pytest.fixture(autouse=True)
def _flows_run_on(flows: list[Flow]) -> Iterator[None]:
    yield
    assert all(flow.goes_on() for flow in flows)


def pid(stage: Stage, unit: str) -> str:
    return stage.bed.run("systemctl", "show", "--property=MainPID", "--value", f"{unit}.service").strip()


def nobody(stage: Stage, port: int) -> None:
    """No machine is behind that port of L10: the router itself refuses, since its firewall lets all in."""
    (reply,) = heard(stage.services, [tcp(stage.world, L10, port)], PATIENCE_S)
    assert reply is not None
    assert reply.name == "refused"


def units(stage: Stage) -> list[str]:
    """The role's daemons, and the two that are always there."""
    told = stage.bed.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", "narthex-*.service")
    return [line.split()[0].removesuffix(".service") for line in told.splitlines()]


def answers(stage: Stage) -> bool:
    """The agent, over a new connection."""
    stage.bed.appliance.close()
    try:
        return bool(stage.bed.appliance.health().status == 200)
    except PushError:
        return False


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_every_daemon_comes_back(stage: Stage, flows: list[Flow], signal: str, record_figure: Record) -> None:
    """Each is killed, or stopped so that it hangs: another one runs in its place within seconds."""
    found = units(stage)
    assert {"narthex-agent", "narthex-sshd"} < set(found)
    assert any("dhcp" in unit or "dns" in unit for unit in found), found
    for unit in found:
        before = pid(stage, unit)
        started = time.monotonic()
        stage.bed.run("kill", f"-{signal}", before)

        def is_back(unit: str = unit, before: str = before) -> bool:
            now = pid(stage, unit)
            return now not in ("0", before) and answers(stage)

        wait_for(is_back, BACK_S, f"{unit} is not back after SIG{signal}")
        record_figure(f"image: {unit} back after SIG{signal}", round(time.monotonic() - started, 1), "s")
    assert stage.bed.appliance.state().body["converged"]


def test_a_full_disk(stage: Stage, flows: list[Flow]) -> None:
    """To the last byte, root and log alike: packets flow, health says so, a push is refused whole; then all is well."""
    stream = Stream(udp(stage.web, WORLD, 5001), rate=100)
    stage.bed.run("sh", "-c", "dd if=/dev/zero of=/var/log/filler bs=64k 2>/dev/null; true")
    fill = "dd if=/dev/zero of=/filler bs=1M; dd if=/dev/zero of=/filler2 bs=1 count=9999"
    stage.bed.run("sh", "-c", f"({fill}) 2>/dev/null; true")
    assert int(stage.bed.run("stat", "-f", "-c", "%a", "/")) < 4
    before = stage.bed.generation
    try:
        wait_for(
            lambda: "full" in json.dumps(stage.bed.appliance.health().body["troubles"]),
            BACK_S,
            "health says nothing of the disk",
        )
        document = stage.bed.document(config(*OBJECTS, forward("more", L10, 81, WEB, 80)))
        answer = stage.bed.appliance.put(json.dumps(document).encode())
        assert answer.status >= 400, answer.body
        assert "space" in json.dumps(answer.body).lower() or "full" in json.dumps(answer.body).lower(), answer.body
        assert stage.bed.appliance.state().body["generation"] == before
        stage.meets("web", tcp(stage.world, L10, 80))
        nobody(stage, 81)
    finally:
        stage.bed.run("rm", "-f", "/filler", "/filler2", "/var/log/filler")
    stage.push(*OBJECTS, forward("more", L10, 81, WEB, 80))
    stage.meets("web", tcp(stage.world, L10, 81))
    assert stream.lost() == 0


def test_memory_pressure(stage: Stage, flows: list[Flow]) -> None:
    """A hog takes all memory: the kernel ends the hog, not the router."""
    before = {unit: pid(stage, unit) for unit in units(stage)}
    stream = Stream(udp(stage.web, WORLD, 5002), rate=100)
    hog = "import sys; held = []\nwhile True: held.append(b'x' * (1 << 20))"
    stage.bed.run("systemd-run", "--quiet", "--unit=hog", "/usr/bin/python3", "-c", hog)
    told = ("systemctl", "show", "--property=Result", "--value", "hog.service")
    wait_for(lambda: stage.bed.run(*told).strip() == "oom-kill", 180.0, "the hog is not ended")
    wait_for(lambda: answers(stage), BACK_S, "the agent does not answer after the hog")
    assert {unit: pid(stage, unit) for unit in before} == before
    assert stream.lost() == 0


def test_a_clock_that_is_wrong_by_years(stage: Stage, flows: list[Flow]) -> None:
    """Set back, and set ahead, while running: packets flow, pushes work, and health tells of the past."""
    now = int(stage.bed.run("date", "+%s"))
    try:
        stage.bed.run("date", "-s", "2003-04-05 06:07:08")
        stage.push(*OBJECTS, forward("past", L10, 82, WEB, 80))
        stage.meets("web", tcp(stage.world, L10, 82))
        wait_for(
            lambda: "clock" in json.dumps(stage.bed.appliance.health().body["troubles"]),
            BACK_S,
            "health says nothing of the clock",
        )
        stage.bed.run("date", "-s", "2061-04-05 06:07:08")
        stage.push(*OBJECTS)
        nobody(stage, 82)
    finally:
        stage.bed.run("date", "-s", f"@{now}")
    wait_for(lambda: answers(stage), BACK_S, "the agent does not answer")
