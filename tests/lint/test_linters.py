"""The linters, as tests: format, lint, types, shell; and nothing in git that names one machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.lint.files import ROOT, tracked_files

# A clone's parent that is too ordinary to say anything about a machine.
ORDINARY_PARENTS = {"/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr", "/var/tmp"}
APT_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
URL_HOST = re.compile(r"\bhttps?://(?:[^/\s@'\"]*@)?([A-Za-z0-9.-]+\.[A-Za-z]{2,})")


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command[:6])}\n{done.stdout}{done.stderr}", pytrace=False)


def test_format() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", "--quiet", "--diff", ".")


def test_lint() -> None:
    run(sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", ".")


def test_types() -> None:
    run(sys.executable, "-m", "mypy", "--strict")


def test_shell() -> None:
    scripts = [path for path in tracked_files() if is_shell_script(path)]
    assert ROOT / "narthex" in scripts
    run("shellcheck", *(str(path.relative_to(ROOT)) for path in scripts))


def is_shell_script(path: Path) -> bool:
    if path.suffix in (".sh", ".j2"):  # a template is no script yet
        return path.suffix == ".sh"
    with path.open("rb") as file:
        return re.match(rb"#!\S*[/ ](?:env +)?(?:ba|da)?sh\b", file.readline(80)) is not None


def test_lock_names_no_index() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("-")]


def test_every_requirement_is_pinned_by_hash() -> None:
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert pins
    assert not [pin for pin in pins if "==" not in pin or "--hash=sha256:" not in pin]


def test_no_file_names_this_machine() -> None:
    found = list(mentions(tracked_files(), machine_paths(ROOT) | registry_hosts()))
    assert not found, "\n".join(found)


def test_mentions_are_found(tmp_path: Path) -> None:
    guilty, innocent = tmp_path / "guilty", tmp_path / "innocent"
    guilty.write_bytes(b"fine\nsee https://mirror.example.net/simple\n\xff")
    innocent.write_text("see notmirror.example.network\n")
    found = list(mentions([guilty, innocent], {"mirror.example.net"}))
    assert found == [f"{guilty}:2: mirror.example.net"]


def machine_paths(root: Path) -> set[str]:
    """Paths only of the machine this runs on: the clone, its directory, the home's hidden files."""
    paths = {f"{root}/", f"{Path.home()}/."}
    if str(root.parent) not in ORDINARY_PARENTS:
        paths.add(f"{root.parent}/")
    return paths


def registry_hosts() -> set[str]:
    """Where this machine gets its packages, from the clients' own settings, so that no file names it."""
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    indices = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from pip._internal.models.index import PyPI;"
            "print(json.dumps([PyPI.netloc, PyPI.file_storage_domain]))",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    settings = [pip, *(value for name, value in os.environ.items() if re.match("(PIP|UV)_", name))]
    for source in APT_SOURCES:
        files = source.iterdir() if source.is_dir() else [source] if source.is_file() else []
        settings += [
            line for file in files for line in file.read_text(errors="replace").splitlines() if not line.startswith("#")
        ]
    hosts = {host.lower() for text in settings for host in URL_HOST.findall(text)}
    return hosts | set(json.loads(indices or "[]"))


def mentions(files: Iterable[Path], marks: set[str]) -> Iterable[str]:
    """`file:line: mark` of every place where a mark stands as a word of its own."""
    pattern = re.compile(
        "|".join(
            rf"(?<![\w.-]){re.escape(mark)}" + ("" if mark.endswith(("/", ".")) else r"(?![\w-])")
            for mark in sorted(marks)
        ),
        re.IGNORECASE,
    )
    for file in files:
        text = file.read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            for found in pattern.findall(line):
                yield f"{file}:{number}: {found}"
