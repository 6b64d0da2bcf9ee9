"""The example's packet filter and files as text, for reading: what a change of compile does to them shows in its diff.

Outcomes of packets are what counts (tests/property, tests/netns); write the files anew with NARTHEX_GOLDEN=write.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.document import Document, validate_json
from appliance.fake import facts
from appliance.plan import lines
from appliance.ruleset import whole
from appliance.state import State
from router.compile import compile
from router.config import Config

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def example() -> State:
    document = validate_json(Document[Config], (ROOT / "docs" / "examples" / "router.json").read_bytes())
    return compile(document.config, facts(*(i.mac for i in document.config.interfaces)))


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("NARTHEX_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"tests/golden/{name} differs; look at the difference, then NARTHEX_GOLDEN=write"


def test_packet_filter() -> None:
    compare("router.nft", whole(example().ruleset))


def test_machine_without_the_packet_filter() -> None:
    told = [line for line in lines(example()) if not line.startswith("nft ")]
    compare("router.txt", "\n".join([*told, ""]))
