"""`narthex vpn`: profiles that lead where the document says, keys that fit, codes that can be read."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from appliance.document import validate
from mgmt.cli import narthex
from mgmt.vpn import ProfileError, key_of, make_key, wireguard_profile
from router.checks import problems
from router.config import Config

EXAMPLE = Path(__file__).parents[2] / "docs/examples/wireguard.json"
# RFC 7748, 6.1: Alice's pair
PRIVATE, PUBLIC = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="


def config(user: dict[str, Any] | None = None, **of_listener: Any) -> Config:
    raw = json.loads(EXAMPLE.read_text())["config"]
    raw["wireguard"] = [{**raw["wireguard"][0], **of_listener}]
    raw["vpn_users"] = [{**raw["vpn_users"][0], "public_key": PUBLIC, **(user or {})}]
    found = validate(Config, raw)
    assert problems(found) == []
    return found


def sections(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


def profile(found: Config, private: str = PRIVATE) -> dict[str, dict[str, str]]:
    return sections(wireguard_profile(found, found.vpn_users[0].id, private))


def test_keys_are_those_of_the_rfc() -> None:
    assert key_of(PRIVATE).public == PUBLIC
    assert key_of(make_key().private).private != make_key().private


@pytest.mark.parametrize("text", ["", "x", PRIVATE[:-4], PRIVATE + "AAAA", "!" + PRIVATE[1:]])
def test_what_is_no_private_key(text: str) -> None:
    with pytest.raises(ProfileError, match="32 bytes"):
        key_of(text)


def test_a_split_tunnel() -> None:
    """The guest networks, the tunnel's own subnets, and nothing else."""
    found = profile(config())
    raw = config()
    assert found["Interface"]["PrivateKey"] == PRIVATE
    assert found["Interface"]["Address"] == "10.99.0.2/32, fd00:99::2/128"
    assert found["Interface"]["DNS"] == "10.1.1.1, 2001:db8:1::1, office.example"
    assert found["Peer"]["PublicKey"] == key_of(raw.wireguard[0].private_key.reveal()).public
    assert found["Peer"]["Endpoint"] == "vpn.example:51820"
    assert found["Peer"]["AllowedIPs"] == "10.1.1.0/24, 2001:db8:1::/64, 10.99.0.0/24, fd00:99::/64"


def test_routes_that_are_said_and_the_way_to_the_names() -> None:
    found = profile(config(routes=["10.1.1.128/25"], endpoint=None))
    assert found["Peer"]["AllowedIPs"] == "10.1.1.128/25, 10.99.0.0/24, fd00:99::/64, 10.1.1.1/32, 2001:db8:1::1/128"
    assert found["Peer"]["Endpoint"] == "203.0.113.10:51820"


def test_a_full_tunnel() -> None:
    assert profile(config(internet="203.0.113.10"))["Peer"]["AllowedIPs"] == "0.0.0.0/0, ::/0"


def test_transit_leads_to_sites_too() -> None:
    assert "10.50.0.0/16" in profile(config(transit=True))["Peer"]["AllowedIPs"]


def test_a_preshared_key() -> None:
    assert profile(config({"preshared_key": PRIVATE}))["Peer"]["PresharedKey"] == PRIVATE
    assert "PresharedKey" not in profile(config({"preshared_key": None}))["Peer"]


def test_without_the_users_key_there_is_a_place_for_it() -> None:
    found = config()
    text = wireguard_profile(found, "alice")
    assert "# PrivateKey" in text
    assert "PrivateKey" not in sections(text)["Interface"]


def test_another_key_is_refused() -> None:
    with pytest.raises(ProfileError, match="another public key"):
        wireguard_profile(config(), "alice", make_key().private)
    with pytest.raises(ProfileError, match="no user nobody"):
        wireguard_profile(config(), "nobody")


# --- the command line -------------------------------------------------------------------------------------------------


def run(*argv: str) -> Result:
    return CliRunner().invoke(narthex, ["vpn", *argv])


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> str:
    told = json.loads(EXAMPLE.read_text())
    told["config"]["vpn_users"][0]["public_key"] = PUBLIC
    (tmp_path / "key").write_text(PRIVATE + "\n")
    path = tmp_path / "router.json"
    path.write_text(json.dumps(told))
    return str(path)


def test_key() -> None:
    private, public = run("key").output.split()
    assert key_of(private).public == public


def test_key_of_a_private_one(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(PRIVATE)
    assert run("key", "--public", str(tmp_path / "key")).output.strip() == PUBLIC


def test_profile(file: str, tmp_path: Path) -> None:
    done = run("profile", file, "alice", "--key", str(tmp_path / "key"))
    assert (done.exit_code, sections(done.output)["Interface"]["PrivateKey"]) == (0, PRIVATE)
    assert run("profile", file, "nobody").exit_code == 2


def test_files_are_for_their_owner_alone(file: str, tmp_path: Path) -> None:
    key, out = str(tmp_path / "key"), tmp_path / "alice.conf"
    assert run("profile", file, "alice", "--key", key, "--out", str(out)).exit_code == 0
    assert (out.stat().st_mode & 0o777, sections(out.read_text())["Interface"]["PrivateKey"]) == (0o600, PRIVATE)
    for name, head in (("alice.png", b"\x89PNG"), ("alice.svg", b"<?xml")):
        path = tmp_path / name
        assert run("profile", file, "alice", "--key", key, "--image", str(path)).exit_code == 0
        assert path.read_bytes().startswith(head)
        assert path.stat().st_mode & 0o777 == 0o600
    assert run("profile", file, "alice", "--image", str(tmp_path / "alice.gif")).exit_code == 2


def test_a_code_in_the_terminal_holds_the_whole_profile(file: str, tmp_path: Path) -> None:
    """As large as the text needs: nothing of it is left out."""
    import segno

    key = str(tmp_path / "key")
    text = run("profile", file, "alice", "--key", key).output
    shown = run("profile", file, "alice", "--key", key, "--qr").output
    side = segno.make(text, error="l").symbol_size()[0]
    assert len(shown.strip("\n").splitlines()) >= side // 2
    assert PRIVATE not in shown
