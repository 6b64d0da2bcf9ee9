"""WireGuard's netlink without a kernel: what is sent can be read back, and what is live is no difference.

pyroute2's class writes, our own code reads: a message of one is an answer for the other. The kernel itself is in
tests/vm/test_wireguard.py.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from errno import ENODEV
from typing import Any

import pytest

from appliance import wire
from appliance.state import Peer, State, Wireguard
from appliance.wireguard import ALIVE, WireguardLinks

KEYS = [b64encode(bytes([n]) * 32).decode() for n in range(1, 9)]
NOW = 1_700_000_000.0
PEER = Peer("wg-road", KEYS[0], ("10.99.0.2/32", "fd00:99::2/128"), KEYS[1], "192.0.2.7:51820", 25, "alice")
DEVICE = Wireguard("wg-road", KEYS[2], 51820, 0xBEEF, "road")


class Mirror(WireguardLinks):
    """No socket: it keeps what would be sent, and answers a question with `answers`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.answers: list[bytes] = []
        self._channel: Any = self
        self._number = 33

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[wire.Message]:
        assert kind == 33
        self.sent.append(body)
        return []

    def dump(self, kind: int, body: bytes) -> list[wire.Message]:
        return [(kind, answer) for answer in self.answers]


def observed(answers: list[bytes], wished: State) -> tuple[tuple[Wireguard, ...], tuple[Peer, ...]]:
    mirror = Mirror()
    mirror.answers = answers
    return mirror.observe(("wg-road",), wished, NOW)


def sent(*parts: Wireguard | Peer) -> list[bytes]:
    mirror = Mirror()
    for part in parts:
        mirror.set_device(part) if isinstance(part, Wireguard) else mirror.set_peer(part)
    return mirror.sent


def moved(peer: Peer, endpoint: str, handshake: float) -> bytes:
    """What the kernel tells of a peer that is elsewhere."""
    address, port = endpoint.split(":")
    where = struct.pack("=H", 2) + int(port).to_bytes(2) + bytes(map(int, address.split("."))) + bytes(8)
    (body,) = sent(peer)
    parts = wire.attributes(body, 4)
    ((_, start, stop),) = wire.each_attribute(parts[8], 0, len(parts[8]))
    told = wire.attributes(parts[8], start, stop)
    told |= {4: where, 6: struct.pack("=qq", int(handshake), 0), 7: struct.pack("=Q", 7), 8: struct.pack("=Q", 9)}
    return bytes(4) + wire.nest(8, wire.nest(0, *(wire.attribute(k, v) for k, v in told.items())))


def test_what_is_sent_is_read_back_as_the_wish_itself() -> None:
    wished = State(wireguards=(DEVICE,), peers=(PEER,))
    devices, peers = observed(sent(DEVICE, PEER), wished)
    assert devices[0] is DEVICE
    assert peers[0] is PEER


@pytest.mark.parametrize("endpoint", ["", "192.0.2.7:1", "[2001:db8::7]:65535"])
def test_endpoints(endpoint: str) -> None:
    peer = Peer("wg-road", KEYS[0], ("10.99.0.2/32",), endpoint=endpoint)
    assert observed(sent(peer), State())[1] == (peer,)


def test_a_peer_in_several_messages() -> None:
    """A site with many networks comes in parts, each with its key."""
    halves = [Peer("wg-road", KEYS[0], (f"10.{n}.0.0/16", f"10.{n + 1}.0.0/16")) for n in (50, 52)]
    whole = Peer("wg-road", KEYS[0], tuple(f"10.{n}.0.0/16" for n in range(50, 54)))
    assert observed(sent(*halves), State())[1] == (whole,)


def test_what_another_did_is_seen() -> None:
    wished = State(wireguards=(DEVICE,), peers=(PEER,))
    for wrong in (
        Peer(PEER.link, PEER.public_key, ("10.99.0.9/32",), PEER.preshared_key, PEER.endpoint, 25),
        Peer(PEER.link, PEER.public_key, PEER.networks, "", PEER.endpoint, 25),
        Peer(PEER.link, PEER.public_key, PEER.networks, PEER.preshared_key, PEER.endpoint, 0),
        Peer(PEER.link, KEYS[5], PEER.networks, PEER.preshared_key, PEER.endpoint, 25),
    ):
        assert observed(sent(DEVICE, wrong), wished)[1] == (wrong,)
    for device in (Wireguard("wg-road", KEYS[3], 51820, 0xBEEF), Wireguard("wg-road", KEYS[2], 1, 0xBEEF)):
        assert observed(sent(device), wished)[0] == (device,)


def test_a_peer_that_has_moved_is_no_difference_while_it_is_there() -> None:
    wished = State(peers=(PEER,))
    assert observed([moved(PEER, "198.51.100.9:7", NOW - ALIVE + 1)], wished)[1] == (PEER,)
    (gone,) = observed([moved(PEER, "198.51.100.9:7", NOW - ALIVE - 1)], wished)[1]
    assert gone.endpoint == "198.51.100.9:7"
    roaming = Peer(PEER.link, PEER.public_key, PEER.networks, PEER.preshared_key, "", 25)
    assert observed([moved(roaming, "198.51.100.9:7", NOW - 9999)], State(peers=(roaming,)))[1] == (roaming,)


def test_only_the_peers_that_were_touched_are_looked_at() -> None:
    """The others are as wished, whatever they are; one that is gone or changed is seen among the touched."""
    others = tuple(Peer("wg-road", key, (f"10.99.0.{n}/32",), owner=str(n)) for n, key in enumerate(KEYS[3:6], 3))
    wished = State(peers=(PEER, *others))
    mirror = Mirror()
    changed = Peer(others[0].link, others[0].public_key, ("10.99.0.99/32",))
    mirror.answers = sent(PEER, changed, others[2])

    def seen(*keys: str) -> set[Peer]:
        return set(mirror.observe(("wg-road",), wished, NOW, frozenset(("wg-road", key) for key in keys))[1])

    assert seen(PEER.public_key) == {PEER, *others}
    assert seen(others[0].public_key) == {PEER, changed, *others[1:]}
    assert seen(others[1].public_key) == {PEER, others[0], others[2]}


def test_counters() -> None:
    mirror = Mirror()
    mirror.answers = [moved(PEER, "198.51.100.9:7", NOW)]
    assert mirror.counters(("wg-road",)) == {
        ("wg-road", KEYS[0]): {"bytes_in": 7, "bytes_out": 9, "handshake": int(NOW), "endpoint": "198.51.100.9:7"}
    }


def test_a_link_that_is_gone_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror()

    def refuse(kind: int, body: bytes) -> list[wire.Message]:
        raise wire.KernelError(ENODEV)

    monkeypatch.setattr(mirror, "dump", refuse)
    assert mirror.observe(("wg-road",), State(peers=(PEER,)), NOW) == ((), ())
