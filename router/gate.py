"""What ingress, egress and restricted forwards share: elements that lead to small chains.

A rule of the document becomes an element wherever a packet can be looked up exactly (protocol and port); the
element's verdict is the rule's own, or a jump to a chain that asks what an element cannot: to where, which icmp
type, which wide range. From where an element can say too: the source's network stands in its key, in a set for
each prefix length, looked up with the packet's source cut to that length. A list of more than sixteen sources
is asked in a chain again.

Such a chain is named by a digest of its content, so that equal questions are asked by one chain, however many
elements lead to it (a chain costs the kernel 35 us, an element 9, and nft fetches every chain before it changes
one element). A list of more than four CIDRs is one interval set, named by its digest too, shared by whoever has
the same list.

`amended` is the other half: the same ruleset after the elements of a few objects changed, at the cost of the
change. Whatever is not touched stays the same object, and a chain or a set that nobody leads to any more
goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from types import MappingProxyType
from typing import Literal

from appliance.state import Chain, FieldName, FilterRule, Match, NftSet, Ruleset, Verdict
from appliance.values import is_v6, merged, shortest
from router.config import AclItem, EgressRule, Firewall, IngressRule

EXACT_PORTS = 64  # a range up to this many ports is that many elements; a wider one is a rule in a chain
FLAT_CIDRS = 16  # a list up to this long is so many elements a port; a longer one is asked in a chain
INLINE_CIDRS = 4  # a list up to this long stands in the rule; a longer one is a set
EVERYONE = "0.0.0.0/0"
_EVERYONE = frozenset({EVERYONE, "::/0"})
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}

Gated = Firewall | EgressRule | IngressRule


@dataclass(frozen=True, slots=True, order=True)
class Terms:
    """What a packet must be, each "" or () for whatever: texts of one rule's matches. Its lists are of one family."""

    protocol: str = ""
    ports: str = ""
    icmp_type: str = ""
    icmp_code: str = ""
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    family: str = ""  # ipv4 or ipv6 where nothing else says it
    icmpv6: bool = False

    @property
    def matches(self) -> tuple[Match, ...]:
        """The terms as conditions of one rule."""
        texts: tuple[tuple[FieldName, str], ...] = (
            ("meta nfproto", self.family),
            ("meta l4proto", self.protocol),
            ("th dport", self.ports),
            ("icmpv6 type" if self.icmpv6 else "icmp type", self.icmp_type),
            ("icmpv6 code" if self.icmpv6 else "icmp code", self.icmp_code),
        )
        plain = tuple(Match((field,), (text,)) for field, text in texts if text)
        return (*plain, *among("saddr", self.sources), *among("daddr", self.destinations))

    @property
    def text(self) -> str:
        """The terms in one line: the same terms, the same line."""
        plain = f"{self.family}{self.protocol}|{self.ports}|{self.icmp_type}|{self.icmp_code}{'v6' * self.icmpv6}"
        return f"{plain}|{','.join(self.sources)}|{','.join(self.destinations)}"

    @property
    def sets(self) -> tuple[NftSet, ...]:
        """The sets that the matches refer to."""
        return tuple(cidr_set(c) for c in (self.sources, self.destinations) if len(c) > INLINE_CIDRS)


ANYTHING = Terms()


@dataclass(frozen=True, slots=True)
class Screen:
    """A shared chain, the sets it refers to, and the verdict of an element that leads to it."""

    chain: Chain
    sets: tuple[NftSet, ...]

    @property
    def verdict(self) -> str:
        return f"jump {self.chain.name}"


# --- a rule's terms -----------------------------------------------------------------------------------------


def protocol_name(protocol: str | int) -> str:
    """A protocol as nft prints it: a name for the four it has words for, else a number; "" for any."""
    if isinstance(protocol, int):
        return _PROTOCOLS.get(protocol, str(protocol))
    return {"any": "", "icmpv6": "ipv6-icmp"}.get(protocol, protocol)


