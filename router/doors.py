"""Doors: where the router itself may be asked, beside DHCP, DNS and the manager's way in.

A feature that listens says so here, one Door for each address and port, and firewall.py makes elements of them:
s_service in chain `input` for what is behind a guest, private or control interface, and for a public address, which the
document's firewall rules judge, s_service_public in chain `public`: it lets in what no rule needs to name, as a VPN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from appliance.state import Facts
from router.config import Config


@dataclass(frozen=True, slots=True)
class Door:
    """Who comes in by `link` may ask the router at its `address` (of either family; a group of many, too) for this
    protocol ("tcp", "udp", or a number as "112" for VRRP and "50" for ESP) and port; 0: a protocol that has none.

    `public`: the address is a public interface's, and no firewall rule need allow it. `owner` is the object's id.
    """

    link: str
    address: str
    protocol: str
    port: int
    owner: str
    public: bool = False


Feature = Callable[[Config, Facts], Iterator[Door]]
FEATURES: tuple[Feature, ...] = ()


def doors(config: Config, facts: Facts) -> tuple[Door, ...]:
    """The doors of all features."""
    return tuple(door for feature in FEATURES for door in feature(config, facts))
