"""A packet that starts a flow, and what becomes of it: the words of the oracle, of the trace and of the tests.

Both are about NEW packets. What follows in a flow goes the way of its first packet, or of that way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NUMBERS: dict[str, int] = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
NAMES: dict[str | int, str] = {number: name for name, number in NUMBERS.items()}
Verdict = Literal["forwarded", "local", "dropped"]


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet without an answer yet: whoever sent it, this is the first of its flow.

    `in_interface` is an interface's id in the document, "" for the router itself. `protocol` is tcp, udp, icmp, icmpv6
    or an IP protocol's number; 1, 6, 17 and 58 become their names. Ports are for tcp and udp, type and code (ICMP's own
    numbers; 8 asks for an echo, of ICMPv6 128) for icmp and icmpv6.
    """

    in_interface: str
    source: str
    destination: str
    protocol: str | int
    source_port: int = 40000
    destination_port: int = 0
    icmp_type: int = 8
    icmp_code: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", NAMES.get(self.protocol, self.protocol))

    @property
    def number(self) -> int:
        """The IP protocol's number."""
        return self.protocol if isinstance(self.protocol, int) else NUMBERS[self.protocol]

    @property
    def is_v6(self) -> bool:
        return ":" in self.destination

    @property
    def is_icmp(self) -> bool:
        """ICMP of its own family: what has a type and a code."""
        return self.number == (58 if self.is_v6 else 1)

    @property
    def has_ports(self) -> bool:
        return self.number in (6, 17)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet: `forwarded` (it left by `out_interface`), `local` (the router took it) or `dropped`.

    A packet of the router's own that leaves is `forwarded` too. Addresses and ports are those it left with; of a
    dropped packet they are those it came with. A port is None where the protocol has none.

    `owners` are the ids of the document's objects that decided, the last one last; `why` says it in words.

    Two outcomes are the same where their `compared` are. Of the ports only the destination's is in it: a translation of
    the source may change the source port (RFC 4787 calls it that: port translation), and which one the kernel takes
    depends on the flows it has. Owners and words are for people and are not compared either.
    """

    verdict: Verdict
    out_interface: str
    source: str
    destination: str
    source_port: int | None = None
    destination_port: int | None = None
    owners: tuple[str, ...] = ()
    why: str = ""

    @property
    def compared(self) -> tuple[object, ...]:
        if self.verdict == "dropped":
            return ("dropped",)
        return (self.verdict, self.out_interface, self.source, self.destination, self.destination_port)
