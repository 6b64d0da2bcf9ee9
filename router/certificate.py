"""Certificates and keys as text: do they belong together? Just enough of DER (X.690) to tell, and no cryptography.

A private key of RSA holds its modulus, one of an elliptic curve mostly its public point; a certificate holds them too
(RFC 5280, 4.1; RFC 8017, A.1; RFC 5915, 3; RFC 5958, 2). What is read here is not judged further: haproxy's own check
does that.
"""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from collections.abc import Iterator

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\n([A-Za-z0-9+/=\n]+)-----END ([A-Z0-9 ]+)-----\n?")
_INTEGER, _BITS, _OCTETS, _SEQUENCE, _FIRST, _SECOND = 0x02, 0x03, 0x04, 0x30, 0xA0, 0xA1

Item = tuple[int, bytes]  # a tag and what stands in it


def certificate_problem(text: str) -> str:
    """Why a text is not one or several certificates, "" where it is."""
    try:
        found = list(_blocks(text))
        wrong = [label for label, _ in found if label != "CERTIFICATE"]
        if not wrong:
            for _, der in found:
                _public(der)
    except ValueError as error:
        return f"cannot be read: {error}"
    return f"holds a {wrong[0]}; only certificates belong here" if wrong else ""


def key_problem(key: str, certificate: str) -> str:
    """Why a text is no private key of the first certificate, "" where it is (or where it cannot be told without
    cryptography). The certificate has no problem of its own."""
    try:
        found = [(label, der) for label, der in _blocks(key) if label != "EC PARAMETERS"]
        if len(found) != 1 or not found[0][0].endswith("PRIVATE KEY"):
            return f"holds {', '.join(label for label, _ in found) or 'nothing'}; give one private key"
        label, der = found[0]
        if label.startswith("ENCRYPTED"):
            return "is encrypted, and nobody is there to type its password; decrypt it"
        mine, theirs = _half(der), _public(next(_blocks(certificate))[1])
    except ValueError as error:
        return f"cannot be read: {error}"
    if mine and mine != theirs:
        return "is not the key of this certificate; give those that belong together"
    return ""


def _blocks(text: str) -> Iterator[tuple[str, bytes]]:
    """(label, content) of each block of a PEM text."""
    for begin, content, end in _BLOCK.findall(text):
        if begin != end:
            raise ValueError(f"a block begins as {begin} and ends as {end}")
        try:
            yield begin, a2b_base64(content, strict_mode=False)
        except Error as error:
            raise ValueError(f"a block is not base64: {error}") from None


def _items(der: bytes) -> list[Item]:
    """What stands one behind the other. Raises ValueError."""
    found, at = [], 0
    while at < len(der):
        if at + 2 > len(der):
            raise ValueError("it ends too early")
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        if at + length > len(der):
            raise ValueError("it ends too early")
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _inside(item: Item, tag: int = _SEQUENCE) -> list[Item]:
    if item[0] != tag:
        raise ValueError("it is not made as it should be")
    return _items(item[1])


def _one(items: list[Item], place: int) -> Item:
    if place >= len(items):
        raise ValueError("something is missing in it")
    return items[place]


def _public(der: bytes) -> bytes:
    """The public key in a certificate: of RSA its modulus, else as it stands (of a curve, the point)."""
    told = _inside(_one(_inside(_one(_items(der), 0)), 0))
    told = told[1:] if told and told[0][0] == _FIRST else told
    info = _inside(_one(told, 5))  # behind serial, signature, issuer, validity, subject
    tag, bits = _one(info, 1)
    if tag != _BITS or not bits:
        raise ValueError("it has no public key")
    if bits[1:2] == b"\x30":
        return _one(_inside(_one(_items(bits[1:]), 0)), 0)[1].lstrip(b"\0")
    return bits[1:]


def _half(der: bytes) -> bytes:
    """The public half of a private key, b"" where it does not say."""
    parts = _inside(_one(_items(der), 0))
    if len(parts) >= 3 and parts[1][0] == _SEQUENCE and parts[2][0] == _OCTETS:  # PKCS#8 around one of the others
        inner = _items(parts[2][1])
        return _half(parts[2][1]) if inner and inner[0][0] == _SEQUENCE else b""
    if len(parts) >= 9 and parts[1][0] == _INTEGER:  # RSA
        return parts[1][1].lstrip(b"\0")
    for item in parts:
        if item[0] == _SECOND:  # of a curve
            return _one(_items(item[1]), 0)[1][1:]
    return b""
