"""Disks, memory and clock: when they are in trouble, by made-up figures; and what the agent says of it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.metrics import Metrics
from appliance.settings import Settings
from appliance.vitals import Trouble, Vitals, clock_status
from tests.appliance.rig import BASE, Rig

MIB = 1 << 20
SETTINGS = Settings("r-1", "router", "02:00:00:00:00:01", "169.254.2.10/24", "systemd", state_dir="/state")
NOW = time.time() + 3600


def disk(size: int, free: int, files: int = 100_000, few: int | None = None, kept: int = 0) -> os.statvfs_result:
    """A disk of `size` bytes with `free` for anybody and `kept` more for root; `few` of its `files` are free."""
    left = files // 2 if few is None else few
    return os.statvfs_result((4096, 4096, size // 4096, (free + kept) // 4096, free // 4096, files, left, left, 0, 255))


class Body:
    """A machine below `root` whose disks are what `room` says, and `Vitals` over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.metrics = root, Metrics()
        self.room = disk(2048 * MIB, 1024 * MIB)
        self.kernel: int | None = 0
        self.now = NOW
        self.newest = 0.0
        self.settings = SETTINGS
        for folder in ("state/store", "etc/narthex", "var/log", "proc/pressure"):
            (root / folder).mkdir(parents=True)
        self.memory(2048, 1024)
        self.pressure(0.0)

    def memory(self, total: int, available: int) -> None:
        text = f"MemTotal: {total * 1024} kB\nMemFree: 1 kB\nMemAvailable: {available * 1024} kB\nHugePages_Total: 0\n"
        (self.root / "proc/meminfo").write_text(text)

    def pressure(self, full: float) -> None:
        line = "avg10=0.00 avg60={:.2f} avg300=0.00 total=1\n"
        text = "some " + line.format(99) + "full " + line.format(full)
        (self.root / "proc/pressure/memory").write_text(text)

    def look(self) -> dict[str, Trouble]:
        vitals = Vitals(
            self.settings, self.metrics, self.root, lambda: self.now, lambda path: self.room, lambda: self.kernel
        )
        return {trouble.what: trouble for trouble in vitals.look(self.newest)}


@pytest.fixture(name="body")
def body_fixture(tmp_path: Path) -> Body:
    return Body(tmp_path)


def test_all_is_well(body: Body) -> None:
    assert body.look() == {}
    assert body.metrics.get("narthex_disk_free_bytes", 'path="/state/store"') == 1024 * MIB
    assert body.metrics.get("narthex_memory_available_bytes") == 1024 * MIB
    assert body.metrics.get("narthex_clock_kept") == 1


@pytest.mark.parametrize(
    ("room", "how", "grave"),
    [
        (disk(2048 * MIB, 260 * MIB), "", False),
        (disk(2048 * MIB, 100 * MIB), "nearly full: 100 MiB of 2048 MiB", False),
        (disk(2048 * MIB, 0, kept=100 * MIB), "nearly full: 0 MiB", False),  # a push is root's
        (disk(2048 * MIB, 3 * MIB), "full: 3 MiB", True),
        (disk(2048 * MIB, 1024 * MIB, few=900), "nearly full: 900 of 100000 files", False),
        (disk(2048 * MIB, 1024 * MIB, few=3), "full: 3 of 100000 files", True),
        (disk(2048 * MIB, 1024 * MIB, files=0), "", False),
        (disk(2 * MIB, 1 * MIB), "", False),  # a small one is full later
        (disk(2 * MIB, 0), "full: 0 MiB of 2 MiB", True),
    ],
)
def test_a_disk(body: Body, room: os.statvfs_result, how: str, grave: bool) -> None:
    """All three folders are on one disk here: it is told of once."""
    body.room = room
    found = body.look()
    assert list(found) == (["disk /state/store"] if how else [])
    if how:
        trouble = found["disk /state/store"]
        assert trouble.words.startswith(how)
        assert trouble.grave == grave


