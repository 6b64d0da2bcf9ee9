"""What a router may be asked to be to WireGuard's peers: listeners, the users of each, and the sites.

A key is 32 bytes in base64, as `wg genkey` writes it. The router knows a private key of its own for each listener, and
of its peers only the public ones: a user's private key never needs to leave the user, and stands in no document.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from appliance.document import Model
from appliance.values import Address, Cidr, HostCidr, Hostname, Identifier, Mtu, Port, Secret, Text

KEY = r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"  # 256 bits: of the last letter but one two bits are left, and are zero
NO_KEY = "A" * 43 + "="  # 32 zero bytes: to the kernel no preshared key at all


def _is_key(text: Secret) -> Secret:
    plain = text.reveal()
    letters = plain[:-1].replace("+", "").replace("/", "")
    good = len(plain) == 44 and plain[-1] == "=" and plain[42] in "AEIMQUYcgkosw048"
    if not (good and (letters == "" or letters.isascii() and letters.isalnum())) or plain == NO_KEY:
        raise ValueError("it is not 32 bytes in base64; make one with `wg genkey` or `narthex vpn key`")
    return text


PublicKey = Annotated[str, StringConstraints(pattern=KEY)]
SecretKey = Annotated[Secret, AfterValidator(_is_key)]


class Wireguard(Model):
    """A WireGuard listener: one UDP port of a public address, one key, and the link behind which its peers are.

    `addresses` are the router's own there; their subnets are its users' (none: it has sites alone). `internet` is the
    public address by which users may leave for the internet (a full tunnel), None for a split one. `routes` are what a
    user's profile leads into a split tunnel, None for all guest networks. `dns` is the network whose names users ask
    for. `endpoint` is what profiles name in place of `address`. With `transit` its users and sites reach those of other
    tunnels that have it, and each other.
    """

    id: Identifier
    address: Address
    port: Port = 51820
    private_key: SecretKey
    addresses: tuple[HostCidr, ...] = ()
    internet: Address | None = None
    routes: tuple[Cidr, ...] | None = None
    dns: Identifier | None = None
    search: tuple[Hostname, ...] = ()
    endpoint: Hostname | Address | None = None
    mtu: Mtu = 1420
    transit: bool = False


class VpnUser(Model):
    """A user's device, that comes in by the listener `wireguard` with these addresses of its subnets, one of a family.

    Not `enabled`: cut off, and the addresses stay its own. `name` is for people.
    """

    id: Identifier
    wireguard: Identifier
    public_key: PublicKey
    preshared_key: SecretKey | None = None
    addresses: Annotated[tuple[Address, ...], Field(min_length=1, max_length=2)]
    enabled: bool = True
    name: Text = ""


class WireguardSite(Model):
    """Another site, with `networks` behind it, which is a peer of the listener `wireguard`.

    Without `endpoint` we wait for it to call. `keepalive` is in seconds, for who is behind a translation; 0: none.
    """

    id: Identifier
    wireguard: Identifier
    public_key: PublicKey
    preshared_key: SecretKey | None = None
    endpoint: Address | None = None
    endpoint_port: Port = 51820
    keepalive: Annotated[int, Field(ge=0, le=65535)] = 0
    networks: Annotated[tuple[Cidr, ...], Field(min_length=1, max_length=256)]
