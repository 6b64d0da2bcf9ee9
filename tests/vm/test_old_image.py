"""An image one release old runs this tree's agent, which its seed brings: it takes a document and passes packets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmt.bundle import Bundle, make_bundle
from mgmt.image import artifacts, inputs
from tests.bed import standing_in
from tests.netns.calls import tcp
from tests.netns.stage import L10, WEB, Stage, allow, forward
from tests.vm.machine import Booted, Vm

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.soak("image"),
    pytest.mark.skipif(os.environ.get("NARTHEX_TRIALS") != "full", reason="builds another image: ./narthex soak image"),
]


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module", name="old")
def _old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image of the tree as it was before its system last changed, built by that tree itself."""
    files = [str(path.relative_to(ROOT)) for path in inputs.system_files()]
    last = git("log", "--max-count=1", "--format=%H", "--", *files)
    if not last or not git("rev-list", "--max-count=1", "--skip=1", last):
        pytest.skip("a clone without history has no earlier image")
    folder = tmp_path_factory.mktemp("old")
    git("worktree", "add", "--detach", str(folder / "tree"), f"{last}^")
    try:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("NARTHEX_") or k == "NARTHEX_CACHE"}
        subprocess.run([folder / "tree/narthex", "image", "build", "-o", folder / "image"], check=True, env=environ)
        yield folder / "image" / artifacts.QCOW2
    finally:
        git("worktree", "remove", "--force", str(folder / "tree"))


@pytest.fixture(scope="module", name="made")
def _made() -> Bundle:
    return make_bundle()


def test_it_runs_the_current_agent(machines: Vm, old: Path, made: Bundle, tmp_path: Path) -> None:
    assert old.read_bytes() != machines.image.read_bytes()
    there = Vm(tmp_path, old, made.pack())
    with standing_in(Booted(there)), Stage() as stage:
        version = stage.bed.appliance.version().body
        assert (version["release"], version["trial"], version["refused"]) == (made.id, None, "")
        stage.push(forward("web", L10, 80, WEB), allow("in", L10))
        stage.meets("web", tcp(stage.world, L10, 80))
        assert stage.bed.appliance.health().status == 200
