"""The counters of table `inet narthex_usage`, read from the kernel: each element of its sets has one.

A set is named KIND_in or KIND_out, of IPv6 KIND_in6 or KIND_out6, and an element's owner is whose traffic it counts:
what is found by a set of `in` the object received. Reading resets nothing. Layouts are those of the kernel's
include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from errno import ENOENT
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
_ELEM, _KEY, _VALUE = 1, 1, 1
_COUNTER = b"counter\0"  # the name of the expression; behind it its data: a header, bytes, packets
_NUMBERS = Struct("=HH4s8s4s8s")
_BYTES_HEAD, _PACKETS_HEAD = (Struct("=HH").pack(12, kind) for kind in (1, 2))


@cache
def _channel() -> wire.Channel:
    return wire.Channel(wire.NETFILTER)


def readings(meters: Ruleset, only: Mapping[str, Collection[str]] | None = None) -> list[Reading]:
    """What the counters stand at; `only` those of these keys, by set. Raises NetlinkError."""
    if not meters.sets or only is not None and not any(only.values()):
        return []
    try:
        epoch = _handle()
        if only is None:
            return [reading for s in meters.sets.values() for reading in _of_set(s, epoch)]
        return [r for name, keys in only.items() for r in _of_elements(meters.sets[name], keys, epoch)]
    except (wire.KernelError, OSError) as error:
        raise wire.NetlinkError("read the counters", wire.words(error)) from None


def _handle() -> str:
    """The table's number, which no other table of this namespace ever had."""
    told = _channel().ask(_GETTABLE, _HEAD + wire.attribute(_TABLE_NAME, _TABLE))[0][1]
    return wire.attributes(told, 4)[_TABLE_HANDLE].hex().lstrip("0")


def _of_set(s: NftSet, epoch: str) -> Iterator[Reading]:
    bounds, size = layout(s.key).bounds, layout(s.key).size
    counted: dict[bytes, tuple[int, int]] = {}
    for _, body in _channel().dump(_GETSETELEM, _question(s)):
        counted.update(_counted(body, size))
    for key in s.elements:
        found = counted.get(bounds(key)[0])
        if found is not None and key in s.owners:
            yield _reading(s, key, found, epoch)


def _of_elements(s: NftSet, keys: Iterable[str], epoch: str) -> Iterator[Reading]:
    """Of some elements, asked for one by one."""
    form = layout(s.key)
    for key in keys:
        first = form.bounds(key)[0]
        asked = wire.nest(_LIST_ELEMENTS, wire.nest(_ELEM, wire.nest(_KEY, wire.attribute(_VALUE, first))))
        try:
            answers = _channel().ask(_GETSETELEM, _question(s) + asked)
        except wire.KernelError as refusal:
            if refusal.errno == ENOENT:
                continue
            raise
        found = next((numbers for _, body in answers for _, numbers in _counted(body, form.size)), None)
        if found is not None and key in s.owners:
            yield _reading(s, key, found, epoch)


def _question(s: NftSet) -> bytes:
    return _HEAD + wire.attribute(_LIST_TABLE, _TABLE) + wire.attribute(_LIST_SET, s.name.encode() + b"\0")


def _reading(s: NftSet, key: str, counted: tuple[int, int], epoch: str) -> Reading:
    kind, _, way = s.name.rstrip("6").rpartition("_")
    size, packets = counted
    values: Four = (size, 0, packets, 0) if way == "in" else (0, size, 0, packets)
    return Reading(kind, s.owners[key], source_of(s.name, key), values, epoch)


def _counted(body: bytes, size: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The first key of each element in a message, with its bytes and packets. The end of a range has no counter."""
    for kind, at, stop in wire.each_attribute(body, 4, len(body)):
        if kind != _LIST_ELEMENTS:
            continue
        for _, start, end in wire.each_attribute(body, at, stop):
            place = body.find(_COUNTER, start, end)
            if place < 0:
                continue
            _, _, *numbers = _NUMBERS.unpack_from(body, place + len(_COUNTER))
            if numbers[0] != _BYTES_HEAD or numbers[2] != _PACKETS_HEAD:
                raise OSError("the kernel writes counters otherwise than it did")
            # The kernel writes the key first: the headers of KEY and VALUE, then what it is.
            yield body[start + 8 : start + 8 + size], (int.from_bytes(numbers[1]), int.from_bytes(numbers[3]))
