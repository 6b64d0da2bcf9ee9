"""The router as a role: what the engine asks of it, gathered from the files that know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.state import Facts, State
from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config

revised_problems = revised

__all__ = ["Config", "compile", "problems", "revise", "revised_problems", "trace"]


def trace(state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, Any]:
    """What would happen to a packet, step by step, and which objects decide. Raises ValueError for a bad question."""
    from router.question import answer  # most agents are never asked: loaded when they are

    return answer(state, facts, query)
