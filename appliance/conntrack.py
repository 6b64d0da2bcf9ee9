"""Live flows: which ones match, and their end. ctnetlink by a netfilter socket that is kept; no process is started.

The kernel walks its whole table for every question, but hands out only what a filter lets pass (CTA_FILTER, Linux 5.8):
so a question costs a walk and what it finds. Many questions at once are one unfiltered listing, taken apart here. Both
ways every entry is looked at again here, so that a kernel that knows no filter gives the same answer, slower.

Flows end one by one, by their own tuple: a kernel that doesn't know the filter in a delete would end all of them.
Layouts: include/uapi/linux/netfilter/nfnetlink_conntrack.h; ports and ids big-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import ENOENT
from functools import cache
from itertools import islice
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

from appliance import wire
from appliance.plan import Flows

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_NFGENMSG = Struct("!BBH")
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO = 1, 2
# CTA_IP_V4_SRC and its like, by family
_SOURCE: dict[int, int] = {AF_INET: 1, AF_INET6: 3}
_DESTINATION: dict[int, int] = {AF_INET: 2, AF_INET6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ORIGINAL_FLAGS, _REPLY_FLAGS = 1, 2
# nf_conntrack_netlink.c, CTA_FILTER_F_*: which parts of a tuple the kernel shall compare
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_DESTINATION_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_WITH_PORTS = (6, 17, 33, 132, 136)  # tcp udp dccp sctp udplite
_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_FEW = 3  # so many filtered walks (10 ms each over 262,144 buckets) cost no more than listing 10,000 flows (40 ms)

# Both tuples of a v4 flow with ports, as the kernel writes them. Each: 12 of headers, source, 4, destination, 8,
# protocol, 7 of padding and header, source port, 6, destination port, 2
_TUPLES = Struct("!" + "12x4s4x4s8xB7xH6xH2x" * 2)
_TUPLE_SIZE = 52
_LENGTH = Struct("=H")
_FLAGS = Struct("=I")

# Source, destination, protocol, source port, destination port; of the original, then of the reply
_Tuples = tuple[bytes, bytes, int, int, int, bytes, bytes, int, int, int]


@dataclass(frozen=True, slots=True)
class Flow:
    """A live flow: how it was sent, and (`reply_...`) how its answers come in: the difference is its translation.

    `protocol` is tcp, udp, icmp or a number; ports are 0 where it has none. `key` is the kernel's own word for it.
    """

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int
    reply_destination: str
    reply_destination_port: int
    key: bytes

    def __str__(self) -> str:
        went = f"{_end(self.source, self.source_port)} -> {_end(self.destination, self.destination_port)}"
        return f"{self.protocol} {went} (answers {_end(self.reply_source, self.reply_source_port)})"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Conntrack:
    """The kernel's table of flows, of both families. Any thread may call; calls take turns."""

    def __init__(self) -> None:
        self._channel = wire.Channel(wire.NETFILTER)

    def close(self) -> None:
        self._channel.close()

    def flows(self, wanted: Sequence[Flows], most: int | None = None) -> list[Flow]:
        """The live flows that any of `wanted` matches, at most `most`. Raises NetlinkError."""
        found = (_flow(body, tuples) for body, tuples in self._matching(wanted))
        return list(found if most is None else islice(found, most))

    def end_flows(self, wanted: Sequence[Flows]) -> int:
        """End them; how many there were. One that ended by itself meanwhile does not count. Raises NetlinkError."""
        if not wanted:
            return 0
        keys = [(_DELETE, body[: _NFGENMSG.size] + _key(body)) for body, _ in self._matching(wanted)]
        try:
            results = self._channel.tell(keys)
        except OSError as error:
            raise wire.NetlinkError("end flows", str(error)) from error
        if refused := next((number for number in results if number not in (0, ENOENT)), 0):
            raise wire.NetlinkError("end flows", wire.KernelError(refused).words)
        return results.count(0)

    def _matching(self, wanted: Sequence[Flows]) -> Iterator[tuple[bytes, _Tuples]]:
        matchers = [_Matcher(flows, family) for flows in wanted for family in _families(flows)]
        questions = [(matcher, filter) for matcher in matchers for filter in matcher.filters()]
        if len(questions) > _FEW:
            for family in sorted({matcher.family for matcher in matchers}):
                yield from self._listed(family, _Index([m for m in matchers if m.family == family]), b"")
            return
        seen: set[bytes] = set()
        for matcher, filter in questions:
            for body, tuples in self._listed(matcher.family, _Index([matcher]), filter):
                if (key := _key(body)) not in seen:
                    seen.add(key)
                    yield body, tuples

    def _listed(self, family: int, index: _Index, question: bytes) -> Iterator[tuple[bytes, _Tuples]]:
        try:
            answers = self._channel.dump(_GET, _NFGENMSG.pack(family, 0, 0) + question)
        except (wire.KernelError, OSError) as error:
            raise wire.NetlinkError("list flows", wire.words(error)) from None
        for _, body in answers:
            tuples = _tuples(body, family)
            if tuples is not None and index.matches(tuples):
                yield body, tuples


