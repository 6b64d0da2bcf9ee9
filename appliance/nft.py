"""The nft tool: check and apply. Its text is made in ruleset.py; what the kernel has is read in nftlist.py.

One process per call: see docs/design.md 6 for why it is the tool and not the library.
"""

from __future__ import annotations

from collections.abc import Callable

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
