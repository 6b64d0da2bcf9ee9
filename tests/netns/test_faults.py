"""What goes wrong goes wrong well: the agent killed, tools that fail, hang and lie, full disks, rivals, broken ways in.

After each, the machine is the old generation or the new one, held against the documents without asking the agent
(truth.py); live flows go on; and the answer names the cause. Counts are a tenth here, and full in the soak.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from statistics import median
from typing import Any

import pytest

from mgmt.push import Answer, Appliance, PushError
from tests.bed import wait_for
from tests.netns.calls import tcp
from tests.netns.flows import Flow
from tests.netns.stage import (
    DESK,
    L10,
    L20,
    L30,
    MAIL,
    R10,
    WEB,
    WORLD,
    Stage,
    allow,
    config,
    exception,
    forward,
    interface,
    office,
    route,
    servers,
    static,
)  # fmt: skip
from tests.netns.truth import compiled, differences
from tests.trials import trials

Json = dict[str, Any]
Record = Callable[[str, float, str], None]

SHARED = (allow("in", L10), forward("kept", L10, 80, WEB), office(dhcp={"enabled": True}, dns=True))
A = (*SHARED, forward("a", L10, 81, WEB), static("a", L20, MAIL), exception("a", "office", "tcp", 25))
B = (
    *SHARED, *(forward(f"b-{n}", L10, 1000 + n, DESK) for n in range(40)),
    allow("b", R10, "tcp", 22, ["198.51.100.0/24"]),
    interface("dmz", "guest", "10.1.2.1/24", "10.1.3.1/24", mtu=1400), route("b", "172.20.0.0/16", "172.16.0.5"),
    {"_": "hosts", "id": "web", "network": "office", "mac": "02:00:00:00:0b:05", "address": WEB, "name": "web"},
)  # fmt: skip

WRAPPER = """#!/bin/sh
[ -e /run/fault ] || exec /usr/sbin/{tool} "$@"
read kind at </run/fault
n=$(cat /run/calls 2>/dev/null || echo 0); n=$((n + 1)); echo $n >/run/calls
[ $n = $at ] || exec /usr/sbin/{tool} "$@"
case $kind in
    kill-before) kill -9 $PPID; exit 1 ;;
    kill-after) /usr/sbin/{tool} "$@"; kill -9 $PPID; exit 1 ;;
    fail) echo "Error: words of the tool itself" >&2; exit 1 ;;
    hang) exec sleep 300 ;;
    lie) cat >/dev/null; exit 0 ;;
esac
"""


class Trouble:
    """The stage with two documents that it goes between, and flows that must go on whatever happens."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.bed = stage, stage.bed
        self.documents: dict[int, Json] = {}
        for tool in ("nft", "dnsmasq"):
            place = f"/usr/local/sbin/{tool}"
            text = WRAPPER.format(tool=tool)
            self.bed.driver.run("bed", ["sh", "-c", f"cat >{place} && chmod 755 {place}"], stdin=text)
        self.push(A)
        self.flows: list[Flow] = [stage.flow(tcp(stage.world, L10, 80)), stage.flow(tcp(stage.web, WORLD, 80))]

    def document(self, objects: tuple[Json, ...], generation: int = 0, **envelope: Any) -> Json:
        document = self.bed.document(config(*objects), **envelope)
        document["generation"] = generation or self.generation() + 1
        return document

    def generation(self) -> int:
        found: int = self.bed.appliance.state().body["generation"]
        return found

    def put(self, objects: tuple[Json, ...], **envelope: Any) -> Answer:
        document = self.document(objects, **envelope)
        self.documents[document["generation"]] = document
        return self.bed.settled(self.bed.appliance.put(json.dumps(document).encode()))

    def push(self, objects: tuple[Json, ...]) -> None:
        answer = self.put(objects)
        assert answer.good, answer.body

    def fault(self, kind: str, at: int) -> None:
        self.bed.run("sh", "-c", f"rm -f /run/calls; echo {kind} {at} >/run/fault")

    def mend(self) -> int:
        """Take the fault away; how often the tools were called under it."""
        return int(self.bed.run("sh", "-c", "rm -f /run/fault; cat /run/calls 2>/dev/null || echo 0; rm -f /run/calls"))

    def whole(self, *allowed: int) -> int:
        """The machine is one of these generations (any, where none is named), wholly, and flows go on. Which it is."""
        now = self.generation()
        assert not allowed or now in allowed, (now, allowed)
        assert differences(self.bed, compiled(self.bed, self.documents[now])) == []
        assert all(flow.goes_on() for flow in self.flows)
        return now

    def kill_agent(self) -> None:
        self.bed.run("pkill", "-KILL", "-f", "[-]m appliance$", check=False)

    def recovered(self) -> float:
        """Wait until a new agent answers; the seconds that took."""
        started = time.monotonic()
        self.bed.wait_ready()
        return time.monotonic() - started


