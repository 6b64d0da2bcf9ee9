"""Elements of nft sets read straight from the kernel: one by its key, or all of a set; and the ruleset's generation.

nft(8) fetches the whole table before it answers for one element (107 ms at 10,000), and its JSON costs 17 us for
each. Here one element costs the same whatever the set holds: NFT_MSG_GETSETELEM with its key. Message layouts are
those of the kernel's include/uapi/linux/netfilter/nf_tables.h; numbers in attributes are big-endian.

How a key that is a range lies in the kernel depends on the set: in a concatenation (pipapo) it is one element with a
KEY and a KEY_END; in a simple set (rbtree) it is two, its start and, marked as such, the first key behind its end,
which is missing where the range goes to the end of its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import ENOENT
from functools import cache
from struct import Struct, unpack_from

from appliance import wire
from appliance.nftdata import Layout, layout
from appliance.state import NftSet

TABLE = "narthex"
_INET = 1  # NFPROTO_INET
_SUBSYSTEM = 10 << 8
_GETCHAIN, _GETRULE = _SUBSYSTEM | 4, _SUBSYSTEM | 7
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_USERDATA = 1, 2, 7
_COMMENT = 0  # in userdata, libnftnl's: type and length of one byte each
_GETSETELEM, _GETGEN = _SUBSYSTEM | 13, _SUBSYSTEM | 16
_NFGENMSG = Struct("!BBH")  # family, version, resource
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEM = 1
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_VALUE, _VERDICT = 1, 2
_CODE, _CHAIN = 1, 2
_GEN_ID, _GEN_PID, _GEN_NAME = 1, 2, 3
_INTERVAL_END = 1
_TWO_HEADERS = Struct("=HHHH")
_HEADER = Struct("=HH")
_U32 = Struct("!I")
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}

# An element as it lies in a message: key, last key ("" where there is none), is it the end of a range, value
Raw = tuple[bytes, bytes, bool, bytes]


@dataclass(frozen=True, slots=True)
class Generation:
    """The ruleset's generation in this namespace, which any change of any table moves; who asked, by pid and name."""

    id: int
    pid: int
    process: str


class Elements:
    """The sets of our table, by a netfilter socket that is kept. Any thread may call; calls take turns."""

    def __init__(self) -> None:
        self._channel = wire.Channel(wire.NETFILTER)

    def close(self) -> None:
        self._channel.close()

    def generation(self) -> int:
        """Which state of the ruleset is this? It moves by one with every transaction."""
        try:
            return generation_told(self._channel.ask(_GETGEN, _NFGENMSG.pack(0, 0, 0))[0][1]).id
        except (wire.KernelError, OSError) as error:
            raise wire.NetlinkError("read the ruleset's generation", wire.words(error)) from None

    def chain_comments(self, chain: str, table: str = TABLE) -> list[str] | None:
        """The comment of each rule of a chain of ours, in order ("": it has none), or None: there is no such chain."""
        where, name = table.encode() + b"\0", chain.encode() + b"\0"
        told = wire.attribute(_CHAIN_TABLE, where) + wire.attribute(_CHAIN_NAME, name)
        asked = wire.attribute(_RULE_TABLE, where) + wire.attribute(_RULE_CHAIN, name)
        head = _NFGENMSG.pack(_INET, 0, 0)
        try:
            self._channel.ask(_GETCHAIN, head + told)
            answers = self._channel.dump(_GETRULE, head + asked)
            return [comment_of(wire.attributes(body, _NFGENMSG.size)) for _, body in answers]
        except wire.KernelError as refusal:
            if refusal.errno == ENOENT:
                return None
            raise wire.NetlinkError(f"list chain {chain}", wire.words(refusal)) from None
        except OSError as error:
            raise wire.NetlinkError(f"list chain {chain}", wire.words(error)) from None

    def set_element(self, s: NftSet, key: str, table: str = TABLE) -> str | None:
        """The value that the kernel's set has for `key` ("" in a set), or None where it has no such element."""
        form = layout(s.key)
        low, high = form.bounds(key)
        in_one = not s.interval or form.is_concatenation
        found = self._get(s, low, high if s.interval and in_one else b"", table=table)
        if found is None or found[0] != low or found[2]:
            return None
        if in_one and (found[1] or found[0]) != high:
            return None  # a range that holds the one we asked for
        if not in_one and not self._ends(s, low, high, table):
            return None
        return _value_text(s, found[3])

    def set_elements(self, s: NftSet, table: str = TABLE) -> dict[str, str]:
        """All elements of the kernel's set: each key's text to its value's. NetlinkError: also for no such set."""
        try:
            answers = self._channel.dump(_GETSETELEM, _question(s.name, table))
        except (wire.KernelError, OSError) as error:
            raise wire.NetlinkError(f"list set {s.name}", wire.words(error)) from None
        form = layout(s.key)
        found = (raw for _, body in answers for raw in _elements(body, form.size))
        if s.interval and not form.is_concatenation:
            return {key: _value_text(s, data) for key, data in _ranges(form, found)}
        if s.interval:
            return {form.range_text(k, end or k): _value_text(s, data) for k, end, _, data in found}
        text = form.text
        if not s.value:
            return {text(key): "" for key, _, _, _ in found}
        if s.value == "verdict":
            return {text(key): _verdict(data) for key, _, _, data in found}
        value = layout(s.value).text
        return {text(key): value(data[4:]) for key, _, _, data in found}

    def _ends(self, s: NftSet, low: bytes, high: bytes, table: str) -> bool:
        """Does the range of a simple set that starts with `low` end with `high`? The kernel gives its next end."""
        first = int.from_bytes(low) + 1
        if first >> len(low) * 8:
            return True  # the last key of all
        end = self._get(s, first.to_bytes(len(low)), is_end=True, table=table)
        behind = int.from_bytes(high) + 1
        if behind >> len(low) * 8:
            return end is None
        return end is not None and end[0] == behind.to_bytes(len(low))

    def _get(self, s: NftSet, key: bytes, last: bytes = b"", is_end: bool = False, table: str = TABLE) -> Raw | None:
        """The element that the kernel finds for a key: in interval sets one that holds it."""
        asked = _data(_KEY, key)
        if last:
            asked += _data(_KEY_END, last)
        if is_end:
            asked += wire.attribute(_FLAGS, _U32.pack(_INTERVAL_END))
        body = _question(s.name, table) + wire.nest(_LIST_ELEMENTS, wire.nest(_ELEM, asked))
        try:
            answers = self._channel.ask(_GETSETELEM, body)
        except wire.KernelError as refusal:
            if refusal.errno == ENOENT:
                return None
            raise wire.NetlinkError(f"read an element of {s.name}", wire.words(refusal)) from None
        except OSError as error:
            raise wire.NetlinkError(f"read an element of {s.name}", wire.words(error)) from None
        return next((raw for _, found in answers for raw in _elements(found, len(key))), None)


