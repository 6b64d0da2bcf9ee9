"""Every packet there is, for small documents: each axis is cut at the boundaries that occur in the document.

Two packets in one cell are the same to every rule of the document, so that one of each cell stands for all of them:
interface x source x destination x service, the first value of every piece and then the last, all sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.document import validate
from router.checks import problems
from router.config import Config
from router.packet import Packet
from tests.property.agreement import Judges
from tests.property.likely import axes, grid, has_v6, services
from tests.property.world import BY_SEED, MACS, document
from tests.trials import trials

PORTION = 4000
MOST_CELLS = 20_000  # of a random document: a few seconds


def interface(ident: str, use: str, *addresses: str, gateway: str | None = None) -> dict[str, Any]:
    return {"id": ident, "mac": MACS[ident], "use": use, "addresses": list(addresses), "gateway": gateway}


CONTROL = interface("ctl", "control", "169.254.3.4/16")
UPLINK = interface("isp-a", "public", "203.0.113.10/24", "203.0.113.11/24", gateway="203.0.113.1")
OTHER = interface("isp.b", "public", "198.51.100.10/25", gateway="198.51.100.1")
WEB = interface("web", "guest", "10.1.1.1/24")
LAN = interface("lan", "private", "172.16.0.2/24")
NETWORK = {"id": "net", "interface": "web", "cidr": "10.1.1.0/24", "source_nat": "203.0.113.10"}
UPLINK6 = {
    **interface("isp-a", "public", "203.0.113.10/24", "2001:db8::10/64", gateway="203.0.113.1"),
    "gateway6": "2001:db8::1",
}
WEB6 = interface("web", "guest", "10.1.1.1/24", "2001:db8:1::1/64")
DB6 = interface("db", "guest", "10.1.2.1/24", "2001:db8:2::1/64")
NETWORK6 = {**NETWORK, "cidr6": "2001:db8:1::/64"}
PUBLIC, SECOND, GUEST = "203.0.113.10", "203.0.113.11", "10.1.1.10"


def ports(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}


SMALL: dict[str, dict[str, Any]] = {
    "forwards by source, and for all": {
        "interfaces": [CONTROL, UPLINK, WEB],
        "networks": [NETWORK],
        "forwards": [
            {
                "id": "some", "protocol": "tcp", "address": PUBLIC, "ports": ports(22, 22), "target": GUEST,
                "sources": ["192.0.2.0/25"],
            },
            {
                "id": "all", "protocol": "tcp", "address": PUBLIC, "ports": ports(22, 24), "target": GUEST,
                "target_ports": ports(122, 124),
            },
        ],
        "firewall": [
            {"id": "ssh", "address": PUBLIC, "protocol": "tcp", "ports": ports(22, 23), "sources": ["192.0.2.0/24"]},
            {"id": "ping", "address": PUBLIC, "protocol": "icmp", "icmp_type": 8, "icmp_code": 0},
        ],
    },
    "static NAT by the second uplink": {
        "interfaces": [CONTROL, UPLINK, OTHER, WEB],
        "networks": [NETWORK],
        "static_nats": [{"id": "one", "address": "198.51.100.10", "target": GUEST}],
        "firewall": [{"id": "gre", "address": "198.51.100.10", "protocol": 47}],
    },
    "egress denied but for some, to a private network too": {
        "interfaces": [CONTROL, UPLINK, WEB, LAN],
        "networks": [{**NETWORK, "source_nat": None, "egress": {"default": "deny"}}],
        "egress": [
            {
                "id": "dns", "network": "net", "protocol": "udp", "ports": ports(53, 53),
                "sources": ["10.1.1.8/29"], "destinations": ["172.16.0.0/25"],
            },
        ],
    },
    "a route into a guest network, no services": {
        "interfaces": [CONTROL, UPLINK, WEB],
        "networks": [{**NETWORK, "source_nat": SECOND, "dns": False, "dhcp": {"enabled": False}}],
        "routes": [{"id": "way", "destination": "203.0.113.128/25", "via": "10.1.1.20"}],
        "firewall": [{"id": "any", "address": SECOND, "protocol": "any"}],
    },
    "a routed network, and one in both families": {
        "interfaces": [CONTROL, UPLINK6, WEB6],
        "networks": [{**NETWORK6, "source_nat": None, "routed": True, "egress": {"default": "deny"}}],
        "ingress": [
            {
                "id": "web", "network": "net", "protocol": "tcp", "ports": ports(80, 81),
                "sources": ["192.0.2.0/24", "2001:db8:77::/48"], "destinations": ["10.1.1.8/29", "2001:db8:1::8/125"],
            },
            {"id": "ping", "network": "net", "protocol": "icmpv6", "icmp_type": 128},
        ],
        "egress": [{"id": "dns", "network": "net", "protocol": "udp", "ports": ports(53, 53)}],
        "firewall": [
            {"id": "ssh", "address": "2001:db8::10", "protocol": "tcp", "ports": ports(22, 22),
             "sources": ["2001:db8:77::/49"]},
        ],
    },
    "a tier with a list of both families, beside another": {
        "interfaces": [CONTROL, WEB6, DB6],
        "networks": [
            {**NETWORK6, "source_nat": None, "acl": "mixed", "advertise": {"addresses": "stateful"}},
            {"id": "far", "interface": "db", "cidr": "10.1.2.0/24", "cidr6": "2001:db8:2::/64", "acl": "open"},
        ],
        "acls": [
            {
                "id": "mixed", "ingress_default": "deny",
                "ingress": [
                    {"id": "no", "action": "deny", "protocol": "tcp", "cidrs": ["10.1.2.0/25", "2001:db8:2::/65"]},
                    {"id": "v4", "action": "allow", "protocol": "any", "cidrs": ["10.1.2.0/24"]},
                    {"id": "v6", "action": "allow", "protocol": "udp", "cidrs": ["::/0"]},
                ],
            },
            {"id": "open", "ingress_default": "allow"},
        ],
    },
}  # fmt: skip


def portions(packets: Iterator[Packet]) -> Iterator[list[Packet]]:
    while portion := list(islice(packets, PORTION)):
        yield portion


def every_cell(judges: Judges, config: Config) -> None:
    for v6 in families(config):
        for end in (0, 1):
            for portion in portions(grid(config, end, v6)):
                judges.settle(config, portion)


def families(config: Config) -> tuple[bool, ...]:
    return (False, True) if has_v6(config) else (False,)


def small_document(seed: int) -> Config:
    """The first document from this seed on whose grid is small enough."""
    return next(config for n in count(seed) if size(config := document(n, most=2)) <= MOST_CELLS)


def size(config: Config) -> int:
    """How many packets the grid of a document has, about."""
    return sum(
        len(cuts.interfaces) * len(cuts.address_cells) ** 2 * len(services(cuts, cuts.port_cells, 0, v6))
        for v6 in families(config)
        for cuts in (axes(config, v6),)
    )


@pytest.mark.parametrize("name", SMALL)
def test_every_cell_of_a_small_document(judges: Judges, name: str) -> None:
    config = validate(Config, SMALL[name])
    assert not problems(config)
    every_cell(judges, config)


@pytest.mark.soak("router")
@pytest.mark.timeout(3600)
def test_every_cell_of_random_documents(judges: Judges, record_figure: Callable[[str, float, str], None]) -> None:
    before = judges.packets

    @settings(max_examples=trials(50), phases=BY_SEED)
    @given(st.integers(0, 2**64 - 1))
    def agree(seed: int) -> None:
        every_cell(judges, small_document(seed))

    agree()
    record_figure("cells of the grid on which oracle, trace and kernels agree", judges.packets - before, "packets")
