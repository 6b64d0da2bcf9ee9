"""Live flows in all that the kernel tells of them, of both families, a page at a time: what `flows` shows.

conntrack.py finds flows to end them, and knows of each no more than that takes. The table may hold a quarter of a
million: each is looked at as it comes and let go, but for those of the page: the lowest ids behind the page before.
Layouts are those of the kernel's include/uapi/linux/netfilter/nfnetlink_conntrack.h; numbers big-endian.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct

from appliance import wire
from appliance.state import LiveFlow

_GET = 1 << 8 | 1
_NFGENMSG = Struct("!BBH")
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _MARK = 1, 2, 3, 4, 7, 8
_COUNTED_ORIGINAL, _COUNTED_REPLY, _ID, _TIMESTAMP = 9, 10, 12, 20
_IP, _PROTO = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_TYPE = {1: 5, 58: 8}  # CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE; the code is the next
_PACKETS, _BYTES = 1, 2
_TCP, _TCP_STATE, _START = 1, 1, 1
_SEEN_REPLY, _ASSURED = 1 << 1, 1 << 2
_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_STATES = (
    "none", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close",
    "syn_sent2",
)  # fmt: skip
_End = tuple[str, str, int, int, int, int]  # source, destination, protocol, ports, type << 8 | code of ICMP


@cache
def _channel() -> wire.Channel:
    return wire.Channel(wire.NETFILTER)


def live_flows(wanted: Callable[[LiveFlow], bool], most: int, after: int) -> list[LiveFlow]:
    """At most `most` of the flows that are wanted, those with the lowest ids above `after`. Raises NetlinkError."""
    page = _Page(wanted, most, after)
    try:
        for family in (AF_INET, AF_INET6):
            _channel().dump(_GET, _NFGENMSG.pack(family, 0, 0), page.turn_away)
    except (wire.KernelError, OSError) as error:
        raise wire.NetlinkError("list flows", wire.words(error)) from None
    return page.kept()


class _Page:
    def __init__(self, wanted: Callable[[LiveFlow], bool], most: int, after: int) -> None:
        self._wanted, self._most, self._after, self._highest = wanted, most, after, 1 << 32
        self._found: dict[int, LiveFlow] = {}

    def turn_away(self, body: bytes) -> bool:
        """Take what belongs on the page; none needs to be kept as it came."""
        told = wire.attributes(body, _NFGENMSG.size)
        ident = int.from_bytes(told.get(_ID, b""))
        if self._after < ident < self._highest and (flow := _flow(ident, told)) is not None and self._wanted(flow):
            self._found[ident] = flow
            if len(self._found) > 2 * self._most:
                self._cut()
        return True

    def _cut(self) -> None:
        ids = sorted(self._found)[: self._most]
        self._found = {ident: self._found[ident] for ident in ids}
        self._highest = ids[-1]

    def kept(self) -> list[LiveFlow]:
        return [self._found[ident] for ident in sorted(self._found)[: self._most]]


def _flow(ident: int, told: dict[int, bytes]) -> LiveFlow | None:
    went, came = _end(told.get(_ORIGINAL, b"")), _end(told.get(_REPLY, b""))
    if went is None or came is None:
        return None
    status = int.from_bytes(told.get(_STATUS, b""))
    return LiveFlow(
        id=ident,
        protocol=_NAMES.get(went[2], str(went[2])),
        source=went[0],
        source_port=went[3],
        destination=went[1],
        destination_port=went[4],
        reply_source=came[0],
        reply_source_port=came[3],
        reply_destination=came[1],
        reply_destination_port=came[4],
        icmp_type=went[5] >> 8,
        icmp_code=went[5] & 255,
        mark=int.from_bytes(told.get(_MARK, b"")),
        state=_state(told, status),
        expires_s=int.from_bytes(told.get(_TIMEOUT, b"")),
        began=_began(told.get(_TIMESTAMP, b"")),
        sent=_counted(told.get(_COUNTED_ORIGINAL)),
        received=_counted(told.get(_COUNTED_REPLY)),
    )


def _end(data: bytes) -> _End | None:
    parts = wire.attributes(data)
    ip, proto = wire.attributes(parts.get(_IP, b"")), wire.attributes(parts.get(_PROTO, b""))
    family, source = (AF_INET, 1) if 1 in ip else (AF_INET6, 3)
    if source not in ip or source + 1 not in ip or _NUMBER not in proto:
        return None
    number = proto[_NUMBER][0]
    kind = _TYPE.get(number, 0)
    icmp = proto[kind][0] << 8 | proto.get(kind + 1, b"\0")[0] if kind in proto else 0
    ports = [int.from_bytes(proto.get(k, b"")[:2]) for k in (_SOURCE_PORT, _DESTINATION_PORT)]
    return inet_ntop(family, ip[source]), inet_ntop(family, ip[source + 1]), number, ports[0], ports[1], icmp


def _state(told: dict[int, bytes], status: int) -> str:
    """TCP's own state; else how far the flow has come."""
    tcp = wire.attributes(wire.attributes(told.get(_PROTOINFO, b"")).get(_TCP, b"")).get(_TCP_STATE)
    if tcp:
        return _STATES[tcp[0]] if tcp[0] < len(_STATES) else str(tcp[0])
    return "assured" if status & _ASSURED else "answered" if status & _SEEN_REPLY else "unanswered"


def _began(data: bytes) -> float:
    """Seconds since the epoch, 0 where the kernel does not note it."""
    return int.from_bytes(wire.attributes(data).get(_START, b"")) / 1e9


def _counted(data: bytes | None) -> tuple[int, int] | None:
    """(bytes, packets); None where nobody counts."""
    if data is None:
        return None
    told = wire.attributes(data)
    return int.from_bytes(told.get(_BYTES, b"")), int.from_bytes(told.get(_PACKETS, b""))
