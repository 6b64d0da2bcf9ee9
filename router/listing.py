"""Listings: files of one object a line, sorted, so that one object more or less costs no new listing of the others.

Sorted because the order of a document means nothing: two documents that differ in it alone make the same file, and
the place of a line is found by halving, without splitting ten thousand others. A line that stands twice stands
for two objects; taking one away leaves the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from appliance.state import File

Line = tuple[str, str]  # the path of a listing, and a line in it without its end


def listing(lines: Iterable[str]) -> str:
    """The content of a listing of these lines, each given without its end."""
    return "".join(sorted(f"{line}\n" for line in lines))


def relist(files: tuple[File, ...], gone: Iterable[Line], come: Iterable[Line]) -> tuple[File, ...] | None:
    """`files` with lines gone from and come to their listings; None where one of them isn't as was thought.

    Files that keep their lines are the same objects as before.
    """
    contents = {f.path: f.content for f in files}
    for path, line in gone:
        shorter = without(contents.get(path, ""), line)
        if shorter is None:
            return None
        contents[path] = shorter
    for path, line in come:
        if path not in contents:
            return None
        contents[path] = including(contents[path], line)
    return tuple(f if contents[f.path] == f.content else replace(f, content=contents[f.path]) for f in files)


def including(content: str, line: str) -> str:
    """A listing with one line more."""
    at = _place(content, f"{line}\n")
    return f"{content[:at]}{line}\n{content[at:]}"


def without(content: str, line: str) -> str | None:
    """A listing with one line less, None where it doesn't have that line."""
    ended = f"{line}\n"
    at = _place(content, ended)
    return content[:at] + content[at + len(ended) :] if content.startswith(ended, at) else None


def _place(content: str, ended: str) -> int:
    """The offset of the first line that isn't less than `ended`, a line with its end."""
    low, high = 0, len(content)  # both always where a line starts
    while low < high:
        start = content.rfind("\n", low, (low + high) // 2) + 1 or low
        end = content.index("\n", start) + 1
        if content[start:end] < ended:
            low = end
        else:
            high = start
    return low
