"""A PATCH's operations applied to a config: by object id, at the cost of the change. Pure, and knows no role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from appliance.document import DocumentError, Model, Operation, Put, validate
from appliance.state import Problem, Touched


@dataclass(frozen=True, slots=True)
class Applied:
    """The config after the operations, and what they touched (each object once: first before, last after)."""

    config: Any
    touched: tuple[Touched, ...]


def apply_operations(config: Model, operations: Sequence[Operation]) -> Applied:
    """`config` after `operations`, in their order. Raises DocumentError with every problem, by operation."""
    models = collections(type(config))
    lists: dict[str, list[Any]] = {}
    places: dict[str, dict[str, int]] = {}
    thinned: set[str] = set()
    touched: dict[tuple[str, str], Touched] = {}
    problems: list[Problem] = []
    named = (o.object.get("id") if isinstance(o, Put) else o.id for o in operations)
    wanted = {ident for ident in named if isinstance(ident, str)}
    for number, operation in enumerate(operations):
        path = f"operations[{number}]"
        name = operation.collection
        if name not in models:
            known = ", ".join(models)
            problems.append(Problem(f"{path}.collection", f"there is no collection {name!r}; there are: {known}"))
            continue
        if name not in lists:
            lists[name] = list(getattr(config, name))
            places[name] = {o.id: i for i, o in enumerate(lists[name]) if o.id in wanted}
        try:
            new = validate(models[name], operation.object, f"{path}.object") if isinstance(operation, Put) else None
        except DocumentError as error:
            problems += error.problems
            continue
        ident = operation.object["id"] if isinstance(operation, Put) else operation.id
        where = places[name].get(ident)
        old = lists[name][where] if where is not None else None
        if new is None and old is None:
            problems.append(Problem(f"{path}.id", f"there is no {ident!r} in {name}"))
            continue
        if where is None:
            places[name][ident] = len(lists[name])
            lists[name].append(new)
        else:
            lists[name][where] = new  # one that comes back in the same change takes its old place
            if new is None:
                thinned.add(name)
        first = touched.get((name, ident))
        touched[name, ident] = Touched(name, ident, first.before if first else old, new)
    if problems:
        raise DocumentError(problems)
    update = {
        n: tuple(o for o in objects if o is not None) if n in thinned else tuple(objects)
        for n, objects in lists.items()
    }
    kept = tuple(t for t in touched.values() if t.before != t.after)
    return Applied(config.model_copy(update=update), kept)


def collections(model: type[Model]) -> dict[str, type[Model]]:
    """The collections of a config's model: the fields that are tuples of models with an id."""
    found: dict[str, type[Model]] = {}
    for name, info in model.model_fields.items():
        inner = next((a for a in get_args(info.annotation) if isinstance(a, type)), None)
        if inner is not None and issubclass(inner, Model) and "id" in inner.model_fields:
            found[name] = inner
    return found
