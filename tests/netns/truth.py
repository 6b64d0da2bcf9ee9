"""The machine held against a document, without asking the agent: by nft, ip and cat, and a compilation of our own."""

from __future__ import annotations

import json
from typing import Any

from appliance.document import Document, validate_json
from appliance.ruleset import rule_digest
from appliance.state import Facts, LinkFact, State
from router.compile import compile
from router.config import Config
from tests.bed import CELL, Bed


def compiled(bed: Bed, document: dict[str, Any]) -> State:
    """What this document makes of the cell's machine."""
    links = {}
    for link in json.loads(bed.run("ip", "-j", "link")):
        if link["link_type"] == "ether":
            fact = LinkFact(link["ifname"], link["address"], link["ifindex"], link["mtu"], True)
            links[link["address"]] = fact
    config = validate_json(Document[Config], json.dumps(document).encode()).config
    return compile(config, Facts(CELL, links, bed.control["mac"]))


def differences(bed: Bed, state: State) -> list[str]:
    """In what the machine is not this State, in words; none where it is it, no more and no less."""
    found = [*_ruleset(bed, state), *_addresses(bed, state), *_routes(bed, state)]
    for file in state.files:
        if bed.run("cat", file.path, check=False) != file.content:
            found.append(f"file {file.path}")
    for s in state.sysctls:
        if bed.run("sysctl", "-n", s.key, check=False).strip() not in (s.value, ""):
            found.append(f"sysctl {s.key}")
    running = bed.run("ps", "ax", "-o", "args=")
    found += [f"unit {u.name} does not run" for u in state.units if " ".join(u.command) not in running]
    return found


def _ruleset(bed: Bed, state: State) -> list[str]:
    told = json.loads(bed.run("nft", "-j", "list", "ruleset"))["nftables"]
    tables = {entry["table"]["name"] for entry in told if "table" in entry}
    found = [] if tables == {"narthex"} else [f"tables {tables}"]
    digests: dict[str, list[str]] = {e["chain"]["name"]: [] for e in told if "chain" in e}
    for entry in told:
        if rule := entry.get("rule"):
            digests[rule["chain"]].append(rule.get("comment", "").rpartition("#")[2])
    wished = {c.name: [rule_digest(r) for r in c.rules] for c in state.ruleset.chains}
    found += [f"chain {n}" for n in digests.keys() | wished.keys() if digests.get(n) != wished.get(n)]
    sets = {}
    for entry in told:
        if item := entry.get("set") or entry.get("map"):
            elements = item.get("elem", [])
            sets[item["name"]] = dict(map(_pair, elements)) if "map" in entry else {_text(e): "" for e in elements}
    for name in sets.keys() | state.ruleset.sets.keys():
        want = state.ruleset.sets.get(name)
        if want is None or sets.get(name) != dict(want.elements):
            found.append(f"set {name}")
    return found


def _pair(element: list[Any]) -> tuple[str, str]:
    return _text(element[0]), _text(element[1])


def _text(value: Any) -> str:
    """A value of nft's JSON as the vocabulary writes it."""
    if not isinstance(value, dict):
        return str(value)
    ((kind, inner),) = value.items()
    if kind == "concat":
        return " . ".join(map(_text, inner))
    if kind == "prefix":
        return f"{inner['addr']}/{inner['len']}"
    if kind == "range":
        return f"{_text(inner[0])}-{_text(inner[1])}"
    if kind == "elem":
        return _text(inner["val"])
    return f"{kind} {inner['target']}" if inner else str(kind)


def _addresses(bed: Bed, state: State) -> list[str]:
    told = json.loads(bed.run("ip", "-j", "-4", "addr"))
    links = {link.name for link in state.links}
    there = {(link["ifname"], f"{a['local']}/{a['prefixlen']}") for link in told for a in link["addr_info"]}
    there = {pair for pair in there if pair[0] in links}
    wished = {(a.link, a.cidr) for a in state.addresses}
    found = [f"address {pair}" for pair in there ^ wished]
    mtus = {link["ifname"]: (link["mtu"], "UP" in link["flags"]) for link in json.loads(bed.run("ip", "-j", "link"))}
    return found + [f"link {k.name}" for k in state.links if mtus.get(k.name) != (k.mtu, k.up)]


def _routes(bed: Bed, state: State) -> list[str]:
    told = json.loads(bed.run("ip", "-N", "-j", "-4", "route", "show", "table", "all", "proto", "110"))
    there = {
        ("0.0.0.0/0" if r["dst"] == "default" else r["dst"], r["dev"], r.get("gateway", ""), str(r.get("table", 254)))
        for r in told
    }
    wished = {(r.destination.removesuffix("/32"), r.link, r.via, str(r.table)) for r in state.routes}
    found = [f"route {route}" for route in there ^ wished]
    rules = json.loads(bed.run("ip", "-N", "-j", "rule"))
    seen = sorted((r["priority"], int(r["table"])) for r in rules if str(r.get("protocol")) == "110")
    return found + ([] if seen == sorted((r.priority, r.table) for r in state.rules) else [f"rules {seen}"])