def exact_ports(rule: Gated) -> range | None:
    """The ports of a rule that is elements, None for one that must be asked in a chain."""
    ports = rule.ports
    if ports is None or ports.last - ports.first >= EXACT_PORTS:
        return None
    return range(ports.first, ports.last + 1)


def has_port(rule: Gated, ports: Iterable[int]) -> bool:
    """Is the rule elements, one of them with one of these ports? Cheap: it is asked of all rules for a few."""
    span = rule.ports
    if span is None:
        return False
    first, last = span.first, span.last
    for port in ports:
        if first <= port <= last:
            return last - first < EXACT_PORTS
    return False


def ends_of(rule: Gated, v6: bool | None) -> tuple[Terms, ...]:
    """From where and to where: what is left to ask of a packet that an element has found."""
    return ends(rule.sources, _destinations(rule), v6)


@lru_cache(maxsize=4096)
def ends(sources: tuple[str, ...], destinations: tuple[str, ...], v6: bool | None) -> tuple[Terms, ...]:
    """What lists of CIDRs ask of packets of a family, or of both (`v6` None): of each of which both lists have some.

    Nothing but ANYTHING where they say nothing of a packet; () where they can fit none.
    """
    if not sources and not destinations:
        return (ANYTHING,)
    found: dict[bool, Terms] = {}
    for family in (False, True) if v6 is None else (v6,):
        these, those = (tuple(c for c in cidrs if is_v6(c) is family) for cidrs in (sources, destinations))
        if (these or not sources) and (those or not destinations):
            found[family] = Terms(sources=distinct(these), destinations=distinct(those))
    if found and all(terms == ANYTHING for terms in found.values()) and (v6 is not None or len(found) == 2):
        return (ANYTHING,)
    wide = {False: Terms(family="ipv4"), True: Terms(family="ipv6")}
    return tuple(wide[family] if terms == ANYTHING else terms for family, terms in found.items())


def _destinations(rule: Gated) -> tuple[str, ...]:
    return () if isinstance(rule, Firewall) else rule.destinations


def terms_of(rule: Gated, v6: bool | None) -> tuple[Terms, ...]:
    """Everything that a rule asks, for one that is not elements."""
    wanted = family_of(rule)
    if v6 is not None and wanted not in (None, v6):
        return ()
    return tuple(serving(rule, terms) for terms in ends_of(rule, v6 if wanted is None else wanted))


def family_of(rule: Gated | AclItem) -> bool | None:
    """The family whose packets alone a rule can fit, by its type of ICMP: IPv6 (True), IPv4 (False); None: both."""
    return None if rule.icmp_type is None else rule.protocol == "icmpv6"


def serving(rule: Gated | AclItem, terms: Terms) -> Terms:
    """`terms` with what a rule says of protocol, ports, type and code."""
    icmp_type, icmp_code = rule.icmp_type, rule.icmp_code
    return replace(
        terms,
        protocol="" if icmp_type is not None else protocol_name(rule.protocol),  # the type says that it is icmp
        ports=f"{rule.ports.first}-{rule.ports.last}" if rule.ports else "",
        icmp_type="" if icmp_type is None else str(icmp_type),
        icmp_code="" if icmp_code is None else str(icmp_code),
        icmpv6=icmp_type is not None and rule.protocol == "icmpv6",
    )


def distinct(cidrs: tuple[str, ...]) -> tuple[str, ...]:
    """The same addresses, all of one family, in the fewest networks, sorted; () where that is everyone."""
    if len(cidrs) > 1:
        return _distinct(cidrs)
    return () if _EVERYONE.intersection(cidrs) else tuple(map(shortest, cidrs))


def network_of(cidr: str) -> tuple[str, int]:
    """A canonical CIDR as address and length; the length of one address is 32."""
    address, _, length = cidr.partition("/")
    return address, int(length or 32)


@lru_cache(maxsize=2048)
def _distinct(cidrs: tuple[str, ...]) -> tuple[str, ...]:
    found = merged(cidrs)
    return () if _EVERYONE.intersection(found) else found


# --- shared chains and sets ---------------------------------------------------------------------------------


