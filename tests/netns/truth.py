"""The machine held against a document, without asking the agent: by nft, ip and /proc, and a compilation of our own."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from appliance.document import Document, validate_json
from appliance.ruleset import rule_digest
from appliance.state import Chain, Facts, LinkFact, NftSet, State
from mgmt.hosts.namespace import Process
from router.compile import compile
from router.config import Config
from tests.bed import CELL, Bed

FOLDERS = ("/etc/narthex/dhcp", "/etc/narthex/advertise", "/etc/narthex/dns")  # all of the router's own files are there


def compiled(bed: Bed, document: dict[str, Any]) -> State:
    """What this document makes of the cell's machine."""
    links = {}
    for link in _told(bed, "ip", "-j", "link"):
        if link["link_type"] == "ether":
            fact = LinkFact(link["ifname"], link["address"], link["ifindex"], link["mtu"], True)
            links[link["address"]] = fact
    config = validate_json(Document[Config], json.dumps(document).encode()).config
    return compile(config, Facts(CELL, links, bed.control["mac"]))


def differences(bed: Bed, state: State) -> list[str]:
    """In what the machine is not this State, in words; none where it is it, no more and no less."""
    found = [*_ruleset(bed, state), *_addresses(bed, state), *_routes(bed, state), *_rules(bed, state)]
    return [*found, *_files(bed, state), *_sysctls(bed, state), *_units(bed, state)]


def as_it_is(bed: Bed) -> str:
    """The packet filter (without handles and counters), addresses, routes and rules of the cell, in one order."""
    entries = _told(bed, "nft", "-s", "-j", "list", "ruleset")["nftables"]
    rules: dict[str, list[Any]] = {}
    others = []
    for entry in map(_normal, entries):
        if "rule" in entry:
            rules.setdefault(entry["rule"]["chain"], []).append(entry["rule"])
        elif "metainfo" not in entry:
            others.append(json.dumps(entry, sort_keys=True))
    ip = [_told(bed, "ip", "-N", "-j", *words) for words in (("addr",), ("route", "show", "table", "all"), ("rule",))]
    for link in ip[0]:
        link.pop("qdisc", None)
    told = [sorted(json.dumps(entry, sort_keys=True) for entry in entries) for entries in ip]
    return "\n".join([*sorted(others), json.dumps(rules, sort_keys=True), *(line for lines in told for line in lines)])


def inside(bed: Bed) -> Process:
    """The cell's own network namespace."""
    return Process(bed.driver.list()[0].pid)


def _told(bed: Bed, *argv: str) -> Any:
    """What a tool of ours, not the cell's, says of the cell's network; in a VM it is the VM's own tool."""
    if not bed.where.is_cell:
        return json.loads(bed.run(*argv))
    with inside(bed).entered():
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)


def _normal(value: Any) -> Any:
    """Without what the kernel counts, and the elements of a set in one order."""
    if isinstance(value, list):
        return [_normal(v) for v in value]
    if not isinstance(value, dict):
        return value
    plain = {k: _normal(v) for k, v in value.items() if k != "handle"}
    if "elem" in plain and isinstance(plain["elem"], list):
        plain["elem"] = sorted(plain["elem"], key=json.dumps)
    return plain


# --- the packet filter ------------------------------------------------------------------------------------------------


def _ruleset(bed: Bed, state: State) -> list[str]:
    told = _told(bed, "nft", "-j", "list", "ruleset")["nftables"]
    tables = {entry["table"]["name"] for entry in told if "table" in entry}
    found = [] if tables == {"narthex"} else [f"tables {tables}"]
    chains = {e["chain"]["name"]: _hook(e["chain"]) for e in told if "chain" in e}
    digests: dict[str, list[str]] = {name: [] for name in chains}
    for entry in told:
        if rule := entry.get("rule"):
            digests[rule["chain"]].append(rule.get("comment", "").rpartition("#")[2])
    wished = {c.name: c for c in state.ruleset.chains}
    for name in chains.keys() | wished.keys():
        chain = wished.get(name)
        if chain is None or (chains.get(name), digests.get(name)) != (_wished_hook(chain), _digests(chain)):
            found.append(f"chain {name}")
    sets = {}
    for entry in told:
        if item := entry.get("set") or entry.get("map"):
            elements = item.get("elem", [])
            pairs = dict(map(_pair, elements)) if "map" in entry else {_text(e): "" for e in elements}
            sets[item["name"]] = (_kind(item["type"]), _kind(item.get("map", "")), pairs)
    for name in sets.keys() | state.ruleset.sets.keys():
        want = state.ruleset.sets.get(name)
        if want is None or sets.get(name) != _wished_set(want):
            found.append(f"set {name}")
    return found


