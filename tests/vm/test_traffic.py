"""Bandwidth, usage and flows in the image: its kernel's queues, and sums that outlive a cut of the power."""

from __future__ import annotations

import socket
from typing import Any

from mgmt.hosts.namespace import Ground
from tests.bed import CELL, wait_for
from tests.netns.calls import udp
from tests.netns.stage import WEB, WORLD, Json, Stage, config, put, remove
from tests.vm.machine import BOOT_SECONDS

GUEST: Json = {
    "_": "hosts", "id": "vm-web", "network": "office", "mac": "02:00:00:00:0b:05", "address": WEB, "name": "web",
}  # fmt: skip
LIMIT: Json = {"_": "limits", "id": "slow", "host": "vm-web", "up_kbit": 2000, "down_kbit": 2000}


def push(stage: Stage) -> None:
    stage.bed.push({**config(GUEST, LIMIT), "usage": True})


def sent(stage: Stage) -> int:
    told: dict[str, Any] = stage.bed.appliance.usage().body["usage"]
    return int(told["guests"]["vm-web"]["sent_packets"])


def send(by: Ground, count: int) -> None:
    with by.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for _ in range(count):
            sock.sendto(bytes(500), (WORLD, 7001))


def test_the_image_s_kernel_keeps_queues_short(stage: Stage) -> None:
    push(stage)
    told = stage.run("tc qdisc show")
    assert "htb 6e78:" in told
    assert "fq_codel" in told.partition("htb 6e78:")[2]
    assert "bfifo" not in told


def test_limits_change_come_and_go_under_those_queues(stage: Stage) -> None:
    push(stage)
    network: Json = {"_": "limits", "id": "all", "network": "office", "up_kbit": 8000}
    faster, slower = ({**LIMIT, "up_kbit": kbit} for kbit in (3000, 1000))
    for operation in (put(faster), put(network), put(slower), put({**network, "up_kbit": 9000}), remove(network)):
        stage.bed.patch(operation)
    links = stage.run("ls /sys/class/net").split()
    leaves = [line for link in links for line in stage.run(f"tc class show dev {link}").splitlines() if "leaf" in line]
    assert sorted({line.partition(" rate ")[2].split()[0] for line in leaves}) == ["1Mbit", "2Mbit"]  # up, down


def test_a_flow_is_told_with_who_allowed_it_and_what_it_carried(stage: Stage) -> None:
    push(stage)
    stage.flow(udp(stage.web, WORLD, 80))
    (found,) = stage.bed.appliance.flows({"guest": "vm-web", "protocol": "udp"}).body["flows"]
    assert "office" in found["allowed_by"]
    assert found["sent"]["packets"] == 1


def test_what_was_told_outlives_a_cut_of_the_power(stage: Stage) -> None:
    push(stage)
    before = sent(stage)
    send(stage.web, 20)
    wait_for(lambda: sent(stage) == before + 20, 20.0)
    stage.bed.driver.power_cut(CELL)
    stage.bed.appliance.close()
    stage.bed.driver.start(CELL)
    stage.bed.appliance.wait(BOOT_SECONDS)
    assert sent(stage) == before + 20
    send(stage.web, 5)
    wait_for(lambda: sent(stage) == before + 25, 20.0)
    assert "htb 6e78:" in stage.run("tc qdisc show")
