"""The difference of two texts, quickly: difflib's time grows with the square of what has changed, and the largest
State, changed in every other line, would hold the engine's lock for minutes. Of large texts it is not the shortest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher

SMALL = 1000  # lines of both together that difflib is asked about as they are
SMALL_GAP = 50  # the same between two lines that are certain


def difference(a: Sequence[str], b: Sequence[str], before: str, after: str) -> Iterator[str]:
    """A unified diff, with one line of context; nothing where both are equal."""
    groups = () if a == b else _Matched(a, b).get_grouped_opcodes(1)
    for number, group in enumerate(groups):
        if not number:
            yield f"--- {before}"
            yield f"+++ {after}"
        (_, i, _, j, _), (_, _, i_end, _, j_end) = group[0], group[-1]
        yield f"@@ -{_range(i, i_end)} +{_range(j, j_end)} @@"
        for kind, i, i_end, j, j_end in group:
            if kind == "equal":
                yield from (f" {line}" for line in a[i:i_end])
            else:
                yield from (f"-{line}" for line in a[i:i_end])
                yield from (f"+{line}" for line in b[j:j_end])


def _range(start: int, end: int) -> str:
    """Lines as a unified diff counts them: an empty range is after the line that it names."""
    length = end - start
    return f"{start + 1}" if length == 1 else f"{start + (length > 0)},{length}"


class _Matched(SequenceMatcher[str]):
    """difflib's, by lines that are there once on each side, wherever there are many."""

    def __init__(self, a: Sequence[str], b: Sequence[str]) -> None:
        super().__init__(None, a, b, autojunk=False)
        self.sides = a, b

    def get_matching_blocks(self) -> list[Match]:
        a, b = self.sides
        if len(a) + len(b) <= SMALL:
            return super().get_matching_blocks()
        blocks: list[Match] = []
        for i, j, size in _matches(a, b):
            last = blocks[-1] if blocks else Match(0, 0, 0)
            if (last.a + last.size, last.b + last.size) == (i, j) and blocks:
                blocks[-1] = Match(last.a, last.b, last.size + size)
            else:
                blocks.append(Match(i, j, size))
        return [*blocks, Match(len(a), len(b), 0)]


def _matches(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(place in a, place in b, lines) of what is equal, in order: the certain lines, and what joins them."""
    i = j = 0
    for next_i, next_j in (*_certain(a, b), (len(a), len(b))):
        yield from ((i + k, j + m, size) for k, m, size in _between(a[i:next_i], b[j:next_j]))
        if next_i < len(a):
            yield next_i, next_j, 1
        i, j = next_i + 1, next_j + 1


def _between(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """The same of what lies between two certain lines: the equal lines at both ends, all of them where it is little."""
    most = min(len(a), len(b))
    head = next((k for k in range(most) if a[k] != b[k]), most)
    tail = next((k for k in range(most - head) if a[-1 - k] != b[-1 - k]), most - head)
    if head:
        yield 0, 0, head
    a_rest, b_rest = a[head : len(a) - tail], b[head : len(b) - tail]
    if a_rest and b_rest and len(a_rest) + len(b_rest) <= SMALL_GAP:
        found = SequenceMatcher(None, a_rest, b_rest, autojunk=False).get_matching_blocks()
        yield from ((head + match.a, head + match.b, match.size) for match in found if match.size)
    if tail:
        yield len(a) - tail, len(b) - tail, tail


def _certain(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """The longest run, in the order of both, of lines that each has exactly once."""
    once_a, once_b = ({line for line, count in Counter(side).items() if count == 1} for side in (a, b))
    places = {line: j for j, line in enumerate(b) if line in once_b}
    ends: list[int] = []  # for each length of a run, the smallest place in b that one can end at
    tails: list[int] = []  # which pair that is
    pairs: list[tuple[int, int, int]] = []  # place in a, place in b, the pair before it in its run
    for i, line in enumerate(a):
        if line not in once_a or (j := places.get(line)) is None:
            continue
        length = bisect_left(ends, j)
        pairs.append((i, j, tails[length - 1] if length else -1))
        ends[length : length + 1], tails[length : length + 1] = [j], [len(pairs) - 1]
    run: list[tuple[int, int]] = []
    at = tails[-1] if tails else -1
    while at >= 0:
        i, j, at = pairs[at]
        run.append((i, j))
    return run[::-1]
