"""WireGuard's links and peers by generic netlink: set, removed, read back, counted; no process is started.

What is sent is pyroute2's message class, over a socket of wire.py; its import costs 3 MiB and 0.1 s, so that host.py
loads this file when a document has WireGuard. What is read is taken apart here, and after a change only the peers that
it touched: the kernel tells of all of them, whoever is asked about.

A peer is set alone, and nobody else's session notices. Layouts: include/uapi/linux/wireguard.h. A dump gives a device's
peers in several messages, and a peer with many networks in several of them.
"""

from __future__ import annotations

import struct
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from errno import ENODEV, ENOENT, EOPNOTSUPP
from importlib import import_module
from importlib.util import find_spec
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from types import ModuleType
from typing import Any

from appliance import wire
from appliance.state import Peer, State, Wireguard

GENERIC = 16  # the netlink family
_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_GENL = struct.Struct("=BBH")  # command, version, reserved
_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_IFNAME, _PRIVATE_KEY, _PORT, _MARK, _PEERS = 2, 3, 6, 7, 8
_PUBLIC_KEY, _PRESHARED_KEY, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _RX, _TX, _ALLOWED = 1, 2, 4, 5, 6, 7, 8, 9
_FAMILY, _ADDRESS, _LENGTH = 1, 2, 3
_REMOVE_ME, _REPLACE_ALLOWED = 0x1, 0x2
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_NOTHING = bytes(32)
ALIVE = 180.0  # seconds: REJECT_AFTER_TIME, how long a session lives after its handshake


def _pyroute2_message() -> Any:
    """The class wgmsg, without running pyroute2's `__init__` (as rtnl.py does)."""
    found = find_spec("pyroute2")
    if found is None:
        raise ImportError("pyroute2 is not installed")
    is_loaded = "pyroute2" in sys.modules
    if not is_loaded:
        shell = ModuleType("pyroute2")
        shell.__path__ = list(found.submodule_search_locations or ())
        sys.modules["pyroute2"] = shell
    try:
        return import_module("pyroute2.netlink.generic.wireguard").wgmsg
    finally:
        if not is_loaded:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]


_wgmsg = _pyroute2_message()


@dataclass(slots=True)
class _Device:
    """A device as the kernel tells of it."""

    private_key: str = ""
    port: int = 0
    mark: int = 0
    peers: dict[str, _Seen] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """A peer likewise; `handshake` is the time of the last one, 0.0 for none."""

    networks: list[str]
    preshared_key: str = ""
    endpoint: str = ""
    keepalive: int = 0
    handshake: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


