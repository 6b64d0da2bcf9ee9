"""Process 1 of a cell, in a pid namespace of its own: what it keeps alive, ends, logs, and whatever it is asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.state import Unit
from appliance.units import SupervisorRunner, UnitError, UnitStatus, definition
from tests.netns.cells import until

HOUSE = Path(__file__).parents[2]
SLEEPER = Unit("sleeper", ("sleep", "600"))
STUBBORN = Unit("stubborn", ("sh", "-c", 'trap "" TERM; echo here; while :; do sleep 0.1; done'))


@dataclass
class Supervised:
    """A supervisor with the boot unit `boot`; `pid` is its pid on the host."""

    folder: Path
    pid: int
    runner: SupervisorRunner

    def ask(self, line: bytes) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20.0)
            client.connect(str(self.folder / "run/supervisor.sock"))
            client.sendall(line)
            answer = b""
            while not answer.endswith(b"\n"):
                some = client.recv(65536)
                assert some, "the connection was closed without an answer"
                answer += some
            told: dict[str, Any] = json.loads(answer.splitlines()[0])
            return told

    def log(self, unit: str) -> str:
        """What stands in a unit's log; nothing at the moment between two files."""
        try:
            return (self.folder / f"log/{unit}.log").read_text()
        except FileNotFoundError:
            return ""

    def status(self, name: str) -> UnitStatus:
        return self.runner.observe()[name]

    def children(self) -> list[str]:
        return Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()


@pytest.fixture(name="supervised")
def supervised_fixture(tmp_path: Path) -> Iterator[Supervised]:
    boot = {
        "run_dir": str(tmp_path / "run"),
        "log_dir": str(tmp_path / "log"),
        "units": [{"name": "boot", "command": ["sleep", "500"]}],
    }
    (tmp_path / "boot.json").write_text(json.dumps(boot))
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", os.path.realpath(sys.executable), "-I", "-S"]
    argv += [str(HOUSE / "appliance/supervisor.py"), str(tmp_path / "boot.json")]
    with subprocess.Popen(argv) as process:
        runner = SupervisorRunner(tmp_path / "run/supervisor.sock")
        until((tmp_path / "run/supervisor.sock").exists)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        try:
            yield Supervised(tmp_path, int(children), runner)
        finally:
            process.kill()


def test_start_stop_restart(supervised: Supervised) -> None:
    runner = supervised.runner
    assert runner.observe() == {}, "boot units are not a role's"
    runner.start(SLEEPER)
    first = supervised.status("sleeper")
    assert first == UnitStatus("sleeper", True, first.pid, definition(SLEEPER), 0)
    runner.start(SLEEPER)
    assert supervised.status("sleeper") == first, "what runs as defined is left alone"
    runner.restart(SLEEPER)
    assert supervised.status("sleeper").pid != first.pid
    runner.start(replace(SLEEPER, command=("sleep", "601")))
    assert supervised.status("sleeper").definition != first.definition
    assert (supervised.folder / "run/units/sleeper.json").exists()
    runner.stop("sleeper")
    runner.stop("sleeper")
    assert runner.observe() == {}
    assert not (supervised.folder / "run/units/sleeper.json").exists()


def test_a_unit_that_dies_comes_back_later_and_later(supervised: Supervised) -> None:
    supervised.runner.start(Unit("flapping", ("sh", "-c", "sleep 0.05; echo once more; exit 3")))
    until(lambda: supervised.status("flapping").restarts >= 3)
    began = time.monotonic()
    until(lambda: supervised.status("flapping").restarts >= 4)
    assert time.monotonic() - began > 0.5
    assert supervised.ask(b'{"verb": "status"}\n')["units"]["flapping"]["last_exit"].startswith("exit 3")
    supervised.runner.stop("flapping")
    assert supervised.runner.observe() == {}
    assert supervised.log("flapping").count("once more") >= 4


def test_a_killed_unit_is_started_again(supervised: Supervised) -> None:
    supervised.runner.start(SLEEPER)
    first = supervised.status("sleeper")
    os.kill(int(supervised.children()[-1]), signal.SIGKILL)
    until(lambda: supervised.status("sleeper").restarts == 1)
    assert supervised.status("sleeper").active
    assert supervised.status("sleeper").pid != first.pid


