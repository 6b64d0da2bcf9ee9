"""Diagnostics of a real router: what it is asked, and a support bundle that knows its secrets and tells none."""

from __future__ import annotations

import io
import struct
import tarfile
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.calls import tcp
from tests.netns.stage import LEFT, WEB, WORLD, Stage, allow, config, forward, left, office

SECRET = "planted-Secret.7"
HOST = {"_": "hosts", "id": "web", "network": "office", "mac": "02:00:00:00:0b:05", "address": WEB, "name": "web"}
OBJECTS = (
    left("2001:db8:1::2/64", gateway6="2001:db8:1::1"),
    office(dhcp={}, dns=True, domain="office.example"),
    HOST,
    forward("web", LEFT, 80, WEB),
    allow("web", LEFT, "tcp", 80),
    {"_": "bgp_peers", "id": "isp", "address": "203.0.113.1", "asn": 65000, "password": SECRET},
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as made:
        made.world.run(("ip", "address", "add", "2001:db8:1::1/64", "dev", "eth0", "nodad"))
        made.bed.push({**config(*OBJECTS), "bgp": {"asn": 65001}})
        yield made


def ask(stage: Stage, kind: str, **fields: Any) -> dict[str, Any]:
    answer = stage.bed.appliance.diagnostics({"kind": kind, **fields})
    assert answer.status == 200, answer.body
    return dict(answer.body)


def test_ping_of_both_families(stage: Stage) -> None:
    assert "1 received" in ask(stage, "ping", address=WEB, count=1)["output"]
    assert "1 received" in ask(stage, "ping6", address="2001:db8:1::1", count=1)["output"]
    silent = ask(stage, "ping", address="10.1.1.77", count=1)
    assert silent["status"] != 0


def test_traceroute_of_both_families(stage: Stage) -> None:
    found = ask(stage, "traceroute", address=WORLD, hops=3)
    assert WORLD in found["output"].splitlines()[1]
    found = ask(stage, "traceroute", address="2001:db8:1::1", hops=3)
    assert "2001:db8:1::1" in found["output"].splitlines()[1]


def test_arping_by_the_name_of_the_object(stage: Stage) -> None:
    assert "02:00:00:00:0B:05" in ask(stage, "arping", address=WEB, link="lan", count=1)["output"].upper()


def test_dns(stage: Stage) -> None:
    found = ask(stage, "dns", name="web.office.example", server="10.1.1.1")
    assert f"IN A {WEB}" in found["output"]
    assert found["status"] == 0
    found = ask(stage, "dns", name="web.office.example", server="10.1.1.99")
    assert found["status"] == 1
    assert "10.1.1.99" in found["output"]


def test_a_capture_has_what_was_asked_for_and_nothing_else(stage: Stage) -> None:
    found: dict[str, Any] = {}
    question = {"link": "lan", "seconds": 20, "packets": 3, "protocol": "tcp", "hosts": [WEB], "port": 80}
    thread = threading.Thread(target=lambda: found.update(ask(stage, "capture", **question)))
    thread.start()
    end = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < end:
        stage.meets("web", tcp(stage.world, LEFT, 80))
        stage.run(f"ping -c 1 -W 1 {WEB}")
        time.sleep(0.2)
    thread.join()
    packets = list(pcap(b64decode(found["pcap"])))
    assert len(packets) == 3
    for packet in packets:
        assert packet[12:14] == b"\x08\x00"
        assert packet[23] == 6
        assert 80 in struct.unpack_from("!HH", packet, 34)


def test_a_capture_of_silence_ends(stage: Stage) -> None:
    started = time.monotonic()
    found = ask(stage, "capture", link="lan", seconds=1, protocol="esp")
    assert time.monotonic() - started < 10
    assert list(pcap(b64decode(found["pcap"]))) == []
    assert found["status"] == 0


def pcap(data: bytes) -> Iterator[bytes]:
    """The packets of a capture file (pcap-savefile(5))."""
    assert struct.unpack_from("=I", data)[0] == 0xA1B2C3D4
    at = 24
    while at < len(data):
        length = struct.unpack_from("=I", data, at + 8)[0]
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


def test_the_bundle_has_it_all_but_the_secret(stage: Stage) -> None:
    assert SECRET in stage.bed.run("cat", "/etc/narthex/bgp/bgpd.conf")
    stage.bed.run("sh", "-c", f"echo 'a daemon says {SECRET} aloud' >> /var/log/narthex/bgpd.log")
    answer = stage.bed.appliance.support()
    assert answer.status == 200
    assert answer.seconds < 25
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        parts = {m.name.partition("/")[2]: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert not [name for name, text in parts.items() if SECRET in text]
    assert "a daemon says *** aloud" in parts["logs/bgpd.log"]
    assert "m_forward" in parts["tools/nft_list_table_inet_narthex.txt"]
    assert "203.0.113.1" in parts["tools/ip_route_show_table_all.txt"]
    assert '"password": "***"' in parts["document.json"]
    assert not [name for name in parts if "bgpd.conf" in name]
