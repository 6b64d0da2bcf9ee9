"""The means of test_faults: tools that misbehave in the cell, an agent that dies at a chosen deed, and what must hold.

What is written into the cell goes to its own root (an overlay) and ends with it: `prepare` writes it anew.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from mgmt.hosts.namespace import Ground
from mgmt.push import Answer, Appliance, PushError
from tests.bed import CELL, wait_for
from tests.netns.calls import tcp
from tests.netns.flows import Flow
from tests.netns.stage import (
    DESK,
    DMZ,
    L10,
    L20,
    LAN,
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

Json = dict[str, Any]
Objects = tuple[Json, ...]

TOOL_SECONDS = 1.0  # of the bed's agent, for a tool that hangs

# What comes of a call of nft or dnsmasq while /run/fault says "KIND CALL": calls are counted, as tool.1, tool.2, ...
# (nft, dnsmasq --test) and daemon.1, ... (dnsmasq as a daemon). `mkdir`, because two may be called at once.
_WRAPPER = """#!/bin/sh
[ -e /run/fault ] || exec /usr/sbin/TOOL "$@"
read kind at </run/fault
case "TOOL $*" in nft*|*--test*) of=tool ;; *) of=daemon ;; esac
n=1
while ! mkdir /run/$of.$n 2>/dev/null; do n=$((n + 1)); done
[ $of.$n = $at ] || [ $of.any = $at ] || exec /usr/sbin/TOOL "$@"
case $kind in
    kill-before) pkill -KILL -f '[-]m appliance$'; exit 1 ;;
    kill-after) /usr/sbin/TOOL "$@"; pkill -KILL -f '[-]m appliance$'; exit 1 ;;
    fail) echo "Error: words of the tool itself" >&2; exit 1 ;;
    hang) exec sleep 300 ;;
    late) /usr/sbin/TOOL "$@"; exec sleep 300 ;;
    lie) cat >/dev/null; exit 0 ;;
    half) cat >/run/text; head -n $(($(wc -l </run/text) / 2)) /run/text | /usr/sbin/TOOL "$@"; exit 0 ;;
    slow) sleep 1; exec /usr/sbin/TOOL "$@" ;;
    soon) sleep 0.3; echo "cannot bind, says the daemon" >&2; exit 2 ;;
    reload) trap 'echo "words at a reload" >&2; exit 3' HUP; while :; do sleep 0.1; done ;;
esac
"""

# Ends the agent before or after the call of its code that /run/deed counts down to: whatever it does to the machine, to
# its journal or to other processes, in a push. Read by every Python that starts in the cell; for the agent alone.
_HOOK = """
import os, sys, threading

DEEDS = {
    "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir", "chmod", "fchmod", "send", "sendall",
    "sendto", "sendmsg", "connect", "fork_exec", "close",
}
count = 0

def watch(frame, event, what):
    global count
    if event not in ("c_call", "c_return") or getattr(what, "__name__", "") not in DEEDS:
        return
    if not threading.current_thread().name.startswith(("waitress", "check")):
        return
    try:
        with open("/run/deed") as file:
            at = int(file.read())
    except OSError:
        count = 0
        return
    count += 1
    with open("/run/deeds", "w") as file:
        file.write(str(count))
    if count == at:
        os.kill(os.getpid(), 9)

if sys.orig_argv[-1:] == ["appliance"] and os.path.exists("/run/watched"):
    threading.setprofile(watch)
