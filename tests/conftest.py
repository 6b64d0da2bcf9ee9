"""What all tiers share: a test's tier is its directory; the guard of the unit tier; figures of the soak."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from tests.guard import Guard, guard

HERE = Path(__file__).parent
# Everything under tests/ that stands in none of these is a unit test.
TIER_DIRECTORIES = ("lint", "property", "netns", "vm", "bench")
UNIT_TIMEOUT_S = 60

guard.watch()

set_hypothesis_home_dir(str(HERE.parent / ".cache" / "hypothesis"))
settings.register_profile("person", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("person"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "person")


def tier_of(path: Path) -> str:
    """The tier of the test file at `path`."""
    parts = path.relative_to(HERE).parts
    return parts[0] if parts[0] in TIER_DIRECTORIES else "unit"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-room", metavar="ROOM", help='only tests marked soak("ROOM")')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    room = config.getoption("--soak-room")
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        tier = tier_of(item.path)
        item.add_marker(tier)
        if tier == "unit" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(UNIT_TIMEOUT_S))
        rooms = {name for mark in item.iter_markers("soak") for name in mark.args}
        (kept if room is None or room in rooms else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The guard is up around a unit test's fixtures too, whatever their scope."""
    if tier_of(item.path) != "unit":
        return (yield)
    guard.refused.clear()
    with guard.up():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    result = yield
    if tier_of(item.path) == "unit" and guard.refused:
        pytest.fail(f"swallowed the guard's refusal of {', '.join(guard.refused)}", pytrace=False)
    return result


@pytest.fixture
def unit_guard() -> Guard:
    """The guard itself, for tests that mean to be refused."""
    return guard


@pytest.fixture
def record_figure(request: pytest.FixtureRequest) -> Callable[[str, float, str], None]:
    """record_figure(name, value, unit): a figure that `./narthex soak ROOM` prints."""

    def record(name: str, value: float, unit: str) -> None:
        figure = json.dumps({"name": name, "value": value, "unit": unit})
        request.node.user_properties.append(("figure", figure))

    return record
