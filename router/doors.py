"""Doors: where the router itself may be asked, beside DHCP, DNS and the manager's way in.

A feature that listens says so here, one Door (door.py) for each address and port; firewall.py makes elements of them:
s_service in chain `input` for what is behind a guest, private or control interface, and for a public address, which the
document's firewall rules judge, s_service_public in chain `public`: it lets in what no rule needs to name, as a VPN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.state import Facts
from router.balancer import balancer_doors
from router.bgp import bgp_doors
from router.config import Config
from router.door import Door as Door
from router.ipsec import ipsec_doors
from router.metadata import metadata_doors
from router.redundancy import redundancy_doors
from router.tunnels import tunnel_doors
from router.wireguard import wireguard_doors

Feature = Callable[[Config, Facts], Iterator[Door]]
FEATURES: tuple[Feature, ...] = (
    metadata_doors,
    tunnel_doors,
    wireguard_doors,
    ipsec_doors,
    balancer_doors,
    redundancy_doors,
    bgp_doors,
)


def doors(config: Config, facts: Facts) -> tuple[Door, ...]:
    """The doors of all features."""
    return tuple(door for feature in FEATURES for door in feature(config, facts))
