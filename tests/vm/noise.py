"""WireGuard's far end in Python: the Noise handshake (either side), sessions, and a TUN device in a namespace.

Written from the protocol's paper (Noise_IKpsk2, section 5.4), without the kernel's code and with another library's
ciphers: a packet that gets through shows two implementations of one mind. No cookies, and no rekeying by itself: a
session is begun when there is something to send and none is younger than two minutes.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import select
import socket
import struct
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mgmt.hosts.namespace import Namespace

_CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_INITIATION, _RESPONSE, _DATA = 1, 2, 4
_YOUNG_S, _RETRY_S = 120.0, 1.0


def _hash(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def _hmac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), blake2s).digest()


def _derived(key: bytes, data: bytes, count: int) -> list[bytes]:
    """HKDF of as many keys."""
    secret, found = _hmac(key, data), [b""]
    for n in range(count):
        found.append(_hmac(secret, found[-1], bytes((n + 1,))))
    return found[1:]


def _mac(public: bytes, message: bytes) -> bytes:
    return blake2s(message, key=_hash(b"mac1----", public), digest_size=16).digest()


def _sealed(key: bytes, counter: int, plain: bytes, also: bytes = b"") -> bytes:
    return ChaCha20Poly1305(key).encrypt(struct.pack("<IQ", 0, counter), plain, also)


def _opened(key: bytes, counter: int, sealed: bytes, also: bytes = b"") -> bytes:
    return ChaCha20Poly1305(key).decrypt(struct.pack("<IQ", 0, counter), sealed, also)


class Key:
    """A private key; texts are base64, as documents have them."""

    def __init__(self, text: str = "") -> None:
        raw = b64decode(text) if text else os.urandom(32)
        self._key = X25519PrivateKey.from_private_bytes(raw)
        self.text = b64encode(raw).decode()
        self.public = self._key.public_key().public_bytes_raw()
        self.public_text = b64encode(self.public).decode()

    def shared(self, public: bytes) -> bytes:
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


@dataclass
class _Session:
    """Keys of either way, the other's number of the session, and how far we have counted."""

    send: bytes
    receive: bytes
    other: int
    began: float = field(default_factory=time.monotonic)
    counter: int = 0


@dataclass
class _Begun:
    """A handshake that we began: where its chain and hash stand."""

    ephemeral: Key
    chain: bytes
    hashed: bytes


