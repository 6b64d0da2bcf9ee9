"""A router of two: how long packets stop when the primary's plug is pulled, and what happens to live flows."""

from __future__ import annotations

import time

from tests.bench.figures import Figure, figure
from tests.netns.calls import tcp, udp
from tests.netns.flows import Flow
from tests.netns.pair import FORWARDED, INTERVAL, STATIC, WORLD, Beat, Pair

TIMES = 5


def failover() -> list[Figure]:
    """The worst of some."""
    gaps, lost = [], 0
    with Pair() as pair:
        pair.push(pair.document())
        for number in range(TIMES):
            primary, backup = pair.one_of_two()
            calls = (tcp(pair.web, WORLD, 80), tcp(pair.world, FORWARDED, 5000), tcp(pair.world, STATIC, 22))
            flows, beat = [Flow(call) for call in calls], Beat(udp(pair.world, FORWARDED, 5000))
            time.sleep(0.5 + number * INTERVAL / TIMES)  # at any place between two advertisements
            pair.kill(primary)
            pair.settled(backup)
            lost += sum(not flow.goes_on() for flow in flows)
            gaps.append(beat.gap())
            pair.bring_back(primary)
    return [
        figure(f"a primary's plug is pulled: longest of {TIMES} silences", max(gaps), "s", most=1.0),
        figure(f"live flows lost by it, of {3 * TIMES}", lost, "", most=0),
    ]
