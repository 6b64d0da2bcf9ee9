"""Secrets of a document stay where they are needed: in files that are marked, and nowhere that anybody is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.document import Document, validate_json
from appliance.plan import diff, lines
from appliance.state import State
from appliance.support import found, shown
from router.compile import compile
from router.config import Config
from tests.router.samples import facts_of

EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").glob("*.json"))


def configs() -> list[Any]:
    return [validate_json(Document[Config], path.read_bytes()).config for path in EXAMPLES]


def test_the_examples_have_secrets_to_look_for() -> None:
    assert sum(len(list(found(config))) for config in configs()) >= 5


@pytest.mark.parametrize("config", configs(), ids=[path.stem for path in EXAMPLES])
def test_no_secret_is_shown(config: Any) -> None:
    secrets = set(found(config))
    state = compile(config, facts_of(config))
    told = {
        "document": json.dumps(shown(config)),
        "repr": repr(config),
        "lines": "\n".join(lines(state)),
        "diff": diff(State(), state),
        "repr of the state": repr(state.files),
        "commands": repr([(u.command, u.check, u.reload_by) for u in state.units]),
        **{f.path: f.content for f in state.files if not f.secret},
    }
    assert not [(where, secret) for where, text in told.items() for secret in secrets if secret in text]
    assert all(f.mode & 0o007 == 0 for f in state.files if f.secret)