def test_a_folder_that_is_not_there_is_no_disk(body: Body) -> None:
    (body.root / "var/log").rmdir()
    body.settings = replace(SETTINGS, state_dir="/nowhere")
    body.room = disk(2048 * MIB, 0)
    assert list(body.look()) == ["disk /etc/narthex"]


@pytest.mark.parametrize(
    ("total", "available", "stalled", "words"),
    [
        (2048, 100, 0.0, ""),
        (2048, 60, 0.0, "60 MiB of 2048 MiB are left"),
        (256, 40, 0.0, ""),
        (256, 10, 0.0, "10 MiB of 256 MiB are left"),
        (2048, 1024, 9.0, ""),
        (2048, 1024, 40.0, "for 40 % of the last minute"),
    ],
)
def test_memory(body: Body, total: int, available: int, stalled: float, words: str) -> None:
    body.memory(total, available)
    body.pressure(stalled)
    found = body.look()
    assert list(found) == (["memory"] if words else [])
    if words:
        assert found["memory"].words.startswith(words)
        assert not found["memory"].grave


def test_a_kernel_that_keeps_no_pressure(body: Body) -> None:
    (body.root / "proc/pressure/memory").unlink()
    assert body.look() == {}


def test_a_clock_that_nothing_keeps(body: Body) -> None:
    body.kernel = 0x40
    assert "NTP" in body.look()["clock"].words
    assert body.metrics.get("narthex_clock_kept") == 0
    body.settings = replace(SETTINGS, runner="supervisor")
    assert body.look() == {}, "a cell's clock is its host's"
    body.settings = SETTINGS
    (body.root / "run/systemd/timesync").mkdir(parents=True)
    (body.root / "run/systemd/timesync/synchronized").touch()
    assert body.look() == {}


def test_a_kernel_that_may_not_be_asked(body: Body) -> None:
    """ProtectClock= forbids adjtimex: what is not known is no trouble."""
    body.kernel = None
    assert body.look() == {}


def test_a_clock_before_what_was_pushed(body: Body) -> None:
    body.newest = NOW + 30
    assert body.look() == {}
    body.newest = NOW + 90
    assert "before the newest generation" in body.look()["clock"].words


def test_a_clock_before_its_own_release(body: Body) -> None:
    body.now = 1_000_000.0
    assert "it is 1970-01-12 13:46, before this release" in body.look()["clock"].words


def test_the_kernel_answers() -> None:
    status = clock_status()
    assert status is None or 0 <= status < 1 << 16


# --- what the agent says


FULL = Trouble("disk /var/lib/narthex/store", "full: 0 MiB of 2 MiB are left", grave=True)
LATE = Trouble("clock", "nothing keeps it right")


@pytest.fixture(name="rig")
def rig_fixture(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.settle(BASE)
    return rig


def test_health(rig: Rig) -> None:
    client = rig.app().test_client()
    assert client.get("/v1/health").get_json()["troubles"] == []
    rig.host.ill = (LATE,)
    told = client.get("/v1/health")
    assert told.status_code == 200, "it is said, and it fails no push"
    assert told.get_json()["troubles"] == [{"what": "clock", "words": "nothing keeps it right", "grave": False}]
    rig.host.ill = (FULL, LATE)
    told = client.get("/v1/health")
    assert (told.status_code, told.get_json()["healthy"]) == (503, False)
    rig.host.ill = ()
    assert client.get("/v1/health").status_code == 200


def test_what_comes_and_goes_is_logged_once(rig: Rig) -> None:
    rig.host.ill = (LATE,)
    for _ in range(3):
        rig.engine.examine()
    assert rig.log.getvalue().count("nothing keeps it right") == 1
    rig.host.ill = ()
    rig.engine.examine()
    rig.engine.examine()
    assert rig.log.getvalue().count("is over") == 1
