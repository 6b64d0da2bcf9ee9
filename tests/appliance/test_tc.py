"""Messages of classes and queues, held against pyroute2's reading of them."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, ENOENT
from struct import pack
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from appliance import tc
from appliance.state import Class, Shaper


def read(body: bytes) -> Any:
    message = tcmsg(pack("=IHHII", 16 + len(body), 40, 0, 0, 0) + body)
    message.decode()
    return message


@pytest.mark.parametrize(
    ("wished", "rate", "ceil"),
    [
        (Class(0, 1000, 1000, 16384), 125_000, 125_000),
        (Class(7, 1, 10_000_000, 25_000_000), 125, 1_250_000_000),
        (Class(0, 8, 8, 2048), 1000, 1000),
    ],
)
def test_a_class_says_what_it_is(wished: Class, rate: int, ceil: int) -> None:
    shapers = object.__new__(tc.Shapers)  # without its socket
    shapers._fair = True  # what the kernel has is not asked here
    (_, made), (_, queue) = shapers._requests(5, 0x8123, wished)
    found = read(made)
    assert (found["index"], found["handle"], found["parent"]) == (5, 0x6E788123, 0x6E780000 | wished.parent)
    assert found.get_attr("TCA_KIND") == "htb"
    parms = found.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
    assert (parms["rate"], parms["ceil"]) == (rate, ceil)
    assert parms["cbuffer"] == wished.burst * 10**9 // ceil // 64  # ticks of 64 ns
    found = read(queue)
    assert (found["handle"], found["parent"]) == (0x81230000, 0x6E788123)
    assert found.get_attr("TCA_KIND") == "fq_codel"


def test_what_is_read_is_what_was_said() -> None:
    wished = Class(7, 1, 2000, 16384)
    parms = tc.wire.attribute(1, tc.class_parameters(wished))
    body = pack("=BxxxiIII", 0, 5, 0x6E788123, 0x6E780007, 0x81230000)
    body += tc.wire.attribute(1, b"htb\0") + tc.wire.nest(2, parms)
    number, seen = tc._seen(body)
    assert number == 0x8123
    assert tc._is(wished, number, seen)
    assert not tc._is(Class(7, 1, 2001, 16384), number, seen)
    assert not tc._is(Class(8, 1, 2000, 16384), number, seen)
    assert not tc._is(wished, number, (*seen[:5], 0))  # another queue at the leaf


class Kernel:
    """A channel that notes what it is told. fq_codel is there (or not), and takes its options once for each queue."""

    def __init__(self, has_fq: bool) -> None:
        self.has_fq, self.queues = has_fq, dict[int, str]()

    def tell(self, requests: Sequence[tuple[int, bytes]], flags: int = 0) -> list[int]:
        return [self._take(kind, body) for kind, body in requests]

    def _take(self, kind: int, body: bytes) -> int:
        found = read(body)
        if kind == 41:  # RTM_DELTCLASS takes its queue along
            self.queues.pop(found["handle"] & 0xFFFF, None)
        if kind != 36 or found["parent"] == 0xFFFFFFFF:
            return 0
        name, number = found.get_attr("TCA_KIND"), found["handle"] >> 16
        if name == "fq_codel" and not self.has_fq:
            return ENOENT
        if name == "fq_codel" and number in self.queues:
            return EINVAL
        self.queues[number] = name
        return 0


@pytest.mark.parametrize(("has_fq", "queue"), [(True, "fq_codel"), (False, "bfifo")])
def test_every_leaf_has_one_queue_that_is_told_once(has_fq: bool, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaf of all, which shows what the kernel has; a change of its rate; one that is made anew."""
    monkeypatch.setattr(tc, "_index", lambda link: 5)
    shapers = object.__new__(tc.Shapers)
    kernel = Kernel(has_fq)
    shapers._fair, shapers._channel = None, kernel  # type: ignore[assignment]
    classes = {1: Class(0, 9, 9, 2048), 0x8001: Class(1, 1, 9, 2048), 0x8002: Class(0, 9, 9, 2048)}
    first = Shaper("eth1", classes)
    second = Shaper("eth1", {**classes, 0x8001: Class(1, 1, 7, 2048), 0x8003: Class(0, 9, 9, 2048)})
    third = Shaper("eth1", {**second.classes, 0x8002: Class(1, 1, 9, 2048)})
    for before, after in ((None, first), (first, second), (second, third)):
        shapers.set(before, after)
        assert kernel.queues == {n: queue for n in after.classes if n >= tc.LEAF}
    strange = Shaper("eth1", {**third.classes, 0x8001: Class(1, 1, 7, -1)})  # as a look has found it
    shapers.set(strange, third)
    assert kernel.queues == {n: queue for n in third.classes if n >= tc.LEAF}
