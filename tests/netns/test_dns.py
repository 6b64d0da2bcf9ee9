"""DNS as guests see it: real dnsmasq, asked by dnspython from inside the guests' namespaces."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rrset
import pytest

from router.config import Config
from tests.netns.segment import CONTROL, Guest, Segment, until

BLUE, GREEN, OUT = "02:00:00:00:00:03", "02:00:00:00:00:04", "02:00:00:00:00:05"
INTERFACES = (
    {"id": "control", "mac": CONTROL, "use": "control", "addresses": ["169.254.3.4/16"]},
    {"id": "blue", "mac": BLUE, "use": "guest", "addresses": ["10.1.9.1/24", "10.1.1.1/24"]},
    {"id": "green", "mac": GREEN, "use": "guest", "addresses": ["10.1.2.1/24"]},
    {"id": "out", "mac": OUT, "use": "public", "addresses": ["192.0.2.1/24"], "gateway": "192.0.2.254"},
)


def host(number: int, name: str, network: str = "blue", **more: Any) -> dict[str, Any]:
    at = f"10.1.{1 if network == 'blue' else 2}.{number}"
    mac = f"02:00:00:00:{1 if network == 'blue' else 2:02x}:{number:02x}"
    return {"id": f"{network}-{number}", "network": network, "mac": mac, "address": at, "name": name, **more}


def blue(**more: Any) -> dict[str, Any]:
    return {"id": "blue", "interface": "blue", "cidr": "10.1.1.0/24", "domain": "cloud.internal", **more}


def green(**more: Any) -> dict[str, Any]:
    return {"id": "green", "interface": "green", "cidr": "10.1.2.0/24", "domain": "cloud.internal", **more}


def document(*hosts: dict[str, Any], networks: tuple[dict[str, Any], ...] = (), **more: Any) -> Config:
    raw: dict[str, Any] = {"interfaces": INTERFACES, "networks": networks or (blue(), green()), "hosts": hosts, **more}
    return Config.model_validate_json(json.dumps(raw))


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment("dns")
    try:
        made.link("eth2", BLUE, "10.1.9.1/24", "10.1.1.1/24")
        made.link("eth3", GREEN, "10.1.2.1/24")
        made.link("eth1", OUT, "192.0.2.1/24")
        yield made
    finally:
        made.close()


def asker(segment: Segment, link: str, address: str) -> Guest:
    """A guest that has its address already, and the router for its gateway."""
    guest = segment.guest(link, f"02:00:00:00:09:{len(segment.guests):02x}")
    guest.exec("ip", "address", "add", f"{address}/24", "dev", "eth0")
    guest.exec("ip", "route", "add", "default", "via", address.rpartition(".")[0] + ".1")
    return guest


class Upstream:
    """A name server outside that says `answer` to everything, and remembers what it was asked."""

    def __init__(self, segment: Segment, address: str, answer: str) -> None:
        self.address, self.answer, self.asked = address, answer, list[str]()
        self._socket = asker(segment, "eth1", address).socket()
        self._socket.bind((address, 53))
        self._open = True
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._open:
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            body, peer = self._socket.recvfrom(4096)
            query = dns.message.from_wire(body)
            question = query.question[0]
            self.asked.append(question.name.to_text())
            reply = dns.message.make_response(query, recursion_available=True)
            if question.rdtype == 1:
                reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", self.answer))
            self._socket.sendto(reply.to_wire(), peer)

    def close(self) -> None:
        self._open = False
        self._thread.join()
        self._socket.close()


# --- names --------------------------------------------------------------------------------------------------


def test_names_forward_and_reverse(segment: Segment) -> None:
    segment.make(document(host(10, "web"), host(11, "DB"), host(12, "ignore"), host(13, "42")))
    ask = asker(segment, "eth2", "10.1.1.77").answers
    for name in ("web", "web.cloud.internal", "WEB.Cloud.Internal"):
        assert ask("10.1.1.1", name) == ["10.1.1.10"]
    assert ask("10.1.1.1", "10.1.1.10", "PTR") == ["web.cloud.internal."]
    assert ask("10.1.1.1", "db") == ["10.1.1.11"]
    assert ask("10.1.1.1", "ignore.cloud.internal") == ["10.1.1.12"]
    assert ask("10.1.1.1", "42") == ["10.1.1.13"]
    assert ask("10.1.1.1", "web", "AAAA") == ["NOERROR"]
    assert ask("10.1.1.1", "nobody") == ask("10.1.1.1", "nobody.cloud.internal") == ["NXDOMAIN"]
    assert ask("10.1.1.1", "10.1.1.99", "PTR") == ["NXDOMAIN"]
    assert ask("10.1.1.1", "www.example.com") == ["REFUSED"]  # no upstream: only what we know


def test_the_routers_own_names(segment: Segment) -> None:
    segment.make(document())
    first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth3", "10.1.2.77")
    for name in ("r-4", "r-4.cloud.internal", "data-server", "data-server.cloud.internal"):
        assert first.answers("10.1.1.1", name) == ["10.1.1.1"]
        assert second.answers("10.1.2.1", name) == ["10.1.2.1"]
    assert first.answers("10.1.1.1", "10.1.1.1", "PTR") == ["r-4.cloud.internal."]


def test_a_network_without_a_domain_has_bare_names(segment: Segment) -> None:
    segment.make(document(host(10, "web"), networks=(blue(domain=None),)))
    guest = asker(segment, "eth2", "10.1.1.77")
    assert guest.answers("10.1.1.1", "web") == ["10.1.1.10"]
    assert guest.answers("10.1.1.1", "10.1.1.10", "PTR") == ["web."]


def test_answers_carry_authority_over_udp_tcp_and_edns(segment: Segment) -> None:
    segment.make(document(host(10, "web")))
    guest = asker(segment, "eth2", "10.1.1.77")
    assert guest.ask("10.1.1.1", "web").flags & dns.flags.AA
    query = dns.message.make_query("web.cloud.internal", "A", use_edns=0, payload=1232)
    with guest.socket() as by:
        by.setblocking(False)
        assert dns.query.udp(query, "10.1.1.1", timeout=3, sock=by).edns == 0
    with guest.socket(socket.SOCK_STREAM) as by:
        by.connect(("10.1.1.1", 53))
        by.setblocking(False)
        assert dns.query.tcp(query, "10.1.1.1", timeout=3, sock=by).answer


def test_two_networks_with_the_same_names(segment: Segment) -> None:
    segment.make(document(host(10, "web"), host(11, "only"), host(20, "web", "green"), host(21, "other", "green")))
    first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth3", "10.1.2.77")
    for name in ("web", "web.cloud.internal"):
        assert first.answers("10.1.1.1", name) == ["10.1.1.10"]
        assert second.answers("10.1.2.1", name) == ["10.1.2.20"]
    assert first.answers("10.1.1.1", "other") == second.answers("10.1.2.1", "only.cloud.internal") == ["NXDOMAIN"]
    assert first.answers("10.1.1.1", "10.1.2.20", "PTR") == ["NXDOMAIN"]


def test_two_networks_on_one_interface(segment: Segment) -> None:
    brown = {"id": "brown", "interface": "blue", "cidr": "10.1.9.0/24", "domain": "brown.internal"}
    hosts = (host(10, "web"), host(10, "web", "brown", address="10.1.9.10"))
    segment.make(document(*hosts, networks=(blue(), brown)))
    first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth2", "10.1.9.77")
    assert first.answers("10.1.1.1", "web") == ["10.1.1.10"]
    assert second.answers("10.1.9.1", "web") == second.answers("10.1.9.1", "web.brown.internal") == ["10.1.9.10"]


def test_what_a_dhcp_client_calls_itself_is_nobodys_name(segment: Segment) -> None:
    strangers = {"first": "10.1.1.100", "last": "10.1.1.110"}
    segment.make(document(host(10, "web"), networks=(blue(dhcp=strangers),)))
    stranger = segment.guest("eth2", "02:00:00:00:08:01")
    for name in ("web", "evil"):
        assert stranger.lease("-x", f"hostname:{name}", tries=5)
    assert stranger.answers("10.1.1.1", "web") == ["10.1.1.10"]
    assert stranger.answers("10.1.1.1", "evil") == stranger.answers("10.1.1.1", "evil.cloud.internal") == ["NXDOMAIN"]


def test_a_guest_reaches_the_name_server_of_its_own_network_only(segment: Segment) -> None:
    config = document(host(10, "web"), host(20, "other", "green"))
    segment.guard(config)
    segment.make(config)
    first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth3", "10.1.2.77")
    assert first.answers("10.1.1.1", "web") == ["10.1.1.10"]
    assert second.answers("10.1.2.1", "other") == ["10.1.2.20"]
    with pytest.raises(dns.exception.Timeout):
        second.ask("10.1.1.1", "web", seconds=0.5)


# --- records ------------------------------------------------------------------------------------------------


def record(ident: str, name: str, kind: str, value: str, **more: Any) -> dict[str, Any]:
    return {"id": ident, "name": name, "type": kind, "value": value, **more}


def test_records_of_every_type(segment: Segment) -> None:
    records = (
        record("1", "www", "A", "203.0.113.5"),
        record("2", "www", "AAAA", "2001:db8:0::5"),
        record("3", "alias", "CNAME", "web"),
        record("4", "note.cloud.internal", "TXT", "v=spf1, include:x.example; (a=b) ~all"),
        record("5", "cloud.internal", "MX", "mail.example.com", priority=10),
        record("6", "_sip._tcp", "SRV", "web", priority=1, weight=2, port=5060),
        record("7", "abc", "A", "10.1.1.10"),
        record("8", "www", "A", "203.0.113.6"),
        record("9", "far.example.org", "CNAME", "www.example.com"),
    )
    segment.make(document(host(10, "web"), records=records))
    ask = asker(segment, "eth2", "10.1.1.77").answers
    assert [r.split()[-1] for r in ask("10.1.1.1", "www")] == ["203.0.113.5", "203.0.113.6"]
    assert ask("10.1.1.1", "www.cloud.internal", "AAAA") == ["2001:db8::5"]
    assert ask("10.1.1.1", "alias.cloud.internal") == ["10.1.1.10", "web.cloud.internal."]
    assert ask("10.1.1.1", "alias", "CNAME") == ["web.cloud.internal."]
    assert ask("10.1.1.1", "note.cloud.internal", "TXT") == ['"v=spf1, include:x.example; (a=b) ~all"']
    assert ask("10.1.1.1", "cloud.internal", "MX") == ["10 mail.example.com."]
    assert ask("10.1.1.1", "_sip._tcp.cloud.internal", "SRV") == ["1 2 5060 web.cloud.internal."]
    assert ask("10.1.1.1", "abc") == ["10.1.1.10"]
    assert ask("10.1.1.1", "10.1.1.10", "PTR") == ["web.cloud.internal."]  # the host's, not the record's
    assert ask("10.1.1.1", "far.example.org", "CNAME") == ["www.example.com."]


def test_records_of_one_network_and_of_all(segment: Segment) -> None:
    records = (record("1", "here", "A", "203.0.113.5", network="blue"), record("2", "all", "A", "203.0.113.6"))
    segment.make(document(records=records))
    first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth3", "10.1.2.77")
    assert first.answers("10.1.1.1", "here") == ["203.0.113.5"]
    assert second.answers("10.1.2.1", "here") == ["NXDOMAIN"]
    assert first.answers("10.1.1.1", "all") == second.answers("10.1.2.1", "all") == ["203.0.113.6"]


def test_addresses_are_reloaded_and_the_others_restart_their_network_only(segment: Segment) -> None:
    segment.make(document())
    address = record("1", "www", "A", "203.0.113.5", network="blue")
    assert segment.make(document(records=(address,))) == ["reload dns-blue"]
    guest = asker(segment, "eth2", "10.1.1.77")
    until(lambda: guest.answers("10.1.1.1", "www") == ["203.0.113.5"])
    text = record("2", "www", "TXT", "hello", network="blue")
    assert segment.make(document(records=(address, text))) == ["restart dns-blue"]
    assert guest.answers("10.1.1.1", "www", "TXT") == ['"hello"']
    assert segment.make(document()) == ["restart dns-blue"]


# --- upstream -----------------------------------------------------------------------------------------------


def test_each_network_has_its_upstream(segment: Segment) -> None:
    outside = Upstream(segment, "192.0.2.53", "198.51.100.1"), Upstream(segment, "192.0.2.54", "198.51.100.2")
    with closing(outside[0]) as one, closing(outside[1]) as two:
        networks = (blue(), green(upstream=["192.0.2.54"]))
        segment.make(document(host(10, "web"), networks=networks, upstream=["192.0.2.53"]))
        first, second = asker(segment, "eth2", "10.1.1.77"), asker(segment, "eth3", "10.1.2.77")
        assert first.answers("10.1.1.1", "www.example.com") == ["198.51.100.1"]
        assert second.answers("10.1.2.1", "www.example.com") == ["198.51.100.2"]
        # what is ours is asked of nobody, whether we have it or not; neither are names without a dot
        for name in ("web", "nobody", "web.cloud.internal", "nobody.cloud.internal"):
            first.answers("10.1.1.1", name)
            first.answers("10.1.1.1", name, "AAAA")
        first.answers("10.1.1.1", "10.1.1.99", "PTR")
        first.answers("10.1.1.1", "192.168.3.4", "PTR")
        assert (one.asked, two.asked) == (["www.example.com."], ["www.example.com."])
        config = document(host(10, "web"), networks=networks, upstream=["192.0.2.54"])
        assert segment.make(config) == ["reload dns-blue"]
        until(lambda: first.answers("10.1.1.1", "www.example.com") == ["198.51.100.2"])


def test_without_upstream_nobody_is_asked(segment: Segment) -> None:
    segment.make(document())
    guest = asker(segment, "eth2", "10.1.1.77")
    assert guest.answers("10.1.1.1", "www.example.com") == ["REFUSED"]
    said = segment.said("dns-blue")
    assert "no upstream servers configured" in said
    assert "resolv.conf" not in said
    assert "using nameserver" not in said


# --- nothing is interrupted ---------------------------------------------------------------------------------


class Storm:
    """Queries from a guest at a steady rate; `lost()` ends it and counts those that had no good answer."""

    def __init__(self, guest: Guest, server: str, name: str, rate: int) -> None:
        self._socket = guest.socket()
        self._socket.connect((server, 53))
        self._wire = bytearray(dns.message.make_query(name, "A").to_wire())
        self._rate, self._stop = rate, False
        self.sent: dict[int, float] = {}
        self.waited: list[float] = []
        self._thread = threading.Thread(target=self._blow)
        self._thread.start()

    def _blow(self) -> None:
        started, number, end = time.monotonic(), 0, None
        while end is None or (self.sent and time.monotonic() < end):
            now = time.monotonic()
            if self._stop and end is None:
                end = now + 2.0
            while end is None and number < (now - started) * self._rate and number < 65_536:
                self._wire[:2] = number.to_bytes(2, "big")
                self._socket.send(self._wire)
                self.sent[number] = time.monotonic()
                number += 1
            while select.select([self._socket], [], [], 0.0005)[0]:
                self._take(self._socket.recv(512))

    def _take(self, body: bytes) -> None:
        good = body[3] & 15 == 0 and body[6:8] == b"\0\1"  # NOERROR, one answer
        sent = self.sent.pop(int.from_bytes(body[:2], "big"), None)
        if good and sent is not None:
            self.waited.append(time.monotonic() - sent)

    def lost(self) -> int:
        self._stop = True
        self._thread.join()
        self._socket.close()
        return len(self.sent)


def many(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"vm-{i}", "network": "big", "mac": f"02:00:00:01:{i >> 8:02x}:{i & 255:02x}",
            "address": f"10.2.{(i + 300) >> 8}.{(i + 300) & 255}", "name": f"vm-{i}",
        }
        for i in range(count)
    ]  # fmt: skip


BIG = {"id": "big", "interface": "blue", "cidr": "10.2.0.0/16", "domain": "big.internal"}


def test_no_query_is_lost_while_hosts_come_and_go(
    segment: Segment, record_figure: Callable[[str, float, str], None]
) -> None:
    hosts = many(2_000)
    segment.exec("ip", "address", "add", "10.2.0.1/16", "dev", "eth2")
    interface = {**INTERFACES[1], "addresses": ["10.2.0.1/16"]}
    made = [
        document(*hosts[: 1_990 + i], networks=(BIG,), interfaces=[interface]) for i in (*range(10), *range(8, -1, -1))
    ]
    segment.make(made[0])
    pids = segment.pids()
    guest = asker(segment, "eth2", "10.2.0.77")
    storm = Storm(guest, "10.2.0.1", "vm-7.big.internal", rate=1_000)
    for config in made[1:]:
        assert segment.make(config) == ["reload dhcp-blue", "reload dns-big"]
        time.sleep(0.1)
    assert storm.lost() == 0
    assert len(storm.waited) > 1_000
    assert segment.pids() == pids
    record_figure("queries lost while 18 pushes added and removed hosts", 0, "")
    record_figure("longest wait of a query meanwhile", max(storm.waited) * 1000, "ms")


def test_ten_thousand_hosts(segment: Segment, record_figure: Callable[[str, float, str], None]) -> None:
    hosts = many(10_000)
    segment.exec("ip", "address", "add", "10.2.0.1/16", "dev", "eth2")
    interface = {**INTERFACES[1], "addresses": ["10.2.0.1/16"]}
    segment.make(document(*hosts[:-1], networks=(BIG,), interfaces=[interface]))
    guest = asker(segment, "eth2", "10.2.0.77")
    until(lambda: guest.answers("10.2.0.1", "vm-9998") == [hosts[9_998]["address"]])
    storm = Storm(guest, "10.2.0.1", "vm-7.big.internal", rate=500)
    segment.make(document(*hosts, networks=(BIG,), interfaces=[interface]))
    until(lambda: guest.answers("10.2.0.1", "vm-9999") != ["NXDOMAIN"])
    assert storm.lost() == 0
    newcomer = segment.guest("eth2", hosts[-1]["mac"])
    started = time.monotonic()
    lease = newcomer.lease()
    assert lease is not None
    assert lease["ip"] == hosts[-1]["address"]
    record_figure("longest wait of a query at a reload of 10,000 hosts", max(storm.waited) * 1000, "ms")
    record_figure("a lease at 10,000 hosts", (time.monotonic() - started) * 1000, "ms")
    for unit, pid in segment.pids().items():
        record_figure(f"memory of {unit} at 10,000 hosts", proportional(pid) / 1024, "MiB")


def proportional(pid: int) -> int:
    """A process's memory in KiB, shared pages counted by their share."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
