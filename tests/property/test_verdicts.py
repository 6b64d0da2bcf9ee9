"""Random documents, likely packets: oracle, trace, nftables and legacy iptables agree on each, and on its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.state import State
from router.compile import compile
from tests.property.agreement import Judges, meanings
from tests.property.likely import likely_packets
from tests.property.world import BY_SEED, FACTS, document, part
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

    @settings(max_examples=trials(2000), phases=BY_SEED)
    @given(st.integers(0, 2**64 - 1))
    def agree(seed: int) -> None:
        nonlocal documents_tried
        documents_tried += 1
        config = document(seed)
        judges.settle(config, likely_packets(config, PACKETS, seed))

    agree()
    record_figure("documents on which oracle, trace and kernels agree", documents_tried, "documents")
    record_figure("packets on which oracle, trace and kernels agree", judges.packets - before, "packets")


@pytest.mark.soak("router")
@pytest.mark.timeout(3600)
def test_a_changed_router_is_the_same_as_a_new_one(judges: Judges) -> None:
    """From a part of a document to the whole and back, by what differs: packets tell no difference."""

    @settings(max_examples=trials(300), phases=BY_SEED)
    @given(st.integers(0, 2**64 - 1))
    def agree(seed: int) -> None:
        config = document(seed)
        less = part(config, seed)
        for step, by_delta in ((less, False), (config, True), (less, True)):
            found = judges.change(step, by_delta, likely_packets(step, PACKETS // 3, seed))
            assert found is None, f"{found[1]}\nin {step.model_dump_json(exclude_defaults=True)}"

    agree()


# --- the judges themselves: would they see it? ---

CHAINS = ("ingress", "senders", "public", "dstnat", "forward", "srcnat", "input", "reroute", "dstnat_own")
SEEDS = range(40)


def without_rules(state: State, name: str) -> State:
    chains = tuple(replace(chain, rules=()) if chain.name == name else chain for chain in state.ruleset.chains)
    return replace(state, ruleset=replace(state.ruleset, chains=chains))


@pytest.mark.parametrize("name", CHAINS)
def test_an_empty_chain_is_noticed(judges: Judges, name: str) -> None:
    """By the trace and by the kernel, each on its own."""
    for judge in (judges.misled, judges.misdone):
        for seed in SEEDS:
            config = document(seed)
            meant = meanings(config, likely_packets(config, PACKETS, seed))
            if judge(config, without_rules(compile(config, FACTS), name), meant):
                break
        else:
            pytest.fail(f"{judge.__name__} does not miss chain {name}")


def test_an_answer_that_goes_astray_is_noticed(judges: Judges) -> None:
    """Without its mark an answer leaves by the first uplink, wherever its question came from."""
    for seed in SEEDS:
        config = document(seed)
        state = compile(config, FACTS)
        empty = replace(state.ruleset.sets["m_uplink"], elements={}, owners={})
        broken = replace(state, ruleset=replace(state.ruleset, sets={**state.ruleset.sets, "m_uplink": empty}))
        found = judges.misdone(config, broken, meanings(config, likely_packets(config, PACKETS, seed)))
        if found and found[1].startswith("the answer to"):
            return
    pytest.fail("no answer went astray")
