"""What stands apart: parts of a State whose refusal holds up nothing else. Pure.

A unit that names a folder (`Unit.apart`) is itself, the files in there, and the pools told to it. Where its own dry
check refuses them, or it does not take them when told, they stay as they were, all together, and the rest of the State
is made.
"""

from __future__ import annotations

from dataclasses import replace

from appliance.plan import Step
from appliance.state import File, Pool, State, Unit


def standing(after: State, before: State, folder: str) -> State:
    """`after`, but with what stands apart under `folder` as it is in `before`."""
    consoles = {u.console for s in (after, before) for u in s.units if u.apart == folder}
    return replace(
        after,
        files=(*(f for f in after.files if not _lies(f, folder)), *(f for f in before.files if _lies(f, folder))),
        units=(*(u for u in after.units if u.apart != folder), *(u for u in before.units if u.apart == folder)),
        pools=(
            *(p for p in after.pools if p.console not in consoles),
            *(p for p in before.pools if p.console in consoles),
        ),
    )


def folder_of(step: Step, after: State) -> str:
    """The folder of what a step is of, where that stands apart; "" where it does not."""
    part = step.after if step.after is not None else step.before
    for unit in after.units:
        if unit.apart:
            told = isinstance(part, Pool) and part.console == unit.console
            if told or (isinstance(part, Unit) and part.apart == unit.apart):
                return unit.apart
            if isinstance(part, File) and _lies(part, unit.apart):
                return unit.apart
    return ""


def _lies(file: File, folder: str) -> bool:
    return file.path.startswith(f"{folder}/")