@pytest.fixture(scope="module", name="trouble")
def trouble_fixture() -> Iterator[Trouble]:
    with Stage() as stage:
        yield Trouble(stage)


@pytest.fixture(autouse=True)
def from_a(trouble: Trouble) -> None:
    """Every test starts at A, with nothing wrong."""
    trouble.mend()
    trouble.bed.wait_ready()
    trouble.push(A)
    trouble.whole()


def push_and_die(trouble: Trouble, objects: tuple[Json, ...], seconds: float) -> None:
    """Push, and kill the agent after so many seconds, wherever it is."""
    document = trouble.document(objects)
    trouble.documents[document["generation"]] = document

    def push() -> None:
        with suppress(PushError):
            answer = pusher.put(json.dumps(document).encode())
            if answer.status == 202:
                pusher.confirm(document["generation"])

    with Appliance(trouble.bed.target()) as pusher:
        pusher.health()
        thread = threading.Thread(target=push)
        thread.start()
        time.sleep(seconds)
        trouble.kill_agent()
        thread.join()


@pytest.mark.soak("router")
def test_the_agent_is_killed_at_any_moment(trouble: Trouble, record_figure: Record) -> None:
    chance = random.Random(20_26)
    started = time.monotonic()
    trouble.push(B)
    usual = time.monotonic() - started
    count, news, seconds = trials(100), 0, []
    for turn in range(count):
        before = trouble.generation()
        push_and_die(trouble, A if turn % 2 == 0 else B, chance.uniform(0, usual))
        seconds.append(trouble.recovered())
        news += trouble.whole() != before
        if turn % 2 != 1 and trouble.documents[trouble.generation()]["config"] != trouble.documents[before]["config"]:
            continue
        trouble.push(A if turn % 2 == 0 else B)  # wherever it ended, the next push starts from the turn's own document
    record_figure("agent killed at a random moment of a push", count, "times")
    record_figure("of these, ended at the new generation", news, "times")
    record_figure("median time until the new agent answers", median(seconds), "s")
    record_figure("longest time until the new agent answers", max(seconds), "s")
    record_figure("mixtures of two generations; live flows lost", 0, "")


@pytest.mark.soak("router")
@pytest.mark.parametrize("kind", ["kill-before", "kill-after"])
def test_the_agent_is_killed_at_each_call_of_a_tool(trouble: Trouble, kind: str, record_figure: Record) -> None:
    killed = 0
    for at in range(1, 30):
        trouble.push(A)
        before = trouble.generation()
        trouble.fault(kind, at)
        with suppress(PushError):
            trouble.put(B)
        trouble.recovered()
        calls = trouble.mend()
        trouble.whole(before, before + 1)
        if calls < at:
            break
        killed += 1
    assert killed
    record_figure(f"agent killed at a call of a tool ({kind})", killed, "times")


@pytest.mark.soak("router")
@pytest.mark.parametrize("kind", ["fail", "lie"])
def test_a_tool_fails_or_lies_at_each_call(trouble: Trouble, kind: str, record_figure: Record) -> None:
    undone = 0
    for at in range(1, 30):
        trouble.push(A)
        before = trouble.generation()
        trouble.fault(kind, at)
        answer = trouble.put(B)
        calls = trouble.mend()
        if calls < at:
            assert answer.good
            break
        if not answer.good:
            undone += 1
            assert answer.status in (422, 500), answer.body
            told = json.dumps(answer.body)
            assert "words of the tool itself" in told if kind == "fail" else "did not converge" in told, told
        trouble.whole(before if not answer.good else before + 1)
    assert undone
    record_figure(f"a tool that does {kind}, at each call", undone, "times")


