"""The closed machine: what an appliance is before its first document. Drop all; the control interface alone is open."""

from __future__ import annotations

from appliance.state import Address, Chain, Facts, FilterRule, Hook, Link, Match, Ruleset, State, Sysctl, Verdict


def closed(facts: Facts, control_address: str = "") -> State:
    """A State whose only door is tcp 3922 and ping on the control interface.

    That interface is up and has `control_address` (169.254.2.10/24, from the seed), so that undoing the first
    document does not take away the way in.
    """
    link = facts.links.get(facts.control)
    control = link.name if link else ""
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
        sysctls=(
            Sysctl("net.ipv4.ip_forward", "0"),
            # Else removing an interface's first address takes its others along, and with the last all its routes.
            Sysctl("net.ipv4.conf.all.promote_secondaries", "1"),
        ),
        links=(Link(control, facts.control),) if control else (),
        addresses=(Address(control, control_address),) if control and control_address else (),
        ruleset=Ruleset(
            {},
            (
                Chain("input", tuple(rules), Hook("filter", "input", 0, "drop")),
                Chain("forward", (), Hook("filter", "forward", 0, "drop")),
            ),
        ),
    )
