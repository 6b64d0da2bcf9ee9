"""A member of a router of two in a VM, whose other member is dead: the three daemons in systemd's confinement."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.bed import wait_for
from tests.netns.calls import both, tcp
from tests.netns.stage import L10, LEFT, WEB, WORLD, Stage, allow, config, forward, interface, office

UNITS = ("keepalived", "conntrackd", "peer")


def document(stage: Stage) -> dict[str, Any]:
    told = config(allow("in", L10), forward("f", L10, 80, WEB), interface("back", "private"), office(dhcp={}, dns=True))
    interfaces = ("control", "left", "right", "lan", "dmz")
    seats = [{"interface": name, "mac": f"02:00:00:00:0e:{n:02x}"} for n, name in enumerate(interfaces)]
    seats[0]["addresses"] = ["169.254.240.99/20"]  # type: ignore[assignment]
    back = next(i["mac"] for i in told["interfaces"] if i["id"] == "back")
    told["redundancy"] = {
        "interface": "back",
        "members": [
            {"id": "here", "priority": 250,
             "interfaces": [{"interface": "back", "mac": back, "addresses": ["169.254.51.1/30"]}]},
            {"id": "dead", "priority": 240,
             "interfaces": [*seats, {"interface": "back", "mac": "02:00:00:00:0e:99",
                                     "addresses": ["169.254.51.2/30"]}]},
        ],
    }  # fmt: skip
    return told


def test_it_is_the_router(stage: Stage, record_figure: Callable[[str, float, str], None]) -> None:
    """It has the addresses and passes packets; nothing that it does is denied; a take-over has no error."""
    stage.bed.push(document(stage))
    run = "/run/narthex/redundancy/report"

    def is_primary() -> bool:
        text = stage.bed.run("cat", run, check=False)
        return bool(text) and json.loads(text)["role"] == "primary"

    wait_for(is_primary, 60.0)
    stage.meets("web", tcp(stage.world, L10, 80))
    stage.meets("world", *both(stage.web, WORLD, 80), seen=LEFT)
    for unit in UNITS:
        shown = stage.bed.run("systemctl", "show", "--property=ActiveState,NRestarts", f"narthex-{unit}.service")
        assert sorted(shown.split()) == ["ActiveState=active", "NRestarts=0"], unit
        told = stage.run(f"systemd-analyze security --no-pager narthex-{unit}.service").splitlines()[-1]
        score = float(told.partition(".service: ")[2].split()[0])
        record_figure(f"exposure of narthex-{unit} by systemd-analyze", score, "of 10")
        assert score <= 4.0, told
    said = stage.bed.run("journalctl", "--quiet", "--output=cat", "--unit=narthex-peer.service")
    assert "backup -> primary" in said
    assert "conntrackd -" not in said, said
    committed = stage.bed.run("journalctl", "--quiet", "--output=cat", "--unit=narthex-conntrackd.service")
    assert "commit has taken" in committed, committed
    stage.bed.run("systemctl", "kill", "--signal=KILL", "narthex-keepalived.service")
    wait_for(lambda: not is_primary(), 30.0, "it did not notice")
    wait_for(is_primary, 60.0)
    stage.meets("web", tcp(stage.world, L10, 80))
