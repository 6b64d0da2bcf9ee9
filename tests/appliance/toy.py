"""A role in one screen, with a part of every kind in its State: what the engine's tests push."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from zlib import crc32

from appliance.document import Model
from appliance.state import (
    Address,
    Chain,
    Entry,
    Facts,
    File,
    FilterRule,
    Hook,
    Link,
    Match,
    Nat,
    NftSet,
    Problem,
    Route,
    Rule,
    Ruleset,
    State,
    Sysctl,
    Touched,
    Unit,
    Verdict,
    VerdictMap,
)
from appliance.values import Address as AddressText
from appliance.values import Cidr, HostCidr, Identifier, Mac, Mtu, Port, Secret, Text


class Wire(Model):
    id: Identifier
    mac: Mac
    addresses: tuple[HostCidr, ...] = ()
    mtu: Mtu = 1500


class Door(Model):
    id: Identifier
    port: Port
    target: AddressText
    guarded: bool = False


class Way(Model):
    id: Identifier
    wire: Identifier
    destination: Cidr
    via: AddressText


class Note(Model):
    id: Identifier
    text: Text


class Account(Model):
    id: Identifier
    password: Secret


class Config(Model):
    wires: tuple[Wire, ...]
    doors: tuple[Door, ...] = ()
    ways: tuple[Way, ...] = ()
    notes: tuple[Note, ...] = ()
    accounts: tuple[Account, ...] = ()


def problems(config: Config, facts: Facts) -> list[Problem]:
    found = [
        Problem(f"wires[{w.id}].mac", f"{w.mac} is not plugged; plug it")
        for w in config.wires
        if w.mac not in facts.links
    ]
    wires = {w.id for w in config.wires}
    found += [Problem(f"ways[{w.id}].wire", "there is no such wire") for w in config.ways if w.wire not in wires]
    found += _twins("doors", [(d.id, d.port) for d in config.doors])
    for name in Config.model_fields:
        found += _twins(name, [(o.id, o.id) for o in getattr(config, name)])
    return found


def _twins(name: str, pairs: list[tuple[str, Any]]) -> list[Problem]:
    seen: set[Any] = set()
    found = []
    for ident, key in pairs:
        if key in seen:
            found.append(Problem(f"{name}[{ident}]", f"{key} is taken; choose another"))
        seen.add(key)
    return found


def revised_problems(config: Config, touched: tuple[Touched, ...]) -> list[Problem] | None:
    return [] if all(t.collection == "notes" for t in touched) else None


def compile(config: Config, facts: Facts) -> State:
    names = {w.id: facts.links[w.mac].name for w in config.wires}
    return State(
        sysctls=(
            Sysctl("net.ipv4.ip_forward", "1"),
            *(Sysctl(f"net.ipv4.conf.{names[w.id]}.rp_filter", "0", w.id) for w in config.wires),
        ),
        links=tuple(Link(names[w.id], w.mac, w.mtu, owner=w.id) for w in config.wires),
        addresses=tuple(Address(names[w.id], cidr, owner=w.id) for w in config.wires for cidr in w.addresses),
        routes=tuple(Route(w.destination, names[w.wire], w.via, owner=w.id) for w in config.ways),
        rules=tuple(Rule(110, 1000 + crc32(w.id.encode()) % 1000, mark=1, mask=1, owner=w.id) for w in config.ways),
        ruleset=_ruleset(config, facts),
        files=_files(config),
        units=_units(config),
        entries=tuple(
            Entry("vpnd", "/run/vpnd", "secret", a.id, a.password.reveal(), secret=True, owner=a.id)
            for a in config.accounts
        ),
        probes=tuple(w.via for w in config.ways),
    )


def _ruleset(config: Config, facts: Facts) -> Ruleset:
    control = next((link.name for link in facts.links.values() if link.mac == facts.control), "")
    accept = Verdict("accept")
    way_in = FilterRule((Match(("iifname",), (control,)), Match(("th dport",), ("3922",))), accept, "control: ssh")
    doors = {f"{d.port}": d for d in config.doors}
    targets = {port: d.target for port, d in doors.items() if not d.guarded}
    guarded = {port: f"jump guard_{d.id}" for port, d in doors.items() if d.guarded}
    sets = (
        NftSet("m_door", "inet_service", "ipv4_addr", elements=targets, owners={p: doors[p].id for p in targets}),
        NftSet("m_guard", "inet_service", "verdict", elements=guarded, owners={p: doors[p].id for p in guarded}),
    )
    return Ruleset(
        {s.name: s for s in sets if s.name == "m_door" or s.elements},
        (
            Chain("input", (way_in,), Hook("filter", "input", 0, "drop")),
            Chain(
                "dstnat",
                (
                    *((FilterRule((), VerdictMap(("th dport",), "m_guard")),) if guarded else ()),
                    FilterRule((), Nat("dnat", ("th dport",), "m_door")),
                ),
                Hook("nat", "prerouting", -100),
            ),
            *(
                Chain(f"guard_{d.id}", (FilterRule((), Nat("dnat", to=d.target), owner=d.id),))
                for d in sorted(config.doors, key=lambda d: d.id)
                if d.guarded
            ),
        ),
    )


def _files(config: Config) -> tuple[File, ...]:
    lines = sorted(f"{d.port} {d.target}\n" for d in config.doors)
    secrets = "".join(sorted(f"{a.id} {a.password.reveal()}\n" for a in config.accounts))
    return (
        File("/etc/toy/doors", "".join(lines)),
        *_note_files(config),
        *((File("/etc/toy/accounts", secrets, 0o600, secret=True),) if config.accounts else ()),
    )


def _note_files(config: Config) -> tuple[File, ...]:
    return tuple(File(f"/etc/toy/notes/{n.id}", f"{n.text}\n", owner=n.id) for n in config.notes)


def _units(config: Config) -> tuple[Unit, ...]:
    notes = tuple(f"/etc/toy/notes/{n.id}" for n in config.notes)
    check = ("toyd", "--check", "{/etc/toy/doors}")
    toyd = Unit("toyd", ("toyd", "-f"), "HUP", ("/etc/toy/doors", *notes), check=check, checks=("/etc/toy/doors",))
    keyd = Unit("keyd", ("keyd", "-f"), restart_on=("/etc/toy/accounts",))
    vpnd = Unit("vpnd", ("vpnd", "-f"))
    return (toyd, vpnd, keyd) if config.accounts else (toyd, vpnd)


def revise(state: State, config: Config, touched: tuple[Touched, ...], facts: Facts) -> State | None:
    if not {t.collection for t in touched} <= {"notes", "doors"}:
        return None
    if not any(t.collection == "doors" for t in touched):
        return replace(state, files=_files(config), units=_units(config))
    return replace(state, files=_files(config), units=_units(config), ruleset=_ruleset(config, facts))


def trace(state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, Any]:
    if "port" not in query:
        raise ValueError("which port? add ?port=")
    doors = state.ruleset.sets["m_door"]
    return {"target": doors.elements.get(query["port"]), "object": doors.owners.get(query["port"])}
