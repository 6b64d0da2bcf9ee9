"""A figure, its floor measured in the same run, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` in `unit`; `floor` is the bare tool doing the same work (None: there is none), `ratio` the two's.

    `target` in words, "" where there is none; `met` None where there is nothing to meet.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def figure(
    name: str, value: float, unit: str, floor: float | None = None,
    most: float | None = None, least: float | None = None,
    ratio_most: float | None = None, ratio_least: float | None = None,
) -> Figure:  # fmt: skip
    """A figure with its bounds, on itself or on its ratio to the floor."""
    ratio = value / floor if floor else None
    bounds: list[tuple[str, bool]] = []
    if most is not None:
        bounds.append((f"<= {most:g} {unit}".rstrip(), value <= most))
    if least is not None:
        bounds.append((f">= {least:g} {unit}".rstrip(), value >= least))
    if ratio_most is not None:
        bounds.append((f"<= {ratio_most:g} x", ratio is not None and ratio <= ratio_most))
    if ratio_least is not None:
        bounds.append((f">= {ratio_least:g} x", ratio is not None and ratio >= ratio_least))
    met = all(good for _, good in bounds) if bounds else None
    return Figure(name, value, unit, floor, ratio, ", ".join(words for words, _ in bounds), met)


def show(figures: Sequence[Figure], as_json: bool, check: bool) -> int:
    """Print them; with `check` what misses its target last. 1 where one does and `check` asks, else 0."""
    missed = [f for f in figures if f.met is False]
    if as_json:
        print(json.dumps({"figures": [asdict(f) for f in figures]}, indent=1))
    else:
        _table(figures)
    if check:
        for f in missed:
            print(f"missed: {f.name}: {_number(f.value)} {f.unit}{_ratio(f)}; target {f.target}")
        return 1 if missed else 0
    return 0


def _table(figures: Sequence[Figure]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("figure", "value", "floor", "ratio", "target", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "target", "") else "right")
    for f in figures:
        mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[f.met]
        floor = f"{_number(f.floor)} {f.unit}" if f.floor is not None else ""
        ratio = f"{f.ratio:.2f}" if f.ratio is not None else ""
        table.add_row(f.name, f"{_number(f.value)} {f.unit}", floor, ratio, f.target, mark)
    Console(width=140, highlight=False).print(table)


def _ratio(f: Figure) -> str:
    return f" ({f.ratio:.2f} x its floor)" if f.ratio is not None else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))
