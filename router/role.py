"""The router as a role: what the engine asks of it, gathered from the files that know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from appliance.state import Facts, LiveFlow, State
from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config

if TYPE_CHECKING:
    from router.explain import Explained

revised_problems = revised

__all__ = ["Config", "addresses", "compile", "explain", "problems", "revise", "revised_problems", "trace"]


def addresses(config: Config, ident: str) -> tuple[str, ...]:
    """The addresses of the host with this id; none where there is no such host."""
    return tuple(a for h in config.hosts if h.id == ident for a in (h.address, h.address6) if a)


def explain(state: State, facts: Facts, flows: Sequence[LiveFlow]) -> list[Explained]:
    """For each live flow which objects allow it, or that none does any more."""
    from router.explain import explain  # most agents are never asked: loaded when they are

    return explain(state, facts, flows)


def trace(state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, Any]:
    """What would happen to a packet, step by step, and which objects decide. Raises ValueError for a bad question."""
    from router.question import answer  # most agents are never asked: loaded when they are

    return answer(state, facts, query)
