"""plan(before, after): the ordered Steps that turn one State into another. Pure.

The order is the transaction's (docs/design.md 5): add before delete, the packet filter in one step, files before the
units that read them, removals last, of those the guests' advertisements first. Parts that are the same object are
skipped by identity, so that a change costs what it changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, TypeVar

from appliance import ruleset as nftext
from appliance.difference import difference
from appliance.state import (
    Address,
    Advert,
    Class,
    Entry,
    File,
    FilterRule,
    Link,
    Masked,
    Nat,
    Peer,
    Pool,
    Route,
    Rule,
    Ruleset,
    Shaper,
    State,
    Sysctl,
    Unit,
    Wireguard,
)
from appliance.values import shortest, without


@dataclass(frozen=True, slots=True)
class Flows:
    """Live flows that lost their translation and must end. Empty fields match anything.

    `destination`:`port` is what the flow was first sent to, `protocol` tcp or udp, `target` where it was translated to,
    `sources` CIDRs of its source; `address`: any flow whose original destination or translated source this is;
    `network`: any flow with an end in this CIDR.
    """

    destination: str = ""
    protocol: str = ""
    ports: str = ""  # "2222" or "5000-5010"
    target: str = ""
    sources: tuple[str, ...] = ()
    source: str = ""
    translated: str = ""
    address: str = ""
    network: str = ""
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """All flows that a plan ends: asked of the kernel at once, because each question walks its table."""

    flows: tuple[Flows, ...]


Kind = Literal[
    "sysctl", "link", "wireguard", "peer", "address", "route", "rule", "ruleset", "meters", "shaper",
    "file", "unit", "pool", "advert", "entry", "flows",
]  # fmt: skip
Verb = Literal["set", "add", "remove", "apply", "write", "stop", "start", "reload", "restart", "end"]
Part = (
    Sysctl | Link | Wireguard | Peer | Address | Route | Rule | Ruleset | Shaper
    | File | Unit | Pool | Advert | Entry | Lost
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do: `verb` on the `kind` named `name`. `before` and `after` are the part then and now.

    `text` is the ruleset's nft text; `whole` says that it replaces the table, else `elements` has the keys that go from
    each set and that come. `owner` is the document's object.
    """

    kind: Kind
    verb: Verb
    name: str
    before: Part | None = None
    after: Part | None = None
    text: str = ""
    whole: bool = False
    elements: Mapping[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind} {self.name}" + (f" ({self.owner})" if self.owner else "")


P = TypeVar("P", Sysctl, Link, Wireguard, Peer, Address, Route, Rule, File, Unit, Pool, Advert, Shaper, Entry)


def plan(before: State, after: State) -> tuple[Step, ...]:
    """The steps that turn a machine that is `before` into one that is `after`; none when they are equal."""
    if before is after:
        return ()
    sysctls = _pairs(before.sysctls, after.sysctls, lambda p: p.key)
    links = _pairs(before.links, after.links, lambda p: p.name)
    wireguards = _pairs(before.wireguards, after.wireguards, lambda p: p.link)
    peers = _pairs(before.peers, after.peers, peer_key)
    addresses = _pairs(before.addresses, after.addresses, lambda p: f"{p.cidr} on {p.link}")
    routes = _pairs(before.routes, after.routes, route_key)
    rules = _pairs(before.rules, after.rules, rule_key)
    files = _pairs(before.files, after.files, lambda p: p.path)
    adverts = _pairs(before.adverts, after.adverts, advert_key)
    ruleset = tuple(_ruleset(before.ruleset, after.ruleset))
    meters = _meters(before.meters, after.meters)
    shapers = _pairs(before.shapers, after.shapers, lambda p: p.link)
    units = tuple(_units(before.units, after.units, {name for name, _, _ in files}))
    return (
        *_set("sysctl", "set", sysctls),
        *_set("link", "set", links),
        *_set("wireguard", "set", wireguards),
        *_set("peer", "set", peers),
        *_set("address", "add", _kept(addresses)),
        *_set("route", "add", _kept(routes)),
        *_set("rule", "add", rules),
        *ruleset,
        *meters,
        *_set("shaper", "set", shapers),
        *_set("file", "write", files),
        *units,
        *_set("address", "add", _landed(addresses)),
        *_set("route", "add", _landed(routes)),
        # One that goes, goes with what its unit reads; what came with that is told again, which changes nothing.
        *_set("pool", "set", _pairs(before.pools, after.pools, lambda p: p.name)),
        *_entries(before, after, units),
        *_set("advert", "add", adverts),
        *_gone("advert", adverts),
        *_gone("peer", peers),
        *_gone("shaper", shapers),
        *_gone("rule", rules),
        *_gone("route", routes),
        *_gone("address", addresses),
        *_gone("link", links),
        *_gone("file", files),
        *_flows(before, after, addresses, ruleset, peers, routes),
    )


