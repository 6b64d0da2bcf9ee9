"""The nft tool: check, apply, list, fingerprint. Its text is made in ruleset.py; single elements are read back in nftelement.py.

One process per call, and none for reading one element: see docs/design.md 6 for why it is the tool and not the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from appliance.ruleset import TABLE

# argv, standard input, seconds -> (exit status, output, error output)
Run = Callable[[tuple[str, ...], bytes, float], tuple[int, bytes, bytes]]


class NftError(Exception):
    """nft refused: `words` are its own, with the line it refused."""

    def __init__(self, words: str) -> None:
        self.words = words
        super().__init__(words)


class Nft:
    """nft(8) through `run`. `seconds` bounds one call; a call that is cut leaves the kernel as it was or as wished."""

    def __init__(self, run: Run, seconds: float = 30.0) -> None:
        self._run = run
        self._seconds = seconds

    def check(self, text: str) -> None:
        """Would nft take `text`? Raises NftError; touches nothing."""
        self._call(("nft", "-c", "-f", "-"), text)

    def apply(self, text: str) -> None:
        """Apply `text` in one transaction: all of it or, with NftError, nothing."""
        self._call(("nft", "-f", "-"), text)

    def list(self) -> dict[str, Any] | None:
        """`nft -j list table` of ours, or None where there is none."""
        status, out, err = self._run(("nft", "-j", "list", "table", *TABLE.split()), b"", self._seconds)
        if status == 0:
            found: dict[str, Any] = json.loads(out)
            return found
        if b"No such file" in err:
            return None
        raise NftError(err.decode(errors="replace").strip())

    def _call(self, argv: tuple[str, ...], text: str) -> None:
        status, _, err = self._run(argv, text.encode(), self._seconds)
        if status != 0:
            raise NftError(explain(err.decode(errors="replace"), text))


def explain(error: str, text: str) -> str:
    """nft's first complaint with the line of `text` it is about, shortened: its own print repeats the whole line."""
    first = next((line for line in error.splitlines() if "rror" in line), error.strip()[:400])
    place = first.split(":")
    source = text.splitlines()
    if len(place) > 1 and place[1].isdigit() and 0 < int(place[1]) <= len(source):
        return f"{first} in: {source[int(place[1]) - 1].strip()[:200]}"
    return first


def fingerprint(listing: dict[str, Any]) -> str:
    """A digest of the rules in a listing, without handles, counters and elements: the same rules, the same digest.

    It sees what a rule's comment cannot: an edit that keeps the comment.
    """
    told = []
    for entry in listing["nftables"]:
        if rule := entry.get("rule"):
            told.append([rule["chain"], [_still(e) for e in rule["expr"]], rule.get("comment", "")])
        elif chain := entry.get("chain"):
            told.append([chain["name"], chain.get("hook"), chain.get("prio"), chain.get("policy")])
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _still(expression: Any) -> Any:
    """An expression without what moves by itself."""
    return "counter" if isinstance(expression, dict) and "counter" in expression else expression
