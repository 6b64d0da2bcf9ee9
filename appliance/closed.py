"""The closed machine: what an appliance is before its first document. Drop all; the control interface alone is open."""

from __future__ import annotations

from appliance.state import Chain, Facts, FilterRule, Hook, Match, Ruleset, State, Verdict


def closed(facts: Facts) -> State:
    """A State whose only door is tcp 3922 and ping on the control interface."""
    control = next((link.name for link in facts.links.values() if link.mac == facts.control), "")
    accept = Verdict("accept")
    rules = [
        FilterRule((Match(("ct state",), ("established", "related")),), accept, "established"),
        FilterRule((Match(("iifname",), ("lo",)),), accept, "loopback"),
    ]
    if control:
        way_in = Match(("iifname",), (control,))
        ssh = (way_in, Match(("meta l4proto",), ("tcp",)), Match(("th dport",), ("3922",)))
        echo = (way_in, Match(("meta l4proto",), ("icmp",)), Match(("icmp type",), ("8",)))
        rules += [FilterRule(ssh, accept, "control: ssh"), FilterRule(echo, accept, "control: echo")]
    return State(
        ruleset=Ruleset(
            {},
            (
                Chain("input", tuple(rules), Hook("filter", "input", 0, "drop")),
                Chain("forward", (), Hook("filter", "forward", 0, "drop")),
            ),
        )
    )
