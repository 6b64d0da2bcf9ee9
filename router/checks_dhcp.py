"""Extra options of DHCP: none that the router itself answers for, none twice, none longer than an option can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.state import Problem
from router.config import DhcpOption

# What the document has words for, and where; RFC 2132, 3397, 3442.
_WORDS = {3: "routers", 6: "dns", 12: "the host's name", 15: "the network's domain", 26: "mtu", 42: "ntp"}
_WORDS |= {51: "lease", 67: "boot", 119: "search", 121: "routes"}
# What makes the protocol itself: mask, broadcast, the request, the overload, message type, server, times, client.
_PROTOCOL = frozenset({1, 28, 50, 52, 53, 54, 55, 56, 57, 58, 59, 61, 81, 82})
MOST_BYTES = 255


def option_problems(options: Iterable[DhcpOption], path: str) -> Iterator[Problem]:
    """The problems of a network's or a host's options; `path` is theirs."""
    seen: set[int] = set()
    for option in options:
        code = option.code
        if code in _WORDS:
            yield Problem(path, f"option {code} has a field of its own: {_WORDS[code]}; write it there")
        elif code in _PROTOCOL:
            yield Problem(path, f"option {code} is the protocol's own, which the router fills in; remove it")
        if code in seen:
            yield Problem(path, f"option {code} stands twice; write it once, with all its values")
        seen.add(code)
        if sum(len(value) + 1 for value in option.values) > MOST_BYTES:
            yield Problem(path, f"option {code} is longer than {MOST_BYTES} bytes; shorten it")