def _families(flows: Flows) -> tuple[int, ...]:
    """Those of its addresses; both, where it names none."""
    told = (flows.destination, flows.target, flows.source, flows.translated, flows.address, flows.network)
    texts = (*told, *flows.sources)
    return tuple({AF_INET6 if ":" in text else AF_INET for text in texts if text}) or (AF_INET, AF_INET6)


class _Matcher:
    """A `Flows` made ready to be compared with many entries of a family."""

    def __init__(self, flows: Flows, family: int) -> None:
        self.family = family
        self.destination, self.target, self.source, self.translated, self.address = (
            inet_pton(family, text) if text else None
            for text in (flows.destination, flows.target, flows.source, flows.translated, flows.address)
        )
        self._protocol = _number(flows.protocol) if flows.protocol else None
        first, _, last = flows.ports.partition("-")
        self._ports = (int(first), int(last or first)) if flows.ports else None
        self._sources = [_network(cidr) for cidr in flows.sources]
        self._within = [_network(flows.network)] if flows.network else []

    def matches(self, found: _Tuples) -> bool:
        source, destination, protocol, _, port, reply_source, reply_destination = found[:7]
        return (
            self.destination in (None, destination)
            and self._protocol in (None, protocol)
            and (self._ports is None or self._ports[0] <= port <= self._ports[1])
            and self.target in (None, reply_source)
            and self.source in (None, source)
            and self.translated in (None, reply_destination)
            and self.address in (None, destination, reply_destination)
            and (not self._sources or _is_in(source, self._sources))
            and (not self._within or any(_is_in(end, self._within) for end in (source, destination, reply_source)))
        )

    def filters(self) -> Iterator[bytes]:
        """The kernel's filters whose findings together hold all that matches."""
        if self.family == AF_INET6:
            # Linux 6.18 lets pass just what is NOT this address (ctnetlink_filter_match_tuple: `!ipv6_addr_cmp`).
            yield b""
        elif self.address is None:
            yield self._filter(self.destination, self.translated)
        else:
            yield self._filter(self.address, self.translated)
            yield self._filter(self.destination, self.address)

    def _filter(self, destination: bytes | None, translated: bytes | None) -> bytes:
        port = self._ports[0] if self._ports and self._ports[0] == self._ports[1] else None
        original, by_original = _partial(self.family, self.source, destination, self._protocol, port)
        reply, by_reply = _partial(self.family, self.target, translated, None, None)
        if not by_original | by_reply:
            return b""
        flags = ((_ORIGINAL_FLAGS, by_original), (_REPLY_FLAGS, by_reply))
        return b"".join(
            (
                wire.nest(_TUPLE_ORIGINAL, original) if by_original else b"",
                wire.nest(_TUPLE_REPLY, reply) if by_reply else b"",
                wire.nest(_FILTER, *(wire.attribute(kind, _FLAGS.pack(by)) for kind, by in flags)),
            )
        )


class _Index:
    """Matchers by what they ask for first, so that an entry is compared with few of them."""

    def __init__(self, matchers: Sequence[_Matcher]) -> None:
        self._by_destination: dict[bytes, list[_Matcher]] = {}
        self._by_source: dict[bytes, list[_Matcher]] = {}
        self._by_address: dict[bytes, list[_Matcher]] = {}
        self._others: list[_Matcher] = []
        for matcher in matchers:
            if matcher.destination is not None:
                self._by_destination.setdefault(matcher.destination, []).append(matcher)
            elif matcher.source is not None:
                self._by_source.setdefault(matcher.source, []).append(matcher)
            elif matcher.address is not None:
                self._by_address.setdefault(matcher.address, []).append(matcher)
            else:
                self._others.append(matcher)

    def matches(self, found: _Tuples) -> bool:
        source, destination, reply_destination = found[0], found[1], found[6]
        candidates = (
            self._by_destination.get(destination),
            self._by_source.get(source),
            self._by_address.get(destination),
            self._by_address.get(reply_destination),
            self._others,
        )
        return any(matcher.matches(found) for some in candidates if some for matcher in some)


