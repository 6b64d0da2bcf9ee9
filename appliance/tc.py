"""Queues: the tree of HTB classes at the root of a link's egress, with a queue at each leaf (tc-htb(8)): fq_codel,
which keeps it short and each flow apart; of a kernel without it (a cell has its host's) bfifo, of 0.1 s.

"Ours" is a root qdisc with our handle, HANDLE: the packet filter puts a packet into one of its classes by its number
(`meta priority set 6e78:8001`, see ruleset.py), one look-up whatever their number; no tc filter is needed. What is put
nowhere, or into a class that a link does not have, passes unshaped.

The kernel walks through all classes of a link for each that is made (tc_bind_tclass): 1,000 take it 0.05 s, 10,000
some 4 s, once; a change of one takes it nothing of the kind.

Messages are packed by hand, and a test holds them against pyroute2's: its classes take 0.3 ms for each message, and
10,000 classes are 20,000 messages, which go to the kernel by dozens. Layouts: include/uapi/linux/rtnetlink.h, struct
tcmsg; pkt_sched.h, struct tc_htb_opt and tc_htb_glob. Times are in the kernel's ticks of 64 ns (net/pkt_sched.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from errno import EINVAL, ENODEV, ENOENT
from socket import if_indextoname, if_nametoindex
from struct import Struct

from appliance import wire
from appliance.plan import differing
from appliance.state import Class, Shaper

HANDLE = 0x6E78  # "nx"
LEAF = 0x8000  # numbers from here on are leaves'
_ROOT = 0xFFFFFFFF
_NEWQDISC, _DELQDISC, _GETQDISC, _NEWTCLASS, _DELTCLASS, _GETTCLASS = 36, 37, 38, 40, 41, 42
_TCMSG = Struct("=BxxxiIII")  # family, index, handle, parent, info
_ECHO = 0x08
_KIND, _OPTIONS = 1, 2
_HTB_PARMS, _HTB_INIT = 1, 2
# struct tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate) twice,
# buffer, cbuffer, quantum, level, prio
_OPT = Struct("=BBHhHI BBHhHI IIIII")
_GLOB = Struct("=IIIII")  # version, rate2quantum, defcls, debug, direct_pkts
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel wants no table of times then
_QUANTUM = 6056  # bytes a class may send when it is its turn to borrow: all alike
_FQ_LIMIT, _FQ_FLOWS, _FQ_MEMORY = 2, 5, 9
_U32 = Struct("=I")
# 64 flows take 5 KiB a class, the default of 1,024 would take 70
_FQ = wire.attribute(_KIND, b"fq_codel\0") + wire.nest(
    _OPTIONS,
    wire.attribute(_FQ_LIMIT, _U32.pack(1000)),
    wire.attribute(_FQ_FLOWS, _U32.pack(64)),
    wire.attribute(_FQ_MEMORY, _U32.pack(4 << 20)),
)
_HTB = wire.attribute(_KIND, b"htb\0")
_FEW = 64  # classes that are asked for one by one rather than all

# parent, rate and ceiling in bytes/s, buffer and cbuffer in ticks, handle of the leaf's queue
_Seen = tuple[int, int, int, int, int, int]


class Shapers:
    """The shaped links of this machine, by a socket that is kept. Any thread may call; calls take turns."""

    def __init__(self) -> None:
        self._channel = wire.Channel(wire.ROUTE)
        self._fair: bool | None = None  # whether the kernel has fq_codel

    def close(self) -> None:
        self._channel.close()

    def observe(self, wished: Sequence[Shaper]) -> tuple[Shaper, ...]:
        """Every link that has a tree of ours; one that is as wished IS the wished part. Raises NetlinkError."""
        known = {shaper.link: shaper for shaper in wished}
        found = {}
        for body in self._dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
            _, index, handle, parent, _ = _TCMSG.unpack_from(body)
            if handle == HANDLE << 16 and parent == _ROOT:
                link = if_indextoname(index)
                found[link] = self._observed(index, link, known.get(link))
        order = [link for link in known if link in found] + [link for link in found if link not in known]
        return tuple(found[link] for link in order)

    def look(self, wished: Shaper, numbers: Sequence[int]) -> Shaper:
        """`wished` with these classes of it read back."""
        index = _index(wished.link)
        if len(numbers) > _FEW:
            return self._observed(index, wished.link, wished)
        seen = {n: self._class(index, n) for n in numbers}
        wrong = {n: found for n, found in seen.items() if not _is(wished.classes.get(n), n, found)}
        if not wrong:
            return wished
        classes = {n: c for n, c in wished.classes.items() if n not in wrong}
        return replace(wished, classes=classes | {n: _strange(f) for n, f in wrong.items() if f is not None})

    def set(self, before: Shaper | None, after: Shaper) -> None:
        """Make a link's tree, or change it: what stays the same goes on. Raises NetlinkError."""
        index = _index(after.link)
        if before is None:
            self._remove(index)
            glob = wire.nest(_OPTIONS, wire.attribute(_HTB_INIT, _GLOB.pack(3, 10, 0, 0, 0)))
            body = _TCMSG.pack(0, index, HANDLE << 16, _ROOT, 0) + _HTB + glob
            self._do("make", after.link, [(_NEWQDISC, body)], wire.CREATE | wire.REPLACE)
        gone, come = changes(before, after)
        self._do("remove classes", after.link, [(_DELTCLASS, _message(index, n)) for n in gone], met=(ENOENT,))
        kept = (before.classes.keys() if before else set()) - set(gone)
        for some in ([n for n in come if n < LEAF], [n for n in come if n >= LEAF]):  # whole first, then their parts
            requests = [r for n in some for r in self._requests(index, n, after.classes[n], n not in kept)]
            self._do("set classes", after.link, requests, wire.CREATE | wire.REPLACE)

    def remove(self, link: str) -> None:
        """Whatever the kernel gives a link that nobody shapes. No link, no tree: it is so already."""
        try:
            index = if_nametoindex(link)
        except OSError:
            return
        self._remove(index)

    # --- inside

    def _requests(self, index: int, number: int, wished: Class, is_new: bool = True) -> Iterator[wire.Message]:
        """The class, and with a new leaf its queue: fq_codel refuses to be told its number of flows again."""
        parms = wire.attribute(_HTB_PARMS, class_parameters(wished))
        made = _NEWTCLASS, _message(index, number, HANDLE << 16 | wished.parent) + _HTB + wire.nest(_OPTIONS, parms)
        yield made
        if number < LEAF or not is_new:
            return
        fair = _NEWQDISC, _queue_message(index, number) + _FQ
        if self._fair is None:  # found out by the first leaf of all
            self._fair = self._channel.tell([made, fair], wire.CREATE | wire.REPLACE) == [0, 0]
            if self._fair:
                return
        yield fair if self._fair else (_NEWQDISC, _queue_message(index, number) + _fifo(wished))

    def _remove(self, index: int) -> None:
        body = _TCMSG.pack(0, index, HANDLE << 16, _ROOT, 0)
        self._do("remove", str(index), [(_DELQDISC, body)], met=(ENOENT, EINVAL, ENODEV))

    def _do(
        self, what: str, link: str, requests: Sequence[wire.Message], flags: int = 0, met: tuple[int, ...] = ()
    ) -> None:
        try:
            results = self._channel.tell(requests, flags)
        except OSError as error:
            raise wire.NetlinkError(f"{what} on {link}", wire.words(error)) from error
        for number in results:
            if number and number not in met:
                raise wire.NetlinkError(f"{what} on {link}", wire.KernelError(number).words)

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        try:
            return [found for _, found in self._channel.dump(kind, body)]
        except (wire.KernelError, OSError) as error:
            raise wire.NetlinkError("list queues", wire.words(error)) from None

    def _observed(self, index: int, link: str, wished: Shaper | None) -> Shaper:
        # Of the root's tree alone: the queues at its leaves would list what they hold.
        seen = dict(map(_seen, self._dump(_GETTCLASS, _TCMSG.pack(0, index, 0, HANDLE << 16, 0))))
        same = wished is not None and seen.keys() == wished.classes.keys()
        if wished is not None and same and all(_is(c, n, seen[n]) for n, c in wished.classes.items()):
            return wished
        mine = wished.classes if wished else {}
        return Shaper(link, {n: mine[n] if _is(mine.get(n), n, f) else _strange(f) for n, f in seen.items()})

    def _class(self, index: int, number: int) -> _Seen | None:
        try:
            # Without ECHO the kernel tells only who listens to changes (net/sched/sch_api.c, tclass_get_notify).
            answers = self._channel.ask(_GETTCLASS, _message(index, number), _ECHO)
        except wire.KernelError as refusal:
            if refusal.errno == ENOENT:
                return None
            raise wire.NetlinkError(f"read class {number:x}", refusal.words) from None
        except OSError as error:
            raise wire.NetlinkError(f"read class {number:x}", wire.words(error)) from None
        return next((_seen(body)[1] for _, body in answers), None)