def digest(text: str) -> str:
    """Sixteen hex digits that name a content."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def among(end: Literal["saddr", "daddr"], cidrs: tuple[str, ...]) -> tuple[Match, ...]:
    """The condition that an end lies in distinct CIDRs of one family: none for (), a set for a long list."""
    if not cidrs:
        return ()
    field = _FIELDS[is_v6(cidrs[0]), end]
    if len(cidrs) <= INLINE_CIDRS:
        return (Match((field,), cidrs),)
    return (Match((field,), set=_set_name(cidrs)),)


_FIELDS: Mapping[tuple[bool, str], FieldName] = {
    (False, "saddr"): "ip saddr",
    (False, "daddr"): "ip daddr",
    (True, "saddr"): "ip6 saddr",
    (True, "daddr"): "ip6 daddr",
}


@lru_cache(maxsize=1024)
def _set_name(cidrs: tuple[str, ...]) -> str:
    return f"s_list_{digest(','.join(cidrs))}"


@lru_cache(maxsize=256)
def cidr_set(cidrs: tuple[str, ...]) -> NftSet:
    """The shared set of distinct CIDRs of one family."""
    return NftSet(
        _set_name(cidrs),
        "ipv6_addr" if is_v6(cidrs[0]) else "ipv4_addr",
        interval=True,
        elements=dict.fromkeys(cidrs, ""),
    )


def screen(prefix: str, terms: tuple[Terms, ...], verdict: Verdict, why: str) -> Screen:
    """The chain of these terms, sorted and each once, that gives every packet that meets one the verdict."""
    rules = tuple(FilterRule(t.matches, verdict, why) for t in terms)
    name = f"{prefix}_{digest(' '.join((verdict.kind, *(t.text for t in terms))))}"
    return Screen(Chain(name, rules), tuple(s for t in terms for s in t.sets))


def asked(terms: Iterable[Terms]) -> tuple[Terms, ...]:
    """Terms in the order in which a chain asks them, each once."""
    return tuple(sorted(set(terms)))


def owner_of(ids: list[str]) -> str:
    """Whose an element is, short enough for its comment: one object's id, or the first's with the
    number of others.

    A blank in it says that several objects share the element: no id holds one.
    """
    return ids[0] if len(ids) == 1 else f"{min(ids)} and {len(ids) - 1} more"


# --- elements by verdict ------------------------------------------------------------------------------------


def open_to(
    rules: Sequence[Gated], kind: Literal["accept", "drop"], prefix: str, why: str, v6: bool | None = False
) -> str | Screen:
    """The verdict of an element that `rules` share: theirs where one is for everyone, else a screen."""
    if len(rules) == 1:
        return _open_to_one(rules[0].sources, _destinations(rules[0]), kind, prefix, why, v6)
    terms = asked(terms for rule in rules for terms in ends_of(rule, v6))
    return kind if ANYTHING in terms else screen(prefix, terms, Verdict(kind), why)


# Documents hold thousands of rules with a source each: an unchanged one costs a look here and keeps its objects.
@lru_cache(maxsize=2048)
def _open_to_one(
    sources: tuple[str, ...],
    destinations: tuple[str, ...],
    kind: Literal["accept", "drop"],
    prefix: str,
    why: str,
    v6: bool | None,
) -> str | Screen:
    terms = ends(sources, destinations, v6)
    return kind if ANYTHING in terms else screen(prefix, asked(terms), Verdict(kind), why)


def filled(empty: NftSet, values: Mapping[str, str | Screen], groups: Mapping[str, Sequence[Gated]]) -> NftSet:
    """The set or map with these values, each owned by the rules of its group."""
    elements = {k: text_of(v) for k, v in values.items()}
    owners = {k: owner_of([r.id for r in group]) for k, group in groups.items()}
    return replace(empty, elements=elements, owners=owners)


# --- the change of a few elements ---------------------------------------------------------------------------

EMPTY_SETS: Mapping[str, NftSet] = MappingProxyType({})
# set or map -> key -> (verdict or value, owner), or None where the key goes
Edits = Mapping[str, Mapping[str, tuple[str | Screen, str] | None]]


def text_of(value: str | Screen) -> str:
    """An element's value as text."""
    return value if isinstance(value, str) else value.verdict


