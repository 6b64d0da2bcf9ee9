"""What a router of two may be asked to be: who its two members are, and how they agree on who is the router.

Both members get the same document. What `Config.interfaces` says is the router's, and belongs to the member that is
primary: all addresses but those of the control interface. What differs between the members stands here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from appliance.document import Model
from appliance.values import HostCidr, Identifier, Mac


class Seat(Model):
    """An interface as one member has it: by which MAC, and with which `addresses` that stay with the member. Those of
    the control interface take the place of the document's, any others stand beside the shared ones."""

    interface: Identifier
    mac: Mac
    addresses: tuple[HostCidr, ...] = ()


class Member(Model):
    """One of the two machines. Of an interface that it does not name the document's own MAC and addresses are its.

    The higher `priority` is primary where both start together, or both believe to be. VRRP waits up to one interval
    longer for a low one: close to 254 is quick.
    """

    id: Identifier
    priority: Annotated[int, Field(ge=1, le=254)]
    interfaces: tuple[Seat, ...] = ()


class Track(Model):
    """An interface that a member needs to be the router: without it the member is at fault and stands back, or, with a
    `weight`, its priority is so much lower."""

    interface: Identifier
    weight: Annotated[int, Field(ge=0, le=253)] = 0


class Redundancy(Model):
    """A router of two. `group` is the VRRP group, unique on `interface`, by which the members tell each other that they
    are there, every `interval` seconds: three of them missed, and the other takes over. Flows and leases follow by the
    same interface, best one that nobody else is on.

    `preempt`: the higher priority comes back as the primary, `preempt_after` seconds after it is there again; else it
    stays with whom it is. Not `unicast`: advertisements go to the group's multicast address.
    """

    group: Annotated[int, Field(ge=1, le=255)] = 51
    interface: Identifier
    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=2)]
    interval: Annotated[float, Field(ge=0.1, le=40)] = 0.3
    preempt: bool = False
    preempt_after: Annotated[int, Field(ge=1, le=1000)] = 10
    unicast: bool = True
    track: tuple[Track, ...] = ()