def changes(before: Shaper | None, after: Shaper) -> tuple[list[int], list[int]]:
    """(the classes to remove, children first; those to add or change, parents first). A class that moves to another
    parent is made anew, and with it what hangs on it."""
    old = before.classes if before else {}
    if old is after.classes:
        return [], []
    changed = differing(old, after.classes)
    moved = {n for n in changed if n in old and _is_other(old[n], after.classes.get(n))}
    while more := _parts(old, moved):
        moved |= more
    come = {n for n in (*changed, *moved) if n in after.classes}
    return (
        sorted(moved, key=lambda n: _depth(old, n), reverse=True),
        sorted(come, key=lambda n: _depth(after.classes, n)),
    )


def _is_other(was: Class, now: Class | None) -> bool:
    """Can it not be changed: is it gone, elsewhere, or nothing that we know (`_strange`: its queue may be another)?"""
    return now is None or now.parent != was.parent or was.burst < 0


def _parts(classes: Mapping[int, Class], moved: set[int]) -> set[int]:
    """What hangs on classes that are not leaves, and does not move yet."""
    if not any(n < LEAF for n in moved):
        return set()
    return {n for n, c in classes.items() if c.parent in moved and n not in moved}


def _depth(classes: Mapping[int, Class], number: int) -> int:
    depth = 0
    while number and (found := classes.get(number)) is not None and depth < 8:
        number, depth = found.parent, depth + 1
    return depth


