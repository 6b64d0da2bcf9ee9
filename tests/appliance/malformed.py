"""Documents that are almost right: made from a model's JSON Schema, then spoiled; and bytes that never were one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

SAMPLES = (
    "a", "web", "vm-1", "example.org", "10.1.1.0/24", "10.1.1.1/24", "10.1.1.10", "203.0.113.10", "2001:db8::1", "::/0",
    "0.0.0.0/0", "02:00:00:00:00:02", "02:00:00:00:00:04", "tcp", "any", "",
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    65536,
    2**31,
    2**53,
    2**70,
    -(2**70),
    1.5,
    1e308,
    "",
    "\n",
    "a\nb",
    "'; drop",
    '"',
    "{{ 7*7 }}",
    "\x00",
    "\ud7ff",
    "é" * 40,
    "x" * 10_000,
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"id": "a"},
    {"op": "put"},
    "1",
    "01",
    "10.0.0.1\n",
    "1.2.3.4/33",
    "ff:ff:ff:ff:ff:ff",
)


class Maker:
    """Makes values of `schema` (pydantic's JSON Schema), boundaries often, and spoils them."""

    def __init__(self, schema: dict[str, Any], chance: random.Random) -> None:
        self.schema, self.chance = schema, chance

    def make(self) -> Any:
        return self._make(self.schema)

    def _make(self, node: dict[str, Any]) -> Any:
        chance = self.chance
        if "$ref" in node:
            return self._make(self.schema["$defs"][node["$ref"].rpartition("/")[2]])
        if "const" in node:
            return node["const"]
        for several in ("enum", "anyOf", "oneOf"):
            if several in node:
                found = chance.choice(node[several])
                return found if several == "enum" else self._make(found)
        kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "object": self._object,
            "array": self._array,
            "integer": self._integer,
            "number": lambda n: chance.uniform(n.get("minimum", 0), n.get("maximum", 2**31)),
            "boolean": lambda n: chance.random() < 0.5,
            "string": lambda n: chance.choice(SAMPLES),
            "null": lambda n: None,
        }
        return kinds[node["type"]](node) if "type" in node else self._junk()

    def _object(self, node: dict[str, Any]) -> dict[str, Any]:
        required = node.get("required", ())
        return {
            name: self._make(inner)
            for name, inner in node.get("properties", {}).items()
            if name in required or self.chance.random() < 0.6
        }

    def _array(self, node: dict[str, Any]) -> list[Any]:
        return [self._make(node["items"]) for _ in range(self.chance.choice((0, 1, 1, 2, 3)))]

    def _integer(self, node: dict[str, Any]) -> int:
        low, high = node.get("minimum", 0), node.get("maximum", 2**31)
        return self.chance.choice((low, high, self.chance.randint(low, high), min(max(low, 80), high)))

    def _junk(self) -> Any:
        return deepcopy(self.chance.choice(JUNK))

    def spoil(self, document: Any) -> Any:
        """The document with one to three things wrong somewhere."""
        for _ in range(self.chance.randint(1, 3)):
            box, key = self.chance.choice(_places(document) or [({"x": document}, "x")])
            deed = self.chance.randrange(6)
            if deed == 0:
                del box[key]
            elif deed == 1 and isinstance(box, dict):
                box[self.chance.choice(("surprise", "", "__class__", "Id", "id "))] = self._junk()
            elif deed == 2 and isinstance(box, list):
                box.append(box[key])
            elif deed == 3:
                other, place = self.chance.choice(_places(document))
                box[key] = json.loads(json.dumps(other[place]))
            else:
                box[key] = self._junk()
        return document

    def spoil_bytes(self, body: bytes) -> bytes:
        """Cut, flipped, repeated, or nothing of it at all."""
        chance, found = self.chance, bytearray(body)
        deed, place = chance.randrange(5), chance.randrange(len(body))
        if deed == 0:
            return body[:place]
        if deed == 1:
            found[place] ^= 1 << chance.randrange(8)
        elif deed == 2:
            found[place:place] = chance.randbytes(chance.randint(1, 8))
        elif deed == 3:
            found[place:place] = body[place : place + 50]
        else:
            return chance.randbytes(chance.randint(0, 200))
        return bytes(found)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a document."""
    found: list[tuple[Any, Any]] = []
    if isinstance(node, dict | list):
        for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
            found += [(node, key), *_places(inner)]
    return found