def test_a_tool_hangs(trouble: Trouble) -> None:
    before = trouble.generation()
    trouble.fault("hang", 1)
    answer = trouble.put((*A, forward("more", L10, 90, WEB)))
    trouble.mend()
    assert answer.status == 500
    assert "did not answer within" in answer.body["error"]
    trouble.whole(before)


def test_a_daemon_that_ends_at_its_start(trouble: Trouble) -> None:
    """The servers' network gets DNS: its dnsmasq is a program that ends at once."""
    before = trouble.generation()
    script = "cat >/usr/local/sbin/dnsmasq && chmod 755 /usr/local/sbin/dnsmasq"
    dying = "#!/bin/sh\ncase $* in *--test*) exit 0 ;; esac\necho 'cannot bind, says the daemon' >&2\nexit 2\n"
    trouble.bed.driver.run("bed", ["sh", "-c", script], stdin=dying)
    try:
        answer = trouble.put((*A, servers(dns=True)))
    finally:
        text = WRAPPER.format(tool="dnsmasq")
        trouble.bed.driver.run("bed", ["sh", "-c", script], stdin=text)
    assert answer.status == 500
    assert "cannot bind, says the daemon" in json.dumps(answer.body)
    trouble.whole(before)


@pytest.mark.parametrize("full", ["state", "log"])
def test_the_disk_is_full(trouble: Trouble, full: str) -> None:
    """Of the folder with the journal, or with the logs: a file system of its own, filled to the last byte."""
    folder = {"state": "/var/lib/narthex/store", "log": "/var/log/narthex"}[full]
    bed = trouble.bed
    before = trouble.generation()
    bed.run("sh", "-c", f"mount -t tmpfs -o size=2m tmp /mnt && cp -a {folder}/. /mnt/ && mount --move /mnt {folder}")
    trouble.kill_agent()  # it holds the old folder open
    trouble.recovered()
    try:
        bed.run("sh", "-c", f"cat /dev/zero >{folder}/filler 2>/dev/null; true")
        answer = trouble.put(B)
        if full == "state":
            assert answer.status == 500
            assert "No space left" in answer.body["error"]
            trouble.kill_agent()
            trouble.recovered()
            trouble.whole(before)
        else:
            assert answer.good, answer.body
            trouble.whole(before + 1)
        bed.run("rm", f"{folder}/filler")
        trouble.push(A if full == "log" else B)
        trouble.whole()
        bed.run("sh", "-c", f"rm -rf /tmp/kept && cp -a {folder} /tmp/kept")
    finally:
        bed.run("umount", "-l", folder)
        if full == "state":  # what was journalled meanwhile is what the machine is
            bed.run("sh", "-c", f"rm -rf {folder}/* && cp -a /tmp/kept/. {folder}/", check=False)
        trouble.kill_agent()
        trouble.recovered()
    trouble.whole()


