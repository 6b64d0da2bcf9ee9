"""A draft: a document, or a change to one, as a person wrote it in a file; JSON or YAML.

What the appliance knows better is filled in before it is sent: the generation, and a change's base. Everything else is
sent as it stands, so that the agent's answer speaks of what the person wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml


class DraftError(Exception):
    """The text is neither JSON nor YAML, or no draft; the message gives line and column."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types only. PyYAML's 1.1 reads the MAC 52:54:00:12:34:56 as a number to base 60 and the word
    `no` as false, and makes dates of what looks like one."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"-?(0|[1-9][0-9]*)", list("-0123456789")),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be sent, complete; `filled` says in words what was filled in. A change goes by PATCH."""

    told: dict[str, Any]
    filled: tuple[str, ...] = ()

    @property
    def is_change(self) -> bool:
        return "operations" in self.told

    @property
    def is_complete(self) -> bool:
        return "generation" in self.told and ("base" in self.told or not self.is_change)

    def body(self) -> bytes:
        return json.dumps(self.told).encode()

    def completed(self, current: int, next_generation: bool) -> Draft:
        """With generation and base for an appliance that is at generation `current`."""
        told, filled = dict(self.told), list(self.filled)
        if next_generation or "generation" not in told:
            told["generation"] = current + 1
            filled.append(f"generation {current + 1}, because the appliance is at {current}")
        if self.is_change and "base" not in told:
            told["base"] = current
            filled.append(f"base {current}")
        return Draft(told, tuple(filled))


def read_draft(text: str, name: str = "the document") -> Draft:
    """The draft in `text`. JSON where it starts with a brace, else YAML. Raises DraftError."""
    told = _from_json(text, name) if text.lstrip()[:1] in ("{", "[") else from_yaml(text, name)
    if not isinstance(told, dict):
        raise DraftError(f"{name} holds no object; a document starts with version, role and config")
    if "config" not in told and "operations" not in told:
        words = "neither config (a whole document) nor operations (a change)"
        raise DraftError(f"{name} has {words}; docs/examples/router.json shows one")
    return Draft(told)


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if name.endswith((".yaml", ".yml")):  # a flow mapping starts with a brace too
            return from_yaml(text, name)
        raise DraftError(f"{name} line {error.lineno} column {error.colno}: not JSON: {error.msg}") from None


def from_yaml(text: str, name: str) -> Any:
    """Plain values. Raises DraftError."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise DraftError(f"{name}{where}: neither JSON nor YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise DraftError(f"{name}: neither JSON nor YAML: {error}") from None
