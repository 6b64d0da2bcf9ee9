"""Processes that are there and cannot act: who they are, by made-up /proc entries, and what the watch does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.log import Log
from appliance.machine import HostError
from appliance.pulse import ASLEEP_S, Pulse, children, stat
from appliance.watch import PULSE, Watch
from tests.appliance.rig import BASE, Rig


class Proc:
    """What /proc says: `states` by pid; everything else sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.states: dict[int, str] = {}
        self.pulse = Pulse(lambda: self.now, lambda pid: (self.states.get(pid, "S"), 1))


def test_a_stopped_process() -> None:
    proc = Proc()
    units = {"dns": (10,), "dhcp": (20, 21)}
    assert proc.pulse.look(units) == {}
    proc.states[21] = "T"
    assert proc.pulse.look(units) == {"dhcp": "process 21 is stopped"}
    assert proc.pulse.is_stuck(20), "its unit is not as it should be"
    assert not proc.pulse.is_stuck(10)
    assert not proc.pulse.is_stuck(22), "another process: it was started anew"
    proc.states[10] = "T"
    assert proc.pulse.is_stuck(10), "that is seen at once"


@pytest.mark.parametrize("state", ["S", "R", "D", "t", "Z", ""])
def test_what_may_be_so_for_a_moment(state: str) -> None:
    """A traced process (t) is at somebody's debugger; a dead one is for who keeps it alive."""
    proc = Proc()
    proc.states[10] = state
    assert proc.pulse.look({"dns": (10,)}) == {}


def test_an_uninterruptible_sleep_counts_when_it_does_not_end() -> None:
    proc = Proc()
    units = {"dns": (10,)}
    proc.states[10] = "D"
    assert proc.pulse.look(units) == {}
    proc.now += ASLEEP_S - 1
    assert proc.pulse.look(units) == {}
    proc.now += 1
    assert proc.pulse.look(units) == {"dns": "process 10 sleeps and cannot be woken"}
    assert proc.pulse.is_stuck(10)
    proc.states[10] = "S"
    assert proc.pulse.look(units) == {}
    proc.states[10] = "D"
    assert proc.pulse.look(units) == {}, "a new sleep counts from its own start"


def test_proc_is_read() -> None:
    assert stat(os.getpid()) == ("R", os.getppid())
    assert stat(1 << 30) == ("", 0)
    assert children(1 << 30) == ()
    assert isinstance(children(os.getpid()), tuple)


# --- the watch


@pytest.fixture(name="rig")
def rig_fixture(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.settle(BASE)
    return rig


@pytest.fixture(name="watch")
def watch_fixture(rig: Rig) -> Watch:
    return Watch(rig.engine, Log(rig.log), 30.0)


def test_a_stuck_unit_is_drift(rig: Rig, watch: Watch) -> None:
    name = rig.host.machine.units[0].name
    rig.host.held[name] = "process 7 is stopped"
    rig.host.done.clear()
    watch.pulse()
    assert [str(step) for step in rig.host.done] == [f"restart unit {name}"]
    assert rig.engine.drifts[-1].reason == f"{name}: process 7 is stopped"
    assert rig.engine.drifts[-1].healed
    assert rig.engine.broken == ""


def test_it_looks_every_other_second(rig: Rig, watch: Watch) -> None:
    watch.pulse()
    name = rig.host.machine.units[0].name
    rig.host.held[name] = "process 7 is stopped"
    watch.pulse()
    assert name in rig.host.held
    rig.host.clock += PULSE
    watch.pulse()
    assert rig.host.held == {}


def test_the_way_in_is_started_anew(rig: Rig, watch: Watch) -> None:
    rig.host.held["sshd"] = "process 8 is stopped"
    watch.pulse()
    assert rig.host.renewed == ["sshd"]
    assert "process 8 is stopped" in rig.log.getvalue()
    assert rig.engine.drifts == []


def test_what_cannot_be_helped_is_tried_once(rig: Rig, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is another process, or the timer looks: a restart that hangs would hold up every push."""
    tries: list[str] = []

    def renew(name: str) -> None:
        tries.append(name)
        raise HostError("systemctl restart ended in 1")

    monkeypatch.setattr(rig.host, "renew", renew)
    rig.host.held["sshd"] = "process 8 sleeps and cannot be woken"
    for _ in range(5):
        watch.pulse()
        rig.host.clock += PULSE
    assert tries == ["sshd"]
    rig.host.held["sshd"] = "process 9 is stopped"
    watch.pulse()
    assert tries == ["sshd", "sshd"]


def test_a_stuck_unit_may_be_reported_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path, heal="report")
    rig.settle(BASE)
    name = rig.host.machine.units[0].name
    rig.host.held[name] = "process 7 is stopped"
    Watch(rig.engine, Log(rig.log), 30.0).pulse()
    assert not rig.engine.drifts[-1].healed
    assert name in rig.host.held
