"""What a router may be asked to be to IPsec's peers: sites, and the remote access of users.

A proposal is what both ends must agree on, as `aes256-sha256-modp2048`: encryption, integrity, group. With an AEAD
(gcm, chacha20poly1305) the integrity of IKE's proposal is that of its key derivation, and ESP's has none. ESP's group
is what each new key is made with (perfect forward secrecy); it may be left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from appliance.document import Model
from appliance.values import Address, Cidr, HostCidr, Hostname, Identifier, Mtu, Secret, SecretPem, Text

# A name, an address, a mail address, or a certificate's subject. `%` and `*` would be anybody: not in here.
Identity = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._:=, /+-]{0,254}$")]
# In PEM; several are a chain, one's own first.
Certificate = Annotated[
    str,
    StringConstraints(
        pattern=r"^(-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=]{1,76}\n)+-----END CERTIFICATE-----\n?)+$",
        max_length=32_768,
    ),
]
# What a user logs in by.
Login = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._-]{0,62}$")]

AEADS = ("aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305")
ENCRYPTIONS = ("aes128", "aes192", "aes256", "3des", *AEADS)
INTEGRITIES = ("sha256", "sha384", "sha512", "sha1", "md5")
GROUPS = (
    "modp1024", "modp1536", "modp2048", "modp3072", "modp4096", "modp6144", "modp8192",
    "ecp256", "ecp384", "ecp521", "curve25519",
)  # fmt: skip
WEAK = frozenset({"3des", "md5", "sha1", "modp1024", "modp1536"})


def _ike(text: str) -> str:
    encryption, integrity, group = (*text.split("-"), "", "", "")[:3]
    known = encryption in ENCRYPTIONS and integrity in INTEGRITIES and group in GROUPS and text.count("-") == 2
    if not known:
        raise ValueError(f"{text!r} is no proposal for IKE; write it as aes256-sha256-modp2048. {_WORDS}")
    return text


def _esp(text: str) -> str:
    encryption, *rest = text.split("-")
    good = encryption in ENCRYPTIONS
    if encryption not in AEADS:
        good = good and bool(rest) and rest.pop(0) in INTEGRITIES
    if not good or len(rest) > 1 or any(word not in GROUPS for word in rest):
        told = "write it as aes256-sha256-modp2048, aes256-sha256, aes256gcm16-curve25519 or aes256gcm16"
        raise ValueError(f"{text!r} is no proposal for ESP; {told}. {_WORDS}")
    return text


_WORDS = f"The words: {', '.join((*ENCRYPTIONS, *INTEGRITIES, *GROUPS))}"
_Short = StringConstraints(max_length=64, pattern=r"^[a-z0-9-]+$")
IkeProposal = Annotated[str, _Short, AfterValidator(_ike)]
EspProposal = Annotated[str, _Short, AfterValidator(_esp)]
Seconds = Annotated[int, Field(ge=300, le=86_400 * 7)]


class IpsecSite(Model):
    """Another site: the tunnel between our `networks` and its `peer_networks`, from our public `address` to its `peer`.

    `peer` None: from wherever it calls; it must have a `peer_id`, and we wait for it (`passive`). Both ends prove who
    they are by the `secret`, or by certificates: ours with its key, theirs by `peer_ca`, the certificate of who signed
    it (or their own). `local_id` and `peer_id` are what they call themselves, else their addresses, and with a
    certificate our name in it.

    `split`: a child SA for each pair of networks, for peers that take no more in one; IKEv1 has no other way.
    `encapsulation`: ESP in UDP, translation or not. `dpd`: a dead peer is noticed after so many seconds, 0: never.
    `weak` ciphers (3des, md5, sha1, modp1024, modp1536) are refused unless asked for. Lifetimes are in seconds.
    """

    id: Identifier
    address: Address
    peer: Address | Hostname | None = None
    networks: Annotated[tuple[Cidr, ...], Field(min_length=1, max_length=64)]
    peer_networks: Annotated[tuple[Cidr, ...], Field(min_length=1, max_length=64)]
    version: Literal["ikev1", "ikev2", "any"] = "ikev2"
    secret: Secret | None = None
    certificate: Certificate | None = None
    private_key: SecretPem | None = None
    peer_ca: Certificate | None = None
    local_id: Identity | None = None
    peer_id: Identity | None = None
    ike: Annotated[tuple[IkeProposal, ...], Field(min_length=1, max_length=16)] = (
        "aes256gcm16-sha384-ecp384", "aes256-sha256-modp2048", "aes256gcm16-sha256-curve25519",
    )  # fmt: skip
    esp: Annotated[tuple[EspProposal, ...], Field(min_length=1, max_length=16)] = (
        "aes256gcm16-ecp384", "aes256-sha256-modp2048", "aes256gcm16-curve25519",
    )  # fmt: skip
    weak: bool = False
    ike_lifetime: Seconds = 86_400
    esp_lifetime: Seconds = 3600
    passive: bool = False
    encapsulation: bool = False
    split: bool = False
    dpd: Annotated[int, Field(ge=0, le=3600)] = 30
    mtu: Mtu = 1400
    transit: bool = False


class IpsecAccess(Model):
    """Remote access by IKEv2: what phones, laptops and desktops have built in. Its users are in `Config.ipsec_users`.

    The router proves that it is `name` by its certificate, which `authority` has signed (None: one that every device
    knows); users prove who they are by name and password
    (EAP-MSCHAPv2), or by a certificate that `user_ca` has signed. `addresses` are the router's own there; their subnets
    are its users'.

    `internet` is the public address by which users may leave for the internet (a full tunnel), None for a split one.
    `routes` are what is led into a split tunnel, None for all guest networks. `dns` is the network whose names users
    ask for. `endpoint` is what profiles name in place of `address`. With `transit` its users reach those of other
    tunnels that have it.
    """

    id: Identifier
    address: Address
    name: Hostname
    certificate: Certificate
    private_key: SecretPem
    authority: Certificate | None = None
    endpoint: Hostname | Address | None = None
    user_ca: Certificate | None = None
    addresses: Annotated[tuple[HostCidr, ...], Field(min_length=1, max_length=2)]
    internet: Address | None = None
    routes: Annotated[tuple[Cidr, ...], Field(max_length=64)] | None = None
    dns: Identifier | None = None
    search: Annotated[tuple[Hostname, ...], Field(max_length=8)] = ()
    ike: Annotated[tuple[IkeProposal, ...], Field(min_length=1, max_length=16)] = (
        "aes256gcm16-sha384-ecp384", "aes256-sha256-modp2048", "aes256gcm16-sha256-curve25519", "aes256-sha256-ecp256",
    )  # fmt: skip
    esp: Annotated[tuple[EspProposal, ...], Field(min_length=1, max_length=16)] = (
        "aes256gcm16", "aes256-sha256", "aes128gcm16",
    )  # fmt: skip
    weak: bool = False
    mtu: Mtu = 1400
    transit: bool = False


class IpsecUser(Model):
    """A user of remote access `access`: by `login` and `password`, or by a certificate in which `login` is the name.

    Who changes is sent away and may come again; who is not `enabled`, or is gone, is cut off at once. `name` is for
    people.
    """

    id: Identifier
    access: Identifier
    login: Login
    password: Secret | None = None
    enabled: bool = True
    name: Text = ""
