"""Rule 12 on a real kernel: oracle, trace and nftables agree about packets of tunnels, whatever makes the tunnel.

The links of tunnels are wires here, of the names that compile gives them: the kernel's packet filter and routing ask
for no more. Packets are a share of every pair of the addresses below, at every link, as TCP, UDP and an echo.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import pytest

from router.compile import compile
from router.config import Config
from router.oracle import answer, verdict
from router.packet import Packet
from router.trace import Tracer
from tests.property.agreement import DROPPED
from tests.property.wire import Bed, is_answered
from tests.router.samples import facts_of
from tests.router.test_tunnels import document, listener, site
from tests.trials import trials

SOURCES = (
    "10.99.0.2", "10.99.0.3", "10.99.0.1", "10.99.0.255", "10.98.0.2", "10.50.0.7", "10.1.1.10", "10.1.2.10",
    "172.16.0.9", "8.8.8.8", "169.254.0.9",
)  # fmt: skip
TO = (*SOURCES, "203.0.113.10", "203.0.113.11", "198.51.100.10", "10.1.1.1", "10.98.0.1", "172.16.0.2")
SOURCES6 = ("fd00:99::2", "fd00:99::1", "fd00:99::", "fd00:50::7", "2001:db8:1::a", "2001:db8:8888::8")
TO6 = (*SOURCES6, "2001:db8::10", "2001:db8:1::1")
SERVICES = (("tcp", 80), ("udp", 53), ("udp", 51820), ("echo", 0))
DOCUMENTS = {
    "as it is": document(),
    "no transit, no internet": document(wireguard=[listener(), listener("plain", port=1, addresses=["10.98.0.1/24"])]),
    "by the other uplink": document(
        wireguard=[
            listener(address="198.51.100.10", internet="198.51.100.10", dns="db"),
            listener("plain", port=1, addresses=["10.98.0.1/24"], transit=True, internet="203.0.113.10"),
        ]
    ),
    "sites alone": document(
        wireguard=[listener(addresses=[], transit=True), listener("plain", port=1, addresses=[])],
        vpn_users=[],
        wireguard_sites=[
            site(networks=["10.99.0.2/32", "10.50.0.0/16", "10.50.0.0/24", "fd00:99::/64"], endpoint=None)
        ],
    ),
}


@pytest.fixture(scope="module", name="bed")
def bed_fixture() -> Iterator[Bed]:
    config = DOCUMENTS["as it is"]
    names = {mac: link.name for mac, link in facts_of(config).links.items()}
    links = [(i.id, names[i.mac], i.mac) for i in config.interfaces]
    bed = Bed([*links, ("road", "wg-road", "02:00:00:00:0f:01"), ("plain", "wg-plain", "02:00:00:00:0f:02")])
    yield bed
    bed.close()


def packets(config: Config) -> list[Packet]:
    """A share of all of them, another one each time."""
    links = ("road", "plain", *(i.id for i in config.interfaces))
    pairs = (*product(SOURCES, TO), *product(SOURCES6, TO6))
    found = []
    for link, (source, to), (what, port) in product(links, pairs, SERVICES):
        v6 = ":" in source
        protocol = ("icmpv6" if v6 else "icmp") if what == "echo" else what
        found.append(Packet(link, source, to, protocol, 40000, port, 128 if v6 else 8))
    return random.sample(found, min(len(found), trials(12_000)))


@pytest.mark.soak("router")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_all_agree(bed: Bed, name: str) -> None:
    config = DOCUMENTS[name]
    state = compile(config, facts_of(config))
    bed.load(state)
    tracer, asked = Tracer(state), packets(config)
    for packet, (came, back) in zip(asked, bed.converse(asked), strict=True):
        wish = verdict(config, packet)
        assert tracer.trace(packet).outcome.compared == wish.compared, packet
        assert (came.compared if came else DROPPED) == wish.compared, f"{packet}: {wish.why}"
        if came and is_answered(packet, came):
            way = answer(config, packet)
            assert back is not None, f"no answer to {packet}"
            assert back.compared[:4] == way.compared[:4], packet
