"""Certificates for tests: an authority, and who is signed by it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Certified:
    """A certificate and its private key, both in PEM."""

    certificate: str
    private_key: str


class Authority:
    """Signs names. Its clock is wide: machines that were put back to a moment live in the past."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        built = self._builder(self._name, self._key, 0).add_extension(usage, True)
        self.certificate = _pem(built.sign(self._key, hashes.SHA256()))

    def sign(self, name: str) -> Certified:
        """A certificate for a host name, an address of mail, or what has a space in it."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative = x509.RFC822Name(name) if "@" in name else x509.DNSName(name)
        built = self._builder(_name(name), key, None).add_extension(x509.SubjectAlternativeName([alternative]), False)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Certified(_pem(built.sign(self._key, hashes.SHA256())), text)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, path: int | None) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(path is not None, path), True)
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
