"""Keys and values of nft sets: as bytes in the kernel, as text in the one canonical way of state.NftSet. Pure.

A concatenation is its fields one after the other, each padded to four bytes; a simple key has no padding. Numbers are
big-endian but for marks and classes, which are in the host's order; names of interfaces are padded with zeroes to 16
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET6, inet_aton, inet_ntoa, inet_ntop, inet_pton
from struct import Struct
from sys import byteorder
from typing import Any

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}
_PROTOCOL_TEXTS = [_PROTOCOLS.get(number, str(number)) for number in range(256)]
_PROTOCOL_NUMBERS = {text: number for number, text in enumerate(_PROTOCOL_TEXTS)}


@dataclass(frozen=True, slots=True)
class Kind:
    """One datatype of nft: its size in bytes, its code in a Struct, text both ways, whether ranges may be CIDRs."""

    size: int
    code: str
    pack: Callable[[str], bytes]
    text: Callable[[Any], str]
    cidr: bool = False


def _number(size: int) -> Kind:
    return Kind(size, {1: "B", 2: "H", 4: "I"}[size], lambda text: int(text).to_bytes(size), str)


def _class(text: str) -> int:
    """A class of tc's, its qdisc and its number in hex: 6e78:8001."""
    major, _, minor = text.partition(":")
    return int(major, 16) << 16 | int(minor, 16)


def _class_text(raw: bytes) -> str:
    number = int.from_bytes(raw, byteorder)
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


KINDS = {
    "ipv4_addr": Kind(4, "4s", inet_aton, inet_ntoa, cidr=True),
    "ipv6_addr": Kind(
        16, "16s", lambda text: inet_pton(AF_INET6, text), lambda raw: inet_ntop(AF_INET6, raw), cidr=True
    ),
    "inet_proto": Kind(1, "B", lambda text: bytes((_PROTOCOL_NUMBERS[text],)), lambda number: _PROTOCOL_TEXTS[number]),
    "inet_service": _number(2),
    "icmp_type": _number(1),
    "icmp_code": _number(1),
    "icmpv6_type": _number(1),
    "icmpv6_code": _number(1),
    "nf_proto": _number(1),
    "mark": Kind(
        4,
        "4s",
        lambda text: int(text, 0).to_bytes(4, byteorder),
        lambda raw: str(int.from_bytes(raw, byteorder)),
    ),
    "classid": Kind(4, "4s", lambda text: _class(text).to_bytes(4, byteorder), _class_text),
    "ifname": Kind(16, "16s", lambda text: text.encode().ljust(16, b"\0"), lambda raw: raw.rstrip(b"\0").decode()),
    "ether_addr": Kind(6, "6s", lambda text: bytes.fromhex(text.replace(":", "")), lambda raw: raw.hex(":")),
}


class Layout:
    """How the fields of one type ("ipv4_addr . inet_proto . inet_service") lie in the kernel's bytes."""

    def __init__(self, spec: str) -> None:
        self.kinds = tuple(KINDS[name] for name in spec.split(" . "))
        self.is_concatenation = len(self.kinds) > 1
        pad = 3 if self.is_concatenation else 0
        self._gaps = [-kind.size & pad for kind in self.kinds]
        self.size = sum(kind.size + gap for kind, gap in zip(self.kinds, self._gaps, strict=True))
        self._struct = Struct(
            "!" + "".join(f"{kind.code}{gap}x" for kind, gap in zip(self.kinds, self._gaps, strict=True))
        )
        self._texts = [kind.text for kind in self.kinds]

    def pack(self, text: str) -> bytes:
        """The bytes of one value. Raises ValueError, OSError, KeyError for what is none of this type."""
        return self._joined(kind.pack(part) for kind, part in zip(self.kinds, text.split(" . "), strict=True))

    def bounds(self, text: str) -> tuple[bytes, bytes]:
        """The first and the last key that a key's text covers, field by field."""
        pairs = [_bounds(kind, part) for kind, part in zip(self.kinds, text.split(" . "), strict=True)]
        return self._joined(low for low, _ in pairs), self._joined(high for _, high in pairs)

    def text(self, raw: bytes) -> str:
        """The text of one value."""
        found = self._struct.unpack(raw)
        if not self.is_concatenation:
            return self._texts[0](found[0])
        return " . ".join([text(value) for text, value in zip(self._texts, found, strict=True)])

    def range_text(self, low: bytes, high: bytes) -> str:
        """The text of a key that covers `low` to `high`."""
        if low == high:
            return self.text(low)
        parts, at = [], 0
        for kind, gap in zip(self.kinds, self._gaps, strict=True):
            parts.append(_range_text(kind, low[at : at + kind.size], high[at : at + kind.size]))
            at += kind.size + gap
        return " . ".join(parts)

    def _joined(self, parts: Any) -> bytes:
        return b"".join(part + bytes(gap) for part, gap in zip(parts, self._gaps, strict=True))


@lru_cache(maxsize=256)
def layout(spec: str) -> Layout:
    """The Layout of a key's or a value's type. Raises KeyError for a type that we don't use."""
    return Layout(spec)


def _bounds(kind: Kind, text: str) -> tuple[bytes, bytes]:
    if kind.cidr and "/" in text:
        head, _, length = text.partition("/")
        host = (1 << kind.size * 8 - int(length)) - 1
        low = int.from_bytes(kind.pack(head))
        return low.to_bytes(kind.size), (low | host).to_bytes(kind.size)
    first, dash, last = text.partition("-")
    if not dash or text in _PROTOCOL_NUMBERS or kind is KINDS["ifname"]:
        return kind.pack(text), kind.pack(text)
    return kind.pack(first), kind.pack(last)


def _range_text(kind: Kind, low: bytes, high: bytes) -> str:
    first, last = (Struct(f"!{kind.code}").unpack(raw)[0] for raw in (low, high))
    if low == high:
        return kind.text(first)
    if kind.cidr:
        differ = int.from_bytes(low) ^ int.from_bytes(high)
        host = differ.bit_length()
        if differ + 1 == 1 << host and not int.from_bytes(low) & differ:
            return f"{kind.text(first)}/{kind.size * 8 - host}"
    return f"{kind.text(first)}-{kind.text(last)}"
