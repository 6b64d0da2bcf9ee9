"""What a unit is told from: its definition, and what the supervisor takes for one. What runs it is in netns/."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.process import UnitProblem, checked
from appliance.state import Sandbox, Unit
from appliance.units import definition

UNIT = Unit("dns-net", ("dnsmasq", "--keep-in-foreground"), reload="HUP", directories=(("/run/dns", 0o750, "root"),))


def test_a_definition_is_what_the_process_is_started_from() -> None:
    assert definition(UNIT) == definition(replace(UNIT, reload_on=("/a",), check=("x",), owner="net"))
    others = [
        replace(UNIT, command=("x",)),
        replace(UNIT, name="x"),
        replace(UNIT, directories=()),
        replace(UNIT, sandbox=Sandbox(writable=("/x",))),
    ]
    assert definition(UNIT) not in {definition(other) for other in others}


def test_a_definition_is_checked_before_it_is_taken() -> None:
    assert checked({"name": "a", "command": ["true"]})["reload"] == ""
    for bad in ({"name": "a/b", "command": ["true"]}, {"name": "a", "command": [1]}, [], {"command": ["true"]}):
        with pytest.raises(UnitProblem):
            checked(bad)