def peer_key(peer: Peer) -> str:
    """A peer is known by its public key. (Of a wireguard that is gone nothing is left to do: its link goes.)"""
    return f"{peer.public_key} on {peer.link}"


def route_key(route: Route) -> str:
    """What makes two routes the same one to the kernel: destination, table and metric."""
    return f"{route.destination} table {route.table}" + (f" metric {route.metric}" if route.metric else "")


def rule_key(rule: Rule) -> str:
    """A policy rule has no key of its own: all that selects is the key."""
    selector = f"mark {rule.mark:#x}/{rule.mask:#x} " if rule.mask else ""
    selector += f"from {rule.source} " if rule.source else ""
    suppress = f" suppress {rule.suppress}" if rule.suppress >= 0 else ""
    return f"{rule.priority}: {selector}table {rule.table}{suppress} ipv{rule.family}"


def advert_key(advert: Advert) -> str:
    return f"{advert.kind} {advert.value} on {advert.link}".replace("  ", " ")


Pairs = list[tuple[str, P | None, P | None]]


def _pairs(before: tuple[P, ...], after: tuple[P, ...], key: Callable[[P], str]) -> Pairs[P]:
    """(name, then, now) of the parts that differ; those of `after` first, in its order."""
    if before is after:
        return []
    old = {key(p): p for p in before}
    new = {key(p): p for p in after}
    found: Pairs[P] = []
    for name, part in new.items():
        was = old.get(name)
        if was is not part and was != part:
            found.append((name, was, part))
    found += [(name, part, None) for name, part in old.items() if name not in new]
    return found


def _set(kind: Kind, verb: Verb, pairs: Pairs[P]) -> Iterator[Step]:
    for name, old, new in pairs:
        if new is not None:
            yield Step(kind, verb, name, old, new, owner=_owner(old, new))


def _kept(pairs: Pairs[Any]) -> Pairs[Any]:
    return [(name, old, new) for name, old, new in pairs if not _lands(old, new)]


def _landed(pairs: Pairs[Any]) -> Pairs[Any]:
    """What floated and shall stand: the unit that had it takes it away when it stops, so it comes after that."""
    return [(name, old, new) for name, old, new in pairs if _lands(old, new)]


def _lands(old: Any, new: Any) -> bool:
    return old is not None and new is not None and old.floating and not new.floating


def _gone(kind: Kind, pairs: Pairs[P]) -> Iterator[Step]:
    for name, old, new in pairs:
        if new is None and old is not None:
            yield Step(kind, "remove", name, old, None, owner=_owner(old, None))


def _owner(old: P | None, new: P | None) -> str:
    """Whose a part is; of a shaper, whose the classes are that change."""
    part = new if new is not None else old
    if not isinstance(part, Shaper):
        return part.owner if part is not None else ""
    was: Mapping[int, Class] = old.classes if isinstance(old, Shaper) else {}
    now: Mapping[int, Class] = new.classes if isinstance(new, Shaper) else {}
    changed = [(now.get(n) or was[n]).owner for n in differing(was, now)]
    return ", ".join(list(dict.fromkeys(filter(None, changed)))[:8])


def differing(was: Mapping[int, Class], now: Mapping[int, Class]) -> list[int]:
    """The numbers of the classes that come, change or go."""
    before = was.get
    found = [n for n, c in now.items() if (old := before(n)) is not c and old != c]
    return [*found, *(was.keys() - now.keys())]


def _ruleset(before: Ruleset, after: Ruleset) -> Iterator[Step]:
    if before is after:
        return
    delta = nftext.delta(before, after)
    if delta is None:
        if before != after:
            name = "the whole table"
            yield Step("ruleset", "apply", name, before, after, nftext.whole(after), whole=True)
    elif delta.text:
        owner = ", ".join(_owners(before, after, delta)[:8])
        name = ", ".join(delta.names[:8])
        yield Step("ruleset", "apply", name, before, after, delta.text, elements=delta.elements, owner=owner)


