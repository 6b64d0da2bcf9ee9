"""Profiles of users of IKEv2, as the devices read them."""

from __future__ import annotations

import json
import plistlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from mgmt.cli import narthex
from mgmt.ipsec_profile import ProfileError, mobileconfig, sswan
from tests.router.test_ipsec import AUTHORITY, PUBLIC, access, made, user

EXAMPLE = Path(__file__).parents[2] / "docs/examples/ipsec.json"


def payloads(content: bytes) -> dict[str, Any]:
    told = plistlib.loads(content)
    assert told["PayloadType"] == "Configuration"
    return {p["PayloadType"]: p for p in told["PayloadContent"]}


def test_apple_s_by_password() -> None:
    road = access(authority=AUTHORITY.certificate, dns="web", search=["web.test"], user_ca=AUTHORITY.certificate)
    found = payloads(mobileconfig(made(access=(road,), users=(user(),)), "alice", "Our VPN"))
    vpn = found["com.apple.vpn.managed"]
    assert (vpn["UserDefinedName"], vpn["VPNType"]) == ("Our VPN", "IKEv2")
    ike = vpn["IKEv2"]
    assert (ike["RemoteAddress"], ike["RemoteIdentifier"]) == (PUBLIC, "vpn.example.org")
    assert (ike["AuthenticationMethod"], ike["ExtendedAuthEnabled"], ike["AuthName"]) == ("None", 1, "alice")
    assert ike["IKESecurityAssociationParameters"] == {
        "EncryptionAlgorithm": "AES-256-GCM", "IntegrityAlgorithm": "SHA2-384", "DiffieHellmanGroup": 20,
    }  # fmt: skip
    assert vpn["DNS"] == {"ServerAddresses": ["10.1.1.1"], "SupplementalMatchDomains": ["web.test"]}
    assert vpn["IPv4"] == {"OverridePrimary": 0}
    root = x509.load_der_x509_certificate(found["com.apple.security.root"]["PayloadContent"])
    assert root.subject.rfc4514_string() == "CN=ours"


def test_apple_s_by_certificate_and_everything_through_the_tunnel() -> None:
    road = access(internet=PUBLIC, user_ca=AUTHORITY.certificate, endpoint="vpn.example.com")
    config = made(access=(road,), users=(user("bob", password=None),))
    found = payloads(mobileconfig(config, "bob", "Our VPN", b"his own"))
    vpn, own = found["com.apple.vpn.managed"], found["com.apple.security.pkcs12"]
    assert vpn["IKEv2"]["RemoteAddress"] == "vpn.example.com"
    assert vpn["IKEv2"]["AuthenticationMethod"] == "Certificate"
    assert vpn["IKEv2"]["PayloadCertificateUUID"] == own["PayloadUUID"]
    assert own["PayloadContent"] == b"his own"
    assert vpn["IPv4"] == {"OverridePrimary": 1}


def test_android_s() -> None:
    road = access(authority=AUTHORITY.certificate, routes=["10.0.0.0/8"])
    told = json.loads(sswan(made(access=(road,), users=(user(),)), "alice", "Our VPN"))
    assert (told["type"], told["local"]) == ("ikev2-eap", {"eap_id": "alice"})
    assert (told["remote"]["addr"], told["remote"]["id"]) == (PUBLIC, "vpn.example.org")
    assert told["split-tunneling"] == {"subnets": ["10.0.0.0/8"]}
    x509.load_der_x509_certificate(b64decode(told["remote"]["cert"]))


def test_no_password_is_in_it_and_it_is_the_same_every_time() -> None:
    config = made(access=(access(),), users=(user(),))
    for make in (mobileconfig, sswan):
        assert make(config, "alice", "x") == make(config, "alice", "x")
        assert b"pass word" not in make(config, "alice", "x")


@pytest.mark.parametrize(
    ("changes", "pkcs12", "words"),
    [
        ({"users": (user("bob"),)}, None, "there is no user alice"),
        ({"users": (user(password=None),)}, None, "give it as a PKCS #12 file"),
        ({"users": (user(),)}, b"x", "logs in by a password"),
        ({"users": (user(),), "access": (access(ike=["aes192-sha256-modp2048"]),)}, None, "have none of the ciphers"),
    ],
)
def test_why_there_is_none(changes: dict[str, Any], pkcs12: bytes | None, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        mobileconfig(made(**{"access": (access(),), **changes}), "alice", "x", pkcs12)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(narthex, ["vpn", "ikev2", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    target = tmp_path / "a.mobileconfig"
    assert "profile of alice" in call(EXAMPLE, "alice", "-o", target).stdout
    assert target.stat().st_mode & 0o777 == 0o600
    assert "com.apple.vpn.managed" in payloads(target.read_bytes())
    wrong = call(EXAMPLE, "nobody", "-o", target)
    assert wrong.exit_code == 2
