"""Name -> role: the only place where the agent mentions one.

A role is a module with: `Config` (the model), `problems(config, facts)`, `revised_problems(config, touched)`,
`compile(config, facts) -> State`, `revise(state, config, touched, facts) -> State | None`,
`trace(state, facts, query) -> dict` (what would happen to a packet, in words), and
`explain(state, facts, flows)`: for each live flow what allowed it (`allowed_by`, `why`, `came_by`, `left_over`);
`addresses(config, ident)`: a guest's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from appliance.document import Model
from appliance.state import Facts, LiveFlow, Problem, State, Touched

ROLES = {"router": "router.role", "ssvm": "ssvm.role", "consoleproxy": "consoleproxy.role"}


class Role(Protocol):
    """What the engine needs of a role: pure functions."""

    Config: type[Model]

    def problems(self, config: Any, facts: Facts) -> list[Problem]: ...
    def revised_problems(self, config: Any, touched: tuple[Touched, ...]) -> list[Problem] | None: ...
    def compile(self, config: Any, facts: Facts) -> State: ...
    def revise(self, state: State, config: Any, touched: tuple[Touched, ...], facts: Facts) -> State | None: ...
    def trace(self, state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, Any]: ...
    def addresses(self, config: Any, ident: str) -> tuple[str, ...]: ...
    def explain(self, state: State, facts: Facts, flows: Sequence[LiveFlow]) -> Sequence[Any]: ...


def load(name: str) -> Role:
    """The role called `name`. Raises LookupError naming those there are."""
    if name not in ROLES:
        raise LookupError(f"no role {name!r}; the roles are {', '.join(ROLES)}")
    try:
        return cast(Role, import_module(ROLES[name]))
    except ModuleNotFoundError as error:
        raise LookupError(f"role {name!r} is not built in this release: {error}") from error
