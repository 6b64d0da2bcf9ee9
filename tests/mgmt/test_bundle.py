"""Bundles: what an agent needs and nothing else, by the lock's hashes, and the same bytes from the same wheels."""

from __future__ import annotations

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from appliance.bundle import checked, read_bundle, release_id
from mgmt.bundle import Bundle, describe
from mgmt.image import wheels
from mgmt.image.tools import HOUSE, ImageError
from mgmt.image.wheels import Wheel
from tests.appliance import bundles


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Bundle:
    """A bundle of an agent and a library, as if they had been built and downloaded."""
    found = []
    for name, content in (bundles.agent(), bundles.library()):
        path = tmp_path / name
        path.write_bytes(content)
        found.append(Wheel(path, name.partition("-")[0], "1.0", sha256(content).hexdigest()))
    agent, library = found
    told = describe(found, python=bundles.PYTHON)
    return Bundle(told["id"], told, (library,), agent, agent.path.read_bytes())


def members(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return tar.getnames()


def test_whole_and_thin(made: Bundle) -> None:
    agent, library = (f"wheels/{w.path.name}" for w in (made.agent, *made.third_party))
    assert members(made.pack()) == ["release.json", agent, library]
    assert members(made.pack(thin=True)) == ["release.json", agent]
    assert made.pack() == made.pack()


def test_an_appliance_takes_it(made: Bundle, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert read_bundle(io.BytesIO(made.pack()), scratch, lambda wheel: False)["id"] == made.id
    assert read_bundle(io.BytesIO(made.pack(thin=True)), scratch, lambda wheel: True)["id"] == made.id


def test_both_sides_agree_about_the_id(made: Bundle) -> None:
    assert release_id(made.told) == made.id
    assert checked("release.json", json.dumps(made.told).encode())["id"] == made.id
    other = describe([made.agent], python=bundles.PYTHON)
    assert other["id"] != made.id


def test_what_an_agent_imports_is_in_the_lock_with_its_hashes() -> None:
    found = wheels.requirements()
    names = {line.partition("==")[0] for line in found}
    assert {"flask", "werkzeug", "pydantic", "pydantic-core", "waitress", "pyroute2", "jinja2", "netaddr"} <= names
    assert not names & {"fabric", "paramiko", "rich", "pytest", "qemu-qmp", "pycdlib", "installer", "setuptools"}
    for line in found:
        assert "--hash=sha256:" in line, line
        assert " ;" not in line, "pip is told for which Python; a marker would be read for this one"
    order = [line.partition("==")[0] for line in found]
    assert order == sorted(order)


def test_the_lock_must_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text((HOUSE / "pyproject.toml").read_text())
    lock = (HOUSE / "requirements.lock").read_text()
    (tmp_path / "requirements.lock").write_text(lock.replace("waitress==", "elsewhere=="))
    monkeypatch.setattr(wheels, "HOUSE", tmp_path)
    with pytest.raises(ImageError, match=r"requirements.lock does not have waitress; lock anew"):
        wheels.requirements()


def test_markers_are_read_for_the_appliance() -> None:
    """What is only for older Pythons than the appliance's is left out, whatever this process runs on."""
    names = {canonicalize_name(line.partition("==")[0]) for line in wheels.requirements()}
    assert "importlib-metadata" not in names
    assert "colorama" not in names