def _meters(before: Ruleset, after: Ruleset) -> Iterator[Step]:
    """A table of counters changes by what comes and goes, however much that is: what stays must count on."""
    if before is after or before == after:
        return
    delta = nftext.delta(before, after, _ANY_NUMBER, nftext.METERS) if after.chains else None
    if delta is None:
        text = nftext.whole(after, nftext.METERS)
        yield Step("meters", "apply", "all counters", before, after, text, whole=True)
    elif delta.text:
        owner = ", ".join(_owners(before, after, delta)[:8])
        yield Step(
            "meters", "apply", ", ".join(delta.names[:8]), before, after, delta.text,
            elements=delta.elements, owner=owner,
        )  # fmt: skip


_ANY_NUMBER = 1 << 30


def _owners(before: Ruleset, after: Ruleset, delta: nftext.Delta) -> list[str]:
    """The objects that a delta brings (back)."""
    owners = [after.sets[name].owners.get(key, "") for name, (_, come) in delta.elements.items() for key in come]
    if before.chains is not after.chains:
        named = set(delta.names)
        old = {c.name: set(c.rules) for c in before.chains if c.name in named}
        for chain in after.chains:
            if chain.name in named:
                owners += [rule.owner for rule in chain.rules if rule not in old.get(chain.name, ())]
    return [owner for owner in dict.fromkeys(owners) if owner]


def _units(before: tuple[Unit, ...], after: tuple[Unit, ...], changed: set[str]) -> Iterator[Step]:
    """Stop what goes (it may hold a port of what comes); then start, restart or reload what reads `changed` files."""
    old = {u.name: u for u in before}
    new = {u.name for u in after}
    for unit in before:
        if unit.name not in new:
            yield Step("unit", "stop", unit.name, unit, None, owner=unit.owner)
    for unit in after:
        was = old.get(unit.name)
        if was is None:
            yield Step("unit", "start", unit.name, None, unit, owner=unit.owner)
        elif _started_from(was) != _started_from(unit) or changed.intersection((*was.restart_on, *unit.restart_on)):
            yield Step("unit", "restart", unit.name, was, unit, owner=unit.owner)
        elif changed.intersection((*was.reload_on, *unit.reload_on)):
            yield Step(
                "unit", "reload" if unit.reload or unit.reload_by else "restart", unit.name, was, unit, owner=unit.owner
            )


def _entries(before: State, after: State, units: tuple[Step, ...]) -> Iterator[Step]:
    """What is new, and all of a unit that begins anew; then what goes, that which stands on others first."""
    if before.entries is after.entries and not units:
        return
    new = {step.name for step in units if step.verb in ("start", "restart")}
    there = tuple(t for t in before.entries if t.unit not in new) if new else before.entries
    pairs = _pairs(there, after.entries, lambda p: f"{p.kind} {p.name} of {p.unit}")
    yield from _set("entry", "set", pairs)
    stay = {unit.name for unit in after.units} - new
    for name, old, now in reversed(pairs):
        if now is None and old is not None and old.unit in stay:
            yield Step("entry", "remove", name, old, None, owner=old.owner)


def _started_from(unit: Unit) -> tuple[Any, ...]:
    """What a running process cannot be told anew."""
    return unit.command, unit.reload, unit.directories, unit.sandbox


# --- flows that lose their translation -------------------------------------------------------------------------------


def _flows(
    before: State, after: State, addresses: Pairs[Address], ruleset: tuple[Step, ...], peers: Pairs[Peer],
    routes: Pairs[Route],
) -> Iterator[Step]:  # fmt: skip
    found = (
        *_of_lost_tunnels(before, routes),
        *_at_lost_addresses(after, addresses),
        *(f for step in ruleset for f in _lost(step, before, after)),
        *_of_lost_peers(peers),
    )
    if found:
        owners = list(dict.fromkeys(f.owner for f in found if f.owner))
        name = f"of {', '.join(owners[:8])}" if owners else f"of {len(found)} translations"
        yield Step("flows", "end", name, Lost(found), None, owner=owners[0] if owners else "")


def _at_lost_addresses(after: State, addresses: Pairs[Address]) -> Iterator[Flows]:
    still = {a.cidr.partition("/")[0] for a in after.addresses} if addresses else set()
    for _, old, new in addresses:
        if old is not None and new is None and (text := old.cidr.partition("/")[0]) not in still:
            yield Flows(address=text, owner=old.owner)


def _of_lost_tunnels(before: State, routes: Pairs[Route]) -> Iterator[Flows]:
    """What was behind a tunnel and is not any more: such a flow would go on by an uplink, for anybody to read."""
    tunnels = {link.name for link in before.links if link.kind == "xfrm"} if routes else set()
    for _, old, new in routes:
        if old is not None and new is None and old.link in tunnels:
            yield Flows(network=old.destination, owner=old.owner)


