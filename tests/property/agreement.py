"""Four who say what becomes of a packet: the oracle, the trace of the compiled State, and two engines of the kernel.

`Judges.settle` asks all four about every packet. Where they differ it looks for the smallest document that still shows
it, and fails with that: the document, the packet, what each said, and what the trace met on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.state import State
from router.compile import compile
from router.config import Config
from router.oracle import answer, verdict
from router.packet import Outcome, Packet
from router.trace import Tracer
from tests.property.frames import Arrival
from tests.property.wire import Bed, is_answered
from tests.property.world import FACTS, LINKS, MACS, NAMES, smallest
from tests.property.xtables import Legacy

DROPPED = ("dropped",)
Meant = Sequence[tuple[Packet, Outcome]]  # packets and what the document means for them
Difference = tuple[Packet, str]  # a packet, and what each says of it


class Judges:
    """Two routers in namespaces: one whose packet filter is ours, one of legacy iptables where the kernel has them."""

    def __init__(self) -> None:
        links = [(ident, NAMES[ident], MACS[ident]) for ident in LINKS]
        self.nft, self.old = Bed(links), Bed(links)
        self.legacy = Legacy(self.old.router)
        self.packets = 0
        self._loaded: tuple[Config, State] | None = None

    def close(self) -> None:
        self.legacy.close()
        self.nft.close()
        self.old.close()

    def settle(self, config: Config, packets: Sequence[Packet]) -> None:
        """All agree on the packets of a document, and on their answers."""
        self.packets += len(packets)
        found = self.difference(config, packets)
        if found is None:
            return
        packet, told = found
        least = smallest(config, lambda less: _fits(packet, less) and self.difference(less, [packet]) is not None)
        if again := self.difference(least, [packet]):
            told = again[1]
        raise AssertionError(f"{told}\nin {least.model_dump_json(exclude_defaults=True)}")

    def difference(self, config: Config, packets: Sequence[Packet]) -> Difference | None:
        """The first packet about which they differ, and what each says of it."""
        state, meant = compile(config, FACTS), meanings(config, packets)
        return self.misled(config, state, meant) or self.misdone(config, state, meant)

    def misled(self, config: Config, state: State, meant: Meant) -> Difference | None:
        """The first packet of which the trace of a State says something else than the document means."""
        tracer = Tracer(state)
        for packet, wish in meant:
            traced = tracer.trace(packet).outcome
            if traced.compared != wish.compared:
                return packet, _told(state, packet, wish, "trace", traced.compared)
        return None

    def misdone(self, config: Config, state: State, meant: Meant) -> Difference | None:
        """The first packet with which a kernel does something else than the document means."""
        self._load(config, state)
        found = self._misdone_by("nftables", self.nft, config, state, meant)
        if found or self.legacy.missing:
            return found
        return self._misdone_by("legacy iptables", self.old, config, state, meant)

    def change(self, config: Config, by_delta: bool, packets: Sequence[Packet]) -> Difference | None:
        """Make our own router this document, by what differs from the one before, and try packets on it."""
        self._loaded = None
        state = compile(config, FACTS)
        self.nft.load(state, by_delta)
        return self._misdone_by("nftables", self.nft, config, state, meanings(config, packets))

    def _misdone_by(self, name: str, bed: Bed, config: Config, state: State, meant: Meant) -> Difference | None:
        for (packet, wish), (came, back) in zip(meant, bed.converse([packet for packet, _ in meant]), strict=True):
            seen = came.compared if came else DROPPED
            if seen != wish.compared:
                return packet, _told(state, packet, wish, name, seen)
            if came and is_answered(packet, came) and (wrong := _wrong_answer(config, packet, name, came, back)):
                return packet, wrong
        return None

    def _load(self, config: Config, state: State) -> None:
        if (config, state) != self._loaded:
            self._loaded = None
            self.nft.load(state)
            if not self.legacy.missing:
                self.legacy.load(config, NAMES)
            self._loaded = (config, state)


def meanings(config: Config, packets: Sequence[Packet]) -> Meant:
    return [(packet, verdict(config, packet)) for packet in packets]


def _fits(packet: Packet, config: Config) -> bool:
    """Can this packet be, in that document?"""
    if packet.in_interface == "":
        return any(c.startswith(f"{packet.source}/") for i in config.interfaces for c in i.addresses)
    return any(i.id == packet.in_interface for i in config.interfaces)


def _wrong_answer(config: Config, packet: Packet, name: str, came: Arrival, back: Arrival | None) -> str:
    wish = answer(config, packet)
    seen = back.compared if back else DROPPED
    # The port that an answer goes to is the bed's own; the port that it comes from is the one that was asked.
    asked, told = (packet.destination_port, back.flow) if back and packet.has_ports else (0, 0)
    if seen[:4] == wish.compared[:4] and asked == told:
        return ""
    return (
        f"the answer to {packet}, which came out as {came}\n"
        f"  oracle: {wish.compared}\n  {name}: {seen} from port {told}"
    )


def _told(state: State, packet: Packet, wish: Outcome, name: str, seen: object) -> str:
    traced = Tracer(state).trace(packet)
    steps = "\n".join(f"    {s.chain}: {s.did} ({s.rule}) {s.element} {s.owner}" for s in traced.steps)
    return (
        f"{packet}\n  oracle: {wish.compared} because {wish.why} {wish.owners}\n  {name}: {seen}\n"
        f"  trace: {traced.outcome.compared} because {traced.outcome.why}\n{steps}"
    )
