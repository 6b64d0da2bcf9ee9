"""A user's profile for remote access by IKEv2: for Apple's systems (.mobileconfig), and for strongSwan's app (.sswan).

It says where the router is, what it is called, who has signed that, and what is led into the tunnel. There is no
password in it: the device asks the user. A user with a certificate brings it as a PKCS #12 file, which the router never
sees. The same document gives the same profile, byte for byte, so that a device takes a new one in place of the old.
"""

from __future__ import annotations

import json
import plistlib
from base64 import b64decode, b64encode
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from appliance.values import subnet
from router.config import Config, IpsecAccess, IpsecUser

# Apple's words (com.apple.vpn.managed, IKEv2); what is not here, their systems do not have.
_ENCRYPTION = {
    "aes128": "AES-128", "aes256": "AES-256", "aes128gcm16": "AES-128-GCM", "aes256gcm16": "AES-256-GCM",
    "chacha20poly1305": "ChaCha20Poly1305", "3des": "3DES",
}  # fmt: skip
_INTEGRITY = {"sha1": "SHA1-96", "sha256": "SHA2-256", "sha384": "SHA2-384", "sha512": "SHA2-512"}
_GROUP = {
    "modp1024": 2, "modp1536": 5, "modp2048": 14, "modp3072": 15, "modp4096": 16, "modp6144": 17, "modp8192": 18,
    "ecp256": 19, "ecp384": 20, "ecp521": 21, "curve25519": 31,
}  # fmt: skip


class ProfileError(Exception):
    """Why there is no profile, with its remedy."""


def user_of(config: Config, ident: str) -> tuple[IpsecAccess, IpsecUser]:
    """A user, by id or login, and where he comes in. Raises ProfileError."""
    user = next((u for u in config.ipsec_users if ident in (u.id, u.login)), None)
    if user is None:
        known = ", ".join(u.id for u in config.ipsec_users) or "none"
        raise ProfileError(f"there is no user {ident} in ipsec_users; there are: {known}")
    access = next((a for a in config.ipsec_access if a.id == user.access), None)
    if access is None:
        raise ProfileError(f"{user.id} is of remote access {user.access}, which the document does not have")
    return access, user


def mobileconfig(config: Config, ident: str, name: str, pkcs12: bytes | None = None) -> bytes:
    """A profile for iOS, iPadOS and macOS, shown there as `name`. Raises ProfileError."""
    access, user = user_of(config, ident)
    _check(user, pkcs12)
    unique = _unique(access, user)
    ike: dict[str, Any] = {
        "RemoteAddress": access.endpoint or access.address,
        "RemoteIdentifier": access.name,
        "LocalIdentifier": user.login,
        "AuthenticationMethod": "Certificate" if pkcs12 else "None",
        "ExtendedAuthEnabled": 0 if pkcs12 else 1,
        "DeadPeerDetectionRate": "Medium",
        "EnablePFS": 1 if any(_split_esp(p)[2] for p in access.esp) else 0,
        "IKESecurityAssociationParameters": _ike(access),
        "ChildSecurityAssociationParameters": _esp(access),
    }
    ike |= {"PayloadCertificateUUID": _name(unique, "user")} if pkcs12 else {"AuthName": user.login}
    vpn: dict[str, Any] = {
        **_payload("com.apple.vpn.managed", unique, "vpn", name),
        "UserDefinedName": name,
        "VPNType": "IKEv2",
        "IKEv2": ike,
        "IPv4": {"OverridePrimary": 1 if access.internet else 0},
    }
    if servers := _servers(config, access):
        vpn["DNS"] = {"ServerAddresses": servers}
        if access.search and not access.internet:
            vpn["DNS"]["SupplementalMatchDomains"] = list(access.search)
    payloads = [vpn]
    if access.authority:
        root = _payload("com.apple.security.root", unique, "authority", f"{name}: who signed it")
        payloads.append({**root, "PayloadContent": _der(access.authority)})
    if pkcs12:
        own = _payload("com.apple.security.pkcs12", unique, "user", f"{name}: {user.login}")
        payloads.append({**own, "PayloadContent": pkcs12})
    whole = {**_payload("Configuration", unique, "profile", name), "PayloadContent": payloads}
    return plistlib.dumps(whole, sort_keys=True)


