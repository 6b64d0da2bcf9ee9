"""A door: one place at which the router itself may be asked. doors.py gathers those of all features."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Door:
    """Who comes in by `link` may ask the router at its `address` (of either family; a group of many, too) for this
    protocol ("tcp", "udp", or a number as "112" for VRRP and "50" for ESP) and port; 0: a protocol that has none.

    `public`: the address is a public interface's, and no firewall rule need allow it. `source`: only from this address;
    "" from any. `owner` is the object's id.
    """

    link: str
    address: str
    protocol: str
    port: int
    owner: str
    public: bool = False
    source: str = ""