class WireguardLinks:
    """The machine's WireGuard. Any thread may call; calls take turns."""

    def __init__(self) -> None:
        self._channel = wire.Channel(GENERIC)
        self._number = 0

    def close(self) -> None:
        self._channel.close()

    # --- change ---

    def set_device(self, device: Wireguard) -> None:
        """Key, port and mark. Peers stay; a new key ends their sessions, which they begin anew."""
        attrs = [
            ("WGDEVICE_A_IFNAME", device.link),
            ("WGDEVICE_A_PRIVATE_KEY", device.private_key),
            ("WGDEVICE_A_LISTEN_PORT", device.port),
            ("WGDEVICE_A_FWMARK", device.mark),
        ]
        self._set(f"set wireguard {device.link}", attrs)

    def set_peer(self, peer: Peer) -> None:
        """A peer, new or changed: its session goes on. Networks that another peer has become this one's."""
        attrs: list[tuple[str, Any]] = [
            ("WGPEER_A_PUBLIC_KEY", peer.public_key),
            ("WGPEER_A_PRESHARED_KEY", peer.preshared_key or b64encode(_NOTHING).decode()),
            ("WGPEER_A_FLAGS", _REPLACE_ALLOWED),
            ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
            ("WGPEER_A_ALLOWEDIPS", [_allowed(network) for network in peer.networks]),
        ]
        if peer.endpoint:
            address, _, port = peer.endpoint.rpartition(":")
            attrs.append(("WGPEER_A_ENDPOINT", {"addr": address.strip("[]"), "port": int(port)}))
        self._set_peer(f"set peer {peer.public_key} of {peer.link}", peer.link, attrs)

    def remove_peer(self, peer: Peer) -> None:
        """Cut a peer off: from now on no packet of it is understood. One that is not there is gone."""
        attrs = [("WGPEER_A_PUBLIC_KEY", peer.public_key), ("WGPEER_A_FLAGS", _REMOVE_ME)]
        self._set_peer(f"remove peer {peer.public_key} of {peer.link}", peer.link, attrs, met=ENODEV)

    # --- observe ---

    def observe(
        self, links: tuple[str, ...], wished: State, now: float, touched: frozenset[tuple[str, str]] | None = None
    ) -> tuple[tuple[Wireguard, ...], tuple[Peer, ...]]:
        """The devices and peers of these links; what equals the wish is the wished part itself.

        `touched` are the peers to look at, by link and key, all others being as wished; None: all.
        """
        devices: list[Wireguard] = []
        peers = [p for p in wished.peers if (p.link, p.public_key) not in touched] if touched is not None else []
        only = None if touched is None else frozenset(b64decode(key) for _, key in touched)
        known = {w: w for w in wished.wireguards}
        wishes = {(p.link, p.public_key): p for p in wished.peers}
        for link in links:
            if (seen := self._read(link, only)) is None:
                continue
            device = Wireguard(link, seen.private_key, seen.port, seen.mark)
            devices.append(known.get(device, device))
            for key, found in seen.peers.items():
                networks = tuple(sorted(found.networks))
                peer = Peer(link, key, networks, found.preshared_key, found.endpoint, found.keepalive)
                wish = wishes.get((link, key))
                # A peer that is there has moved to where it says; one that is not shall be called where it was.
                if wish and (not wish.endpoint or now - found.handshake < ALIVE):
                    peer = replace(peer, endpoint=wish.endpoint)
                peers.append(wish if wish == peer else peer)
        return tuple(devices), tuple(peers)

    def counters(self, links: tuple[str, ...]) -> dict[tuple[str, str], dict[str, int | str]]:
        """By link and public key: bytes both ways, the time of the last handshake (0: none), and where it is ("": not
        known)."""
        found: dict[tuple[str, str], dict[str, int | str]] = {}
        for link in links:
            if (seen := self._read(link)) is not None:
                for key, peer in seen.peers.items():
                    found[link, key] = {
                        "bytes_in": peer.bytes_in,
                        "bytes_out": peer.bytes_out,
                        "handshake": int(peer.handshake),
                        "endpoint": peer.endpoint,
                    }
        return found

    # --- inside ---

    def _set_peer(self, what: str, link: str, attrs: list[tuple[str, Any]], met: int = 0) -> None:
        self._set(what, [("WGDEVICE_A_IFNAME", link), ("WGDEVICE_A_PEERS", [{"attrs": attrs}])], met)

    def _set(self, what: str, attrs: list[tuple[str, Any]], met: int = 0) -> None:
        message = _wgmsg()
        message["cmd"], message["version"], message["attrs"] = _SET_DEVICE, _VERSION, attrs
        message.encode()
        try:
            self._channel.ask(self._family(), bytes(message.data[16:]))
        except wire.KernelError as refusal:
            if refusal.errno != met:
                raise wire.NetlinkError(what, wire.words(refusal)) from None
        except OSError as error:
            raise wire.NetlinkError(what, wire.words(error)) from None

    def _read(self, link: str, only: frozenset[bytes] | None = None) -> _Device | None:
        """A device, None where there is none of that name, it is of another kind, or the kernel has no WireGuard."""
        body = _GENL.pack(_GET_DEVICE, _VERSION, 0) + wire.attribute(_IFNAME, link.encode() + b"\0")
        try:
            answers = self._channel.dump(self._family(), body)
        except wire.KernelError as refusal:
            if refusal.errno in (ENODEV, EOPNOTSUPP, ENOENT):
                return None
            raise wire.NetlinkError(f"read wireguard {link}", wire.words(refusal)) from None
        except OSError as error:
            raise wire.NetlinkError(f"read wireguard {link}", wire.words(error)) from None
        device = _Device()
        for _, answer in answers:
            _take(device, answer, only)
        return device

    def _family(self) -> int:
        """The number of generic netlink's family `wireguard`; asking for it loads the kernel's module."""
        if not self._number:
            body = _GENL.pack(_GETFAMILY, 1, 0) + wire.attribute(_FAMILY_NAME, b"wireguard\0")
            ((_, answer),) = self._channel.ask(_CTRL, body)
            self._number = _U16.unpack(wire.attributes(answer, _GENL.size)[_FAMILY_ID])[0]
        return self._number