def _index(link: str) -> int:
    try:
        return if_nametoindex(link)
    except OSError as error:
        raise wire.NetlinkError(f"shape {link}", wire.words(error)) from None


def _message(index: int, number: int, parent: int = 0) -> bytes:
    return _TCMSG.pack(0, index, HANDLE << 16 | number, parent, 0)


def _queue_message(index: int, number: int) -> bytes:
    return _TCMSG.pack(0, index, number << 16, HANDLE << 16 | number, 0)


def _fifo(wished: Class) -> bytes:
    """A queue of 0.1 s, and of two of the largest packets at least: of 64 KiB, where a link cuts them itself."""
    size = max(160 << 10, wished.ceil_kbit * 125 // 10)
    return wire.attribute(_KIND, b"bfifo\0") + wire.attribute(_OPTIONS, _U32.pack(size))


def class_parameters(wished: Class) -> bytes:
    """struct tc_htb_opt."""
    rate, ceil, buffer, cbuffer = _numbers(wished)
    spec = 3, _ETHERNET, 0, -1, 0
    return _OPT.pack(*spec, rate, *spec, ceil, buffer, cbuffer, _QUANTUM, 0, 0)


def _numbers(wished: Class) -> tuple[int, int, int, int]:
    """Rate and ceiling in bytes/s, and the ticks in which each sends the burst."""
    rate, ceil = wished.rate_kbit * 125, wished.ceil_kbit * 125
    first = wished.burst if rate == ceil else min(wished.burst, 1600)  # what is lent costs the parent, not the child
    return rate, ceil, first * 10**9 // rate >> 6, wished.burst * 10**9 // ceil >> 6


def _seen(body: bytes) -> tuple[int, _Seen]:
    """A NEWTCLASS: the class' number, and what it is. One that is no HTB's has a rate of 0."""
    _, _, handle, parent, info = _TCMSG.unpack_from(body)
    told = wire.attributes(body, _TCMSG.size)
    number = handle & 0xFFFF
    if told.get(_KIND) != b"htb\0" or handle >> 16 != HANDLE:
        return number, (0, 0, 0, 0, 0, 0)
    parms = _OPT.unpack_from(wire.attributes(told[_OPTIONS])[_HTB_PARMS])
    above = 0 if parent == _ROOT else parent & 0xFFFF
    return number, (above, parms[5], parms[11], parms[12], parms[13], info)


def _is(wished: Class | None, number: int, seen: _Seen | None) -> bool:
    if wished is None or seen is None:
        return wished is None and seen is None
    queue = number << 16 if number >= LEAF else seen[5]
    return seen == (wished.parent, *_numbers(wished), queue)


def _strange(seen: _Seen) -> Class:
    """A class that is not as wished, as far as our words go."""
    return Class(seen[0], seen[1] // 125, seen[2] // 125, -1)
