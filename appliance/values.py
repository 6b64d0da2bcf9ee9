"""Narrow types for documents: each is plain text or a number in ONE canonical form, checked at the door.

The alphabets are narrow on purpose: whatever passes here may stand in a configuration file, because it cannot hold a
newline, a quote, a brace or a template's mark. netaddr does the arithmetic; the results are kept as text, so that a
document is small, comparable and JSON as it stands.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address
from operator import itemgetter
from typing import Annotated, Any

from netaddr import AddrFormatError, IPAddress, IPNetwork, cidr_merge
from pydantic import AfterValidator, Field, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema, core_schema

_V4 = re.compile(r"(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


@lru_cache(maxsize=1024)
def address(text: str) -> str:
    """The canonical text of an IPv4 or IPv6 address. Raises ValueError."""
    if _V4.fullmatch(text) and not re.search(r"(^|\.)0\d", text):
        return text
    try:
        if ":" not in text:
            raise AddrFormatError
        return str(IPAddress(text))
    except (AddrFormatError, ValueError):
        raise ValueError(f"{text!r} is not an IP address; write it as 192.0.2.1 or 2001:db8::1") from None


@lru_cache(maxsize=1024)
def cidr(text: str) -> str:
    """The canonical text of a network: 10.1.1.0/24. Host bits must be clear. Raises ValueError."""
    net = _network(text)
    if net.cidr.ip != net.ip:
        raise ValueError(f"{text!r} has bits set behind its prefix; write {net.cidr}")
    return str(net)


@lru_cache(maxsize=1024)
def host_cidr(text: str) -> str:
    """The canonical text of an address with its prefix length: 10.1.1.1/24. Raises ValueError."""
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length; write it as {text}/24")
    return str(_network(text))


def _network(text: str) -> IPNetwork:
    head, _, length = text.partition("/")
    address(head)  # netaddr alone would take "10.1" for a network
    if length and not (length.isascii() and length.isdigit()):
        raise ValueError(f"{text!r}: the prefix length is a number; write {head}/24")
    try:
        return IPNetwork(text)
    except (AddrFormatError, ValueError):
        raise ValueError(f"{text!r} is not a network; write it as 192.0.2.0/24 or 2001:db8::/32") from None


@lru_cache(maxsize=1024)
def mac(text: str) -> str:
    """The canonical text of a unicast EUI-48: 02:00:00:00:00:0a. Raises ValueError."""
    low = text.lower().replace("-", ":")
    if not _MAC.fullmatch(low):
        raise ValueError(f"{text!r} is not a MAC address; write it as 02:00:00:00:00:0a")
    if int(low[:2], 16) & 1 or low == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is a group or null address, not an interface's own")
    return low


@lru_cache(maxsize=1024)
def is_v6(text: str) -> bool:
    """True for an IPv6 address or network in canonical text."""
    return ":" in text


@lru_cache(maxsize=1024)
def contains(network: str, inner: str) -> bool:
    """True where `inner`, an address or a network, lies wholly inside `network` (host bits are ignored)."""
    if is_v6(network) != is_v6(inner):
        return False
    return IPNetwork(inner) in IPNetwork(network).cidr


@lru_cache(maxsize=1024)
def subnet(text: str) -> str:
    """The network of an address with its prefix length: 10.1.1.1/24 -> 10.1.1.0/24."""
    return str(IPNetwork(text).cidr)


def number(text: str) -> int:
    """A canonical address as a number. IPv4 by hand: netaddr takes 20 us for one."""
    if ":" in text:
        return int(IPv6Address(text))
    a, b, c, d = text.split(".")
    return int(a) << 24 | int(b) << 16 | int(c) << 8 | int(d)


def bounds(text: str) -> tuple[int, int]:
    """The first and the last address of a canonical network (or of one address) as numbers."""
    head, _, length = text.partition("/")
    bits = 128 if ":" in text else 32
    host_bits = (1 << bits - int(length or bits)) - 1
    first = number(head) & ~host_bits
    return first, first | host_bits


def merged(cidrs: tuple[str, ...]) -> tuple[str, ...]:
    """The same addresses in the fewest disjoint networks, sorted; a one-address network without its length."""
    if any(":" in c for c in cidrs):
        return tuple(shortest(str(net)) for net in cidr_merge(list(cidrs)))
    return tuple(n for first, last in _spans(sorted(map(bounds, cidrs))) for n in _networks(first, last))


def without(cidrs: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """The IPv4 addresses of `cidrs` that are not in `others`, in the fewest networks."""
    holes = list(_spans(sorted(map(bounds, others))))
    left: list[tuple[int, int]] = []
    for first, last in _spans(sorted(map(bounds, cidrs))):
        for start, end in holes[bisect_left(holes, first, key=itemgetter(1)) :]:
            if start > last:
                break
            if start > first:
                left.append((first, start - 1))
            first = end + 1
        if first <= last:
            left.append((first, last))
    return tuple(n for first, last in left for n in _networks(first, last))


def _spans(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted ranges of numbers, those that touch made one."""
    start, end = -1, -2
    for first, last in ranges:
        if first > end + 1:
            if start >= 0:
                yield start, end
            start, end = first, last
        else:
            end = max(end, last)
    if start >= 0:
        yield start, end


