"""The image of a seed: read back by a reader of our own, the same bytes wherever it is made."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from appliance.seeddisk import volume_id as volume_id_at_boot
from mgmt.seed_iso import make_iso
from tests.mgmt import iso9660

NO_CLOUD = {
    "user-data": b"#cloud-config\n", "meta-data": b"", "network-config": b"x" * 5000, "narthex.bundle": b"b" * 300_000,
}  # fmt: skip
CONFIG_DRIVE = {
    f"openstack/latest/{name}": name.encode() for name in ("user_data", "meta_data.json", "network_data.json")
}
KINDS = [("cidata", NO_CLOUD), ("config-2", CONFIG_DRIVE), ("cidata", {f"many/{n:03}": b"%d" % n for n in range(200)})]


@pytest.fixture
def zone() -> Iterator[None]:
    before = os.environ.get("TZ")
    yield
    os.environ.pop("TZ", None)
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(("volume", "files"), KINDS)
def test_read_back(volume: str, files: dict[str, bytes]) -> None:
    image = make_iso(files, volume)
    assert iso9660.volume_id(image) == volume
    assert iso9660.files_by_joliet(image) == files
    assert iso9660.files_by_rock_ridge(image) == files


def test_the_early_boot_knows_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    device = tmp_path / "sr0"
    device.write_bytes(make_iso(NO_CLOUD, "cidata"))
    assert volume_id_at_boot(str(device)) == ("cidata", "iso9660")


def test_the_same_bytes_at_any_hour_in_any_zone(monkeypatch: pytest.MonkeyPatch, zone: None) -> None:
    first = make_iso(CONFIG_DRIVE, "config-2")
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.5)
    assert make_iso(dict(reversed(CONFIG_DRIVE.items())), "config-2") == first


def test_the_clock_of_others_runs_on() -> None:
    from pycdlib import dates, headervd
    from pycdlib import pycdlib as writer

    make_iso(NO_CLOUD, "cidata")
    assert vars(writer)["time"] is vars(dates)["time"] is vars(headervd)["time"] is time
