"""Cells: what they are, what they keep, and that nothing is left of them, whoever is killed and when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mgmt.hosts import processes
from mgmt.hosts.driver import DriverError, Nic
from mgmt.hosts.namespace import sweep
from mgmt.keys import make_key
from tests.netns.cells import Field, field_fixture, until
from tests.trials import trials

__all__ = ["field_fixture"]
MAC = "02:00:00:00:00:11"
ROOT = Path(__file__).parents[2]


def test_life(field: Field) -> None:
    driver = field.driver
    assert driver.create(field.seed("r1"), [Nic(MAC, "nx-guest")]).state == "stopped"
    running = driver.start("r1")
    field.way("r1").wait(10.0)
    assert running.state == "running"
    assert driver.start("r1") == running, "one that runs is left alone"
    assert driver.list() == (running,)
    assert driver.capacity().running == 1
    assert driver.stop("r1").state == "stopped"
    assert not field.processes()
    assert field.links() == ["nx-control"]
    driver.destroy("r1")
    driver.destroy("r1")
    field.assert_nothing_left()


def test_state_outlives_a_stop(field: Field) -> None:
    field.cell("r1")
    field.driver.run("r1", ["sh", "-c", "echo kept > /var/lib/narthex/mine; echo lost > /etc/mine"])
    field.driver.stop("r1")
    field.driver.start("r1")
    assert field.driver.run("r1", ["cat", "/var/lib/narthex/mine"]).stdout == "kept\n"
    assert field.driver.run("r1", ["cat", "/etc/mine"], check=False).returncode
    assert list(field.driver.logs("r1", "agent"))


def test_what_a_cell_sees(field: Field) -> None:
    field.cell("r1", MAC)

    def shell(line: str) -> str:
        return field.driver.run("r1", ["sh", "-c", line]).stdout.strip()

    assert shell("hostname") == "r1"
    assert shell("cat /proc/1/cmdline").count("supervisor.py") == 1
    assert shell("cat /sys/class/net/eth1/address") == MAC
    assert shell("ls /sys/class/net | tr '\\n' ' '").split() == ["eth0", "eth1", "lo"]
    assert shell("cat /sys/class/net/eth1/operstate") == "down", "up is for the document to say"
    assert shell("ls -A /root /home /etc/ssh /boot").split() == ["/boot:", "/etc/ssh:", "/home:", "/root:"]
    assert shell("echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward") == "1"
    assert shell("cut -d: -f2 /etc/shadow | sort -u") == "*"
    for hostile in (f"touch {ROOT}/hostile", "echo 1 > /proc/sys/kernel/printk", "echo 1 > /sys/kernel/profiling"):
        assert field.driver.run("r1", ["sh", "-c", hostile], check=False).returncode, hostile


def test_plug_and_unplug(field: Field) -> None:
    field.cell("r1", MAC)
    other = "02:00:00:00:00:12"
    assert field.driver.plug("r1", Nic(other, "nx-guest", 1400)).nics == (
        Nic(MAC, "nx-guest"),
        Nic(other, "nx-guest", 1400),
    )
    seen = field.driver.run("r1", ["cat", "/sys/class/net/eth2/address", "/sys/class/net/eth2/mtu"]).stdout
    assert seen.split() == [other, "1400"]
    with pytest.raises(DriverError, match="has an interface"):
        field.driver.plug("r1", Nic(other, "nx-guest"))
    with pytest.raises(DriverError, match="no interface nx-nowhere"):
        field.driver.plug("r1", Nic("02:00:00:00:00:13", "nx-nowhere"))
    assert len(field.driver.unplug("r1", MAC).nics) == 1
    assert field.driver.run("r1", ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "eth2", "lo"]


def test_two_at_once_do_not_reach_each_other(field: Field) -> None:
    for name in ("r1", "r2"):
        field.driver.create(field.seed(name))
    threads = [threading.Thread(target=field.driver.start, args=(name,)) for name in ("r1", "r2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [field.way(name).wait(10.0).status for name in ("r1", "r2")] == [200, 200]
    first, second = (a.control_address.partition("/")[0] for a in field.driver.list())
    assert first != second
    ping = ["ping", "-c", "1", "-W", "1", second]
    assert field.driver.run("r1", ping, check=False).returncode, "the control network is the manager's alone"
    field.driver.destroy("r1")
    assert field.way("r2").health().status == 200
    field.driver.destroy("r2")
    field.assert_nothing_left()


def test_start_by_two_is_one_start(field: Field) -> None:
    field.driver.create(field.seed("r1"))
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(field.driver.start("r1").pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 1


def test_refusals_name_the_remedy(field: Field) -> None:
    seed = field.seed("r1")
    with pytest.raises(DriverError, match="not free in the control network"):
        field.driver.create(replace(seed, control_address="10.0.0.1/24"))
    with pytest.raises(DriverError, match="no single line"):
        field.driver.create(replace(seed, manager_key=seed.manager_key + "\nssh-ed25519 AAAA"))
    with pytest.raises(DriverError, match="no cell's name"):
        field.driver.create(replace(seed, name="../r1"))
    field.driver.create(seed, [Nic(MAC, "nx-nowhere")])
    with pytest.raises(DriverError, match="destroy it first"):
        field.driver.create(seed)
    with pytest.raises(DriverError, match="not running; start it"):
        field.driver.run("r1", ["true"])
    with pytest.raises(DriverError, match="no interface nx-nowhere"):
        field.driver.start("r1")
    assert field.driver.list()[0].state == "stopped"
    field.driver.destroy("r1")
    field.assert_nothing_left()


def test_a_killed_cell_is_found_and_starts_again(field: Field) -> None:
    field.cell("r1", MAC)
    os.kill(field.driver.list()[0].pid, signal.SIGKILL)
    until(lambda: field.driver.list()[0].state == "failed")
    field.driver.start("r1")
    assert field.way("r1").wait(10.0).status == 200
    os.kill(field.driver.list()[0].pid, signal.SIGKILL)
    until(lambda: field.driver.list()[0].state == "failed")
    field.driver.destroy("r1")
    field.assert_nothing_left()


def test_a_reused_pid_is_nobody(field: Field) -> None:
    field.cell("r1")
    record = field.driver.disk.record("r1")
    assert record
    assert not replace(record, began=record.began + 1).alive
    assert not replace(record, boot="another").alive
    processes.end(replace(record, pid=os.getpid()))  # survives: the start time is another's


def test_the_agent_is_killed_and_all_else_stays(field: Field) -> None:
    field.cell("r1")

    def pids(of: str) -> str:
        return field.driver.run("r1", ["pgrep", "-f", of]).stdout

    agent, sshd = pids("appliance$"), pids("^sshd.*listener")
    field.driver.run("r1", ["kill", "-9", *agent.split()])
    assert field.way("r1").wait(10.0).status == 200
    assert pids("appliance$") != agent
    assert pids("^sshd.*listener") == sshd


DEEDS = """
import json, sys
from pathlib import Path
from mgmt.hosts.cell import CellDriver
from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.namespace import Namespace
folder, ground = Path(sys.argv[1]), Namespace(sys.argv[2])
driver = CellDriver(ground, folder, folder / "run")
seed = Seed(**json.loads(sys.argv[3]))
print("begin", flush=True)
while True:
    driver.create(seed, [Nic("02:00:00:00:00:11", "nx-guest")])
    driver.start("r1")
    driver.plug("r1", Nic("02:00:00:00:00:12", "nx-guest"))
    driver.stop("r1")
    driver.start("r1")
    driver.destroy("r1")
