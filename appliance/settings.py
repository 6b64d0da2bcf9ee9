"""Boot facts: what an appliance knows before its first document. From the seed; written by nobody after boot.

A JSON object in /etc/narthex/settings.json (or where NARTHEX_SETTINGS points). No key is guessed at: one that
is missing, unknown or of the wrong kind ends the start with a line that names file, key and remedy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Literal

PATH = Path("/etc/narthex/settings.json")
VARIABLE = "NARTHEX_SETTINGS"


class SettingsError(Exception):
    """Settings that cannot be used; the message names file, key and remedy."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The appliance's own `name` and `role`, and the interface that its manager comes in by.

    `control_mac` in lower case with colons, `control_address` with its prefix length (169.254.2.10/24).
    `heal`: put drift right, or only report it. `watch_seconds`: between two looks at the whole machine.
    `tool_seconds`: a tool that takes longer is ended, and the push with it.
    """

    name: str
    role: str
    control_mac: str
    control_address: str
    runner: Literal["supervisor", "systemd"]
    state_dir: str = "/var/lib/narthex"
    run_dir: str = "/run/narthex"
    heal: Literal["heal", "report"] = "heal"
    watch_seconds: float = 30.0
    tool_seconds: float = 30.0

    @property
    def socket(self) -> str:
        """Where the agent listens."""
        return f"{self.run_dir}/agent.sock"


Check = Callable[[Any], bool]


def _matches(pattern: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_address(value: Any) -> bool:
    try:
        return isinstance(value, str) and "/" in value and bool(ip_interface(value))
    except ValueError:
        return False


def _is_interval(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 86400


_ABSOLUTE = _matches(r"/[\w./@+-]*")
# key: what it must be, in words, and the test for it
_RULES: Mapping[str, tuple[str, Check]] = {
    "name": ("a host name, such as r-17", _matches(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")),
    "role": ("a role, such as router", _matches(r"[a-z]{1,32}")),
    "control_mac": ("a MAC, lower case with colons", _matches(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")),
    "control_address": ("an address with its prefix length, such as 169.254.2.10/24", _is_address),
    "runner": ('"supervisor" in a cell, "systemd" in a machine', _matches("supervisor|systemd")),
    "state_dir": ("an absolute path", _ABSOLUTE),
    "run_dir": ("an absolute path", _ABSOLUTE),
    "heal": ('"heal" or "report"', _matches("heal|report")),
    "watch_seconds": ("a number of seconds, 1 to 86400", _is_interval),
    "tool_seconds": ("a number of seconds, 1 to 86400", _is_interval),
}


def load(path: Path | None = None) -> Settings:
    """The settings in `path`. Raises SettingsError with all that is wrong, a line each."""
    path = path or Path(os.environ.get(VARIABLE) or PATH)
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; the seed writes it at first boot, or set {VARIABLE}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not JSON: {error}; write it anew from the seed") from None
    return parse(raw, str(path))


def parse(raw: object, origin: str) -> Settings:
    """`raw`, parsed JSON from `origin`, as Settings. Raises SettingsError."""
    if not isinstance(raw, dict):
        raise SettingsError(f"{origin}: not a JSON object; write it anew from the seed")
    wrong = [f"{origin}: {key}: unknown key; remove it or correct its name" for key in raw if key not in _RULES]
    for field in fields(Settings):
        words, holds = _RULES[field.name]
        if field.name not in raw:
            if field.default is MISSING:
                wrong.append(f"{origin}: {field.name}: missing; add {words}")
        elif not holds(raw[field.name]):
            wrong.append(f"{origin}: {field.name}: {raw[field.name]!r:.80} is not {words}; correct it")
    if wrong:
        raise SettingsError("\n".join(wrong))
    return Settings(**raw)