def test_a_stopped_unit_is_ended_and_started_again(supervised: Supervised) -> None:
    """A boot unit too: nobody else sees that the agent is stopped."""
    supervised.runner.start(SLEEPER)
    before = supervised.ask(b'{"verb": "status"}\n')["units"]
    for child in supervised.children():
        os.kill(int(child), signal.SIGSTOP)
    until(lambda: supervised.status("sleeper").restarts == 1)
    until(lambda: supervised.ask(b'{"verb": "status"}\n')["units"]["boot"]["restarts"] == 1)
    after = supervised.ask(b'{"verb": "status"}\n')["units"]
    assert not {before[name]["pid"] for name in before} & {after[name]["pid"] for name in after}


def test_a_unit_that_goes_on_in_time_is_left_alone(supervised: Supervised) -> None:
    supervised.runner.start(SLEEPER)
    first, child = supervised.status("sleeper"), int(supervised.children()[-1])
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.2)
    os.kill(child, signal.SIGCONT)
    time.sleep(1.2)
    assert supervised.status("sleeper") == first


@pytest.mark.parametrize("deed", ["stop", "restart"])
def test_a_stopped_unit_need_not_be_waited_for(supervised: Supervised, deed: str) -> None:
    """It hears SIGTERM only when it goes on; SIGKILL would be 5 s away."""
    supervised.runner.start(SLEEPER)
    first = supervised.status("sleeper")
    os.kill(int(supervised.children()[-1]), signal.SIGSTOP)
    began = time.monotonic()
    if deed == "stop":
        supervised.runner.stop("sleeper")
        assert supervised.runner.observe() == {}
    else:
        supervised.runner.restart(SLEEPER)
        assert supervised.status("sleeper").pid != first.pid
    assert time.monotonic() - began < 4, "it waited for SIGKILL"


def test_what_cannot_start_says_why(supervised: Supervised) -> None:
    with pytest.raises(UnitError, match="No such file or directory"):
        supervised.runner.start(Unit("x", ("/nowhere",)))
    with pytest.raises(UnitError, match="Permission denied"):
        supervised.runner.start(Unit("x", ("/etc/passwd",)))
    with pytest.raises(UnitError, match="ended at once: exit 4") as refused:
        supervised.runner.start(Unit("x", ("sh", "-c", "echo line 7: bad word >&2; exit 4")))
    assert refused.value.output == "line 7: bad word"
    with pytest.raises(UnitError, match="nobody-here"):
        supervised.runner.start(Unit("x", ("true",), directories=(("/tmp", 0o1777, "nobody-here"),)))
    until(lambda: supervised.runner.observe() == {})
    assert list((supervised.folder / "run/units").iterdir()) == []


def test_reload_sends_the_signal(supervised: Supervised) -> None:
    unit = Unit("r", ("sh", "-c", 'trap "echo again" HUP; echo ready; while :; do sleep 0.01; done'), "HUP")
    supervised.runner.start(unit)
    until(lambda: "ready" in supervised.log("r"))
    before = supervised.status("r")
    supervised.runner.reload(unit)
    until(lambda: "again" in supervised.log("r"))
    assert supervised.status("r") == before
    supervised.runner.start(SLEEPER)
    with pytest.raises(UnitError, match="no reload signal; restart it"):
        supervised.runner.reload(SLEEPER)
    with pytest.raises(UnitError, match="not running; start it"):
        supervised.runner.reload(Unit("nobody", ("true",)))


def test_the_whole_group_ends_and_the_stubborn_are_killed(supervised: Supervised) -> None:
    supervised.runner.start(STUBBORN)
    until(lambda: "here" in supervised.log("stubborn"))
    began = time.monotonic()
    supervised.runner.stop("stubborn")
    assert 4.5 < time.monotonic() - began < 7.0
    until(lambda: len(supervised.children()) == 1)


def test_a_waiting_stop_holds_nobody_up(supervised: Supervised) -> None:
    supervised.runner.start(STUBBORN)
    until(lambda: "here" in supervised.log("stubborn"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(supervised.folder / "run/supervisor.sock"))
        client.sendall(b'{"verb": "stop", "name": "stubborn"}\n')
        began = time.monotonic()
        supervised.runner.start(SLEEPER)
        assert time.monotonic() - began < 1.0
    assert not supervised.status("stubborn").active


def test_orphans_are_reaped(supervised: Supervised) -> None:
    supervised.runner.start(Unit("parent", ("sh", "-c", "for i in 1 2 3; do (sleep 0.1 &) ; done; exec sleep 600")))
    time.sleep(0.4)
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in supervised.children()]
    assert states == ["S", "S"]


