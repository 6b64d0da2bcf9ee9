"""Arithmetic of networks in values.py: done by hand for IPv4, and netaddr's word is the measure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork, cidr_merge

from appliance.values import bounds, dotted, merged, number, shortest

# Small parts of the address space, its ends among them, so that networks touch and nest.
numbers = st.one_of(st.integers(0, 255), st.integers(2**32 - 256, 2**32 - 1), st.integers(10 << 24, (10 << 24) + 1023))


@st.composite
def cidrs(draw: st.DrawFn) -> str:
    return str(IPNetwork((draw(numbers), draw(st.one_of(st.integers(22, 32), st.integers(0, 32))))).cidr)


@given(st.lists(cidrs(), min_size=1, max_size=12))
def test_merged(networks: list[str]) -> None:
    assert merged(tuple(networks)) == tuple(shortest(str(n)) for n in cidr_merge(networks))


def test_merged_of_both_families() -> None:
    assert merged(("2001:db8::/33", "192.0.2.0/24", "2001:db8:8000::/33")) == ("192.0.2.0/24", "2001:db8::/32")


@given(numbers, st.integers(0, 32))
def test_numbers_and_bounds(value: int, length: int) -> None:
    text = str(IPAddress(value))
    assert number(text) == value
    assert dotted(value) == text
    net = IPNetwork(f"{text}/{length}")
    assert bounds(f"{text}/{length}") == (net.first, net.last)
    assert bounds(text) == (value, value)