def _networks(first: int, last: int) -> Iterator[str]:
    """The fewest IPv4 networks that make up a range of addresses."""
    while first <= last:
        size = min(first & -first or 1 << 32, 1 << (last - first + 1).bit_length() - 1)
        yield shortest(f"{dotted(first)}/{33 - size.bit_length()}")
        first += size


def dotted(number: int) -> str:
    """The text of an IPv4 address given as a number."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def address_text(number: int, v6: bool) -> str:
    """The canonical text of an address given as a number."""
    return str(IPv6Address(number)) if v6 else dotted(number)


def shortest(network: str) -> str:
    """A network as nft prints it: a one-address network is the address alone."""
    head, _, length = network.partition("/")
    return head if length == ("128" if ":" in head else "32") else network


class Secret(str):
    """Text that is never shown: its repr and its str-format are hidden; `reveal()` gives it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(...)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        """The text itself: for the file that needs it, and for nothing else."""
        return str.__getitem__(self, slice(None))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Printable ASCII without quotes, backslash, #, $, braces and %: safe in every daemon's configuration.
        text = core_schema.str_schema(pattern=r"^[A-Za-z0-9 !&()*+,./:;<=>?@\[\]^_|~-]+$", min_length=1, max_length=256)
        return core_schema.no_info_after_validator_function(cls, text)


class SecretPem(Secret):
    """A private key in PEM (RFC 7468), one or several blocks, lines ended by a newline. Hidden as any Secret."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(pattern=PEM, min_length=1, max_length=32768)
        return core_schema.no_info_after_validator_function(cls, text)


# Blocks of base64 between their marks; nothing else, so that it may stand in a file of any daemon's.
PEM = r"^(-----BEGIN [A-Z0-9 ]{1,40}-----\n([A-Za-z0-9+/=]{1,76}\n)+-----END [A-Z0-9 ]{1,40}-----\n?)+$"

# `$` matches before a final newline in Python's re, but pydantic's patterns are Rust's: there `$` is the very end.
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")]
Hostname = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*$",
        max_length=253,
    ),
]
Pem = Annotated[str, StringConstraints(pattern=PEM, max_length=131072)]
Text = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 !&()*+,./:;<=>?@^_|~-]*$", max_length=255)]
Port = Annotated[int, Field(ge=1, le=65535)]
Mtu = Annotated[int, Field(ge=576, le=65535)]
Address = Annotated[str, StringConstraints(max_length=45), AfterValidator(address)]
Cidr = Annotated[str, StringConstraints(max_length=49), AfterValidator(cidr)]
HostCidr = Annotated[str, StringConstraints(max_length=49), AfterValidator(host_cidr)]
Mac = Annotated[str, StringConstraints(max_length=17), AfterValidator(mac)]
