"""The tree's own release, for real: built, installed, and tried by a child process where an agent runs (in a cell)."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.bundle import PYTHON
from appliance.release import Releases
from mgmt.bundle import Bundle, describe
from mgmt.image import wheels
from tests.bed import Bed
from tests.netns.stage import MACS, config, forward
from tests.releases import CRASH, HANG, variant

ROOT = "/opt/narthex"
# As the agent does it, but in a process of its own: a cell's agent takes no release.
CHECK = """
import json, sys
from appliance.upgrade import TrialError, check
try:
    print(json.dumps(check(sys.argv[1], float(sys.argv[2]))))
except TrialError as error:
    print(json.dumps({"trial": str(error)}))
"""
MORE = """
from dataclasses import replace
from appliance.state import File
_compile = compile
def compile(config, facts):
    state = _compile(config, facts)
    return replace(state, files=(*state.files, File("/etc/more", "more")))
"""


HANG_WITH_WORDS = f"import sys\nprint('waiting for Godot', file=sys.stderr, flush=True)\n{HANG}"
HANG_DEAF = f"import os\nos.closerange(0, 10)\n{HANG}"
FLOOD = "import os\nwhile True:\n    os.write({}, b'x' * 65536)"


@pytest.fixture(scope="module", name="made")
def _made() -> Bundle:
    """This tree's agent for this Python, whose third-party packages the cell has of its host."""
    agent, content = wheels.agent()
    told = describe([agent], python=PYTHON)
    return Bundle(told["id"], told, (), agent, content)


@pytest.fixture(scope="module", name="bed")
def _bed() -> Iterator[Bed]:
    with Bed(MACS) as bed:
        bed.push(config(forward("web", "203.0.113.10", 80, "10.1.1.10")))
        yield bed


def tried(bed: Bed, made: Bundle, seconds: float = 60.0) -> dict[str, Any]:
    """Install it in the cell, and what came of its trial there."""
    inside = Path(f"/proc/{bed.driver.list()[0].pid}/root{ROOT}")
    release = Releases(inside).install(io.BytesIO(made.pack()))
    path = Releases(inside).path(release).replace(str(inside), ROOT)
    before = bed.appliance.state("machine").body
    told: dict[str, Any] = json.loads(bed.run(sys.executable, "-P", "-c", CHECK, path, str(seconds)))
    assert bed.appliance.state("machine").body == before, "it touches nothing"
    return told


def test_this_trees_release_makes_what_the_agent_has_made(bed: Bed, made: Bundle) -> None:
    told = tried(bed, made)
    state = bed.appliance.state("machine").body
    assert "trial" not in told, told
    assert (told["generation"], told["lines"]) == (state["generation"], state["lines"])
    assert any("nft element" in line and "10.1.1.10" in line for line in told["lines"])


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("appliance/engine.py", CRASH, "RuntimeError: broken on purpose"),
        ("router/role.py", "import nowhere", "No module named 'nowhere'"),
        ("appliance/api.py", "def broken(:", "SyntaxError: invalid syntax"),
        ("appliance/plan.py", HANG, "it did not end within 6 s, and was ended"),
        ("appliance/plan.py", "import os\nos._exit(0)", "its trial ended in 0"),
        ("appliance/plan.py", "import os\nos.abort()", "was killed by signal 6"),
        ("appliance/plan.py", HANG_WITH_WORDS, "it did not end within 6 s, and was ended\nwaiting for Godot"),
        ("appliance/plan.py", HANG_DEAF, "it did not end within 6 s, and was ended"),
        ("appliance/plan.py", FLOOD.format(1), "it says more than 32 MiB, and was ended"),
        ("appliance/plan.py", FLOOD.format(2), "it says more than 32 MiB, and was ended\nxxx"),
        ("appliance/plan.py", "eaten = bytearray(4 << 30)", "MemoryError"),
        ("router/role.py", "def compile(config, facts):\n    return config.nothing", "has no attribute 'nothing'"),
    ],
)
def test_one_that_does_not_work_says_why(bed: Bed, made: Bundle, path: str, text: str, words: str) -> None:
    told = tried(bed, variant(made, path, text, PYTHON), 6.0 if HANG in text else 60.0)
    assert words in told["trial"], told


def test_one_that_makes_another_machine_tells_which(bed: Bed, made: Bundle) -> None:
    told = tried(bed, variant(made, "router/role.py", MORE, PYTHON))
    assert set(told["lines"]) - set(bed.appliance.state("machine").body["lines"]) == {"file /etc/more: more"}


def test_what_a_module_says_is_no_part_of_the_answer(bed: Bed, made: Bundle) -> None:
    assert "lines" in tried(bed, variant(made, "appliance/plan.py", "print('hello')", PYTHON))


def test_a_cell_takes_no_release_and_a_large_one_is_never_in_memory(bed: Bed) -> None:
    before = bed.appliance.usage().body["resident_bytes"]
    answer = bed.appliance.put_release(bytes(16 << 20))
    assert (answer.status, answer.body["error"][:36]) == (409, "a cell runs its host's own code; res")
    assert bed.appliance.usage().body["resident_bytes"] < before + (8 << 20)
    assert bed.appliance.version().body["release"] == ""


def test_the_same_tree_gives_the_same_wheel_and_nothing_of_the_manager() -> None:
    (wheel, content), (again, same) = wheels.agent(), wheels.agent()
    assert (again.sha256, same) == (wheel.sha256, content)
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert {"appliance/__main__.py", "appliance/join.py", "router/role.py"} <= set(names)
    assert any(name.endswith(".j2") for name in names)
    assert not [name for name in names if name.startswith(("mgmt/", "tests/")) or name.endswith(".pyc")]
