"""Our packet filter as nft's text: pure. The tool itself is in nft.py.

`whole` is the text that replaces table `inet narthex` in one transaction; `delta` the text that turns one Ruleset into
another; `observed` reads a listing of the kernel's (nftlist.py) back into the vocabulary. A rule is never parsed back:
its comment ends in a digest of its text, and a chain is what we wished when its digests are. What a comment cannot
show, an edit that keeps it, the fingerprint does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from appliance.state import Chain, Field, FilterRule, Hook, Match, Nat, NftSet, Ruleset, SetMark, Statement, Verdict

TABLE = "inet narthex"
# The table of counters: of its own, because a whole push replaces the other one, and what it counted would be gone.
METERS = "inet narthex_usage"
# Fields whose values are names of interfaces: quoted, so that no name can be taken for a word of nft's.
_QUOTED = frozenset({"iifname", "oifname"})
# Fields that hold flags: several values are joined by commas, not made a set.
_FLAGS = frozenset({"ct state", "ct status"})
# A rule that nobody knows how to read: what observed() puts in a chain that is not as wished.
UNKNOWN = FilterRule((), Verdict("drop"), why="not as wished")


def _literal(field: Field, value: str) -> str:
    return f'"{value}"' if field in _QUOTED else value


def _match(match: Match) -> str:
    fields = " . ".join(map(str, match.fields))
    equals = "!= " if match.negate else ""
    if match.set:
        return f"{fields} {equals}@{match.set}"
    values = [_literal(match.fields[0], v) for v in match.values]
    if match.fields[0] in _FLAGS:
        return f"{fields} {equals}{','.join(values)}"
    return f"{fields} {equals}{values[0] if len(values) == 1 else '{ ' + ', '.join(values) + ' }'}"


def _statement(statement: Statement) -> str:
    if isinstance(statement, Verdict):
        return f"{statement.kind} {statement.chain}".rstrip()
    fields = " . ".join(map(str, statement.fields))
    if isinstance(statement, Nat):
        if statement.kind == "masquerade":
            return "masquerade"
        to = f"{fields} map @{statement.map}" if statement.map else statement.to
        if statement.spread:
            places = ", ".join(f"{n} : {target}" for n, target in enumerate(statement.targets))
            seeded = f"jhash ip saddr mod {len(statement.targets)} seed 0x1"
            turn = seeded if statement.spread == "source" else f"numgen inc mod {len(statement.targets)}"
            to = f"{turn} map {{ {places} }}"
        return f"{statement.kind} {statement.family} to {to}"
    if isinstance(statement, SetMark):
        mapped = f"{fields} map @{statement.map}" if statement.map else ""
        return f"{statement.field} set {mapped or statement.copy or statement.value}"
    return f"{fields} vmap @{statement.map}"


@lru_cache(maxsize=1024)
def rule_text(rule: FilterRule) -> str:
    """One rule as nft reads it; its comment names its owner and ends in the digest of all before it."""
    parts = [_match(m) for m in rule.matches]
    if rule.counter:
        parts.append("counter")
    parts.append(_statement(rule.statement))
    label = " ".join(filter(None, (rule.why.replace('"', "'")[:70], rule.owner[:40])))
    body = " ".join(parts)
    digest = blake2b(f"{body}|{label}".encode(), digest_size=6).hexdigest()
    return f'{body} comment "{label} #{digest}"' if label else f'{body} comment "#{digest}"'


def rule_digest(rule: FilterRule) -> str:
    """The mark by which a rule in the kernel is known as this one."""
    text = rule_text(rule)
    return text[text.rindex("#") + 1 : -1]


def _elements(s: NftSet, keys: Iterable[str]) -> str:
    """The elements of `keys` as nft's list; the comment of each is the object it came from."""
    owners, elements = s.owners, s.elements
    if not s.value:
        return ", ".join(f'{k} comment "{owners[k]}"' if k in owners else k for k in keys)
    return ", ".join(
        f'{k} comment "{owners[k]}" : {elements[k]}' if k in owners else f"{k} : {elements[k]}" for k in keys
    )


def _spec(s: NftSet) -> str:
    kind = f"map {s.name} {{ type {s.key} : {s.value};" if s.value else f"set {s.name} {{ type {s.key};"
    return f"{kind}{' flags interval;' if s.interval else ''}{' counter;' if s.counter else ''}"


def _hook(hook: Hook | None) -> str:
    if hook is None:
        return ""
    return f"type {hook.type} hook {hook.hook} priority {hook.priority}; policy {hook.policy};"


def whole(ruleset: Ruleset, table: str = TABLE) -> str:
    """The text that makes the table this Ruleset in one transaction, whatever it was; a table of counters that counts
    nothing goes."""
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    if table == METERS and not ruleset.chains:
        return "\n".join([*lines[:2], ""])
    for s in ruleset.sets.values():
        lines.append(f"\t{_spec(s)}")
        if s.elements:
            lines.append(f"\t\telements = {{ {_elements(s, s.elements)} }}")
        lines.append("\t}")
    for chain in ruleset.chains:
        lines.append(f"\tchain {chain.name} {{")
        if chain.hook:
            lines.append(f"\t\t{_hook(chain.hook)}")
        lines += [f"\t\t{rule_text(rule)}" for rule in chain.rules]
        lines.append("\t}")
    lines.append("}\n")
    return "\n".join(lines)


