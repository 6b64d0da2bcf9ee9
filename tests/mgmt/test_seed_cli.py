"""`narthex seed`: an image for its owner alone, words that name path and remedy, no secret on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mgmt.cli import narthex
from mgmt.keys import make_key, public_part
from tests.mgmt import iso9660

KEY = make_key()
HASH = "$6$abcdefghijklmnop$" + "x" * 86
YAML = f"""
name: r-17
role: router
control: {{mac: 52:54:00:12:34:56, address: 169.254.2.10/24}}
manager_key: {KEY.public}
console: {{password_hash: "{HASH}"}}
"""


@pytest.fixture(name="path")
def path_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(YAML)
    return tmp_path / "r.yaml"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(narthex, ["seed", *map(str, arguments)])


def test_made(path: Path) -> None:
    told = json.loads(call(path, "--json").stdout)
    image = path.parent / "r-17.iso"
    assert told["path"] == "r-17.iso"
    assert told["host_key_made"]
    assert image.stat().st_mode & 0o777 == 0o600
    files = iso9660.files_by_joliet(image.read_bytes())
    assert files.keys() == {"user-data", "meta-data", "network-config"}
    private = files["user-data"].decode().split("content: |\n")[2].split("  - path")[0].replace("      ", "")
    assert public_part(private) == told["host_key"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["r-17.iso", "r.yaml"]


def test_the_same_yaml_with_its_keys_gives_the_same_bytes(path: Path) -> None:
    path.write_text(YAML + "host_key: |\n" + "".join(f"  {line}\n" for line in KEY.private.splitlines()))
    out = call(path, "-o", "a.iso")
    assert f"its host key: {KEY.public}" in out.output
    call(path, "-o", "b.iso")
    assert (path.parent / "a.iso").read_bytes() == (path.parent / "b.iso").read_bytes()


def test_config_drive_with_a_bundle(path: Path) -> None:
    bundle = b"release.json" + bytes(500) + b"content"
    (path.parent / "agent.bundle").write_bytes(bundle)
    path.write_text(YAML + "bundle: agent.bundle\n")
    assert call(path, "--config-drive", "-o", "c.iso").exit_code == 0
    image = (path.parent / "c.iso").read_bytes()
    assert iso9660.volume_id(image) == "config-2"
    assert iso9660.files_by_joliet(image)["narthex.bundle"] == bundle


@pytest.mark.parametrize("more", [(), ("--config-drive",), ("--json",)])
def test_show_shows_no_secret_and_makes_nothing(path: Path, more: tuple[str, ...]) -> None:
    out = call(path, "--show", *more)
    assert out.exit_code == 0
    assert "169.254.2.10" in out.output
    assert "BEGIN OPENSSH PRIVATE KEY----- ... -----END" in out.output
    assert HASH not in out.output
    assert not (path.parent / "r-17.iso").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (YAML.replace("52:54:00:12:34:56", "52:54"), "control.mac: '52:54' is not a MAC address"),
        (YAML.replace("role: router", ""), "role: Field required; add it"),
        ("a: [", "r.yaml line 1"),
        ("- a", "holds no keys and values"),
        ("\udcff", "byte 0 is not UTF-8"),
        (YAML + "bundle: r.yaml\n", "r.yaml: is no bundle"),
    ],
)
def test_what_is_wrong(path: Path, text: str, words: str) -> None:
    path.write_text(text, errors="surrogateescape")
    out = call(path)
    assert out.exit_code == 2, out.output
    assert words in out.output
    assert not (path.parent / "r-17.iso").exists()


def test_wrong_in_json(path: Path) -> None:
    path.write_text(YAML.replace("name: r-17", "name: R"))
    out = call(path, "--json")
    assert [problem["path"] for problem in json.loads(out.stdout)["problems"]] == ["name"]


def test_files_that_cannot_be(path: Path) -> None:
    out = call(path, "-o", path.parent / "none" / "x.iso")
    assert out.exit_code == 1
    assert "Give another place with -o." in out.output
    path.write_text(YAML + "bundle: none.bundle\n")
    out = call(path)
    assert out.exit_code == 1
    assert "./narthex appliance bundle" in out.output


def test_schema() -> None:
    assert json.loads(call("--schema").stdout)["required"] == ["name", "role", "control"]