class FarEnd:
    """One peer of a router, at the far end: `link` is its TUN device in `where`. Used as a context manager."""

    def __init__(
        self, where: Namespace, key: Key, router: str, endpoint: tuple[str, int], preshared: str = "", port: int = 0
    ) -> None:
        """`router` is the router's public key, `port` where we listen (0: anywhere)."""
        self.where, self.key, self.router = where, key, b64decode(router)
        self.endpoint = endpoint
        self.preshared = b64decode(preshared) if preshared else bytes(32)
        self.handshakes = 0
        self._sessions: dict[int, _Session] = {}
        self._begun: dict[int, _Begun] = {}
        self._newest: _Session | None = None
        self._waiting: list[bytes] = []
        self._asked = 0.0
        self._ends = False
        with where.entered():
            family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
            self.socket.bind(("", port))
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(self.tun, _TUNSETIFF, struct.pack("16sH22x", b"wg", _IFF_TUN | _IFF_NO_PI))
        self._thread = threading.Thread(target=self._run, name="far end", daemon=True)

    def start(self, addresses: Sequence[str], routes: Mapping[str, str]) -> None:
        """Addresses with their length, and routes: to -> the source they are sent from."""
        lines = ["link set wg up mtu 1420"]
        lines += [f"address add {a} dev wg{' nodad' if ':' in a else ''}" for a in addresses]
        lines += [f"route add {to} dev wg src {source}" for to, source in routes.items()]
        self.where.run(("ip", "-batch", "-"), stdin="\n".join(lines))
        self._thread.start()

    def close(self) -> None:
        self._ends = True
        if self._thread.is_alive():
            self._thread.join()
        self.socket.close()
        os.close(self.tun)

    def forget(self) -> None:
        """Begin anew with the next packet."""
        self._newest, self._asked, self._waiting = None, 0.0, []

    # --- the loop

    def _run(self) -> None:
        while not self._ends:
            ready, _, _ = select.select([self.socket.fileno(), self.tun], [], [], 0.1)
            for one in ready:
                with suppress(BlockingIOError, OSError):
                    if one != self.tun:
                        self._heard(*self.socket.recvfrom(65536))
                    else:
                        self._send(os.read(self.tun, 65536))
            if self._waiting and time.monotonic() - self._asked > _RETRY_S:
                self._begin()

    def _send(self, packet: bytes) -> None:
        session = self._newest
        if session is None or time.monotonic() - session.began > _YOUNG_S:
            self._waiting = [*self._waiting[-63:], packet]
            if time.monotonic() - self._asked > _RETRY_S:
                self._begin()
            return
        self._sealed(session, packet)

    def _sealed(self, session: _Session, packet: bytes) -> None:
        padded = packet + bytes(-len(packet) % 16)
        head = struct.pack("<IIQ", _DATA, session.other, session.counter)
        self.socket.sendto(head + _sealed(session.send, session.counter, padded), self.endpoint)
        session.counter += 1

    def _heard(self, message: bytes, source: tuple[str, int]) -> None:
        kind = message[0] if message else 0
        try:
            if kind == _DATA:
                self._data(message)
            elif kind == _RESPONSE and len(message) == 92:
                self._finish(message)
            elif kind == _INITIATION and len(message) == 148:
                self._answer(message, source)
        except InvalidTag:
            return  # not for us, or not from whom it says

    def _data(self, message: bytes) -> None:
        _, number, counter = struct.unpack_from("<IIQ", message)
        session = self._sessions.get(number)
        if session is None:
            return
        packet = _opened(session.receive, counter, message[16:])
        self._take(session)
        if packet:
            size = struct.unpack_from("!H", packet, 2)[0] if packet[0] >> 4 == 4 else 40 + _length6(packet)
            os.write(self.tun, packet[:size])

    def _take(self, session: _Session) -> None:
        """This session is good: what waits goes out by it."""
        if self._newest is None or session.began >= self._newest.began:
            self._newest = session
        for packet in self._waiting:
            self._sealed(session, packet)
        self._waiting = []

    # --- the handshake

    def _begin(self) -> None:
        self._asked = time.monotonic()
        number, ephemeral = int.from_bytes(os.urandom(4)), Key()
        chain = _hash(_CONSTRUCTION)
        hashed = _hash(_hash(chain, _IDENTIFIER), self.router)
        hashed = _hash(hashed, ephemeral.public)
        (chain,) = _derived(chain, ephemeral.public, 1)
        chain, key = _derived(chain, ephemeral.shared(self.router), 2)
        static = _sealed(key, 0, self.key.public, hashed)
        hashed = _hash(hashed, static)
        chain, key = _derived(chain, self.key.shared(self.router), 2)
        now = time.time()
        stamp = _sealed(key, 0, struct.pack("!QI", (1 << 62) + 10 + int(now), int(now % 1 * 1e9)), hashed)
        hashed = _hash(hashed, stamp)
        message = struct.pack("<II", _INITIATION, number) + ephemeral.public + static + stamp
        self._begun[number] = _Begun(ephemeral, chain, hashed)
        self.socket.sendto(message + _mac(self.router, message) + bytes(16), self.endpoint)

    def _finish(self, message: bytes) -> None:
        _, other, number = struct.unpack_from("<III", message)
        begun = self._begun.pop(number, None)
        if begun is None:
            return
        public = message[12:44]
        hashed = _hash(begun.hashed, public)
        (chain,) = _derived(begun.chain, public, 1)
        (chain,) = _derived(chain, begun.ephemeral.shared(public), 1)
        (chain,) = _derived(chain, self.key.shared(public), 1)
        chain, mixed, key = _derived(chain, self.preshared, 3)
        _opened(key, 0, message[44:60], _hash(hashed, mixed))
        send, receive = _derived(chain, b"", 2)
        self._sessions[number] = session = _Session(send, receive, other)
        self.handshakes += 1
        if not self._waiting:
            self._sealed(session, b"")
        self._take(session)

    def _answer(self, message: bytes, source: tuple[str, int]) -> None:
        """Who calls us is the router, or nobody."""
        other = struct.unpack_from("<I", message, 4)[0]
        public, static, stamp = message[8:40], message[40:88], message[88:116]
        chain = _hash(_CONSTRUCTION)
        hashed = _hash(_hash(_hash(chain, _IDENTIFIER), self.key.public), public)
        (chain,) = _derived(chain, public, 1)
        chain, key = _derived(chain, self.key.shared(public), 2)
        if _opened(key, 0, static, hashed) != self.router:
            return
        hashed = _hash(hashed, static)
        chain, key = _derived(chain, self.key.shared(self.router), 2)
        _opened(key, 0, stamp, hashed)
        hashed = _hash(hashed, stamp)
        number, ephemeral = int.from_bytes(os.urandom(4)), Key()
        hashed = _hash(hashed, ephemeral.public)
        (chain,) = _derived(chain, ephemeral.public, 1)
        (chain,) = _derived(chain, ephemeral.shared(public), 1)
        (chain,) = _derived(chain, ephemeral.shared(self.router), 1)
        chain, mixed, key = _derived(chain, self.preshared, 3)
        hashed = _hash(hashed, mixed)
        reply = struct.pack("<III", _RESPONSE, number, other) + ephemeral.public + _sealed(key, 0, b"", hashed)
        receive, send = _derived(chain, b"", 2)
        self._sessions[number] = _Session(send, receive, other)
        self.endpoint = source[:2]
        self.handshakes += 1
        self.socket.sendto(reply + _mac(self.router, reply) + bytes(16), source)


def _length6(packet: bytes) -> int:
    return int(struct.unpack_from("!H", packet, 4)[0])