"""


@pytest.mark.soak("cell")
def test_a_driver_is_killed_at_any_moment(field: Field) -> None:
    """Whatever it was at, the next command goes on from there, and destroy leaves nothing."""
    key = make_key()
    seed = (
        '{"name": "r1", "role": "router", "control_address": "169.254.240.2/20", "time_servers": [], '
        f'"manager_key": "{key.public}", "host_key": "{key.public}", "host_private": ""}}'
    )
    chance = random.Random(5)
    for _ in range(trials(200)):
        child = subprocess.Popen(
            [sys.executable, "-c", DEEDS, str(field.folder), field.ground.name, seed],
            cwd=ROOT, env=os.environ | {"MARK": field.folder.name}, stdout=subprocess.PIPE,
        )  # fmt: skip
        with child:
            assert child.stdout
            child.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.35))
            child.kill()
        if chance.random() < 0.5 and field.driver.list():
            assert field.driver.start("r1").state == "running"
        for cell in field.driver.list():
            field.driver.destroy(cell.name)
        field.driver.destroy("r1")
        field.driver.sweep()
        field.assert_nothing_left()


def test_sweep_finds_what_is_ours(field: Field) -> None:
    with field.ground.entered():
        subprocess.run(["ip", "link", "add", "nx-left", "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "add", "theirs", "type", "bridge"], check=True)
    swept = sweep(field.ground, keep=lambda name: name != "nx-left")
    assert swept == ["nx-left"]
    with field.ground.entered():
        assert "theirs" in subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