def _of_lost_peers(peers: Pairs[Peer]) -> Iterator[Flows]:
    """Whoever is cut off, or gets other addresses or another key, ends with all flows: they are another's from now on.

    A key that is replaced is a peer that goes and one that comes.
    """
    for _, old, new in peers:
        for cidr in old.networks if old is not None else ():
            if new is None or cidr not in new.networks:
                yield Flows(network=cidr, owner=old.owner if old is not None else "")


def _lost(step: Step, before: State, after: State) -> Iterator[Flows]:
    """The flows of translations that are gone: into us, by the port they were sent to, and of guests outwards."""
    now: dict[tuple[Door, str], list[str]] = {}
    was = list(_ways(step, before.ruleset, after.ruleset, is_gone=True))
    for door, target, sources, _ in _ways(step, before.ruleset, after.ruleset, is_gone=False) if was else ():
        now.setdefault((door, target), []).extend(sources or _EVERYONE)
    for door, target, sources, owner in was:
        # Another list of sources, or another map that holds them, is no end for who is still led to the same place.
        kept = now.get((door, target))
        lost = without(sources or _EVERYONE, tuple(kept)) if kept else sources
        if lost or not kept:
            yield Flows(*door, target.partition(" . ")[0], lost, owner=owner)
    for rule in _nat_rules(before.ruleset, "postrouting"):
        yield from _lost_outwards(rule, step, before.ruleset, after.ruleset)


_EVERYONE = ("0.0.0.0/0",)
# Where a flow was sent to: address, protocol, port or ports; "" for any.
Door = tuple[str, str, str]
# A door, the address and port that it leads to ("10.1.1.10 . 22"), for whom (CIDRs, () for everyone), whose it is.
Way = tuple[Door, str, tuple[str, ...], str]


def _nat_rules(ruleset: Ruleset, hook: str) -> Iterator[FilterRule]:
    for chain in ruleset.chains:
        if chain.hook is not None and chain.hook.type == "nat" and chain.hook.hook == hook:
            yield from chain.rules


def _ways(step: Step, before: Ruleset, after: Ruleset, is_gone: bool) -> Iterator[Way]:
    """The ways in that go with a step, or those that come with it."""
    side, other = (before, after) if is_gone else (after, before)
    for rule in _nat_rules(side, "prerouting"):
        statement = rule.statement
        name = getattr(statement, "map", "")
        if name not in side.sets or side.sets[name] is other.sets.get(name):
            continue
        found = side.sets[name]
        for key in _changed(step, name, before, after)[0 if is_gone else 1]:
            parts = dict(zip(getattr(statement, "fields", ()), key.split(" . "), strict=False))
            door = parts.get("ip daddr", ""), parts.get("meta l4proto", ""), parts.get("th dport", "")
            sources = tuple(shortest(f"{part}/{f.prefix}") for f, part in parts.items() if isinstance(f, Masked))
            owner = found.owners.get(key, "")
            if isinstance(statement, Nat):
                yield door, found.elements[key], sources, owner
                continue
            for target, those in _targets(side, found.elements[key]):
                address, _, port = target.partition(":")
                yield door, f"{address} . {port or door[2]}", those, owner


def _changed(step: Step, name: str, before: Ruleset, after: Ruleset) -> tuple[list[str], list[str]]:
    """The keys of a map that go and those that come, with a step."""
    old, new = before.sets.get(name), after.sets.get(name)
    if old is None or new is None:
        return list(old.elements) if old else [], list(new.elements) if new else []
    return nftext.changed_elements(old, new) if step.whole else step.elements.get(name, ([], []))


def _lost_outwards(rule: FilterRule, step: Step, before: Ruleset, after: Ruleset) -> Iterator[Flows]:
    """A source NAT that changes leaves its flows alone while its address is ours; a static NAT has no other end."""
    statement = rule.statement
    if not isinstance(statement, Nat) or set(statement.fields) != {"ip saddr"} or statement.map not in before.sets:
        return
    old = before.sets[statement.map]
    if old is not after.sets.get(statement.map):
        for key in _changed(step, statement.map, before, after)[0]:
            if "/" not in key:
                yield Flows(source=key, translated=old.elements[key], owner=old.owners.get(key, ""))


