"""Drift: what somebody does to the router by hand is found, told of by object, and healed; by packets.

Events tell of most of it at once, the timer (a second here) of the rest. With heal="report" it is told of, stays, and
goes with the next push.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator

import dns.message
import pytest

from tests.bed import wait_for
from tests.netns.calls import Call, echo, tcp, udp
from tests.netns.stage import (
    L10,
    LAN,
    LEFT,
    R10,
    STORE,
    WEB,
    WORLD,
    Json,
    Stage,
    allow,
    config,
    exception,
    forward,
    network,
    office,
    route,
)

OFFICE = network("office", "lan", "10.1.1.0/24", LEFT, dhcp={}, dns=True, domain="office.example")
OBJECTS = (
    OFFICE,
    allow("in", L10),
    allow("in-right", R10),
    forward("web-http", L10, 80, WEB),
    forward("web-right", R10, 80, WEB),
    forward("for-one", L10, 22, WEB, sources=["198.51.100.0/24"]),
    exception("no-mail", "office", "tcp", (100, 1100)),
    route("depot", "172.20.0.0/16", STORE),
)
TABLES = "/etc/iproute2/rt_tables.d/narthex.conf"


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage(watch_seconds=1.0) as stage:
        stage.push(*OBJECTS)
        yield stage


@pytest.fixture(scope="module", name="watched")
def watched_fixture() -> Iterator[Stage]:
    with Stage(heal="report", watch_seconds=1.0) as stage:
        stage.push(*OBJECTS)
        yield stage


def link(stage: Stage, name: str) -> str:
    """What the router calls an interface of the document."""
    mac = next(i["mac"] for i in config(*OBJECTS)["interfaces"] if i["id"] == name)
    return next(line.split()[0].partition("@")[0] for line in stage.run("ip -br link").splitlines() if mac in line)


def http(stage: Stage) -> Call:
    return tcp(stage.world, L10, 80)


def edit_keeping_the_comment(stage: Stage, chain: str, comment: str, text: str) -> None:
    """Put `text` in the place of a rule, under the comment that it had."""
    listed = stage.run(f"nft -a list chain inet narthex {chain}").splitlines()
    line = next(line for line in listed if comment in line)
    told = re.search(r'comment "([^"]*)" # handle (\d+)', line)
    assert told
    stage.bed.run(
        "nft", "replace", "rule", "inet", "narthex", chain, "handle", told[2], *text.split(), "comment", f'"{told[1]}"'
    )


def delete_elements_of(stage: Stage, owner: str) -> None:
    """Delete what the kernel has of an object of the document, whatever it is kept in."""
    listed = json.loads(stage.run("nft -j list table inet narthex"))["nftables"]
    for item in listed:
        found = item.get("map") or item.get("set") or {}
        for element in found.get("elem", ()):
            key = element[0] if isinstance(element, list) else element
            if isinstance(key, dict) and key.get("elem", {}).get("comment") == owner:
                parts = " . ".join(map(str, key["elem"]["val"]["concat"]))
                stage.bed.run("nft", "delete", "element", "inet", "narthex", found["name"], f"{{ {parts} }}")


class Damage:
    """One thing done by hand: the deed, the object or part that must be named, and a call that shows it."""

    def __init__(
        self, deed: str | Callable[[Stage], object], named: str, hurt: Callable[[Stage], Call] | None, name: str = ""
    ) -> None:
        self.deed, self.named, self.hurt, self.name = deed, named, hurt, name

    def do(self, stage: Stage) -> None:
        if callable(self.deed):
            self.deed(stage)
            return
        words = [re.sub(r"<(\w+)>", lambda m: link(stage, m[1]), word) for word in self.deed.split()]
        stage.bed.run(*words)


DAMAGES: dict[str, Damage] = {
    "flush chain forward": Damage("nft flush chain inet narthex forward", "forward", lambda s: tcp(s.web, WORLD, 80)),
    "flush chain of an egress": Damage(
        "nft flush chain inet narthex egress_office", "office", lambda s: tcp(s.web, WORLD, 80)
    ),
    "flush chain dstnat": Damage("nft flush chain inet narthex dstnat", "dstnat", http),
    "delete a forward": Damage(
        f"nft delete element inet narthex m_forward {{ {L10} . tcp . 80 }}", "web-http", http
    ),
    "delete a sourced forward": Damage(
        lambda s: delete_elements_of(s, "for-one"), "for-one", lambda s: tcp(s.world, L10, 22)
    ),
    "delete a public address": Damage(
        f"nft delete element inet narthex s_public {{ {L10} }}", "left", None
    ),
    "delete a network's source NAT": Damage(
        "nft delete element inet narthex m_source_nat_left { 10.1.1.0/24 }", "office", None
    ),
    "a foreign element": Damage(
        f"nft add element inet narthex m_forward {{ {L10} . tcp . 8888 : {WEB} . 80 }}", "m_forward", None
    ),
    "a foreign rule": Damage("nft add rule inet narthex forward accept", "forward", None),
    "a rule edited, its comment kept": Damage(
        lambda s: edit_keeping_the_comment(s, "egress_office", "by default allow", "drop"),
        "the whole table", lambda s: tcp(s.web, WORLD, 80),
    ),  # fmt: skip
    "the table": Damage("nft delete table inet narthex", "the whole table", None),
    "everything of nft": Damage("nft flush ruleset", "the whole table", None),
    "an address": Damage(f"ip addr del {L10}/24 dev <left>", "left", lambda s: echo(s.world, L10)),
    "the guests' gateway": Damage(f"ip addr del {LAN}/24 dev <lan>", "lan", lambda s: echo(s.web, LAN)),
    "a foreign address": Damage("ip addr add 203.0.113.66/24 dev <left>", "203.0.113.66/24 on", None),
    "a static route": Damage("ip route del 172.20.0.0/16", "depot", lambda s: tcp(s.web, "172.20.0.5", 80)),
    "a default route": Damage("ip route del default", "left", None),
    "an uplink's route": Damage("ip route del default table narthex-right", "right", lambda s: tcp(s.db, WORLD, 80)),
    "an uplink's rule": Damage(
        lambda s: s.run(f"ip rule del pref 110 {_selector(s)}"), "right", lambda s: udp(s.world, R10, 80, WORLD, "eth1")
    ),
    "the first rule": Damage("ip rule del pref 100", "100: ", None),
    "a link": Damage("ip link set <lan> down", "lan", lambda s: tcp(s.web, WORLD, 80)),
    "an MTU": Damage("ip link set <left> mtu 1280", "left", None),
    "forwarding": Damage("sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward", lambda s: tcp(s.web, WORLD, 80)),
    "a file": Damage(lambda s: s.bed.run("sh", "-c", f"echo 7 x >> {TABLES}"), TABLES, None),
    "a file's end": Damage(f"rm {TABLES}", TABLES, None),
}  # fmt: skip


def _selector(stage: Stage) -> str:
    """What selects in the rule of the right uplink."""
    line = next(line for line in stage.run("ip rule").splitlines() if "narthex-right" in line)
    return line.partition(":")[2].strip()


@pytest.mark.parametrize("name", DAMAGES)
def test_healed(stage: Stage, name: str) -> None:
    damage = DAMAGES[name]
    before = machine(stage)
    named = stage.drift_after(lambda: damage.do(stage))
    assert any(word.startswith(damage.named) for word in named), named
    assert machine(stage) == before
    everything_works(stage)


def everything_works(stage: Stage) -> None:
    w = stage.world
    stage.meets("web", http(stage), tcp(w, L10, 22, WORLD), tcp(w, R10, 80, WORLD, "eth1"))
    stage.meets("world", tcp(stage.web, WORLD, 80), seen=LEFT)
    stage.meets("store", tcp(stage.web, "172.20.0.5", 80))
    stage.meets("router", echo(stage.web, LAN), echo(w, L10))


def machine(stage: Stage) -> str:
    """All that a person could see of what is ours: rules, links, addresses, routes, files."""
    told = [
        *sorted(stage.run("nft -s list ruleset").splitlines()),
        *sorted(" ".join(sorted(line.split())) for line in stage.run("ip -br address show").splitlines()),
        *sorted(stage.run("ip -br link show").splitlines()),
        *sorted(stage.run("ip route show table all proto 110").splitlines()),
        *sorted(stage.run("ip rule show").splitlines()),
        stage.bed.run("cat", TABLES, check=False),
        stage.run("sysctl net.ipv4.ip_forward"),
    ]
    return "\n".join(re.sub(r"fe80::\S+|<.*>", "", line) for line in told)


def test_the_end_of_a_daemon(stage: Stage) -> None:
    """The runner starts it again, before the watch could look: names are resolved as before."""
    stage.push(
        *OBJECTS,
        {"_": "hosts", "id": "web", "network": "office", "mac": "02:00:00:00:0b:05", "address": WEB, "name": "web"},
    )
    assert resolved(stage) == WEB
    old = stage.run("pgrep dnsmasq").split()
    stage.bed.run("kill", "-9", *old, check=False)  # the last of them may have gone with its parent
    wait_for(lambda: resolved(stage) == WEB, 20.0, "no name server came back")
    assert not set(old) & set(stage.run("pgrep dnsmasq").split())
    stage.push(*OBJECTS)


def resolved(stage: Stage) -> str:
    """The address of web.office.example, "" where nobody tells."""
    with stage.desk.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as by:
        by.connect((LAN, 53))
        by.settimeout(0.3)
        try:
            by.send(dns.message.make_query("web.office.example", "A").to_wire())
            answer = dns.message.from_wire(by.recv(512)).answer
        except OSError:
            return ""
    return str(answer[0][0]) if answer else ""


def test_a_gap_is_seen_in_live_flows(stage: Stage) -> None:
    """The instrument of test_packets_changes.py is no blunt one: a moment without rules is told of, and it ends."""
    stage.push(*OBJECTS)
    stream = stage.stream(udp(stage.db, WORLD, 5000))
    stream.wait(50)
    stage.drift_after(lambda: stage.run("nft flush chain inet narthex forward"))
    stream.wait(50)
    assert stream.lost() > 0


def test_drift_says_by_whom(stage: Stage) -> None:
    stage.drift_after(lambda: stage.run("nft flush chain inet narthex forward"))
    (drift,) = stage.bed.appliance.state().body["drift"][-1:]
    assert "nft" in drift["by"]
    assert drift["healed"]


def test_our_own_pushes_are_no_drift(stage: Stage) -> None:
    before = len(stage.bed.appliance.state().body["drift"])
    for turn in range(5):
        stage.push(*OBJECTS, forward(f"more-{turn}", L10, 9000, WEB), office(R10 if turn % 2 else LEFT))
    stage.push(*OBJECTS)
    since = os.times().elapsed
    wait_for(lambda: os.times().elapsed > since + 2.5)  # the timer has looked twice
    assert len(stage.bed.appliance.state().body["drift"]) == before


# --- reported ---------------------------------------------------------------------------------------------------------

REPORTED = (
    "flush chain of an egress", "delete a forward", "a foreign element", "a rule edited, its comment kept", "the table",
    "an address", "a static route", "an uplink's rule", "forwarding", "a file",
)  # fmt: skip


@pytest.mark.parametrize("name", REPORTED)
def test_reported_and_healed_by_the_next_push(watched: Stage, name: str) -> None:
    damage = DAMAGES[name]
    watched.push(*OBJECTS)
    before = machine(watched)
    named = watched.drift_after(lambda: damage.do(watched), healed=False)
    assert any(word.startswith(damage.named) for word in named), named
    assert machine(watched) != before
    if damage.hurt:
        watched.silent(damage.hurt(watched)) if name != "delete a forward" else watched.meets(
            "refused", damage.hurt(watched)
        )
    watched.push(*OBJECTS, another(watched))
    watched.push(*OBJECTS)
    assert machine(watched) == before
    everything_works(watched)


def another(stage: Stage) -> Json:
    return forward(f"next-{stage.bed.generation}", L10, 9000, WEB)
