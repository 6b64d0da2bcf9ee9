"""Rules of the kernel's old iptables tables, which drop packets that `nft list` never shows.

A program of its own (`python -m appliance.legacy`), by python-iptables, run by host.py only where
/proc/net/ip_tables_names says that there is a table: opening one creates it, and hooks every packet from then on; and
the library is heavy, and keeps what it opened. Prints one JSON list of {"table", "chain", "rule", "packets"}: what an
empty table does not have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))


def rules() -> list[dict[str, Any]]:
    """Every legacy rule of this network namespace, and every policy that isn't ACCEPT."""
    import iptc

    found: list[dict[str, Any]] = []
    for path, kind in zip(NAMES, (iptc.Table, iptc.Table6), strict=True):
        for name in path.read_text().split() if path.exists() else ():
            table = kind(name)
            table.refresh()
            for chain in table.chains:
                policy = chain.get_policy() if chain.is_builtin() else None
                if policy is not None and policy.name != "ACCEPT":
                    found.append({"table": name, "chain": chain.name, "rule": f"policy {policy.name}", "packets": 0})
                for rule in chain.rules:
                    told = {"table": name, "chain": chain.name, "rule": _told(rule), "packets": rule.get_counters()[0]}
                    found.append(told)
    return found


def _told(rule: Any) -> str:
    """A rule in a few words: addresses, interfaces, protocol, target."""
    words = [f"from {rule.src}", f"to {rule.dst}"]
    if rule.in_interface:
        words.append(f"in {rule.in_interface}")
    if rule.out_interface:
        words.append(f"out {rule.out_interface}")
    matches = " ".join(match.name for match in rule.matches)
    return " ".join(
        filter(None, (*words, rule.protocol, matches, f"-> {rule.target.name if rule.target else 'count'}"))
    )


if __name__ == "__main__":
    json.dump(rules(), sys.stdout)