def sswan(config: Config, ident: str, name: str, pkcs12: bytes | None = None) -> bytes:
    """A profile for strongSwan's app on Android, shown there as `name`. Raises ProfileError."""
    access, user = user_of(config, ident)
    _check(user, pkcs12)
    remote: dict[str, Any] = {"addr": access.endpoint or access.address, "id": access.name}
    if access.authority:
        remote["cert"] = b64encode(_der(access.authority)).decode()
    local: dict[str, Any] = {"id": user.login, "p12": b64encode(pkcs12).decode()} if pkcs12 else {"eap_id": user.login}
    told: dict[str, Any] = {
        "uuid": str(_unique(access, user)),
        "name": name,
        "type": "ikev2-cert" if pkcs12 else "ikev2-eap",
        "remote": remote,
        "local": local,
    }
    if access.internet is None:
        told["split-tunneling"] = {"subnets": list(led_in(config, access))}
    return json.dumps(told, indent=2).encode() + b"\n"


def led_in(config: Config, access: IpsecAccess) -> tuple[str, ...]:
    """What a split tunnel leads in, as the router says it itself (router/ipsec.py)."""
    families = {":" in cidr for cidr in access.addresses}
    guests = tuple(c for n in config.networks for c in (n.cidr, n.cidr6) if c)
    return tuple(c for c in (guests if access.routes is None else access.routes) if (":" in c) in families)


def _check(user: IpsecUser, pkcs12: bytes | None) -> None:
    if user.password is None and pkcs12 is None:
        raise ProfileError(f"{user.id} logs in by a certificate; give it as a PKCS #12 file")
    if user.password is not None and pkcs12 is not None:
        raise ProfileError(f"{user.id} logs in by a password; leave the PKCS #12 file out, or take the password away")


def _unique(access: IpsecAccess, user: IpsecUser) -> UUID:
    return uuid5(NAMESPACE_URL, f"ikev2://{access.name}/{access.id}/{user.id}")


def _name(unique: UUID, part: str) -> str:
    return str(uuid5(unique, part)).upper()


def _payload(kind: str, unique: UUID, part: str, name: str) -> dict[str, Any]:
    ident = _name(unique, part)
    return {
        "PayloadType": kind,
        "PayloadVersion": 1,
        "PayloadIdentifier": f"narthex.vpn.{ident.lower()}",
        "PayloadUUID": ident,
        "PayloadDisplayName": name,
    }


def _der(pem: str) -> bytes:
    """The last of a chain: its root."""
    lines = pem.rpartition("-----BEGIN CERTIFICATE-----")[2].splitlines()
    return b64decode("".join(line for line in lines if not line.startswith("-----")))


def _servers(config: Config, access: IpsecAccess) -> list[str]:
    """The router's addresses in the network whose names users ask for."""
    network = next((n for n in config.networks if n.id == access.dns), None)
    interface = next((i for i in config.interfaces if network and i.id == network.interface), None)
    if network is None or interface is None:
        return []
    inside = (network.cidr, network.cidr6)
    return [a.partition("/")[0] for a in interface.addresses if subnet(a) in inside]


def _ike(access: IpsecAccess) -> dict[str, Any]:
    for proposal in access.ike:
        encryption, integrity, group = proposal.split("-")
        if encryption in _ENCRYPTION and integrity in _INTEGRITY:
            return _parameters(encryption, integrity, group)
    raise ProfileError(f"Apple's systems have none of the ciphers of {access.id}.ike; add aes256-sha256-modp2048")


def _esp(access: IpsecAccess) -> dict[str, Any]:
    for proposal in access.esp:
        encryption, integrity, group = _split_esp(proposal)
        if encryption in _ENCRYPTION and integrity in _INTEGRITY:
            return _parameters(encryption, integrity, group or access.ike[0].split("-")[2])
    raise ProfileError(f"Apple's systems have none of the ciphers of {access.id}.esp; add aes256-sha256")


def _split_esp(proposal: str) -> tuple[str, str, str]:
    """Encryption, integrity and group; of an AEAD the integrity that Apple wants named, of no group ""."""
    encryption, *rest = proposal.split("-")
    integrity = "sha256" if encryption.endswith(("gcm16", "poly1305")) else rest.pop(0)
    return encryption, integrity, rest[0] if rest else ""


def _parameters(encryption: str, integrity: str, group: str) -> dict[str, Any]:
    return {
        "EncryptionAlgorithm": _ENCRYPTION[encryption],
        "IntegrityAlgorithm": _INTEGRITY[integrity],
        "DiffieHellmanGroup": _GROUP[group],
    }