@pytest.mark.parametrize("method", ["put", "patch"])
def test_two_managers_at_once(trouble: Trouble, method: str) -> None:
    with Appliance(trouble.bed.target()) as one, Appliance(trouble.bed.target()) as two:
        for turn in range(10):
            base = trouble.generation()
            answers: list[Answer] = []

            def push(manager: Appliance, name: str, base: int = base, into: list[Answer] = answers) -> None:
                objects = (*A, forward(name, L10, 4000, WEB))
                document = trouble.document(objects, base + 1)
                if method == "put":
                    into.append(manager.put(json.dumps(document).encode()))
                else:
                    item = {k: v for k, v in objects[-1].items() if k != "_"}
                    operation = {"op": "put", "collection": "forwards", "object": item}
                    change = {k: document[k] for k in ("version", "role", "generation")}
                    into.append(manager.patch(json.dumps({**change, "base": base, "operations": [operation]}).encode()))

            threads = [threading.Thread(target=push, args=(m, f"m{turn}-{n}")) for n, m in enumerate((one, two))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(a.status for a in answers) == [200, 409], [a.body for a in answers]
            trouble.push(A)


def test_what_is_too_much_or_not_a_document(trouble: Trouble) -> None:
    before = trouble.generation()
    appliance = trouble.bed.appliance
    big = trouble.document((*A, *(allow(f"x{n}", L30, "tcp", n % 65535 + 1) for n in range(150_000))))
    for body in (json.dumps(big).encode(), b"{" * 100_000, b"\0\xff" * 1000, b"", b"[]", b'{"version": 1}'):
        answer = appliance.put(body)
        assert 400 <= answer.status < 500, (len(body), answer.body)
        assert answer.body["error"] or answer.body["problems"]
    trouble.whole(before)


def test_a_push_that_is_cut_in_the_middle(trouble: Trouble) -> None:
    before = trouble.generation()
    body = json.dumps(trouble.document(B)).encode()
    for part in (0, 1, len(body) // 2, len(body) - 1):
        with trouble.bed.ground.connect("169.254.240.10", 3922) as sock:
            sock.sendall(b"SSH-2.0-nothing\r\n")
        pusher = Appliance(trouble.bed.target())
        pusher.health()
        http = pusher._http
        assert http is not None
        http.putrequest("PUT", "/v1/config")
        http.putheader("Content-Length", str(len(body)))
        http.endheaders()
        http.send(body[:part])
        pusher.close()
    trouble.whole(before)


@pytest.mark.parametrize("end", ["no confirmation", "the way in is cut", "the agent is killed", "a power cut"])
def test_a_push_that_is_not_confirmed(trouble: Trouble, end: str) -> None:
    bed = trouble.bed
    before = trouble.generation()
    document = trouble.document(B, confirm={"seconds": 2})
    answer = bed.appliance.put(json.dumps(document).encode())
    assert answer.status == 202
    if end == "the way in is cut":
        bed.ground.run(("ip", "link", "set", "nx-control", "down"))
        time.sleep(2.5)
        bed.ground.run(("ip", "link", "set", "nx-control", "up"))
    elif end == "the agent is killed":
        trouble.kill_agent()
    elif end == "a power cut":
        bed.driver.stop("bed")
        bed.driver.start("bed")
        for tool in ("nft", "dnsmasq"):
            place = f"/usr/local/sbin/{tool}"
            bed.driver.run("bed", ["sh", "-c", f"cat >{place} && chmod 755 {place}"], stdin=WRAPPER.format(tool=tool))
    bed.wait_ready()
    wait_for(lambda: trouble.generation() == before, 15.0, "it was not undone")
    if end == "a power cut":  # connection tracking went with the machine
        trouble.flows = [trouble.stage.flow(tcp(trouble.stage.world, L10, 80))]
    wait_for(lambda: differences(bed, compiled(bed, trouble.documents[before])) == [], 15.0)
    trouble.whole(before)


@pytest.mark.soak("router")
def test_any_way_to_a_document_ends_in_the_same_machine(trouble: Trouble, record_figure: Record) -> None:
    chance = random.Random(7)
    count = trials(50)
    goal = trouble.document(B)
    trouble.push(B)
    wished = compiled(trouble.bed, goal)
    for _ in range(count):
        for _ in range(chance.randint(1, 4)):
            way = chance.choice(("a", "patch", "rollback", "some"))
            now = trouble.generation()
            if way == "a":
                trouble.push(A)
            elif way == "some":
                trouble.push((*SHARED, *chance.sample(B[3:43], 20)))
            elif way == "patch":
                trouble.bed.generation = now
                item = {k: v for k, v in forward("way", L10, chance.randint(2000, 3000), WEB).items() if k != "_"}
                trouble.bed.patch({"op": "put", "collection": "forwards", "object": item})
            else:
                trouble.bed.settled(trouble.bed.appliance.rollback(now))
        trouble.push(B)
        assert differences(trouble.bed, wished) == []
    assert trouble.put(B).body["result"] == "unchanged"
    record_figure("random ways to one document, all to the same machine", count, "times")