def test_boot_units_are_not_to_be_stopped(supervised: Supervised) -> None:
    boot = b'{"name": "boot", "command": ["true"]}'
    assert "boot unit" in supervised.ask(b'{"verb": "stop", "name": "boot"}\n')["error"]
    assert "boot unit" in supervised.ask(b'{"verb": "start", "unit": ' + boot + b"}\n")["error"]
    before = supervised.ask(b'{"verb": "status"}\n')["units"]["boot"]["pid"]
    assert supervised.ask(b'{"verb": "restart", "unit": ' + boot + b"}\n")["ok"]
    after = supervised.ask(b'{"verb": "status"}\n')["units"]["boot"]
    assert after["active"]
    assert after["pid"] != before, "renewed, as it was defined at boot"
    with pytest.raises(UnitError, match="boot unit"):
        supervised.runner.stop("agent")


def test_logs_have_an_end(supervised: Supervised) -> None:
    noisy = "import sys\nfor n in range(40000): print(n, 'x' * 90)\nsys.stdout.flush()\nimport time; time.sleep(600)"
    supervised.runner.start(Unit("noisy", (sys.executable, "-I", "-S", "-c", noisy)))
    until(lambda: (supervised.folder / "log/noisy.log.1").exists() and "39999 " in supervised.log("noisy"))
    sizes = [path.stat().st_size for path in (supervised.folder / "log").glob("noisy*")]
    assert len(sizes) == 2
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize(
    "line",
    [
        b"x", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"verb": ["a"]}', b'{"verb": "start"}',
        b'{"verb": "start", "unit": {"name": "../x", "command": ["x"]}}',
        b'{"verb": "start", "unit": {"name": "x", "command": []}}',
        b'{"verb": "start", "unit": {"name": "x", "command": "true"}}',
        b'{"verb": "start", "unit": {"name": "x", "command": ["a\\u0000"]}}',
        b'{"verb": "start", "unit": {"name": "x", "command": ["\\ud800"]}}',
        b'{"verb": "start", "unit": {"name": "x", "command": ["true"], "reload": "NOT"}}',
        b'{"verb": "start", "unit": {"name": "x", "command": ["true"], "directories": [1]}}',
        b'{"verb": "start", "unit": {"name": "x", "command": ["true"], "directories": [["/", 1e99, ""]]}}',
        b'{"verb": "stop", "name": {}}' + b" ", b'{"verb": "reload"}', b"1" * 70_000,
    ],
)  # fmt: skip
def test_bad_requests_are_answered(supervised: Supervised, line: bytes) -> None:
    answer = supervised.ask(line + b"\n")
    assert answer.get("error") or line.startswith(b'{"verb": "stop"')
    assert supervised.ask(b'{"verb": "status"}\n')["units"].keys() == {"boot"}


def test_a_flood_is_borne(supervised: Supervised) -> None:
    """Many requests at once in one connection, a line without end, and clients that come and say nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(supervised.folder / "run/supervisor.sock"))
        client.sendall(b"x\n" * 3000)
        answers = b""
        client.settimeout(10.0)
        while answers.count(b"\n") < 3000:
            answers += client.recv(65536)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10.0)
        client.connect(str(supervised.folder / "run/supervisor.sock"))
        with pytest.raises(OSError, match="reset|Broken"):
            client.sendall(b"x" * (8 << 20))
    silent = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for client in silent:
        client.connect(str(supervised.folder / "run/supervisor.sock"))
    for client in silent:
        client.close()
    until(lambda: supervised.runner.observe() == {})


def test_the_end_comes_in_reverse_order(supervised: Supervised) -> None:
    note = 'trap "echo $0 >> %s; exit" TERM; echo up; while :; do sleep 0.01; done'
    order = supervised.folder / "order"
    for name in ("first", "second", "third"):
        supervised.runner.start(Unit(name, ("sh", "-c", note % order, name)))
        until(lambda name=name: "up" in supervised.log(name))  # type: ignore[misc]
    os.kill(supervised.pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{supervised.pid}").exists())
    assert order.read_text().split() == ["third", "second", "first"]
