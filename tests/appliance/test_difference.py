"""The difference of two texts: difflib's own where they are small, right and quick where they are large."""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence

import pytest

from appliance import difference as room
from appliance.difference import difference


def told(a: Sequence[str], b: Sequence[str]) -> list[str]:
    return list(difference(a, b, "old", "new"))


def patched(a: Sequence[str], diff: Sequence[str]) -> list[str]:
    """`a` with a unified diff applied, as patch(1) does, every line of it checked."""
    out: list[str] = []
    at = 0
    for line in diff[2:]:
        if line.startswith("@@"):
            start, _, length = line.split()[1][1:].partition(",")
            begin = int(start) - (length != "0")
            assert begin >= at
            out += a[at:begin]
            at = begin
        elif line[0] == "+":
            out.append(line[1:])
        else:
            assert a[at] == line[1:], line
            at += 1
            if line[0] == " ":
                out.append(line[1:])
    return [*out, *a[at:]]


def shuffled(chance: random.Random, size: int, words: int) -> tuple[list[str], list[str]]:
    """A text of `size` lines out of so many, and one that was made of it by hands that did not stop early."""
    a = [str(chance.randrange(words)) for _ in range(size)]
    b = list(a)
    for _ in range(chance.randrange(1, size)):
        place, deed = chance.randrange(len(b) + 1), chance.randrange(3)
        if deed == 0:
            b.insert(place, str(chance.randrange(words)))
        elif deed == 1:
            del b[place : place + chance.randrange(1, 4)]
        else:
            b[place : place + 1] = [str(chance.randrange(words))]
    return a, b


@pytest.mark.parametrize(("size", "words"), [(2, 2), (10, 3), (40, 1000), (200, 30)])
@pytest.mark.parametrize("is_large", [False, True])
def test_the_other_text_comes_out_of_it(monkeypatch: pytest.MonkeyPatch, size: int, words: int, is_large: bool) -> None:
    monkeypatch.setattr(room, "SMALL", -1 if is_large else 10_000)
    monkeypatch.setattr(room, "SMALL_GAP", 6)
    chance = random.Random(f"{size} {words}")
    for _ in range(100):
        a, b = shuffled(chance, size, words)
        found = told(a, b)
        assert patched(a, found) == b if found else a == b
        if not is_large:
            known = list(difflib.unified_diff(a, b, "old", "new", n=1, lineterm=""))
            assert found == known or len(b) >= 200, "difflib calls some lines of such a text junk"


def test_equal_texts_have_none() -> None:
    assert told(["a"] * 5000, ["a"] * 5000) == []


def test_nothing_and_something() -> None:
    assert told([], ["x"]) == ["--- old", "+++ new", "@@ -0,0 +1 @@", "+x"]
    assert told(["x"], []) == ["--- old", "+++ new", "@@ -1 +0,0 @@", "-x"]


def test_every_other_line_of_a_large_text() -> None:
    """40,000 lines, the largest State: difflib takes minutes."""
    a = [f"rule {n}" for n in range(40_000)]
    b = [line if n % 2 else f"{line} changed" for n, line in enumerate(a)]
    found = told(a, b)
    assert patched(a, found) == b
    assert sum(line[0] == "-" for line in found[2:]) == 20_000


def test_of_a_large_text_only_what_changed() -> None:
    a = [f"rule {n}" if n % 3 else "the same in many places" for n in range(6000)]
    b = [*a[:1000], "new", *a[1000:2000], *a[2001:4000], "other", *a[4001:]]
    changed = [line for line in told(a, b)[2:] if line[0] in "-+"]
    assert changed == ["+new", "-rule 2000", "-rule 4000", "+other"]
