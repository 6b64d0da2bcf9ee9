"""What is counted: the bytes and packets of each public address, network and guest, in table `inet narthex_usage`.

    addresses_in, addresses_out    by its uplinks, as it stands in the packet there: what the firewall let in (chain
                                   `arrived`, behind `ingress` and before any translation) and what left (`left`)
    networks_in, networks_out,     what the router sends on, from or to the guest's own address (`passed`, behind
    guests_in, guests_out          `forward` and before any translation of the source): to outside, to a tier

Each is a set, or two, one for each family, whose elements count (an object's two addresses add up: appliance/usage.py);
a packet costs six look-ups, whatever the number of guests. What is dropped is counted nowhere, and what guests ask of
the router itself (DNS, DHCP) is no guest's usage. A packet that two guests exchange is sent by one and received by the
other.

It is a table of its own, because a whole push replaces the other one, and its counters would begin anew. Nothing is
decided in it: `continue` is what a rule does that only counts.

conntrack counts too, then, for `flows` (flows.py): a sum by flow, and when it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from appliance.state import (
    Chain,
    Facts,
    FieldName,
    FilterRule,
    Hook,
    Match,
    NftSet,
    Ruleset,
    State,
    Sysctl,
    Touched,
    Verdict,
)
from router.config import Config, Host
from router.links import link_names, own_addresses

_FAMILIES: tuple[tuple[str, str, FieldName, FieldName], ...] = (
    ("", "ipv4_addr", "ip saddr", "ip daddr"),
    ("6", "ipv6_addr", "ip6 saddr", "ip6 daddr"),
)
_SETTINGS = (
    Sysctl("net.netfilter.nf_conntrack_acct", "1"),
    Sysctl("net.netfilter.nf_conntrack_timestamp", "1"),
)


def compile_usage(config: Config, facts: Facts) -> State:
    """The table of counters; nothing where the document does not ask for it."""
    if not config.usage:
        return State()
    sets = {s.name: s for s in _sets(config, facts)}
    uplinks = tuple(link_names(config, facts, "public"))
    chains = (
        Chain("arrived", tuple(_at("iifname", uplinks, sets, "addresses_in")), Hook("filter", "prerouting", -140)),
        Chain("passed", tuple(_passed(sets)), Hook("filter", "forward", 10)),
        Chain("left", tuple(_at("oifname", uplinks, sets, "addresses_out")), Hook("filter", "postrouting", 300)),
    )
    return State(sysctls=_SETTINGS, meters=Ruleset(sets, chains))


def revise_usage(meters: Ruleset, touched: Sequence[Touched]) -> Ruleset:
    """`meters` after these hosts changed: their elements, and nobody else's."""
    if not meters.chains:
        return meters
    gone = {key for t in touched if isinstance(t.before, Host) for key in _addresses(t.before)}
    come = {key: t.id for t in touched if isinstance(t.after, Host) for key in _addresses(t.after)}
    sets = dict(meters.sets)
    for suffix, *_ in _FAMILIES:
        old = {a for a in gone if (":" in a) is bool(suffix)}
        new = {a: owner for a, owner in come.items() if (":" in a) is bool(suffix)}
        owners = sets[f"guests_in{suffix}"].owners
        if all(owners.get(a) == owner for a, owner in new.items()) and not old - new.keys():
            continue
        owners = {a: owner for a, owner in owners.items() if a not in old} | new
        for way in ("in", "out"):
            name = f"guests_{way}{suffix}"
            sets[name] = replace(sets[name], elements=dict.fromkeys(owners, ""), owners=owners)
    return replace(meters, sets=sets) if any(sets[n] is not s for n, s in meters.sets.items()) else meters


def _sets(config: Config, facts: Facts) -> Iterator[NftSet]:
    public = link_names(config, facts, "public").values()
    for suffix, key, *_ in _FAMILIES:
        v6 = bool(suffix)
        addresses = {a: a for i in public for a in own_addresses(i, v6)}
        networks = {cidr: n.id for n in config.networks if (cidr := n.cidr6 if v6 else n.cidr)}
        guests = {a: h.id for h in config.hosts for a in _addresses(h) if (":" in a) is v6}
        yield from _both(f"addresses_{{}}{suffix}", key, addresses)
        yield from _both(f"networks_{{}}{suffix}", key, networks, interval=True)
        yield from _both(f"guests_{{}}{suffix}", key, guests)


def _both(name: str, key: str, owners: Mapping[str, str], interval: bool = False) -> Iterator[NftSet]:
    """The sets of both directions; `owners`: whose traffic an element counts."""
    elements = dict.fromkeys(owners, "")
    for way in ("in", "out"):
        yield NftSet(name.format(way), key, interval=interval, elements=elements, owners=owners, counter=True)


def _addresses(host: Host) -> tuple[str, ...]:
    return (host.address, host.address6) if host.address6 else (host.address,)


def _at(end: FieldName, links: Iterable[str], sets: Mapping[str, NftSet], name: str) -> Iterator[FilterRule]:
    """What came, or left, by these links."""
    if by := tuple(links):
        for suffix, _, source, destination in _FAMILIES:
            if sets[name + suffix].elements:
                field = destination if end == "iifname" else source
                yield _count((Match((end,), by), Match((field,), set=name + suffix)), "of public addresses")


def _passed(sets: Mapping[str, NftSet]) -> Iterator[FilterRule]:
    for kind in ("networks", "guests"):
        for suffix, _, source, destination in _FAMILIES:
            for way, field in (("out", source), ("in", destination)):
                name = f"{kind}_{way}{suffix}"
                if sets[name].elements or kind == "guests":  # guests come by themselves: by a change of theirs alone
                    yield _count((Match((field,), set=name),), f"of {kind}")


def _count(matches: tuple[Match, ...], why: str) -> FilterRule:
    return FilterRule(matches, Verdict("continue"), why)
