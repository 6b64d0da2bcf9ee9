"""What router advertisements have told a link, and the taking back of it, which no daemon does.

dnsmasq tells guests for how long the router, a prefix, a name server is good, and when one of them is no more it just
tells of it no longer: they would keep it to its end, a day with addresses that lead nowhere. So the last word is ours:
an advertisement in which it is good for no time at all (RFC 4861, 6.2.5; RFC 4862, 5.5.3 e; RFC 8106, 5.1). Of an
address a guest then takes no new use, and drops it within two hours.

What was told is written down under run_dir, so that an agent that is started anew knows what it must take back.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from appliance.state import Advert

_ADVERTISEMENT, _ALL_NODES = 134, "ff02::1"
_HEAD = struct.Struct("!BBHBBHII")  # type, code, checksum, hop limit, flags, router's lifetime, two timers (0: unsaid)
_PREFIX = struct.Struct("!BBBBIII16s")  # option, length in 8 bytes, prefix length, flags, valid, preferred, -, prefix
_MANAGED, _ON_LINK, _AUTONOMOUS = 0x80, 0x80, 0x40
_OPTION_PREFIX, _OPTION_SERVERS, _OPTION_DOMAINS = 3, 25, 31


class Adverts:
    """The memory of one machine, in `folder`."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / "adverts"

    def told(self, wished: Iterable[Advert]) -> tuple[Advert, ...]:
        """What links have been told; where it is wished the wished part itself."""
        try:
            found = [Advert(*entry) for entry in json.loads(self._path.read_bytes())]
        except (FileNotFoundError, ValueError, TypeError):
            return ()
        known = {w: w for w in wished}
        return tuple(known.get(advert, advert) for advert in found)

    def tell(self, advert: Advert) -> None:
        """Remember it: a daemon tells it."""
        self._write([*(a for a in self.told(()) if a != advert), replace(advert, owner="")])

    def take_back(self, advert: Advert) -> None:
        """Tell the link that it is no more. Where nothing can be told, nobody is there to hear it."""
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as out:
                out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                out.sendto(withdrawal(advert), (_ALL_NODES, 0, 0, socket.if_nametoindex(advert.link)))
        except OSError:  # the link is gone or down
            pass
        self._write([a for a in self.told(()) if a != advert])

    def _write(self, adverts: list[Advert]) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps([[a.link, a.kind, a.value, a.lifetime_s, a.managed] for a in adverts]))
        new.rename(self._path)


def withdrawal(advert: Advert) -> bytes:
    """The advertisement (without its checksum, which the kernel makes) that takes one thing back."""
    lifetime = 0 if advert.kind == "router" else advert.lifetime_s
    head = _HEAD.pack(_ADVERTISEMENT, 0, 0, 0, _MANAGED if advert.managed else 0, lifetime, 0, 0)
    return head + _option(advert)


def _option(advert: Advert) -> bytes:
    if advert.kind in ("prefix", "onlink"):
        prefix, _, length = advert.value.partition("/")
        flags = _AUTONOMOUS if advert.kind == "prefix" else _ON_LINK
        where = socket.inet_pton(socket.AF_INET6, prefix)
        return _PREFIX.pack(_OPTION_PREFIX, 4, int(length), flags, 0, 0, 0, where)
    if advert.kind == "server":
        return struct.pack("!BBHI", _OPTION_SERVERS, 3, 0, 0) + socket.inet_pton(socket.AF_INET6, advert.value)
    if advert.kind == "domain":
        labels = b"".join(bytes((len(label),)) + label.encode() for label in advert.value.split(".")) + b"\0"
        labels += bytes(-len(labels) % 8)
        return struct.pack("!BBHI", _OPTION_DOMAINS, 1 + len(labels) // 8, 0, 0) + labels
    return b""
