"""From parsed JSON to a Document or a Change: piece by piece, so that what is wrong costs no more than what is right.

Pydantic keeps every error that it finds, 700 bytes for each, and knows no limit: 20 MB of objects that are all wrong
would take 5 GB. So collections are validated a few objects at a time, until more is wrong than anyone reads; and pieces
are quicker than the whole, too (10,000 of each object: 330 ms for 560). What stands around the collections is validated
as one, with the collections left out. A config must therefore have no validator of its own across its collections: what
objects mean to each other is the role's `problems`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from appliance.changes import collections
from appliance.document import MOST_OPERATIONS, Change, Document, DocumentError, Model, Operation, problems
from appliance.state import Problem

PIECE = 1 << 12  # bytes of objects that are validated together
MOST_BYTES = 1 << 18  # that one object may have (a rule of 13,000 CIDRs), or all that is no collection
LONG_BYTES, FEW = 3 << 19, 2000  # and an object of few values, of which some are long (a guest's user data)
MOST = 1000  # problems that are told
_STAND_IN = [{"op": "remove", "collection": "a", "id": "a"}]

M = TypeVar("M", bound=BaseModel)


def decode_document(config: type[Model], raw: Mapping[str, Any]) -> Document[Any]:
    """`raw` as a whole document of a role. Raises DocumentError with every problem (of many, the first MOST)."""
    given = raw.get("config")
    if not isinstance(given, dict):
        return _decoded(Document[config], raw, [])  # type: ignore[valid-type]
    kinds = {name: kind for name, kind in collections(config).items() if isinstance(given.get(name), list)}
    found: list[Problem] = []
    made = {name: _objects(kind, given[name], f"config.{name}", found) for name, kind in kinds.items()}
    rest = {**raw, "config": {**given, **dict.fromkeys(kinds, [])}}
    document: Document[Any] = _decoded(Document[config], rest, found)  # type: ignore[valid-type]
    return document.model_copy(update={"config": document.config.model_copy(update=made)})


def decode_change(raw: Mapping[str, Any]) -> Change:
    """`raw` as a Change; its objects are still to be validated. Raises DocumentError with every problem."""
    given = raw.get("operations")
    if not isinstance(given, list):
        return _decoded(Change, raw, [])
    found: list[Problem] = []
    if not 1 <= len(given) <= MOST_OPERATIONS:
        words = f"{len(given)} operations; a change has 1 to {MOST_OPERATIONS}, and what is more is a whole document"
        found.append(Problem("operations", words))
    operations = _objects(Operation, given[:MOST_OPERATIONS], "operations", found)
    change = _decoded(Change, {**raw, "operations": _STAND_IN}, found)
    return change.model_copy(update={"operations": operations})


def _decoded(model: type[M], raw: Mapping[str, Any], found: Sequence[Problem]) -> M:
    """What stands around the collections. Raises DocumentError where it or what was `found` before has problems."""
    text = to_json(raw)
    if len(text) > MOST_BYTES:
        told = Problem("", f"{len(text)} bytes beside the collections of objects; the limit is {MOST_BYTES}")
        raise DocumentError([told, *found][:MOST])
    try:
        made = model.model_validate_json(text)
    except ValidationError as error:
        raise DocumentError([*problems(error, raw), *found][:MOST]) from None
    if found:
        raise DocumentError(found[:MOST])
    return made


def _objects(kind: Any, objects: list[Any], path: str, found: list[Problem]) -> tuple[Any, ...]:
    """The objects of a collection; what is wrong is added to `found`, until that is enough."""
    made: list[Any] = []
    piece: list[bytes] = []
    start = size = 0
    for number, one in enumerate(objects):
        text = to_json(one)
        if len(text) > MOST_BYTES and not _is_long(text):
            found.append(Problem(f"{path}[{number}]", f"{len(text)} bytes; one object has at most {MOST_BYTES}"))
            break
        piece.append(text)
        size += len(text)
        if size >= PIECE or number == len(objects) - 1:
            try:
                made += _adapter(kind).validate_json(b"[%b]" % b",".join(piece))
            except ValidationError as error:
                found += problems(error, objects, path, start)
            if len(found) >= MOST:
                break
            piece, start, size = [], number + 1, 0
    return tuple(made)


def _is_long(text: bytes) -> bool:
    """Is it large by the length of its texts, and not by their number: by what can be wrong with it?"""
    return len(text) <= LONG_BYTES and sum(map(text.count, (b",", b"[", b"{"))) <= FEW


@cache
def _adapter(kind: Any) -> TypeAdapter[tuple[Any, ...]]:
    return TypeAdapter(tuple[kind, ...])
