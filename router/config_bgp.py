"""Routing by BGP-4 (RFC 4271), as a document says it: what the router is, whom it speaks to, what passes each way."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from appliance.document import Model
from appliance.values import Address, Cidr, Identifier, Secret

Asn = Annotated[int, Field(ge=1, le=4_294_967_294)]


class Bgp(Model):
    """The router as a speaker of BGP: its AS number, and its id (None: its first public IPv4 address)."""

    asn: Asn
    router_id: Address | None = None


class Accept(Model):
    """What is taken: `cidr`, and with `longest` the networks inside it with a prefix of up to that length."""

    cidr: Cidr
    longest: Annotated[int, Field(ge=0, le=128)] | None = None


class BgpPeer(Model):
    """Whom the router speaks to. A session carries the routes of its address's family: for both, two peers.

    It is told of `networks` (ids: their `cidr6`, and their `cidr` where they are routed) and `prefixes`, and of nothing
    else; what it tells is taken where `accept` names it, and the default route where `default` says so. Neither way
    does anything pass that nobody named. More than `limit` prefixes from it end the session for five minutes.

    `multihop`: how many hops away it may be (None: a neighbour). `keepalive` and `hold` are in seconds, as of its next
    session.
    """

    id: Identifier
    address: Address
    asn: Asn
    password: Annotated[Secret, Field(max_length=80)] | None = None
    multihop: Annotated[int, Field(ge=2, le=255)] | None = None
    keepalive: Annotated[int, Field(ge=1, le=21845)] = 60
    hold: Annotated[int, Field(ge=3, le=65535)] = 180
    networks: tuple[Identifier, ...] = ()
    prefixes: tuple[Cidr, ...] = ()
    accept: tuple[Accept, ...] = ()
    default: bool = False
    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1000

    @model_validator(mode="after")
    def timed(self) -> BgpPeer:
        if self.hold < 3 * self.keepalive:
            raise ValueError(f"hold ({self.hold} s) is less than three times keepalive ({self.keepalive} s)")
        return self