def amended(ruleset: Ruleset, edits: Edits, passing: Mapping[str, NftSet] = EMPTY_SETS) -> Ruleset:
    """`ruleset` after `edits`: copies of the maps they change, the rest as it is.

    `passing` are, empty, the sets that are there only while they have elements; who asks them is the caller's.
    """
    sets = dict(ruleset.sets)
    come: dict[str, Screen] = {}
    left: set[str] = set()
    for name, changes in edits.items():
        old = sets[name] if name in sets else passing[name]
        changed = {k: v for k, v in changes.items() if _differs(old, k, v)}
        if not changed:
            continue
        new = sets[name] = _edited(old, changed)
        come.update((v[0].chain.name, v[0]) for v in changed.values() if v and isinstance(v[0], Screen))
        left |= {verdict for k in changed if (verdict := old.elements.get(k, "")).startswith("jump ")}
        if name in passing and not new.elements:
            del sets[name]
    if left:
        maps = [s.elements.values() for s in sets.values() if s.value == "verdict"]
        left = {verdict[5:] for verdict in left if not any(verdict in values for values in maps)}
    for screen in come.values():
        sets.update((s.name, s) for s in screen.sets if s.name not in sets)
    chains, gone = _rechained(ruleset.chains, [screen.chain for screen in come.values()], left)
    _forget_lists(sets, gone, chains)
    return Ruleset(sets, chains)


def rewritten(ruleset: Ruleset, screens: Iterable[Screen]) -> Ruleset:
    """`ruleset` with these chains in place of those of the same names."""
    new = {s.chain.name: s for s in screens}
    sets = dict(ruleset.sets)
    for screen in new.values():
        sets.update((s.name, s) for s in screen.sets if s.name not in sets)
    chains = tuple(new[c.name].chain if c.name in new else c for c in ruleset.chains)
    _forget_lists(sets, [c for c in ruleset.chains if c.name in new], chains)
    return Ruleset(sets, chains)


def _forget_lists(sets: dict[str, NftSet], gone: Iterable[Chain], chains: Iterable[Chain]) -> None:
    """Take out the shared lists that only the chains asked that are gone."""
    if lists := {name for chain in gone for name in _lists(chain)}:
        for name in lists - {name for chain in chains for name in _lists(chain)}:
            del sets[name]


def _differs(old: NftSet, key: str, change: tuple[str | Screen, str] | None) -> bool:
    if change is None:
        return key in old.elements
    return old.elements.get(key) != text_of(change[0]) or old.owners.get(key) != change[1]


def _edited(old: NftSet, changes: Mapping[str, tuple[str | Screen, str] | None]) -> NftSet:
    elements, owners = dict(old.elements), dict(old.owners)
    for key, change in changes.items():
        if change is None:
            del elements[key], owners[key]
        else:
            elements[key], owners[key] = text_of(change[0]), change[1]
    return replace(old, elements=elements, owners=owners)


def _rechained(chains: tuple[Chain, ...], come: list[Chain], left: set[str]) -> tuple[tuple[Chain, ...], list[Chain]]:
    """`chains` with some more and without others, and those others. Helpers stand by name."""
    name_of = attrgetter("name")
    hooked = next((i for i, c in enumerate(chains) if c.hook is None), len(chains))
    changed = list(chains)
    gone = [changed.pop(bisect_left(changed, name, hooked, key=name_of)) for name in sorted(left)]
    for chain in come:
        place = bisect_left(changed, chain.name, hooked, key=name_of)
        if place == len(changed) or changed[place].name != chain.name:
            changed.insert(place, chain)
    return (tuple(changed) if gone or len(changed) > len(chains) else chains), gone


def _lists(chain: Chain) -> set[str]:
    """The shared lists of CIDRs that a chain refers to."""
    return {m.set for r in chain.rules for m in r.matches if m.set.startswith("s_list_")}
