"""A reader of the text that ruleset.py writes: a table in memory that takes each command or says why not.

Stricter than the kernel: every reference must hold after each command, not only at the transaction's end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_ELEMENT = re.compile(r'(?P<key>[^"]+?)(?: comment "(?P<owner>[^"]*)")?(?: : (?P<value>.*))?')


class Refused(Exception):
    """What nft would say."""


@dataclass
class Set:
    spec: str
    elements: dict[str, str] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict, compare=False)  # for people: an owner alone is no change


@dataclass
class Chain:
    hook: str = ""
    rules: list[str] = field(default_factory=list)


@dataclass
class Table:
    sets: dict[str, Set] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)

    def take(self, text: str) -> Table:
        """The table after `text`, whether whole or a delta."""
        lines = iter(text.splitlines())
        for line in lines:
            if line == "table inet narthex {":
                self._block(lines)
            elif line == "delete table inet narthex":
                self.sets, self.chains = {}, {}
            elif line != "add table inet narthex":
                self._command(line)
        return self

    def _block(self, lines: Iterator[str]) -> None:
        rules: list[tuple[str, str]] = []
        elements: list[tuple[str, str]] = []
        for line in lines:
            if line == "}":
                break
            kind, name, spec = re.fullmatch(r"\t(map|set|chain) (\S+) \{ ?(.*)", line).groups()  # type: ignore[union-attr]
            if kind == "chain":
                self.chains[name] = Chain()
            else:
                self.sets[name] = Set(f"{kind} {spec}")
            for inner in lines:
                if inner == "\t}":
                    break
                words = inner.strip()
                if words.startswith("elements = { "):
                    elements.append((name, words.removeprefix("elements = { ").removesuffix(" }")))
                elif words.startswith("type ") and " hook " in words:
                    self.chains[name].hook = words
                else:
                    rules.append((name, words))
        for name, text in elements:
            self._add_elements(name, text)
        for name, text in rules:
            self._add_rule(name, text)

    def _command(self, line: str) -> None:
        match = re.fullmatch(r"(add|delete|flush) (chain|rule|set|map|element) inet narthex (\S+) ?(.*)", line)
        if match is None:
            raise Refused(f"syntax: {line}")
        verb, kind, name, rest = match.groups()
        getattr(self, f"_{verb}_{kind}")(name, rest)

    def _add_chain(self, name: str, rest: str) -> None:
        self._need(name not in self.chains, f"chain {name} exists")
        self.chains[name] = Chain(rest.removeprefix("{ ").removesuffix(" }"))

    def _flush_chain(self, name: str, rest: str) -> None:
        self._need(name in self.chains, f"flush: no chain {name}")
        self.chains[name].rules = []

    def _delete_chain(self, name: str, rest: str) -> None:
        self._need(not self.chains[name].rules, f"chain {name} is not empty")
        del self.chains[name]
        self._nobody_names(rf"(jump|goto) {re.escape(name)}\b", f"chain {name} is in use")

    def _add_rule(self, name: str, text: str) -> None:
        self._need(name in self.chains, f"no chain {name}")
        body = text.rpartition(" comment ")[0] or text
        for target in re.findall(r"(?:jump|goto) (\S+)", body):
            self._need(target in self.chains, f"{name}: no chain {target}")
        for known in re.findall(r"@(\S+)", body):
            self._need(known in self.sets, f"{name}: no set {known}")
        self.chains[name].rules.append(text)

    def _add_set(self, name: str, rest: str) -> None:
        self._need(name not in self.sets, f"set {name} exists")
        self.sets[name] = Set(f"set {rest.removeprefix('{ ').removesuffix(' }')}")

    def _add_map(self, name: str, rest: str) -> None:
        self._add_set(name, rest)
        self.sets[name].spec = f"map {rest.removeprefix('{ ').removesuffix(' }')}"

    def _delete_set(self, name: str, rest: str) -> None:
        self._need(self.sets[name].spec.startswith("set "), f"{name} is a map")
        del self.sets[name]
        self._nobody_names(rf"@{re.escape(name)}\b", f"set {name} is in use")

    def _delete_map(self, name: str, rest: str) -> None:
        self._need(self.sets[name].spec.startswith("map "), f"{name} is a set")
        del self.sets[name]
        self._nobody_names(rf"@{re.escape(name)}\b", f"map {name} is in use")

    def _add_elements(self, name: str, text: str) -> None:
        for element in text.split(", "):
            match = _ELEMENT.fullmatch(element)
            self._need(match is not None, f"syntax: {element}")
            key, owner, value = match.group("key"), match.group("owner") or "", match.group("value") or ""  # type: ignore[union-attr]
            self._need(key not in self.sets[name].elements, f"{name}: {key} exists")
            word, _, target = value.partition(" ")
            self._need(word not in ("jump", "goto") or target in self.chains, f"{name}: no chain {target}")
            self.sets[name].elements[key], self.sets[name].comments[key] = value, owner

    def _add_element(self, name: str, rest: str) -> None:
        self._add_elements(name, rest.removeprefix("{ ").removesuffix(" }"))

    def _delete_element(self, name: str, rest: str) -> None:
        for key in rest.removeprefix("{ ").removesuffix(" }").split(", "):
            self._need(key in self.sets[name].elements, f"{name}: no element {key}")
            del self.sets[name].elements[key], self.sets[name].comments[key]

    def _nobody_names(self, pattern: str, words: str) -> None:
        bodies = [r.rpartition(" comment ")[0] or r for c in self.chains.values() for r in c.rules]
        values = [v for s in self.sets.values() for v in s.elements.values()]
        self._need(not any(re.search(pattern, text) for text in (*bodies, *values)), words)

    @staticmethod
    def _need(good: bool, words: str) -> None:
        if not good:
            raise Refused(words)
