"""The documents of docs/examples are sound, and compile: who copies one starts from something that works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.document import validate
from router.checks import problems
from router.compile import compile
from router.config import Config
from tests.router.samples import facts_of

EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_sound(path: Path) -> None:
    told = json.loads(path.read_text())
    assert told["role"] == "router"
    config = validate(Config, told["config"])
    assert problems(config) == []
    assert compile(config, facts_of(config)).ruleset.chains