def _allowed(network: str) -> dict[str, Any]:
    address, _, length = network.partition("/")
    version = AF_INET6 if ":" in address else AF_INET
    attrs: list[tuple[str, Any]] = [
        ("WGALLOWEDIP_A_FAMILY", version),
        ("WGALLOWEDIP_A_IPADDR", inet_pton(version, address)),
        ("WGALLOWEDIP_A_CIDR_MASK", int(length)),
    ]
    return {"attrs": attrs}


def _take(device: _Device, answer: bytes, only: frozenset[bytes] | None) -> None:
    """One message of a dump; of its peers `only` those with these keys (None: all). A peer's key comes first."""
    for kind, start, stop in wire.each_attribute(answer, _GENL.size, len(answer)):
        payload = answer[start:stop]
        if kind == _PRIVATE_KEY:
            device.private_key = _key(payload)
        elif kind == _PORT:
            device.port = _U16.unpack(payload)[0]
        elif kind == _MARK:
            device.mark = _U32.unpack(payload)[0]
        elif kind == _PEERS:
            for _, first, last in wire.each_attribute(answer, start, stop):
                if only is None or answer[first + 4 : first + 36] in only:
                    _take_peer(device, wire.attributes(answer, first, last))


def _take_peer(device: _Device, parts: dict[int, bytes]) -> None:
    """A peer, or, of one that is there already, more of its networks."""
    key = _key(parts[_PUBLIC_KEY])
    networks = list(_networks(parts.get(_ALLOWED, b"")))
    if key in device.peers:
        device.peers[key].networks += networks
        return
    seconds, nanoseconds = struct.unpack_from("=qq", parts.get(_HANDSHAKE, bytes(16)))
    device.peers[key] = _Seen(
        networks,
        _key(parts.get(_PRESHARED_KEY, b"")),
        _endpoint(parts.get(_ENDPOINT, b"")),
        _U16.unpack(parts.get(_KEEPALIVE, b"\0\0"))[0],
        seconds + nanoseconds / 1e9,
        _U64.unpack(parts.get(_RX, bytes(8)))[0],
        _U64.unpack(parts.get(_TX, bytes(8)))[0],
    )


def _key(raw: bytes) -> str:
    """In base64, "" for none: to the kernel that is 32 zero bytes."""
    return b64encode(raw).decode() if raw and raw != _NOTHING else ""


def _networks(data: bytes) -> Iterator[str]:
    for _, start, stop in wire.each_attribute(data, 0, len(data)):
        parts = wire.attributes(data, start, stop)
        yield f"{inet_ntop(_U16.unpack(parts[_FAMILY])[0], parts[_ADDRESS])}/{parts[_LENGTH][0]}"


def _endpoint(raw: bytes) -> str:
    """A sockaddr as text."""
    if len(raw) < 8:
        return ""
    version = _U16.unpack_from(raw)[0]
    port = int.from_bytes(raw[2:4])
    if version == AF_INET:
        return f"{inet_ntop(version, raw[4:8])}:{port}"
    return f"[{inet_ntop(version, raw[8:24])}]:{port}"