def _hook(chain: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(chain.get(key) for key in ("type", "hook", "prio", "policy"))


def _wished_hook(chain: Chain) -> tuple[Any, ...]:
    h = chain.hook
    return (h.type, h.hook, h.priority, h.policy) if h else (None, None, None, None)


def _digests(chain: Chain) -> list[str]:
    return [rule_digest(rule) for rule in chain.rules]


def _wished_set(want: NftSet) -> tuple[str, str, dict[str, str]]:
    return want.key, want.value, dict(want.elements)


def _kind(told: Any) -> str:
    return " . ".join(told) if isinstance(told, list) else str(told)


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


# --- links, addresses, routes, rules ----------------------------------------------------------------------------------


def _addresses(bed: Bed, state: State) -> list[str]:
    told = _told(bed, "ip", "-j", "addr")
    ours = {link.name for link in state.links}
    there = {
        (link["ifname"], f"{a['local']}/{a['prefixlen']}", not a.get("noprefixroute", False))
        for link in told
        if link["ifname"] in ours
        for a in link["addr_info"]
        if a["family"] == "inet"
    }
    wished = {(a.link, a.cidr, a.connected) for a in state.addresses}
    found = [f"address {pair}" for pair in there ^ wished]
    links = {link["ifname"]: (link["mtu"], "UP" in link["flags"]) for link in told}
    found += [f"link {k.name}" for k in state.links if links.get(k.name) != (k.mtu or links[k.name][0], k.up)]
    return found + [f"link {name} is up" for name in links.keys() - ours - {"lo"} if links[name][1]]


def _routes(bed: Bed, state: State) -> list[str]:
    there = {
        (
            "0.0.0.0/0" if r["dst"] == "default" else r["dst"], r["dev"], r.get("gateway", ""),
            int(r.get("table", 254)), r.get("prefsrc", ""), r.get("metric", 0),
        )
        for r in _told(bed, "ip", "-N", "-j", "-4", "route", "show", "table", "all", "proto", "110")
    }  # fmt: skip
    wished = {(r.destination.removesuffix("/32"), r.link, r.via, r.table, r.source, r.metric) for r in state.routes}
    return [f"route {route}" for route in there ^ wished]


def _rules(bed: Bed, state: State) -> list[str]:
    seen = sorted(
        (
            r["priority"], int(r["table"]), int(r.get("fwmark", "0"), 16), int(r.get("fwmask", "0"), 16),
            "" if r["src"] == "all" else f"{r['src']}/{r.get('srclen', 32)}", r.get("suppress_prefixlen", -1),
        )
        for r in _told(bed, "ip", "-N", "-j", "rule")
        if str(r.get("protocol")) == "110"
    )  # fmt: skip
    wished = sorted((r.priority, r.table, r.mark, r.mask, r.source, r.suppress) for r in state.rules)
    return [] if seen == wished else [f"rules {seen}, not {wished}"]


# --- files, settings, processes ---------------------------------------------------------------------------------------


def _files(bed: Bed, state: State) -> list[str]:
    script = _FILES.format(files=[file.path for file in state.files], folders=FOLDERS)
    told = json.loads(bed.run("/usr/bin/python3", "-c", script))
    found = [f"file {f.path}" for f in state.files if told["files"].get(f.path) != [f.content, f.mode]]
    wished = {file.path for file in state.files}
    return found + [f"file {path} is left over" for path in set(told["there"]) - wished]


_FILES = """
import glob, json, os
files = {{p: (open(p).read(), os.stat(p).st_mode & 0o7777) for p in {files} if os.path.exists(p)}}
there = [p for folder in {folders} for p in glob.glob(folder + "/[!.]*")]
print(json.dumps(dict(files=files, there=there)))
"""


def _sysctls(bed: Bed, state: State) -> list[str]:
    paths = {s.key: "/proc/sys/" + s.key.translate(str.maketrans("./", "/.")) for s in state.sysctls}
    told = json.loads(bed.run("/usr/bin/python3", "-c", _SETTINGS.format(paths=paths)))
    return [f"sysctl {s.key}" for s in state.sysctls if told.get(s.key, s.value) != s.value]


_SETTINGS = """
import json, os
print(json.dumps({{key: open(p).read().strip() for key, p in {paths}.items() if os.path.exists(p)}}))
"""


def _units(bed: Bed, state: State) -> list[str]:
    """A dnsmasq for each unit, by its configuration, and no other."""
    running = set()
    for words in json.loads(bed.run("/usr/bin/python3", "-c", _PROCESSES)):
        if words[0].endswith("dnsmasq"):
            running.add((words[0].rpartition("/")[2], *words[1:]))
    return [f"units {running}"] if running != {u.command for u in state.units} else []


_PROCESSES = """
import glob, json
found = []
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        found.append(open(path).read().rstrip("\\0").split("\\0"))
    except OSError:
        pass
print(json.dumps(found))
"""
