"""The files of a cell: what its sshd lets in, and who has an account."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.settings import parse
from mgmt.hosts.cellfiles import Programs, environment, files
from mgmt.hosts.driver import Seed

PROGRAMS = Programs(
    Path("/opt/it's here"), Path("/opt/venv/bin/python"), Path("/usr/bin/python3"), Path("/usr/sbin/sshd")
)
SEED = Seed("r1", "router", "169.254.240.2/20", "ssh-ed25519 MANAGER", "ssh-ed25519 HOST", "PRIVATE")
PASSWD = "root:x:0:0:root:/root:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\nbroken line\n"


@pytest.fixture(name="found")
def found_fixture() -> dict[str, tuple[int, str]]:
    return {path: (mode, content) for path, mode, content in files(SEED, "02:00:00:00:00:01", PROGRAMS, PASSWD)}


def test_the_agent_can_read_its_settings(found: dict[str, tuple[int, str]]) -> None:
    settings = parse(json.loads(found["/etc/narthex/settings.json"][1]), "settings.json")
    assert (settings.name, settings.role, settings.control_address) == ("r1", "router", "169.254.240.2/20")


def test_one_key_and_one_command(found: dict[str, tuple[int, str]]) -> None:
    line = found["/etc/narthex/authorized_keys"][1]
    assert line.count("\n") == 1
    assert line.startswith('restrict,command="exec ')
    assert line.endswith('" ssh-ed25519 MANAGER\n')
    assert "'/opt/it'\\''s here/appliance/join.py'" in line


def test_sshd_listens_on_the_control_address_alone(found: dict[str, tuple[int, str]]) -> None:
    options = dict(line.split(" ", 1) for line in found["/etc/narthex/sshd_config"][1].splitlines())
    assert options["ListenAddress"] == "169.254.240.2"
    assert options["DisableForwarding"] == "yes"
    assert options["PermitRootLogin"] == "forced-commands-only"
    assert "Match" not in options


def test_nobody_has_a_password_and_root_a_plain_shell(found: dict[str, tuple[int, str]]) -> None:
    assert found["/etc/shadow"] == (0o600, "root:*:::::::\nsshd:*:::::::\n")
    assert found["/etc/passwd"][1].splitlines()[0] == "root:x:0:0:root:/root:/bin/sh"


def test_secrets_are_for_root(found: dict[str, tuple[int, str]]) -> None:
    assert all(mode == 0o600 for path, (mode, _) in found.items() if path.startswith("/etc/narthex/"))
    assert "PRIVATE" not in repr(SEED)
    assert "/opt/it's here" in environment(PROGRAMS)["PYTHONPATH"]
