"""The seed in the machine: cloud-init itself finds it right, has done its part, and kept its hands off ours.

Of the fixture `vm`, a booted appliance, only `run(*argv) -> str` is asked: as root inside; it raises where it fails.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

ETC = "/etc/narthex"


def kept_seed(vm: Any) -> dict[str, Any]:
    """What the early reader has kept of the seed (appliance/seed.py)."""
    kept: dict[str, Any] = json.loads(vm.run("cat", f"{ETC}/seed.json"))["seed"]
    return kept


def user_data(kept: dict[str, Any]) -> str:
    return str(next(text for path, text in kept["texts"].items() if path.endswith(("user-data", "user_data"))))


def assert_cloud_init_is_content(vm: Any) -> None:
    """Its own schema check passes on the seed, it has run to its end, and nothing went wrong."""
    vm.run("systemctl", "start", "narthex-cloud-init.service")  # a oneshot: back when it is through
    kept = kept_seed(vm)
    said = vm.run("cloud-init", "schema", "--system")
    assert "Valid schema user-data" in said
    assert "Invalid" not in said
    result = json.loads(vm.run("cat", "/run/cloud-init/result.json"))["v1"]
    assert result["errors"] == []
    wanted = "DataSourceNoCloud" if kept["kind"] == "nocloud" else "DataSourceConfigDrive"
    assert result["datasource"].startswith(wanted)
    assert vm.run("cloud-init", "query", "userdata").strip() == user_data(kept).strip()
    assert vm.run("cloud-init", "query", "v1.instance_id").strip() == kept["instance"]


def assert_its_part_is_done(vm: Any) -> None:
    """Host name and time servers are the seed's."""
    told = yaml.safe_load(user_data(kept_seed(vm)))
    assert vm.run("cat", "/etc/hostname").strip() == told["hostname"]
    for server in told.get("ntp", {}).get("servers", ()):
        assert server in vm.run("cat", "/etc/systemd/timesyncd.conf.d/cloud-init.conf")


def assert_our_part_is_whole(vm: Any) -> None:
    """The three files are the seed's, for root alone; the control address stands, and sshd is told of it."""
    kept = kept_seed(vm)
    for name, content in kept["files"].items():
        assert vm.run("cat", f"{ETC}/{name}") == content
        assert vm.run("stat", "-c", "%a %U", f"{ETC}/{name}").strip() == "600 root"
    assert kept["address"] in vm.run("ip", "-brief", "address")
    assert vm.run("cat", "/run/narthex/sshd.env").strip() == f"CONTROL={kept['address'].partition('/')[0]}"
    assert vm.run("systemctl", "show", "-P", "Result", "narthex-seed.service").strip() == "success"


def test_cloud_init_takes_the_seed(vm: Any) -> None:
    assert_cloud_init_is_content(vm)
    assert_its_part_is_done(vm)
    assert_our_part_is_whole(vm)