def _targets(ruleset: Ruleset, verdict: str) -> set[tuple[str, tuple[str, ...]]]:
    """(target, sources) of the literal translations in the chain that a verdict leads to."""
    name = verdict.removeprefix("jump ")
    found = set()
    for rule in next((c.rules for c in ruleset.chains if c.name == name), ()):
        if isinstance(rule.statement, Nat) and not rule.statement.map:
            among = next((m for m in rule.matches if m.fields == ("ip saddr",)), None)
            sources = tuple(ruleset.sets[among.set].elements) if among and among.set else among.values if among else ()
            targets = (*rule.statement.targets, *rule.statement.keeps)
            for to in filter(None, (rule.statement.to, *(t.replace(" . ", ":") for t in targets))):
                found.add((to, sources))
    return found


# --- for people ------------------------------------------------------------------------------------------------------


def diff(before: State, after: State) -> str:
    """A unified diff of two States as text; secret files by digest only."""
    a, b = (list(lines(s)) for s in (before, after))
    return "\n".join(difference(a, b, "before", "after"))


def lines(state: State) -> Iterator[str]:
    """A State as text, one part a line (a file's or a chain's lines each on their own)."""
    for group in (
        state.sysctls, state.links, state.wireguards, state.peers, state.addresses, state.routes, state.rules,
    ):  # fmt: skip
        for part in group:
            yield _line(part)
    for s in (*state.ruleset.sets.values(), *state.meters.sets.values()):
        yield f"nft set {s.name} {s.key} : {s.value}"
        yield from (f"nft element {s.name} {k} : {v}" for k, v in s.elements.items())
    for chain in (*state.ruleset.chains, *state.meters.chains):
        yield f"nft chain {chain.name}"
        yield from (f"nft rule {chain.name} {nftext.rule_text(rule)}" for rule in chain.rules)
    yield from (f"advert {advert_key(advert)}" for advert in state.adverts)
    for shaper in state.shapers:
        for n, c in shaper.classes.items():
            yield f"class {shaper.link} {n:x} of {c.parent:x} rate {c.rate_kbit} ceil {c.ceil_kbit} burst {c.burst}"
    for file in state.files:
        if file.secret:
            yield f"file {file.path}: {sha256(file.content.encode()).hexdigest()[:12]} (secret)"
        else:
            yield from (f"file {file.path}: {line}" for line in file.content.splitlines())
    for pool in state.pools:
        for one in pool.servers:
            yield f"server {pool.name}/{one.name} {one.address} port {one.port} weight {one.weight}"
    for unit in state.units:
        yield f"unit {unit.name}: {' '.join(unit.command)}"
    for entry in state.entries:
        said = f"{sha256(entry.content.encode()).hexdigest()[:12]} (secret)" if entry.secret else entry.content
        yield f"entry {entry.unit} {entry.kind} {entry.name}: {said}"


def _line(part: Sysctl | Link | Wireguard | Peer | Address | Route | Rule) -> str:
    if isinstance(part, Sysctl):
        return f"sysctl {part.key} = {part.value}"
    if isinstance(part, Link):
        made = f" {part.kind}{f' {part.if_id}' if part.if_id else ''}" if part.kind else ""
        return f"link {part.name} {part.mac or '-'} mtu {part.mtu} {'up' if part.up else 'down'}{made}"
    if isinstance(part, Wireguard | Peer):
        return f"{'peer' if isinstance(part, Peer) else 'wireguard'} {part!r}"
    if isinstance(part, Address):
        floating = " floating" if part.floating else ""
        return f"address {part.cidr} on {part.link}{'' if part.connected else ' noprefixroute'}{floating}"
    if isinstance(part, Route):
        source, floating = f" src {part.source}" if part.source else "", " floating" if part.floating else ""
        return f"route {route_key(part)} dev {part.link}{f' via {part.via}' if part.via else ''}{source}{floating}"
    return f"rule {rule_key(part)}"


def digest(steps: Iterable[Step]) -> str:
    """The plan's hash: a push that carries it is carried out only if it would still do exactly this."""
    said = [
        [s.kind, s.verb, s.name, s.text, *(repr(p) for p in (s.before, s.after) if not isinstance(p, Ruleset))]
        for s in steps
    ]
    return sha256(json.dumps(said).encode()).hexdigest()


def outline(steps: Iterable[Step]) -> list[Mapping[str, Any]]:
    """The steps as JSON for the API: kind, verb, name and owner."""
    return [{"kind": s.kind, "verb": s.verb, "name": s.name, "owner": s.owner} for s in steps]
