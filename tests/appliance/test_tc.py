"""Messages of classes and queues, held against pyroute2's reading of them."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from appliance import tc
from appliance.state import Class


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
