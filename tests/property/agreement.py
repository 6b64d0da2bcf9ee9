"""Four who say what becomes of a packet: the oracle, the trace of the compiled State, and two engines of the kernel.

`Judges.agree` asks all four and fails with the first packet on which they differ: what each said, what the trace met.
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
from tests.property.legacy import Legacy
from tests.property.wire import Bed, is_answered
from tests.property.world import FACTS, LINKS, MACS, NAMES

DROPPED = ("dropped",)


class Judges:
    """Two routers in namespaces: one whose packet filter is ours, one of legacy iptables where the kernel has them."""

    def __init__(self) -> None:
        links = [(ident, NAMES[ident], MACS[ident]) for ident in LINKS]
        self.nft, self.old = Bed(links), Bed(links)
        self.legacy = Legacy(self.old.router)
        self.packets = 0

    def close(self) -> None:
        self.legacy.close()
        self.nft.close()
        self.old.close()

    def load(self, config: Config) -> State:
        """Make both routers this document."""
        state = compile(config, FACTS)
        self.nft.load(state)
        if not self.legacy.missing:
            self.legacy.load(config, NAMES)
        return state

    def agree(self, config: Config, packets: Sequence[Packet], answers: bool = True) -> None:
        """All agree on the document, which is loaded, and these packets; and on their answers."""
        state = compile(config, FACTS)
        self.packets += len(packets)
        expected = [verdict(config, packet) for packet in packets]
        tracer = Tracer(state)
        for packet, wish in zip(packets, expected, strict=True):
            traced = tracer.trace(packet).outcome
            if traced.compared != wish.compared:
                raise AssertionError(difference(state, packet, wish, "trace", traced.compared))
        for name, bed in (("nftables", self.nft), ("legacy iptables", self.old)):
            if bed is self.old and self.legacy.missing:
                continue
            for packet, wish, (came, back) in zip(packets, expected, bed.converse(packets, answers), strict=True):
                seen = came.compared if came else DROPPED
                if seen != wish.compared:
                    raise AssertionError(difference(state, packet, wish, name, seen))
                if came and answers and is_answered(packet, came):
                    self._check_answer(config, packet, name, came, back)

    def _check_answer(self, config: Config, packet: Packet, name: str, came: Arrival, back: Arrival | None) -> None:
        wish = answer(config, packet)
        seen = back.compared if back else DROPPED
        # The port that an answer goes to is the bed's, that it came from the packet's own destination's.
        ports = (packet.destination_port, back.flow) if back and packet.has_ports else (0, 0)
        if seen[:4] != wish.compared[:4] or ports[0] != ports[1]:
            raise AssertionError(
                f"the answer to {packet}, which came out as {came}\n"
                f"  oracle: {wish.compared}\n  {name}: {seen} from port {ports[1]}"
            )


def difference(state: State, packet: Packet, wish: Outcome, name: str, seen: object) -> str:
    """What to read when two differ."""
    traced = Tracer(state).trace(packet)
    steps = "\n".join(f"    {s.chain}: {s.did} ({s.rule}) {s.element} {s.owner}" for s in traced.steps)
    return (
        f"{packet}\n  oracle: {wish.compared} because {wish.why} {wish.owners}\n  {name}: {seen}\n"
        f"  trace: {traced.outcome.compared} because {traced.outcome.why}\n{steps}"
    )
