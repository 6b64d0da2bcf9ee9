"""When a certificate ends, by its own bytes: no library that an appliance would have to load for it, no process. Pure.

Only as much of DER (X.690) and of a certificate's layout (RFC 5280, 4.1) as leads to `notAfter`.
"""

from __future__ import annotations

import binascii
import re
from calendar import timegm
from collections.abc import Iterator
from time import strptime

BEGIN = "-----BEGIN CERTIFICATE-----"
_PEM = re.compile(BEGIN + r"([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_VERSION, _UTC_TIME = 0xA0, 0x17
_VALIDITY = 3  # of tbsCertificate, behind the serial number, the algorithm and the issuer


class CertificateError(ValueError):
    """Bytes that are no certificate."""


def ends(text: str) -> float | None:
    """The earliest end, in seconds since 1970, of the certificates in `text` (PEM); None where there is none.

    Raises CertificateError.
    """
    return min(map(_end, _PEM.findall(text)), default=None)


def _end(base64: str) -> float:
    try:
        der = binascii.a2b_base64(base64)
        ((_, outer),) = list(_parts(der))[:1]
        ((_, body),) = list(_parts(outer))[:1]
        fields = [content for tag, content in _parts(body) if tag != _VERSION]
        _, (tag, time) = list(_parts(fields[_VALIDITY]))
        return float(timegm(strptime(_full_year(tag, time.decode("ascii")), "%Y%m%d%H%M%SZ")))
    except (ValueError, IndexError) as error:
        raise CertificateError(f"not a certificate: {error}") from None


def _full_year(tag: int, text: str) -> str:
    """UTCTime has two digits for the year: below 50 it is 20YY (RFC 5280, 4.1.2.5.1)."""
    if tag != _UTC_TIME:
        return text
    return ("20" if int(text[:2]) < 50 else "19") + text


def _parts(der: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of the values that stand one behind the other."""
    at = 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start])
        if start + length > len(der):
            raise ValueError("it is cut off")
        yield tag, der[start : start + length]
        at = start + length
