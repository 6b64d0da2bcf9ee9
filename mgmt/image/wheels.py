"""The wheels of an agent: its own, built from this tree, and the third-party ones that the lock names.

An appliance has CPython 3.13 on x86-64 Linux whatever the manager runs: markers are read, and wheels chosen, for that.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from appliance.version import VERSION
from mgmt.image.tools import HOUSE, ImageError, Workshop, cache

PYTHON = "3.13"
PACKAGES = ("appliance", "router", "ssvm", "consoleproxy")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
EPOCH = "1762000000"
_TARGET = {
    "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "os_name": "posix",
    "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
    "platform_python_implementation": "CPython", "extra": "",
}  # fmt: skip
# What the image has of Debian's, so that it works whatever a release brings.
_DEBIANS = frozenset({"installer"})


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on this disk."""

    path: Path
    name: str
    version: str
    sha256: str


def requirements() -> list[str]:
    """The lock's lines for everything that an agent imports, dependencies' dependencies too."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["appliance"]]
    wanted: set[str] = set()
    todo = [Requirement(text) for text in asked]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in wanted or name in _DEBIANS or (requirement.marker and not requirement.marker.evaluate(_TARGET)):
            continue
        wanted.add(name)
        todo += [Requirement(text) for text in metadata.requires(name) or ()]
    locked = dict(_locked())
    if missing := sorted(wanted - locked.keys()):
        raise ImageError(f"requirements.lock does not have {', '.join(missing)}; lock anew (CONTRIBUTING.md)")
    return [locked[name] for name in sorted(wanted)]


def _locked() -> Iterator[tuple[str, str]]:
    """(name, entry with its hashes) of the lock."""
    for entry in re.split(r"^(?=[a-z])", (HOUSE / "requirements.lock").read_text(), flags=re.MULTILINE):
        if match := re.match(r"([a-z0-9._-]+)==", entry):
            plain = "\n".join(line for line in entry.splitlines() if not line.lstrip().startswith("#"))
            yield canonicalize_name(match[1]), plain.split(" ;")[0] + _hashes(plain)


def _hashes(entry: str) -> str:
    """The hashes of an entry whose marker was cut off."""
    return "".join(f" \\\n    {h}" for h in re.findall(r"--hash=\S+", entry)) if " ;" in entry else ""


def third_party() -> list[Wheel]:
    """The third-party wheels, downloaded once for each state of the lock."""
    wanted = "\n".join(requirements()) + "\n"
    folder = cache() / "wheels" / sha256(wanted.encode()).hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _download(wanted, new)
            if not folder.is_dir():
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return sorted((_wheel(path) for path in folder.glob("*.whl")), key=lambda wheel: wheel.path.name)


def _download(wanted: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        shop = Workshop(Path(scratch))
        lock = Path(scratch, "requirements")
        lock.write_text(wanted)
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        shop.run([
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", "--require-hashes", "--python-version", PYTHON, "--implementation", "cp",
            *platforms, "--dest", folder, "-r", lock,
        ], _pip_settings())  # fmt: skip


def agent() -> tuple[Wheel, bytes]:
    """The agent's own wheel, built from this tree, and its bytes: the same tree, the same bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        for package in PACKAGES:
            skip = shutil.ignore_patterns("__pycache__", "*.md")
            shutil.copytree(HOUSE / package, source / package, ignore=skip)
        (source / "pyproject.toml").write_text(_PROJECT.format(version=VERSION))
        for path in source.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shop = Workshop(Path(scratch))
        shop.run([
            sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-build-isolation", "--no-index", "--wheel-dir", Path(scratch, "out"), source,
        ], {"SOURCE_DATE_EPOCH": EPOCH, "PYTHONHASHSEED": "0"})  # fmt: skip
        (path,) = Path(scratch, "out").glob("*.whl")
        return _wheel(path), path.read_bytes()


_PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "narthex-agent"
version = "{version}"

[tool.setuptools]
packages = {{ find = {{ include = ["appliance*", "router*", "ssvm*", "consoleproxy*"] }} }}

[tool.setuptools.package-data]
"*" = ["*.j2"]
"""


def _wheel(path: Path) -> Wheel:
    name, version, _, _ = parse_wheel_filename(path.name)
    return Wheel(path, name, str(version), sha256(path.read_bytes()).hexdigest())


def _pip_settings() -> dict[str, str]:
    """pip's own settings of this user: where packages come from is theirs to say."""
    own = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    return {**own, "HOME": str(Path.home())}
