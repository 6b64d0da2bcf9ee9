"""Nothing but 3922 on the control interface answers: every port, before and after the first document."""

from __future__ import annotations

import pytest

from mgmt.hosts.cell import CONTROL_BRIDGE
from tests.bed import CELL, CONTROL
from tests.netns.stage import BACK, DMZ, LAN, LEFT, MACS, RIGHT, Stage
from tests.vm.scan import scan

pytestmark = pytest.mark.soak("image")
MANAGER = "169.254.240.1"
# link of the router: its address there once it has a document, and a neighbour's
LINKS = {
    "left": (LEFT, "203.0.113.1"), "right": (RIGHT, "192.0.2.1"), "lan": (LAN, "10.1.1.30"),
    "dmz": (DMZ, "10.1.2.10"), "back": (BACK, "172.16.0.5"),
}  # fmt: skip


@pytest.mark.parametrize("moment", ["before", "after"])
def test_only_3922_on_the_control_interface_answers(stage: Stage, moment: str) -> None:
    """Silence everywhere: no reset, no ICMP error. On the control interface, 3922 and it alone."""
    if moment == "after":
        stage.push()
    ground = stage.bed.ground
    control = stage.bed.driver.definition(CELL).control_mac
    found = scan(ground, CONTROL_BRIDGE, control, MANAGER, CONTROL.partition("/")[0], known=3922)
    assert found.open == {3922}
    assert (found.refused, found.others) == (frozenset(), ())
    # Before a document the others are down; two of them stand for all, and every one is asked afterwards.
    for link in ("left", "lan") if moment == "before" else LINKS:
        address, neighbour = LINKS[link]
        found = scan(ground, f"nx-{link}", MACS[link], neighbour, address)
        assert (found.open, found.refused, found.others) == (frozenset(), frozenset(), ()), link
