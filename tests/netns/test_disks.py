"""A disk that is filled to the last byte: it is said before anybody pushes, and a push says it and touches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.bed import Bed

MACS = {"lan": "02:00:00:00:0a:03"}
GUESTS = {"id": "lan", "mac": MACS["lan"], "use": "guest", "addresses": ["10.1.1.1/24"]}
NETWORK = {"id": "office", "interface": "lan", "cidr": "10.1.1.0/24", "dhcp": {"enabled": False}, "dns": False}
PLAIN = {"interfaces": [GUESTS], "networks": [NETWORK]}
SERVED = {"interfaces": [GUESTS], "networks": [{**NETWORK, "dhcp": {"enabled": True}, "dns": True}]}
FOLDERS = ("/var/lib/narthex/store", "/etc/narthex")


@pytest.fixture(scope="module", name="bed")
def bed_fixture() -> Iterator[Bed]:
    """Both folders are a small file system each; the agent is started anew, for it holds its journal open."""
    with Bed(MACS) as bed:
        for folder in FOLDERS:
            move = f"mount -t tmpfs -o size=2m tmp /mnt && cp -a {folder}/. /mnt/ && mount --move /mnt {folder}"
            bed.run("sh", "-c", move)
        bed.run("kill", "-KILL", str(bed.pid_of("agent")))
        bed.wait_ready()
        bed.push(PLAIN)
        yield bed


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("by", ["bytes", "files"])
def test_a_full_disk(bed: Bed, folder: str, by: str) -> None:
    bed.push(PLAIN)
    before = bed.appliance.state().body["generation"]
    fill = {
        "bytes": f"cat /dev/zero >{folder}/filler 2>/dev/null; true",
        "files": f"mkdir {folder}/filler; i=0; while touch {folder}/filler/$i; do i=$((i+1)); done 2>/dev/null; true",
    }[by]
    if by == "files":
        bed.run("mount", "-o", "remount,nr_inodes=64", folder)
    try:
        bed.run("sh", "-c", fill)
        health = bed.appliance.health()
        assert (health.status, health.body["healthy"]) == (503, False)
        assert [(t["what"], t["grave"]) for t in health.body["troubles"]] == [(f"disk {folder}", True)]
        assert health.body["troubles"][0]["words"].startswith("full")
        generation = before + 1
        document = bed.document(SERVED)
        answer = bed.appliance.put(json.dumps({**document, "generation": generation}).encode())
        assert (answer.status, answer.body["result"]) == (500, "nothing touched"), answer.body
        assert "no space left" in answer.body["error"].lower()
        state = bed.appliance.state().body
        assert (state["generation"], state["converged"]) == (before, True)
        assert bed.run("pgrep", "dnsmasq", check=False) == ""
    finally:
        bed.run("rm", "-rf", f"{folder}/filler")
        bed.run("mount", "-o", "remount,nr_inodes=10000", folder)
    assert bed.appliance.health().body["troubles"] == []
    bed.push(SERVED)
    assert bed.appliance.health().body["healthy"]
