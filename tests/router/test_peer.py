"""What a member makes of what it hears: `hold`, and its words. Without sockets: those are in tests/netns."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest

from router.peer import BEHIND, FAULT, FREE, SPLIT_S, Peer
from router.peer_files import Followed, digest_of
from router.peer_packets import advertised, gratuitous, renewal

MAC = bytes.fromhex("02005e000104")


class Alone(Peer):
    """A member without its sockets; `carrier` and `late` are what they would say."""

    def __init__(self, role: str, stronger: bool = True) -> None:
        self.told = {"member": "a", "peer": "b", "stronger": stronger, "document": "1", "interval": 0.3, "link": "eth4"}
        self.role, self.split_at, self.splits, self.hold = role, 0.0, 0, None
        self.heard, self.heard_at, self.advertised_at = {}, 0.0, 0.0
        self.carrier = True

    @property
    def has_carrier(self) -> bool:
        return self.carrier

    def hears(self, role: str, document: str = "1", ago: float = 0.0) -> Alone:
        self.heard, self.heard_at = {"member": "b", "role": role, "document": document}, time.monotonic() - ago
        return self

    def judged(self) -> int:
        self._watch_for_two()
        self.hold = self._judged()
        return self.hold


@pytest.mark.parametrize(
    ("role", "other", "document", "ago", "hold", "words"),
    [
        ("backup", "primary", "1", 0.0, FREE, "backup; b is primary"),
        ("backup", "primary", "2", 0.0, BEHIND, "another document"),
        ("backup", "primary", "2", 9.0, FREE, "b is silent"),
        ("backup", "fault", "2", 0.0, FREE, "another document"),
        ("primary", "backup", "2", 0.0, FREE, "another document"),
        ("primary", "", "", 0.0, FREE, "b is silent"),
        ("backup", "", "", 0.0, FREE, "b is silent"),
    ],
)
def test_hold(role: str, other: str, document: str, ago: float, hold: int, words: str) -> None:
    peer = Alone(role)
    if other:
        peer.hears(other, document, ago)
    assert peer.judged() == hold
    assert words in peer.words()


@pytest.mark.parametrize("stronger", [True, False])
def test_both_are_primary(stronger: bool) -> None:
    """For a moment that is VRRP's to end; then the weaker stands back, until VRRP is heard or the other is not."""
    peer = Alone("primary", stronger).hears("primary")
    assert peer.judged() == FREE
    assert peer.splits == 1
    peer.split_at -= SPLIT_S + 0.1
    assert peer.judged() == (FREE if stronger else FAULT)
    if not stronger:
        peer.role = "fault"
        assert peer.hears("primary").judged() == FAULT
        assert peer.hears("primary", ago=9.0).judged() == FREE
        peer.hold, peer.advertised_at = FAULT, time.monotonic()
        assert peer.hears("primary").judged() == FREE


def test_without_carrier_who_was_not_the_router_stands_back() -> None:
    for role, heard, hold in (("backup", True, FAULT), ("primary", True, FREE), ("backup", False, FREE)):
        peer = Alone(role)
        peer.carrier = False
        if heard:
            peer.hears("primary", ago=9.0)
        assert peer.judged() == hold, role


# --- files and packets ------------------------------------------------------------------------------------------------


def followed(folder: Path) -> Followed:
    for name in ("kept", "given"):
        (folder / name).mkdir(parents=True)
    lease = {"network": "office", "path": str(folder / "leases")}
    return Followed({"kept": str(folder / "kept"), "given": str(folder / "given"), "leases": [lease]})


def test_files_follow_in_any_order_and_only_once(tmp_path: Path) -> None:
    one, other = followed(tmp_path / "one"), followed(tmp_path / "other")
    text = "".join(f"0 02:00:00:00:00:01 10.1.1.{n % 250} h\xe4{n} *\n" for n in range(500))
    (tmp_path / "one/leases").write_text(text, encoding="latin-1")
    (tmp_path / "one/given/vm-1").write_text("p-1\n")
    (tmp_path / "other/given/vm-2").write_text("p-2\n")
    sent: list[dict[str, Any]] = []
    one.send(other.copies(), sent.append)
    assert len(sent) > 10
    for part in reversed(sent):
        other.keep(part)
    assert "\n".join(other.leases("office")) + "\n" == text
    assert (tmp_path / "other/given/vm-1").read_text() == "p-1\n"
    assert (tmp_path / "other/given/vm-2").read_text() == "p-2\n", "what only it knows stays"
    sent.clear()
    one.send(other.copies(), sent.append)
    assert sent == []


@pytest.mark.parametrize("name", ["../evil", ".hidden", "a/b"])
def test_what_is_no_name_is_not_written(tmp_path: Path, name: str) -> None:
    other = followed(tmp_path)
    text = f"{name} p\n"
    other.keep({"part": 0, "of": 1, "file": "given", "digest": digest_of(text), "text": text})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["given", "given", "kept"]
    other.keep({"part": 0, "of": 1, "file": "../other", "digest": digest_of("x"), "text": "x"})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["given", "given", "kept"]


def test_packets() -> None:
    asked = renewal("02:00:5e:00:01:04", "10.1.1.7")
    assert (asked[:3], asked[12:16], asked[28:34]) == (b"\1\1\6", bytes([10, 1, 1, 7]), MAC)
    assert asked[236:243] == b"\x63\x82\x53\x63\x35\x01\x03"
    frame = gratuitous(MAC, "10.1.1.1")
    assert frame[28:32] == frame[38:42] == bytes([10, 1, 1, 1])
    told = advertised(MAC, "2001:db8::1")
    source, body = told[22:38], told[54:]
    pseudo = source + told[38:54] + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF
