"""The router's figures: what a push costs, what it costs with nobody in between, and what packets notice.

The floor of a push is a shell script that does the same work with the bare tools on the same artifacts, in a network
namespace of its own: dnsmasq's check of its configuration, `nft -f`, the files written and synced, dnsmasq told, the
table read back. "without the reading back" is also shown. The peer's figures stand in docs/router.md.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.document import Document, validate_json
from appliance.ruleset import delta, whole
from appliance.state import Facts, LinkFact, State
from mgmt.hosts.namespace import Namespace
from router.compile import compile
from router.config import Config
from tests.bed import CELL, Bed
from tests.bench import documents as d
from tests.bench import vpn
from tests.bench.failover import failover
from tests.bench.figures import Figure, figure, middle
from tests.bench.traffic import Prober, connections_per_second

SIZES = (10, 100, 1_000, 10_000)
SERVER = "10.64.0.10"  # the guest that answers; the last forward leads to it
OUTSIDE = "203.0.113.1"


def run() -> list[Figure]:
    """All figures; under three minutes."""
    found: list[Figure] = []
    starts = []
    for _ in range(3):
        _say("cell: start to converged")
        starts.append(_start_to_converged())
    found.append(figure("cell: start to first document converged", middle(starts), "s", most=2.0))
    _say("a router of two")
    found += failover()
    with Bed({"public": d.PUBLIC, "guest": d.GUEST}, watch_seconds=600) as bed, _floor_machine() as floor:
        bed.guest("server", "guest", "02:01:00:00:00:00", [f"{SERVER}/10"], {"default": "10.64.0.1"})
        bed.guest("outside", "public", "02:00:00:00:0f:01", [f"{OUTSIDE}/24"], {})
        patches: dict[int, float] = {}
        rates: dict[int, list[float]] = {10: [], 10_000: []}
        for n in SIZES:
            found += _pushes(bed, floor, n)
            patches[n], bare = _patches(bed, floor, n)
            ratio = {"most": None, "floor": patches[10]} if n == 10_000 else {"floor": bare}
            if n == 10_000:
                found.append(
                    figure(f"one more forward by PATCH at {n:,}, against the bare nft", patches[n], "ms", bare)
                )
                found.append(
                    figure(
                        f"one more forward by PATCH at {n:,}, against at 10",
                        patches[n],
                        "ms",
                        patches[10],
                        ratio_most=3,
                    )
                )
            else:
                found.append(figure(f"one more forward by PATCH at {n:,}", patches[n], "ms", floor=ratio["floor"]))
            if n in rates:
                rates[n].append(_rate(bed, n))
            if n == 10:
                found += _reordered(bed, floor, 1_000)
            if n == 10:
                found += vpn.users(bed, _config(bed, 10))
            if n == 1_000:
                found += _unchanged(bed, n)
                found += _processes(bed, n)
                found += _gap(bed)
            if n in (10, 1_000, 10_000):
                memory = _memory(bed)
                found.append(figure(f"agent: resident memory at {n:,}", memory, "MiB", most=60 if n < 10_000 else None))
        found += _with_everything(bed, 1_000)
        _say("connections through the last forward, once more at 10 and 10,000")
        for n in (10, 10_000, 10):
            bed.push(_config(bed, n))
            rates[n].append(_rate(bed, n))
        found.append(
            figure(
                "connections/s through the last of 10,000 forwards, against of 10",
                middle(rates[10_000]),
                "1/s",
                middle(rates[10]),
                ratio_least=0.9,
            )  # fmt: skip
        )
    return found


def _say(words: str) -> None:
    print(f"bench router: {words}", file=sys.stderr, flush=True)


# --- what is pushed --------------------------------------------------------------------------------------------------


def _config(bed: Bed, n: int) -> dict[str, Any]:
    """n of each object; the last forward leads to the server, and anyone may use it."""
    config: dict[str, Any] = d.document(n, control=bed.control["addresses"][0], last_target=SERVER)["config"]
    config["interfaces"][0] = bed.control
    config["firewall"][-1] = {**config["firewall"][-1], "sources": []}
    config["interfaces"][1]["gateway"] = OUTSIDE
    config["interfaces"][1]["addresses"] = [f"{d.ROUTER}/24", *(f"{a}/24" for a in d.public(10_001))]
    return config


def _empty(bed: Bed) -> dict[str, Any]:
    return {**_config(bed, 1), "forwards": [], "firewall": [], "hosts": []}


def _with_everything(bed: Bed, n: int) -> list[Figure]:
    """The same figures on a router that does all that it can."""
    bed.push(d.everything(_config(bed, n)))  # its daemons start
    with _floor_machine() as other:
        found = _pushes(bed, other, n, d.everything, ", with every feature")
        value, bare = _patches(bed, other, n)
    found.append(figure(f"one more forward by PATCH at {n:,}, with every feature", value, "ms", bare))
    found.append(figure(f"agent: resident memory at {n:,}, with every feature", _memory(bed), "MiB", most=60))
    return found


def _same(config: dict[str, Any]) -> dict[str, Any]:
    return config


def _pushes(
    bed: Bed, floor: Floor, n: int, dressed: Callable[[dict[str, Any]], dict[str, Any]] = _same, words: str = ""
) -> list[Figure]:
    """From nothing to n of each object, again and again; the floor in between."""
    _say(f"push of {n:,} forwards + {n:,} rules + {n:,} hosts{words}")
    config = dressed(_config(bed, n))
    state = _compiled(bed, config)
    ours, bare, unread = [], [], []
    for _ in range(2 if n == 10_000 else 5):
        bed.push({**config, "forwards": [], "firewall": [], "hosts": [], "limits": []} if words else _empty(bed))
        body = json.dumps(bed.document(config)).encode()
        started = time.perf_counter()
        answer = bed.appliance.put(body)
        ours.append((time.perf_counter() - started) * 1000)
        bed.settled(answer)
        assert answer.good, answer.body
        seconds = floor.push(state)
        bare.append(seconds["all"])
        unread.append(seconds["all"] - seconds["read"])
    name = f"push {n:,} of each{words}, converged and verified"
    value = middle(ours)
    most = 2.0 if n == 1_000 else None
    return [
        figure(name, value, "ms", middle(bare), ratio_most=most),
        figure(f"push {n:,} of each{words}, against the tools without the reading back", value, "ms", middle(unread)),
    ]


def _patches(bed: Bed, floor: Floor, n: int) -> tuple[float, float]:
    """(ours, the bare nft) milliseconds for one more forward."""
    _say(f"one more forward at {n:,}")
    ours, bare = [], []
    for i in range(15):
        port = 1000 + i
        extra = {**d.forward(0), "id": f"extra-{i}", "ports": {"first": port, "last": port}}
        change = d.change(bed.generation, bed.generation + 1, d.put("forwards", extra))
        body = json.dumps(change).encode()
        started = time.perf_counter()
        answer = bed.appliance.patch(body)
        ours.append((time.perf_counter() - started) * 1000)
        bed.settled(answer)
        assert answer.status == 200, answer.body
        text = f"add element inet narthex m_forward {{ 203.0.113.10 . tcp . {port} : 10.64.0.10 . 22 }}\n"
        bare.append(floor.nft(text))
    bed.patch(*(d.remove("forwards", f"extra-{i}") for i in range(15)))
    return middle(ours), middle(bare)


def _reordered(bed: Bed, floor: Floor, items: int) -> list[Figure]:
    """An ACL turned round by PATCH; the floor is `nft -f -` of the very text that this takes."""
    _say(f"{items:,} ACL items in another order")
    acl = d.acl(items)
    orders = (acl, {**acl, "ingress": acl["ingress"][::-1]})
    config = _config(bed, 10)
    config["networks"][0]["acl"] = acl["id"]
    states = [_compiled(bed, {**config, "acls": [order]}) for order in orders]
    bed.push({**config, "acls": [orders[0]]})
    floor.nft(whole(states[0].ruleset))
    ours, bare = [], []
    for i in range(10):
        change = d.change(bed.generation, bed.generation + 1, d.put("acls", orders[(i + 1) % 2]))
        body = json.dumps(change).encode()
        started = time.perf_counter()
        answer = bed.appliance.patch(body)
        ours.append((time.perf_counter() - started) * 1000)
        bed.settled(answer)
        assert answer.status == 200, answer.body
        text = delta(states[i % 2].ruleset, states[(i + 1) % 2].ruleset)
        assert text is not None
        bare.append(floor.nft(text.text))
    name = f"{items:,} ACL items in another order, by PATCH"
    return [figure(name, middle(ours), "ms", middle(bare), ratio_most=2)]


def _unchanged(bed: Bed, n: int) -> list[Figure]:
    config, times = _config(bed, n), []
    for _ in range(10):
        body = json.dumps(bed.document(config)).encode()
        started = time.perf_counter()
        answer = bed.appliance.put(body)
        times.append((time.perf_counter() - started) * 1000)
        bed.settled(answer)
        assert answer.body["result"] == "unchanged", answer.body
    return [figure(f"push that changes nothing at {n:,} of each", middle(times), "ms", most=20)]


def _processes(bed: Bed, n: int) -> list[Figure]:
    """Every process and thread started in the cell, by the last number given in its pid namespace."""
    _say("processes started")

    def last() -> int:
        return int(bed.run("cat", "/proc/sys/kernel/ns_last_pid"))

    def started(deed: Any) -> int:
        before, nothing = last(), last()
        deed()
        return last() - nothing - (nothing - before)

    extra = {**d.forward(0), "id": "extra", "ports": {"first": 999, "last": 999}}
    one = [
        started(lambda: bed.patch(d.put("forwards", extra))),
        started(lambda: bed.patch(d.remove("forwards", "extra"))),
    ]
    config = {**_config(bed, n), "records": [{"id": "r", "name": "extra", "type": "A", "value": "192.0.2.1"}]}
    whole_push = started(lambda: bed.push({**config, "forwards": config["forwards"][: n // 2]}))
    bed.push(_config(bed, n))
    return [
        figure("processes started per element change", max(one), "", most=1),
        figure(f"processes started per whole push at {n:,}", whole_push, ""),
    ]


def _gap(bed: Bed) -> list[Figure]:
    """New flows through a forward, 500 a second, while whole documents and changes are pushed."""
    _say("gap, from the packet side")
    base = _config(bed, 1_000)
    udp = {
        "id": "probe",
        "protocol": "udp",
        "address": "203.0.113.11",
        "ports": {"first": 7, "last": 7},
        "target": SERVER,
    }
    base["forwards"] = [*base["forwards"], udp]
    base["firewall"] = [
        *base["firewall"],
        {"id": "probe", "address": "203.0.113.11", "protocol": "udp", "ports": udp["ports"]},
    ]
    bed.push(base)
    with Prober(bed.guests["outside"], bed.guests["server"], "203.0.113.11", 7) as prober:
        time.sleep(2.0)
        idle = prober.take()
        for turn in range(4):
            kept = base["forwards"][: 300 + 200 * (turn % 2)]
            bed.push(
                {**base, "forwards": [*kept, udp], "firewall": base["firewall"] if turn % 2 else base["firewall"][500:]}
            )
        bed.push(base)
        for i in range(20):
            extra = {**d.forward(0), "id": "extra", "ports": {"first": 500 + i, "last": 500 + i}}
            bed.patch(d.put("forwards", extra))
        busy = prober.take()
    return [
        figure(f"new flows lost while pushing, of {busy.sent:,}", busy.lost, "", idle.lost, most=0),
        figure("longest silence between two answers while pushing, against idle", busy.gap_ms, "ms", idle.gap_ms),
    ]


def _rate(bed: Bed, n: int) -> float:
    last = d.forward(n - 1)
    return connections_per_second(
        bed.guests["outside"], bed.guests["server"], last["address"], last["ports"]["first"], 22, seconds=1.5
    )


def _memory(bed: Bed) -> float:
    """Resident memory when nothing has been pushed for a while."""
    time.sleep(2.5)
    text = bed.appliance.metrics().body
    line = next(x for x in text.splitlines() if x.startswith("narthex_resident_bytes "))
    return float(line.split()[1]) / 2**20


def _start_to_converged() -> float:
    """Create, start, and the first document confirmed; taking down is not counted."""
    started = time.perf_counter()
    with Bed({"public": d.PUBLIC, "guest": d.GUEST}) as bed:
        bed.push(_config(bed, 10))
        return time.perf_counter() - started


# --- the floor -------------------------------------------------------------------------------------------------------


def _compiled(bed: Bed, config: dict[str, Any]) -> State:
    """The same artifacts that the agent makes of this config."""
    document = validate_json(Document[Config], json.dumps(bed.document(config)).encode())
    links = {}
    for line in bed.run("ip", "-o", "link").splitlines():
        name, mac = line.split()[1].split("@")[0].rstrip(":"), line.partition("link/ether ")[2][:17]
        if mac:
            links[mac] = LinkFact(name, mac, 1, 1500, True)
    return compile(document.config, Facts(CELL, links, bed.control["mac"]))


class Floor:
    """The bare tools in a network namespace of their own, one shell per push."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.text = ""

    def push(self, state: State) -> dict[str, float]:
        """Milliseconds: "all" the work, and how much of it was reading back."""
        new = self.folder / "new"
        new.mkdir(exist_ok=True)
        (new / "ruleset").write_text(whole(state.ruleset))
        install, copies = [], {}
        for number, file in enumerate(f for f in state.files if f.path.startswith("/etc/narthex/")):
            copies["{" + file.path + "}"] = str(new / str(number))
            (new / str(number)).write_text(file.content)
            place = self.folder / "root" / file.path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            install.append(f"cp {new / str(number)} {place} && sync {place}")
        checks = [shlex.join(_filled(word, copies) for word in unit.check) for unit in state.units if unit.check]
        self._start_daemons(state)
        hups = [f"kill -HUP {p.pid}" for p in self.daemons.values()]
        script = "\n".join(
            ["set -e", *(f"{c} 2>/dev/null" for c in checks), f"nft -f {new / 'ruleset'}", *install, *hups,
             "date +%s%N", "nft -j list table inet narthex >/dev/null", "date +%s%N"]
        )  # fmt: skip
        started = time.time_ns()
        told = self.namespace.run(("sh", "-c", script), timeout_s=60).stdout.split()
        return {"all": (time.time_ns() - started) / 1e6, "read": (int(told[1]) - int(told[0])) / 1e6}

    def nft(self, text: str) -> float:
        """Milliseconds of one `nft -f -`."""
        started = time.perf_counter()
        self.namespace.run(("nft", "-f", "-"), stdin=text)
        return (time.perf_counter() - started) * 1000

    def _start_daemons(self, state: State) -> None:
        if self.daemons:
            return
        for unit in state.units:
            # What a reload costs the daemon is not waited for by either side; it only has to be there to be told.
            self.daemons[unit.name] = subprocess.Popen(["sh", "-c", "trap '' HUP; exec sleep 600"])

    def close(self) -> None:
        for process in self.daemons.values():
            process.kill()
            process.wait()


def _filled(word: str, copies: dict[str, str]) -> str:
    for key, path in copies.items():
        word = word.replace(key, path)
    return word


@contextmanager
def _floor_machine() -> Iterator[Floor]:
    with tempfile.TemporaryDirectory(prefix="narthex-floor-") as folder, Namespace(f"floor{os.getpid()}") as namespace:
        floor = Floor(namespace, Path(folder))
        try:
            yield floor
        finally:
            floor.close()
