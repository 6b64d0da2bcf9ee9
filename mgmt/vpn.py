"""What a VPN's user needs: keys, and the profile that a WireGuard app reads. Pure, from a router's document.

The private key is the user's own: made here when nobody brings one, and in no document. The profile says what
wg-quick(8) and the apps understand: interface, names, one peer.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from router.config import Config, VpnUser, Wireguard

EVERYWHERE = ("0.0.0.0/0", "::/0")
KEEPALIVE_S = 25  # below the time for which a translator on the way remembers a UDP flow


class ProfileError(Exception):
    """There is no profile to make; the message says why."""


@dataclass(frozen=True, slots=True)
class WireguardKey:
    """A key pair in base64, as `wg genkey` and `wg pubkey` write it."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"WireguardKey(public={self.public!r})"


def make_key() -> WireguardKey:
    """A new pair."""
    return key_of(b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode())


def key_of(private: str) -> WireguardKey:
    """The pair of a private key. Raises ProfileError where it is none."""
    try:
        raw = b64decode(private, validate=True)
        public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    except ValueError:
        raise ProfileError("the private key is not 32 bytes in base64; `narthex vpn key` makes one") from None
    return WireguardKey(private, b64encode(public).decode())


def wireguard_profile(config: Config, name: str, private: str = "") -> str:
    """The profile of the user `name`, in wg-quick's form. Without a private key the line for it is left to the user.

    Raises ProfileError: there is no such user, or the private key is not the one of the document's public key.
    """
    user = next((u for u in config.vpn_users if u.id == name), None)
    if user is None:
        known = ", ".join(u.id for u in config.vpn_users) or "none"
        raise ProfileError(f"there is no user {name} in vpn_users; those are: {known}")
    listener = next((w for w in config.wireguard if w.id == user.wireguard), None)
    if listener is None:
        raise ProfileError(f"user {name} is of listener {user.wireguard}, and there is none of that name")
    if private and key_of(private).public != user.public_key:
        raise ProfileError(f"the private key is not that of user {name}: the document has another public key")
    return "\n".join([*_interface(config, user, listener, private), "", *_peer(config, user, listener), ""])


def _interface(config: Config, user: VpnUser, listener: Wireguard, private: str) -> list[str]:
    lines = ["[Interface]", f"PrivateKey = {private}" if private else "# PrivateKey = (your own, of this public key)"]
    lines += [] if private else [f"# PublicKey = {user.public_key}"]
    lines.append(f"Address = {', '.join(_whole(a) for a in user.addresses)}")
    names = (*name_servers(config, listener), *listener.search)
    return [*lines, *([f"DNS = {', '.join(names)}"] if names else []), f"MTU = {listener.mtu}"]


def _peer(config: Config, user: VpnUser, listener: Wireguard) -> list[str]:
    endpoint = str(listener.endpoint or listener.address)
    lines = ["[Peer]", f"PublicKey = {key_of(listener.private_key.reveal()).public}"]
    if user.preshared_key:
        lines.append(f"PresharedKey = {user.preshared_key.reveal()}")
    lines.append(f"Endpoint = {f'[{endpoint}]' if ':' in endpoint else endpoint}:{listener.port}")
    return [*lines, f"AllowedIPs = {', '.join(routes(config, listener))}", f"PersistentKeepalive = {KEEPALIVE_S}"]


def routes(config: Config, listener: Wireguard) -> tuple[str, ...]:
    """Where a user's packets go into the tunnel: everywhere, or what the listener says, or all guest networks; and to
    the router's own end, to the names, and with transit to the sites."""
    if listener.internet:
        return EVERYWHERE
    found = list(listener.routes) if listener.routes is not None else _networks(config)
    found += [str(ip_network(a, strict=False)) for a in listener.addresses]
    found += [_whole(a) for a in name_servers(config, listener)]
    if listener.transit and listener.routes is None:
        found += [c for s in config.wireguard_sites if s.wireguard == listener.id for c in s.networks]
    kept: list[str] = []
    for cidr in dict.fromkeys(found):
        mine = ip_network(cidr)
        others = (ip_network(c) for c in found if c != cidr)
        if not any(o.version == mine.version and mine.subnet_of(o) for o in others):  # type: ignore[arg-type]
            kept.append(cidr)
    return tuple(kept)


def _networks(config: Config) -> list[str]:
    return [c for n in config.networks for c in (n.cidr, n.cidr6) if c]


def name_servers(config: Config, listener: Wireguard) -> tuple[str, ...]:
    """The router's addresses in the network whose names users ask for."""
    network = next((n for n in config.networks if n.id == listener.dns), None)
    interface = next((i for i in config.interfaces if network and i.id == network.interface), None)
    if network is None or interface is None:
        return ()
    cidrs = [ip_network(c) for c in (network.cidr, network.cidr6) if c]
    own = (a.partition("/")[0] for a in interface.addresses)
    return tuple(a for a in own if any(ip_address(a) in c for c in cidrs))


def _whole(address: str) -> str:
    """An address alone, with its length."""
    return f"{address}/{128 if ':' in address else 32}"
