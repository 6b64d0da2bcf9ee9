"""The demo shows what it claims, and leaves nothing behind: when it ends, when it is interrupted, when it is killed."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mgmt.demo_stage import BRIDGES, EXAMPLE, ROUTER, TIERS, WHOLE
from mgmt.hosts.namespace import link_name
from tests.bed import wait_for
from tests.trials import trials

ROOT = Path(__file__).parents[2]
STEPS = [
    "stage", "router", "push", "leases", "names", "source-nat", "forward", "static-nat", "dropped", "patch", "balancer",
    "tiers", "metadata", "cut-off", "refused", "healed", "clean",
]  # fmt: skip
PR_SET_CHILD_SUBREAPER = 36
FULL_CUTS = 30


@pytest.fixture(autouse=True)
def _orphans_come_to_us() -> Iterator[None]:
    """Whatever the demo starts and leaves becomes a child of this process, and so is seen (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mgmt.demo", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def host_rules() -> str:
    """The host's own packet filter: the demo has no business there."""
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def left_of(pid: int) -> list[str]:
    """Namespaces, mounts, links, processes and files of the demo of that pid. Waits a little for the kernel."""
    deadline = time.monotonic() + 3.0
    while (found := list(_left_of(pid))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _left_of(pid: int) -> Iterator[str]:
    config: dict[str, Any] = json.loads(WHOLE.read_text())["config"]
    stem = f"demo-{pid}"
    names = {stem, *(f"{stem}-{host['name']}" for host in config["hosts"]), f"{stem}-outside"}
    yield from (f"namespace {name}" for name in names if Path(f"/run/netns/nx-{name}").exists())
    folder = Path(tempfile.gettempdir()) / f"narthex-demo-{pid}"
    if folder.exists():
        yield f"folder {folder}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"{folder}/" in line or any(f"/run/netns/nx-{name} " in line for name in names):
            yield f"mount {line}"
    links = {link_name(name, "eth0") for name in names} | {link_name(ROUTER, i["mac"]) for i in config["interfaces"]}
    links |= {*BRIDGES.values(), *TIERS.values()}
    yield from (f"link {name}" for name in links & set(os.listdir("/sys/class/net")))
    yield from (f"process {words}" for words in _children())


def _children() -> Iterator[str]:
    """Our living children; the zombies among them have ended."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline")
        if words.exists() and (text := words.read_bytes().replace(b"\0", b" ").decode().strip()):
            yield text


def minds(pid: int, number: int) -> bool:
    """Has the process said what it does at this signal? Until then the kernel, or Python, does it."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_every_step_is_so_and_nothing_is_left() -> None:
    rules = host_rules()
    running = start("--json")
    out, err = running.communicate(timeout=120)
    told = json.loads(out)
    assert [step["name"] for step in told["steps"]] == STEPS, told
    assert all(step["ok"] for step in told["steps"]), told
    assert told["ok"] is True
    assert running.returncode == 0
    assert err == ""
    assert told["seconds"] < 30
    assert left_of(running.pid) == []
    assert host_rules() == rules


def test_a_person_gets_a_line_a_step_and_no_noise() -> None:
    running = start()
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out
    lines = [line for line in out.splitlines() if line.startswith("  ok ")]
    assert len(lines) == len(STEPS)
    assert all(" ms  " in line for line in lines)
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.soak("router")
def test_interrupted_at_any_moment_nothing_is_left() -> None:
    chance = random.Random(7)
    for _ in range(trials(FULL_CUTS)):
        running = start()
        wait_for(partial(minds, running.pid, signal.SIGTERM), 30)
        time.sleep(chance.uniform(0.0, 6.0))
        running.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM]))
        out, err = running.communicate(timeout=60)
        assert running.returncode in (130, 0), out + err
        assert "Traceback" not in err, err
        assert left_of(running.pid) == [], out


@pytest.mark.soak("router")
def test_killed_at_any_moment_the_next_cleans_up() -> None:
    chance = random.Random(8)
    killed = []
    for _ in range(trials(FULL_CUTS)):
        running = start()
        time.sleep(chance.uniform(0.3, 4.0))
        running.kill()
        running.communicate(timeout=60)
        killed.append(running.pid)
    running = start("--json")
    out, _ = running.communicate(timeout=120)
    assert running.returncode == 0, out
    for pid in killed:
        assert left_of(pid) == []


def test_what_is_not_so_is_told_and_ends_in_one(tmp_path: Path) -> None:
    """With a broken document in place of the example: the demo must not claim what did not happen."""
    document = json.loads(EXAMPLE.read_text())
    document["config"]["static_nats"] = []
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(document))
    program = (
        "import sys, pathlib, mgmt.demo_stage as s; s.EXAMPLE = pathlib.Path(sys.argv.pop(1));"
        "from mgmt.demo import demo; demo()"
    )
    running = subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(broken), "--json"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, _ = running.communicate(timeout=120)
    told = json.loads(out)
    assert running.returncode == 1
    assert told["ok"] is False
    failed = [step["name"] for step in told["steps"] if not step["ok"]]
    assert failed in (["push"], ["static-nat"]), told
    assert told["steps"][-1]["name"] == "clean"
    assert left_of(running.pid) == []