def changed_elements(before: NftSet, after: NftSet) -> tuple[list[str], list[str]]:
    """(keys to remove, keys to add): a key whose value changes is in both."""
    old, new = before.elements, after.elements
    if old is new:
        return [], []
    was, now = old.get, new.get  # no value is ever None: one look-up tells both absence and change
    return [k for k, v in old.items() if now(k) != v], [k for k, v in new.items() if was(k) != v]


def same_spec(a: NftSet, b: NftSet) -> bool:
    return (a.key, a.value, a.interval, a.counter) == (b.key, b.value, b.interval, b.counter)


@dataclass(frozen=True, slots=True)
class Delta:
    """What turns one Ruleset into another: nft's `text`, the `names` of the chains and sets it changes, and of each
    changed set the keys that go and that come (found once: every further look costs a walk through the set)."""

    text: str
    names: tuple[str, ...]
    elements: Mapping[str, tuple[list[str], list[str]]]


def delta(before: Ruleset, after: Ruleset, most: int = 2000, table: str = TABLE) -> Delta | None:
    """What turns `before` into `after`, or None where replacing the whole table is the better way.

    That is: where a hook or a set's type changes, or more than `most` elements and rules would be named. Order inside
    the one transaction: what is referred to is made first and removed last.
    """
    is_same = before.chains is after.chains
    old_chains = {} if is_same else {c.name: c for c in before.chains}
    new_chains = {} if is_same else {c.name: c for c in after.chains}
    if before.sets is not after.sets:
        for name, s in after.sets.items():
            if name in before.sets and not same_spec(before.sets[name], s):
                return None
    born: list[str] = []
    filled: list[str] = []
    dead: list[str] = []
    names: list[str] = []
    changed: dict[str, tuple[list[str], list[str]]] = {}
    cost = 0
    for name, chain in new_chains.items():
        old = old_chains.get(name)
        if old is chain or old == chain:
            continue
        names.append(name)
        if old is None:
            born.append(f"add chain {table} {name}" + (f" {{ {_hook(chain.hook)} }}" if chain.hook else ""))
        elif old.hook != chain.hook:
            return None
        else:
            filled.append(f"flush chain {table} {name}")
        filled += [f"add rule {table} {name} {rule_text(rule)}" for rule in chain.rules]
        cost += 1 + len(chain.rules)
    gone_chains = [name for name in old_chains if name not in new_chains]
    if any(old_chains[name].hook for name in gone_chains):
        return None
    elements_out: list[str] = []
    elements_in: list[str] = []
    for name, s in after.sets.items():
        old_set = before.sets.get(name)
        if old_set is s:
            continue
        if old_set is None:
            born.append(f"add {_spec(s).replace(f' {name} ', f' {table} {name} ', 1)} }}")
            gone, come = list[str](), list(s.elements)
        else:
            gone, come = changed_elements(old_set, s)
            if not gone and not come:
                continue
        names.append(name)
        changed[name] = gone, come
        cost += len(gone) + len(come)
        if gone:
            elements_out.append(f"delete element {table} {name} {{ {', '.join(gone)} }}")
        if come:
            elements_in.append(f"add element {table} {name} {{ {_elements(s, come)} }}")
    for name in before.sets:
        if name not in after.sets:
            dead.append(f"delete {'map' if before.sets[name].value else 'set'} {table} {name}")
            cost += len(before.sets[name].elements)
    if cost > most or not before.chains:
        return None
    # What goes must not be referred to: rules of dead chains name sets, elements of dead maps name chains.
    emptied = [f"flush chain {table} {name}" for name in gone_chains]
    removed = [f"delete chain {table} {name}" for name in gone_chains]
    lines = [*born, *elements_out, *filled, *elements_in, *emptied, *dead, *removed]
    names += [*gone_chains, *(name for name in before.sets if name not in after.sets)]
    return Delta("\n".join([*lines, ""]) if lines else "", tuple(names), changed)


# --- reading back ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """The table as the kernel has it: the hook of each chain (None: it has none), the comments of its rules in order,
    and the sets."""

    chains: Mapping[str, Hook | None]
    comments: Mapping[str, list[str]]
    sets: Mapping[str, NftSet]


def observed(listing: Listing, wished: Ruleset) -> Ruleset:
    """A listing as a Ruleset; parts that are as `wished` ARE those of `wished`."""
    known = {chain.name: chain for chain in wished.chains}
    order = {name: i for i, name in enumerate(known)}
    names = sorted(listing.chains, key=lambda name: order.get(name, len(order)))
    chains = tuple(_observed_chain(name, listing, known.get(name)) for name in names)
    sets = {name: _observed_set(seen, wished.sets.get(name)) for name, seen in listing.sets.items()}
    if len(chains) == len(known) and all(known.get(c.name) is c for c in chains):
        chains = wished.chains
    if sets.keys() == wished.sets.keys() and all(sets[n] is s for n, s in wished.sets.items()):
        return wished if chains is wished.chains else Ruleset(wished.sets, chains)
    return Ruleset(sets, chains)


def _observed_set(seen: NftSet, wished: NftSet | None) -> NftSet:
    return wished if wished is not None and wished == seen else seen


def _observed_chain(name: str, listing: Listing, wished: Chain | None) -> Chain:
    hook, digests = listing.chains[name], [c.rpartition("#")[2] for c in listing.comments.get(name, ())]
    if wished and wished.hook == hook and [rule_digest(r) for r in wished.rules] == digests:
        return wished
    return Chain(name, (UNKNOWN,), hook)
