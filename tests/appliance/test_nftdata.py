"""Text to bytes and back, for every type of key and value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.nftdata import KINDS, layout

# Whatever bytes the kernel holds have a text; a name of an interface is text to begin with.
NUMBERS = sorted(KINDS.keys() - {"ifname"})


@pytest.mark.parametrize(
    ("spec", "text", "raw"),
    [
        ("ipv4_addr", "203.0.113.10", "cb00710a"),
        ("inet_service", "2222", "08ae"),
        ("inet_proto", "tcp", "06"),
        ("inet_proto", "47", "2f"),
        ("ipv4_addr . inet_proto . inet_service", "203.0.113.10 . tcp . 2222", "cb00710a 06000000 08ae0000"),
        ("ifname", "eth0", "65746830 00000000 00000000 00000000"),
        ("ipv6_addr . inet_service", "2001:db8::1 . 53", "20010db8 00000000 00000000 00000001 00350000"),
    ],
)
def test_fields_of_a_concatenation_are_padded(spec: str, text: str, raw: str) -> None:
    assert layout(spec).pack(text) == bytes.fromhex(raw)
    assert layout(spec).text(bytes.fromhex(raw)) == text
    assert layout(spec).size == len(bytes.fromhex(raw))


@given(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4), st.data())
def test_any_bytes_have_one_text_and_the_text_those_bytes(names: list[str], data: st.DataObject) -> None:
    form = layout(" . ".join(names))
    raw = b""
    for kind in form.kinds:
        value = data.draw(st.binary(min_size=kind.size, max_size=kind.size))
        raw += value + bytes(-kind.size & 3 if form.is_concatenation else 0)
    assert form.pack(form.text(raw)) == raw
    assert form.bounds(form.text(raw)) == (raw, raw)


@given(st.sampled_from(["ipv4_addr", "ipv6_addr", "inet_service", "icmp_type"]), st.data())
def test_any_range_has_one_text_and_the_text_that_range(name: str, data: st.DataObject) -> None:
    form = layout(name)
    ends = st.integers(0, (1 << form.size * 8) - 1)
    low, high = sorted((data.draw(ends), data.draw(ends)))
    raw = low.to_bytes(form.size), high.to_bytes(form.size)
    assert form.bounds(form.range_text(*raw)) == raw


@given(st.sampled_from(["ipv4_addr", "ipv6_addr"]), st.data())
def test_a_range_that_is_a_network_is_written_as_one(name: str, data: st.DataObject) -> None:
    form = layout(name)
    bits = form.size * 8
    length = data.draw(st.integers(0, bits - 1))
    low = data.draw(st.integers(0, (1 << length) - 1)) << bits - length
    high = low | (1 << bits - length) - 1
    text = form.range_text(low.to_bytes(form.size), high.to_bytes(form.size))
    assert text == f"{form.text(low.to_bytes(form.size))}/{length}"


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("203.0.113.0/28 . tcp . 80-81", "203.0.113.0 . tcp . 80", "203.0.113.15 . tcp . 81"),
        ("0.0.0.0/0 . ipv6-icmp . 0-65535", "0.0.0.0 . ipv6-icmp . 0", "255.255.255.255 . ipv6-icmp . 65535"),
        ("10.0.0.1-10.0.0.3 . 47 . 7", "10.0.0.1 . 47 . 7", "10.0.0.3 . 47 . 7"),
    ],
)
def test_ranges_are_told_field_by_field(text: str, low: str, high: str) -> None:
    form = layout("ipv4_addr . inet_proto . inet_service")
    assert form.bounds(text) == (form.pack(low), form.pack(high))
    assert form.range_text(*form.bounds(text)) == text


def test_a_dash_in_a_name_makes_no_range() -> None:
    form = layout("ifname . ipv4_addr")
    assert form.range_text(*form.bounds("br-lan . 10.0.0.0/8")) == "br-lan . 10.0.0.0/8"


@pytest.mark.parametrize(
    "text", ["10.1.1.1", "10.1.1.1 . tcp", "10.1.1.1 . tcp . 70000", "x . tcp . 1", "10.1.1.1 . y . 1"]
)
def test_what_is_none_of_the_type_is_refused(text: str) -> None:
    with pytest.raises((ValueError, OSError, KeyError, OverflowError)):
        layout("ipv4_addr . inet_proto . inet_service").pack(text)
