"""Random documents, likely packets: oracle, trace, nftables and legacy iptables agree on each, and on its answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.agreement import Judges
from tests.property.likely import likely_packets
from tests.property.world import document
from tests.trials import trials

PACKETS = 300  # per document: what they cost is about what loading the document costs


def test_the_second_engine_is_there(judges: Judges) -> None:
    if judges.legacy.missing:
        pytest.skip(f"this kernel has no legacy iptables ({judges.legacy.missing}): three judges, not four")


@pytest.mark.soak("router")
@pytest.mark.timeout(3600)
def test_all_agree(judges: Judges, record_figure: Callable[[str, float, str], None]) -> None:
    before = judges.packets
    documents_tried = 0

    @settings(max_examples=trials(2000))
    @given(st.integers(0, 2**64 - 1))
    def agree(seed: int) -> None:
        nonlocal documents_tried
        documents_tried += 1
        config = document(seed)
        judges.settle(config, likely_packets(config, PACKETS, seed))

    agree()
    record_figure("documents on which oracle, trace and kernels agree", documents_tried, "documents")
    record_figure("packets on which oracle, trace and kernels agree", judges.packets - before, "packets")
