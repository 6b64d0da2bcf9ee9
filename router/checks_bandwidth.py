"""Meaning across objects: what a limit is of is there, and has no other limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from appliance.state import Problem
from router.config import Config
from router.config_bandwidth import Limit

MOST = 16_000  # of the 32,752 numbers that classes have: with half of them free, a change moves few


def limit_problems(config: Config, touched: frozenset[str] | None = None) -> Iterator[Problem]:
    """Of all limits, or of those with `touched` ids."""
    limits = config.limits
    if not limits:
        return
    if len(limits) > MOST:
        yield Problem("config.limits", f"there are {len(limits)} limits, and a router takes {MOST}; leave some out")
    chosen = limits if touched is None else [one for one in limits if one.id in touched]
    known = _known(config, chosen)
    twice = _twice(limits if touched is None else _near(limits, chosen))
    for limit in chosen:
        kind, ident = limit.what
        path = f"config.limits[{limit.id}].{kind}"
        if ident not in known[kind]:
            yield Problem(path, _missing(config, kind, ident))
        if (others := twice.get((kind, ident))) and others[0] != limit.id:
            yield Problem(path, f"{ident} has a limit already, {others[0]}; keep one of them")


def _known(config: Config, chosen: Sequence[Limit]) -> dict[str, set[str]]:
    hosts = {one.host for one in chosen if one.host is not None}
    return {
        "network": {n.id for n in config.networks},
        "host": {h.id for h in config.hosts if h.id in hosts} if hosts else set(),
        "address": {c.partition("/")[0] for i in config.interfaces if i.use == "public" for c in i.addresses},
    }


def _missing(config: Config, kind: str, ident: str) -> str:
    if kind == "address":
        return f"{ident} is no address of a public interface; add it there, or name another"
    return f"there is no {kind} {ident}; add it to {kind}s, or name another"


def _near(limits: Iterable[Limit], chosen: Sequence[Limit]) -> list[Limit]:
    """The limits of what the chosen are of."""
    hosts = {one.host for one in chosen if one.host is not None}
    others = {one.what for one in chosen if one.host is None}
    return [one for one in limits if (one.what in others if one.host is None else one.host in hosts)]


def _twice(limits: Iterable[Limit]) -> dict[tuple[str, str], list[str]]:
    """What has several limits, and their ids in the document's order."""
    found: dict[tuple[str, str], list[str]] = {}
    for limit in limits:
        found.setdefault(limit.what, []).append(limit.id)
    return {what: ids for what, ids in found.items() if len(ids) > 1}