def _partial(
    family: int, source: bytes | None, destination: bytes | None, protocol: int | None, port: int | None
) -> tuple[bytes, int]:
    """A tuple of only what is given, and the flags that say what that is. The kernel wants both addresses' places."""
    by, addresses, proto = 0, b"", b""
    if source is not None:
        by |= _BY_SOURCE
        addresses += wire.attribute(_SOURCE[family], source)
    if destination is not None:
        by |= _BY_DESTINATION
        addresses += wire.attribute(_DESTINATION[family], destination)
    if protocol is not None:
        by |= _BY_NUMBER
        proto += wire.attribute(_NUMBER, bytes((protocol,)))
        if port is not None and protocol in _WITH_PORTS:
            by |= _BY_DESTINATION_PORT
            proto += wire.attribute(_DESTINATION_PORT, port.to_bytes(2))
    return (wire.nest(_IP, addresses) if addresses else b"") + (wire.nest(_PROTO, proto) if proto else b""), by


def _number(protocol: str) -> int:
    return _PROTOCOLS[protocol] if protocol in _PROTOCOLS else int(protocol)


def _network(cidr: str) -> tuple[int, int]:
    """(first address, mask) of a CIDR or address."""
    head, _, length = cidr.partition("/")
    family, bits = (AF_INET6, 128) if ":" in head else (AF_INET, 32)
    mask = (1 << bits) - (1 << bits - int(length or bits))
    return int.from_bytes(inet_pton(family, head)) & mask, mask


def _is_in(address: bytes, networks: list[tuple[int, int]]) -> bool:
    number = int.from_bytes(address)
    return any(number & mask == first for first, mask in networks)


def _tuples(body: bytes, family: int) -> _Tuples | None:
    """Both tuples of an entry; None where it isn't a flow of the family."""
    if family == AF_INET and len(body) >= 4 + 2 * _TUPLE_SIZE:
        lengths = _LENGTH.unpack_from(body, 4)[0], _LENGTH.unpack_from(body, 4 + _TUPLE_SIZE)[0]
        if lengths == (_TUPLE_SIZE, _TUPLE_SIZE):
            found: _Tuples = _TUPLES.unpack_from(body, 4)
            return found
    parts = wire.attributes(body, _NFGENMSG.size)
    both = [_tuple(parts.get(kind, b""), family) for kind in (_TUPLE_ORIGINAL, _TUPLE_REPLY)]
    return both[0] + both[1] if both[0] and both[1] else None


def _tuple(data: bytes, family: int) -> tuple[bytes, bytes, int, int, int] | None:
    """One tuple of any protocol; ports 0 where it has none (icmp)."""
    parts = wire.attributes(data)
    ip, proto = wire.attributes(parts.get(_IP, b"")), wire.attributes(parts.get(_PROTO, b""))
    source, destination = ip.get(_SOURCE[family]), ip.get(_DESTINATION[family])
    if source is None or destination is None or _NUMBER not in proto:
        return None
    ports = [int.from_bytes(proto.get(kind, b"\0\0")[:2]) for kind in (_SOURCE_PORT, _DESTINATION_PORT)]
    return source, destination, proto[_NUMBER][0], ports[0], ports[1]


def _key(body: bytes) -> bytes:
    """What names an entry in a delete: its original tuple, its id, and its zone where it has one."""
    parts = wire.attributes(body, _NFGENMSG.size)
    key = wire.nest(_TUPLE_ORIGINAL, parts[_TUPLE_ORIGINAL]) + wire.attribute(_ID, parts[_ID])
    return key + wire.attribute(_ZONE, parts[_ZONE]) if _ZONE in parts else key


def _flow(body: bytes, found: _Tuples) -> Flow:
    source, destination, protocol, sport, dport, reply_source, reply_destination, _, rsport, rdport = found
    return Flow(
        _NAMES.get(protocol, str(protocol)),
        _text(source),
        sport,
        _text(destination),
        dport,
        _text(reply_source),
        rsport,
        _text(reply_destination),
        rdport,
        _key(body),
    )


def _text(address: bytes) -> str:
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


# --- for the agent, which has one network namespace all its life ---------------------------------------------------


@cache
def _kept() -> Conntrack:
    return Conntrack()


def flows(*wanted: Flows, most: int | None = None) -> list[str]:
    """The live flows that any of `wanted` matches, in words. Ask for many at once: each question walks the table."""
    return [str(flow) for flow in _kept().flows(wanted, most)]


def end_flows(*wanted: Flows) -> int:
    """End the live flows that any of `wanted` matches; how many. Ask for many at once: each walks the table."""
    return _kept().end_flows(wanted)
