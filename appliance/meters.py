"""The counters of table `inet narthex_usage`, read from the kernel: each element of its sets has one.

A set is named KIND_in or KIND_out, of IPv6 KIND_in6 or KIND_out6, and an element's owner is whose traffic it counts:
what is found by a set of `in` the object received. Reading resets nothing. Layouts are those of the kernel's
include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from struct import Struct

from appliance import wire
from appliance.nftdata import layout
from appliance.state import NftSet, Ruleset
from appliance.usage import Four, Reading, source_of

_TABLE = b"narthex_usage\0"
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETSETELEM = _SUBSYSTEM | 1, _SUBSYSTEM | 13
_HEAD = Struct("!BBH").pack(1, 0, 0)  # NFPROTO_INET
_TABLE_NAME, _TABLE_HANDLE = 1, 4
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_KEY, _FLAGS, _EXPRESSION, _VALUE = 1, 3, 7, 1
_NAME, _DATA = 1, 2  # of an expression
_BYTES, _PACKETS = 1, 2
_INTERVAL_END = 1
_U32, _U64 = Struct("!I"), Struct("!Q")


@cache
def _channel() -> wire.Channel:
    return wire.Channel(wire.NETFILTER)


def readings(meters: Ruleset) -> list[Reading]:
    """What the counters stand at. Raises NetlinkError."""
    if not meters.sets:
        return []
    try:
        epoch = _handle()
        return [reading for s in meters.sets.values() for reading in _of_set(s, epoch)]
    except (wire.KernelError, OSError) as error:
        raise wire.NetlinkError("read the counters", wire.words(error)) from None


def _handle() -> str:
    """The table's number, which no other table of this namespace ever had."""
    told = _channel().ask(_GETTABLE, _HEAD + wire.attribute(_TABLE_NAME, _TABLE))[0][1]
    return wire.attributes(told, 4)[_TABLE_HANDLE].hex().lstrip("0")


def _of_set(s: NftSet, epoch: str) -> Iterator[Reading]:
    kind, _, way = s.name.rstrip("6").rpartition("_")
    owners, received, form = s.owners, way == "in", layout(s.key)
    question = _HEAD + wire.attribute(_LIST_TABLE, _TABLE) + wire.attribute(_LIST_SET, s.name.encode() + b"\0")
    counted: dict[bytes, tuple[int, int]] = {}
    for _, body in _channel().dump(_GETSETELEM, question):
        counted.update(_counted(body, form.size))
    for key in s.elements:
        found = counted.get(form.bounds(key)[0])
        if found is not None and key in owners:
            size, packets = found
            values: Four = (size, 0, packets, 0) if received else (0, size, 0, packets)
            yield Reading(kind, owners[key], source_of(s.name, key), values, epoch)


def _counted(body: bytes, size: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The first key of each element in a message, with its bytes and packets."""
    for kind, at, stop in wire.each_attribute(body, 4, len(body)):
        if kind != _LIST_ELEMENTS:
            continue
        for _, start, end in wire.each_attribute(body, at, stop):
            told = {k: body[a:z] for k, a, z in wire.each_attribute(body, start, end)}
            if _EXPRESSION not in told or _U32.unpack(told.get(_FLAGS, bytes(4)))[0] & _INTERVAL_END:
                continue
            expression = wire.attributes(told[_EXPRESSION])
            if expression.get(_NAME) == b"counter\0":
                counter = wire.attributes(expression[_DATA])
                numbers = _U64.unpack(counter[_BYTES])[0], _U64.unpack(counter[_PACKETS])[0]
                yield told[_KEY][4 : 4 + size], numbers
