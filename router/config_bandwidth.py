"""What a document may say of bandwidth: a limit of a network, a guest or a public address."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from appliance.document import Model
from appliance.values import Address, Identifier

Kbit = Annotated[int, Field(ge=8, le=10_000_000)]  # kbit/s: 1,000 bits a second


class Limit(Model):
    """How fast a network, a guest (a host's id) or a public address may be: `up_kbit` what it sends, `down_kbit` what
    it gets, each None for no limit, in kbit/s of IP packets with their Ethernet headers.

    `burst_kib` is what may pass at once after a pause; None: 20 ms of the rate, and 16 KiB at least.
    """

    id: Identifier
    network: Identifier | None = None
    host: Identifier | None = None
    address: Address | None = None
    up_kbit: Kbit | None = None
    down_kbit: Kbit | None = None
    burst_kib: Annotated[int, Field(ge=2, le=16384)] | None = None

    @model_validator(mode="after")
    def one(self) -> Limit:
        if sum(what is not None for what in (self.network, self.host, self.address)) != 1:
            raise ValueError("a limit is of one thing: say network, host or address, and no second one")
        if self.up_kbit is None and self.down_kbit is None:
            raise ValueError("it limits nothing: say up_kbit, down_kbit or both")
        return self

    @property
    def what(self) -> tuple[str, str]:
        """What it is of, and which: ("host", "vm-7")."""
        found = (("network", self.network), ("host", self.host), ("address", self.address))
        return next((kind, ident) for kind, ident in found if ident is not None)
