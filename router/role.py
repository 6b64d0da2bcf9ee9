"""The router as a role: what the engine asks of it, gathered from the files that know."""

from __future__ import annotations

from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config
from router.trace import answer

revised_problems = revised
trace = answer

__all__ = ["Config", "compile", "problems", "revise", "revised_problems", "trace"]