def generation_told(body: bytes) -> Generation:
    """A NEWGEN message (or the answer to GETGEN), as events.py hears it too."""
    found = wire.attributes(body, _NFGENMSG.size)
    name = found.get(_GEN_NAME, b"").rstrip(b"\0").decode(errors="replace")
    number, pid = (_U32.unpack(found.get(kind, bytes(4)))[0] for kind in (_GEN_ID, _GEN_PID))
    return Generation(number, pid, name)


def comment_of(rule: dict[int, bytes]) -> str:
    """The comment of a rule, from its attributes, as nft(8) left it with the kernel; "" where it has none."""
    data = rule.get(_RULE_USERDATA, b"")
    while len(data) >= 2:
        kind, size = data[0], data[1]
        if kind == _COMMENT:
            return data[2 : 2 + size].rstrip(b"\0").decode(errors="replace")
        data = data[2 + size :]
    return ""


def _question(name: str, table: str) -> bytes:
    return (
        _NFGENMSG.pack(_INET, 0, 0)
        + wire.attribute(_LIST_TABLE, table.encode() + b"\0")
        + wire.attribute(_LIST_SET, name.encode() + b"\0")
    )


def _data(kind: int, value: bytes) -> bytes:
    return wire.nest(kind, wire.attribute(_VALUE, value))


def _elements(body: bytes, size: int) -> Iterator[Raw]:
    """The elements in one message, each key `size` bytes long. The value keeps its own header: value or verdict."""
    for kind, at, stop in wire.each_attribute(body, _NFGENMSG.size, len(body)):
        if kind != _LIST_ELEMENTS:
            continue
        while at < stop:
            length, _, key_length, key_kind = _TWO_HEADERS.unpack_from(body, at)
            if key_kind & wire.TYPE_MASK != _KEY:
                break  # the kernel writes the key first
            key = body[at + 12 : at + 12 + size]
            inner, end = at + 4 + (key_length + 3 & ~3), at + length
            at += length + 3 & ~3
            last, is_end, data = b"", False, b""
            while inner < end:
                length, kind = _HEADER.unpack_from(body, inner)
                kind &= wire.TYPE_MASK
                if kind == _DATA:
                    data = body[inner + 4 : inner + length]
                elif kind == _KEY_END:
                    last = body[inner + 8 : inner + length]
                elif kind == _FLAGS:
                    is_end = bool(_U32.unpack_from(body, inner + 4)[0] & _INTERVAL_END)
                inner += length + 3 & ~3
            yield key, last, is_end, data


def _ranges(form: Layout, found: Iterable[Raw]) -> Iterator[tuple[str, bytes]]:
    """Starts and ends of a simple interval set, paired: (key's text, value)."""
    # At one key the end of a range comes before the start of the next.
    marks = sorted(found, key=lambda raw: (raw[0], not raw[2]))
    start: Raw | None = None
    for raw in marks:
        if start is not None:
            yield form.range_text(start[0], _before(raw[0])), start[3]
        start = None if raw[2] else raw
    if start is not None:
        yield form.range_text(start[0], b"\xff" * form.size), start[3]


def _before(key: bytes) -> bytes:
    return (int.from_bytes(key) - 1).to_bytes(len(key))


def _value_text(s: NftSet, data: bytes) -> str:
    if not s.value:
        return ""
    return _verdict(data) if s.value == "verdict" else layout(s.value).text(data[4:])


def _verdict(data: bytes) -> str:
    """accept, drop, "jump chain": NFTA_DATA_VERDICT with its code and, of a jump, its chain."""
    found = wire.attributes(data, 4)
    (code,) = unpack_from("!i", found[_CODE])
    name = _VERDICTS.get(code, str(code))
    chain = found.get(_CHAIN, b"").rstrip(b"\0").decode()
    return f"{name} {chain}" if chain else name


# --- for the agent, which has one network namespace all its life ---------------------------------------------------


@cache
def _kept() -> Elements:
    return Elements()


def set_element(s: NftSet, key: str, table: str = TABLE) -> str | None:
    """See Elements."""
    return _kept().set_element(s, key, table)


def set_elements(s: NftSet, table: str = TABLE) -> dict[str, str]:
    """See Elements."""
    return _kept().set_elements(s, table)


def chain_comments(chain: str, table: str = TABLE) -> list[str] | None:
    """See Elements."""
    return _kept().chain_comments(chain, table)


def generation() -> int:
    """See Elements."""
    return _kept().generation()
