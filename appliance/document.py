"""The document: one JSON object per appliance, {version, role, generation, confirm, config}.

`decode` gives the envelope and the role's config, or every problem at once with its path. A document of an older
`version` is first lifted by the numbered functions in `UPGRADES`. A change (PATCH) is a list of operations by object
id against the generation they were made from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from appliance.state import Problem
from appliance.values import Identifier

VERSION = 1
MOST_OPERATIONS = 10_000  # in one change
MAX_BYTES = 16 << 20  # a larger body is refused unread; 10,000 of each object are about 4 MB

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)

UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # from version n to n + 1


class Model(BaseModel):
    """What every model of a document is: frozen, closed, strict (no number for a text, no text for a number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)


def _whole(value: object) -> object:
    """A Literal takes true and 1.0 for 1; a document may not."""
    if type(value) is not int:
        raise ValueError(f"a whole number is wanted; this release reads version {VERSION}")
    return value


class Confirm(Model):
    """Demand a confirmation over a new connection within `seconds`, or the push is undone."""

    seconds: Annotated[int, Field(ge=1, le=3600)] = 60


C = TypeVar("C", bound=Model)


class Envelope(Model):
    """What stands around a config. `generation` grows with every document; `plan` is the hash of a plan that must
    still hold."""

    version: Annotated[Literal[1], BeforeValidator(_whole)]
    role: Literal["router", "ssvm", "consoleproxy"]
    generation: Annotated[int, Field(ge=1, le=2**53 - 1)]
    confirm: Confirm | None = None
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Document(Envelope, Generic[C]):
    """A whole document: the envelope and the role's config."""

    config: C


class Put(Model):
    """Put `object` (a whole object with its id) into `collection`: it takes the place of the one with that id."""

    op: Literal["put"]
    collection: Identifier
    object: dict[str, Any]


class Remove(Model):
    """Take the object `id` out of `collection`."""

    op: Literal["remove"]
    collection: Identifier
    id: Identifier


Operation = Annotated[Put | Remove, Field(discriminator="op")]


class Change(Envelope):
    """A PATCH: `operations` against generation `base` make generation `generation`."""

    base: Annotated[int, Field(ge=0, le=2**53 - 1)]
    operations: Annotated[tuple[Operation, ...], Field(min_length=1, max_length=MOST_OPERATIONS)]


class DocumentError(Exception):
    """A document that is refused: `problems` is all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.path}: {p.message}" for p in self.problems[:5]))


M = TypeVar("M", bound=BaseModel)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, lifted to the present version. Raises DocumentError with line and column."""
    check_size(len(body))
    try:
        raw: Any = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise DocumentError([Problem("", f"not JSON: {error}")]) from None
    if not isinstance(raw, dict):
        raise DocumentError([Problem("", "not a JSON object; a document starts with {")])
    version = raw.get("version")
    lifted: dict[str, Any] = raw
    while isinstance(version, int) and version in UPGRADES:
        lifted = UPGRADES[version](lifted)
        version += 1
    return lifted


def check_size(size: int) -> None:
    """Raises DocumentError for a body that is too large to be read at all."""
    if size > MAX_BYTES:
        raise DocumentError([Problem("", f"the body is {size} bytes; the limit is {MAX_BYTES}")])


def validate(model: type[M], raw: object, prefix: str = "") -> M:
    """`raw`, parsed JSON, as a `model`. Raises DocumentError with every problem, each with its path."""
    return validate_json(model, to_json(raw), raw, prefix)


def validate_json(model: type[M], body: bytes, raw: object = None, prefix: str = "") -> M:
    """JSON text as a `model` (JSON mode: an array may be a tuple, nothing else is bent). `raw` names places in errors.

    Raises DocumentError with every problem, each with its path.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise DocumentError(problems(error, from_json(body) if raw is None else raw, prefix)) from None


def problems(error: ValidationError, raw: object, prefix: str = "", start: int = 0) -> list[Problem]:
    """Pydantic's errors as Problems: objects in collections are named by their id, not by their position.

    `start`: what was validated is the part of the list `raw` that starts there.
    """
    found = []
    for e in error.errors(include_url=False, include_input=False, include_context=False)[:1000]:
        message = e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            message = "unknown field; remove it or correct its name"
        first, *rest = e["loc"] or ("",)
        loc = (first + start, *rest) if isinstance(first, int) else e["loc"]
        found.append(Problem(path_of(loc, raw, prefix), message))
    return found


def path_of(loc: tuple[int | str, ...], raw: object, prefix: str) -> str:
    """A place in a document for people: ("forwards", 0, "target") -> forwards[fwd-1].target."""
    text, here = prefix, raw
    for step in loc:
        if isinstance(step, int):
            here = here[step] if isinstance(here, list) and step < len(here) else None
            text += f"[{_name(here) or step}]"
        elif not isinstance(here, dict) or (step not in here and here.get("op") == step):
            continue  # the tag of a union is no place in the document
        else:
            here = here.get(step)
            field = ascii(step)[1:-1][:64]  # a field that nobody knows may be called anything
            text += f".{field}" if text else field
    return text


def _name(place: object) -> str:
    """The id of an object in a collection, where it may stand in a path. Operations are known by their number."""
    ident = place.get("id") if isinstance(place, dict) and "op" not in place else None
    return ident if isinstance(ident, str) and _IDENTIFIER.fullmatch(ident) else ""