"""


def guest_host(name: str, where: str, mac: str, address: str) -> Json:
    return {"_": "hosts", "id": name, "network": where, "mac": mac, "address": address, "name": name}


_HOSTS = (
    guest_host("web", "office", "02:00:00:00:0b:05", WEB),
    guest_host("mail", "office", "02:00:00:00:0b:06", MAIL),
    guest_host("moved", "office", "02:00:00:00:0b:55", "10.1.1.55"),
)
_SHARED = (allow("in", L10), forward("kept", L10, 80, WEB), _HOSTS[0])
# Two documents that differ in every kind of part, and share what the live flows need.
A: Objects = (
    *_SHARED, *_HOSTS[1:], office(dhcp={"enabled": True}, dns=True, domain="a.internal"),
    forward("a", L10, 81, WEB, 80), static("a", L20, MAIL), exception("a", "office", "tcp", 25),
)  # fmt: skip
B: Objects = (
    *_SHARED, *(forward(f"b-{n}", L10, 1000 + n, DESK, 5000) for n in range(40)),
    office(dhcp={"enabled": True}, dns=True, domain="b.internal"), servers(dhcp={"enabled": True}, dns=True),
    guest_host("moved", "office", "02:00:00:00:0b:55", "10.1.1.56"),
    guest_host("db", "servers", "02:00:00:00:0b:08", "10.1.2.10"),
    allow("b", R10, "tcp", 22, ["198.51.100.0/24"]), route("b", "172.20.0.0/16", "172.16.0.5"),
    interface("dmz", "guest", "10.1.2.1/24", "10.1.3.1/24", mtu=1400),
)  # fmt: skip
# A with another host and another address for one: files that are read again, and no restart.
A_RELOADED: Objects = (*A, guest_host("new", "office", "02:00:00:00:0b:66", "10.1.1.66"))


class Trouble:
    """The stage with a document that it is at, and flows that must go on whatever happens."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.bed = stage, stage.bed
        self.documents: dict[int, Json] = {}
        self.lost = 0  # live flows
        self.prepare()
        self.push(A)
        self.flows: list[Flow] = []
        self.connect()

    def prepare(self) -> None:
        """Write the means into the cell, and start the agent again so that it has read its settings."""
        for tool in ("nft", "dnsmasq"):
            self.write(f"/usr/local/sbin/{tool}", _WRAPPER.replace("TOOL", tool), 0o755)
        self._write_hook()
        self.set(tool_seconds=TOOL_SECONDS)
        self.restart()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        script = f"rm -f {path}; cat >{path} && chmod {mode:o} {path}"
        self.bed.driver.run(CELL, ["sh", "-c", script], stdin=text)

    def set(self, **settings: Any) -> None:
        """Boot facts, for the next agent."""
        path = "/etc/narthex/settings.json"
        self.write(path, json.dumps({**json.loads(self.bed.run("cat", path)), **settings}), 0o600)

    def _write_hook(self) -> None:
        """Python looks for sitecustomize beside its standard library, which may be bound into the cell read-only."""
        library = sysconfig.get_path("stdlib")
        own = f"mkdir -p /run/hook/up /run/hook/work && mount -t overlay hook {library} -o"
        own += f" lowerdir={library},upperdir=/run/hook/up,workdir=/run/hook/work"
        self.bed.run("sh", "-c", f"[ -w {library} ] || {{ {own}; }}")
        self.write(f"{library}/sitecustomize.py", _HOOK)

    def connect(self) -> None:
        """The flows, made anew: one through a forward, one through source NAT."""
        stage = self.stage
        self.flows = [stage.flow(tcp(stage.world, L10, 80)), stage.flow(tcp(stage.web, WORLD, 80))]

    # --- documents

    def document(self, objects: Objects, generation: int = 0, **envelope: Any) -> Json:
        """The next generation, or that one; remembered by its number."""
        document = self.bed.document(config(*objects), **envelope)
        document["generation"] = generation or self.generation() + 1
        self.documents[document["generation"]] = document
        return document

    def change(self, *operations: Json, base: int = 0) -> Json:
        """A PATCH; the document that it makes is remembered by its number."""
        base = base or self.generation()
        whole = json.loads(json.dumps(self.documents[base]))
        for operation in operations:
            objects = whole["config"].setdefault(operation["collection"], [])
            ident = operation["object"]["id"] if operation["op"] == "put" else operation["id"]
            place = next((n for n, o in enumerate(objects) if o["id"] == ident), len(objects))
            objects[place : place + 1] = [operation["object"]] if operation["op"] == "put" else []
        whole["generation"] = base + 1
        self.documents[base + 1] = whole
        return {"version": 1, "role": "router", "base": base, "generation": base + 1, "operations": list(operations)}

    def generation(self) -> int:
        found: int = self.bed.appliance.state().body["generation"]
        return found

    def put(self, objects: Objects, **envelope: Any) -> Answer:
        return self.bed.settled(self.bed.appliance.put(json.dumps(self.document(objects, **envelope)).encode()))

    def patch(self, *operations: Json) -> Answer:
        return self.bed.settled(self.bed.appliance.patch(json.dumps(self.change(*operations)).encode()))

    def push(self, objects: Objects) -> None:
        answer = self.put(objects)
        assert answer.good, answer.body

    # --- what must hold

    def whole(self, *allowed: int) -> int:
        """The machine is one of these generations (any, where none is named), wholly, and flows go on. Which it is."""
        now = self.generation()
        assert not allowed or now in allowed, (now, allowed)
        self.is_as(now)
        ended = [str(flow.call) for flow in self.flows if not flow.goes_on()]
        self.lost += len(ended)
        assert not ended
        return now

    def is_as(self, generation: int) -> None:
        """The machine, and what dnsmasq answers, is what that generation says."""
        document = self.documents[generation]
        assert differences(self.bed, compiled(self.bed, document)) == []
        wait_for(lambda: not self.misnamed(document), 5.0, f"dnsmasq: {self.misnamed(document)}")

    def misnamed(self, document: Json) -> list[str]:
        """The hosts that are not answered for as the document says; those of it, and those of A and B that are not."""
        found = []
        hosts = {(h["network"], h["name"]): h["address"] for h in document["config"].get("hosts", ())}
        known = {(o["network"], o["name"]) for o in (*A, *B) if o["_"] == "hosts"} | hosts.keys()
        for network in document["config"]["networks"]:
            by, router = {"office": (self.stage.web, LAN), "servers": (self.stage.db, DMZ)}[network["id"]]
            names = [name for where, name in known if where == network["id"] and network["dns"]]
            found += [n for n in names if asked(by, router, n, network) != hosts.get((network["id"], n), "NXDOMAIN")]
        return found

    # --- faults

    def fault(self, kind: str, at: str) -> None:
        """From now on the tools misbehave at the call `at`: tool.N, daemon.N."""
        self.mend()
        self.bed.run("sh", "-c", f"echo {kind} {at} >/run/fault")

    def mend(self) -> tuple[int, int]:
        """Take the fault away; how often tools were called and daemons started under it."""
        count = "for of in tool daemon; do ls -d /run/$of.* 2>/dev/null | wc -l; done; rm -rf /run/tool.* /run/daemon.*"
        tools, daemons = self.bed.run("sh", "-c", f"rm -f /run/fault /run/deed; {count}").split()
        return int(tools), int(daemons)

    def pid(self) -> int:
        """The agent's process, as the cell counts; 0 where there is none."""
        return int((self.bed.run("pgrep", "-f", "[-]m appliance$", check=False).split() or ["0"])[0])

    def kill_agent(self, number: str = "KILL") -> None:
        self.bed.run("pkill", f"-{number}", "-f", "[-]m appliance$", check=False)

    def recovered(self) -> float:
        """Wait until the agent answers; the seconds that took."""
        started = time.monotonic()
        self.bed.wait_ready()
        return time.monotonic() - started

    def restart(self) -> None:
        """The agent anew, by the supervisor, who then forgets how often it has ended."""
        supervisor = f"/proc/{self.bed.driver.list()[0].pid}/root/run/narthex/supervisor.sock"
        request = {"verb": "restart", "unit": {"name": "agent", "command": ["as it is"]}}
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20.0)
            sock.connect(supervisor)
            sock.sendall(json.dumps(request).encode() + b"\n")
            assert json.loads(sock.recv(4096))["ok"]
        self.bed.wait_ready()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Agents that start here count their deeds, see `_HOOK`."""
        self.bed.run("touch", "/run/watched")
        self.restart()
        try:
            yield
        finally:
            self.bed.run("rm", "-f", "/run/watched", "/run/deed")
            self.restart()

    def die_at(self, deed: int) -> None:
        self.bed.run("sh", "-c", f"echo {deed} >/run/deed; echo 0 >/run/deeds")

    def deeds(self) -> int:
        """How many were done since `die_at`."""
        return int(self.bed.run("cat", "/run/deeds"))

    def unheard(self, push: Callable[[], object]) -> bool:
        """Push something that the agent may not live to answer. Whether it didn't."""
        try:
            push()
        except PushError:
            return True
        return False

    def push_and_die(self, method: str, body: Json, seconds: float) -> bool:
        """Push, and kill the agent after so many seconds, wherever it is. Whether it had no answer yet."""
        heard: list[Answer] = []
        raw = json.dumps(body).encode()

        def push() -> None:
            with suppress(PushError):
                heard.append(pusher.request(method, "/v1/config", raw))

        with Appliance(self.bed.target()) as pusher:
            pusher.health()
            thread = Thread(target=push)
            thread.start()
            time.sleep(seconds)
            self.kill_agent()
            thread.join()
        return not heard

    @contextmanager
    def on_tmpfs(self, folder: str, pages: int) -> Iterator[None]:
        """A file system of its own of so many pages under a folder of the cell, with what is in there."""
        enter = f"mount -t tmpfs -o size={pages * 4096} full /mnt && cp -a {folder}/. /mnt/ && mount --move /mnt"
        self.bed.run("sh", "-c", f"{enter} {folder}")
        self.restart()  # the agent holds the old one open
        try:
            yield
        finally:
            self.bed.run("sh", "-c", f"rm -f {folder}/filler; rm -rf /tmp/kept; cp -a {folder} /tmp/kept")
            self.bed.run("umount", "-l", folder)
            self.bed.run("sh", "-c", f"find {folder} -mindepth 1 -delete; cp -a /tmp/kept/. {folder}/")
            self.restart()

    def fill(self, folder: str, free: int = 0) -> None:
        """Fill a file system to the last byte, and then leave so many pages free."""
        script = f"cat /dev/zero >{folder}/filler 2>/dev/null; truncate -s -{free * 4096} {folder}/filler"
        self.bed.run("sh", "-c", script)

    def log(self) -> str:
        """What the agent has said."""
        return "\n".join(self.bed.driver.logs(CELL, "agent"))

    def cut_power(self) -> None:
        """End process 1 of the cell, and so all of it."""
        pid = self.bed.driver.list()[0].pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.bed.driver.list()[0].state != "running")

    def stop_and_start(self) -> None:
        """The whole cell, as by a power cut. Live flows go with it: connection tracking is the kernel's."""
        self.cut_power()
        self.bed.driver.start(CELL)


@pytest.fixture(scope="module", name="trouble")
def trouble_fixture() -> Iterator[Trouble]:
    with Stage() as stage:
        yield Trouble(stage)


def asked(by: Ground, router: str, name: str, network: Json) -> str:
    """The address that a machine is told for a host's name, in full where the network has a domain; or the refusal."""
    full = f"{name}.{network['domain']}" if network.get("domain") else name
    question = dns.message.make_query(full, "A")
    try:
        with by.entered():
            answer = dns.query.udp(question, router, timeout=1.0)
    except (OSError, dns.exception.DNSException) as error:
        return type(error).__name__
    if answer.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(answer.rcode())
    return ", ".join(str(item) for found in answer.answer for item in found)


def spread(count: int, last: int) -> Sequence[int]:
    """So many numbers between 1 and `last`, evenly."""
    return sorted({1 + turn * last // count for turn in range(count)})

