"""What one guest is told: its file, and what is at each path. A part of the metadata service (metadata_service.py).

A guest's file is one line of JSON, and behind it the user data in base64. Paths are EC2's and CloudStack's; they are
looked up among what the file holds and name no file themselves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

VERSION = re.compile(r"latest|1\.0|\d{4}-\d\d-\d\d", re.ASCII)
VERSIONS = ("1.0", "2007-01-19", "2007-10-10", "2008-02-01", "2009-04-04", "2016-09-02", "2021-03-23", "latest")
USER_DATA = object()  # the answer is the guest's user data


class Guest:
    """One guest's file, read. `data` is where its user data starts and how many bytes it is, decoded."""

    def __init__(self, told: dict[str, object], data: tuple[int, int]) -> None:
        self.told, self.data = told, data

    def text(self, key: str) -> str:
        return str(self.told.get(key, ""))

    @property
    def values(self) -> dict[str, str]:
        found = self.told["values"]
        assert isinstance(found, dict)
        return found

    @property
    def keys(self) -> list[str]:
        found = self.told["keys"]
        assert isinstance(found, list)
        return found


def read_guest(fd: int) -> Guest:
    """The guest whose file this is. Raises OSError or ValueError."""
    head = b""
    while b"\n" not in head:
        some = os.pread(fd, 65536, len(head))
        if not some:
            raise ValueError("the file ends in its first line")
        head += some
    start = head.index(b"\n") + 1
    coded = os.fstat(fd).st_size - start
    padding = os.pread(fd, 2, start + coded - 2).count(b"=") if coded else 0
    told = json.loads(head[:start])
    return Guest(told, (start, coded // 4 * 3 - padding) if told["data"] else (start, -1))


def find(guest: Guest, path: str) -> str | object | None:
    """The text at a path, USER_DATA, or None where there is nothing.

    CloudStack has `public-keys` as a text of all keys, EC2 as a folder; both are served, and the index of `latest`
    names CloudStack's, that of a dated version EC2's.
    """
    words = [word for word in path.partition("?")[0].split("/") if word]
    is_folder = path.partition("?")[0].endswith("/")
    if not words:
        return _lines(VERSIONS)
    version, *rest = words
    if not VERSION.fullmatch(version):
        return None
    if not rest:
        return _lines(("meta-data/", "user-data"))
    if rest == ["user-data"]:
        return USER_DATA if guest.data[1] >= 0 else None
    if rest[0] == "meta-data":
        rest = rest[1:]
    as_text = version == "latest"
    if rest[:1] == ["public-keys"]:
        return _keys(guest.keys, rest[1:], as_text and not is_folder)
    return _value(guest, "/".join(rest), as_text)


def _keys(keys: list[str], rest: list[str], as_text: bool) -> str | None:
    if not keys:
        return None
    if not rest:
        return _lines(keys) if as_text else _lines(f"{n}=key-{n}" for n in range(len(keys)))
    if not rest[0].isascii() or not rest[0].isdigit() or len(rest[0]) > 3 or int(rest[0]) >= len(keys):
        return None
    return {(): "openssh-key", ("openssh-key",): keys[int(rest[0])]}.get(tuple(rest[1:]))


def _value(guest: Guest, path: str, as_text: bool) -> str | None:
    if path in guest.values:
        return guest.values[path]
    below = f"{path}/" if path else ""
    found = {_child(key[len(below) :]) for key in guest.values if key.startswith(below)}
    if not path and guest.keys:
        found.add("public-keys" if as_text else "public-keys/")
    return _lines(sorted(found)) if found else None


def _child(key: str) -> str:
    """The first part of a path, with a dash behind it where it is a folder."""
    head, dash, _ = key.partition("/")
    return head + dash


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
