"""python-iptables in a namespace: what legacy.py says, put into the kernel's old tables.

iptc keeps its tables per process, whatever the namespace: `Legacy` therefore runs it in a child that stays inside one.
There it changes the tables with autocommit off, one commit each. iptc works on legacy tables alone, and these were
frozen years ago: just what one wants of a second opinion.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from router.config import Config
from tests.property.legacy import POLICIES, Chains, Rule, tables, ways
from tests.property.wire import inside


class Legacy:
    """A namespace whose packet filter is legacy iptables, by a child of ours inside it.

    `missing` says why there is none, "" where there is: kernels from 6.17 leave the old tables out unless asked.
    """

    def __init__(self, namespace: int) -> None:
        root = str(Path(__file__).parent.parent.parent)
        with inside(namespace):
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.property.xtables"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=root,
            )
        self.missing = self._answer().removeprefix("ready")

    def load(self, config: Config, names: Mapping[str, str]) -> None:
        """Make the namespace this document. `names` are all links of the namespace, by interface."""
        assert self._child.stdin is not None
        told = {"tables": tables(config, names), "ways": ways(config, names)}
        self._child.stdin.write(json.dumps(told) + "\n")
        self._child.stdin.flush()
        answer = self._answer()
        assert answer == "done", answer

    def close(self) -> None:
        self._child.communicate()

    def _answer(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip() or "the child of legacy iptables died"


def serve(lines: Iterable[str]) -> Iterator[str]:
    """Say whether there are legacy tables; then apply what each line says, and answer done."""
    try:
        import iptc

        iptc.Table("filter").refresh()
    except Exception as error:  # whatever it is, there is no second engine
        yield f"{type(error).__name__}: {error}"
        return
    yield "ready"
    for setting in (Path("/proc/sys/net/ipv4/ip_forward"), *Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter")):
        setting.write_text("1" if setting.name == "ip_forward" else "0")
    before: list[str] = []
    for line in lines:
        told = json.loads(line)
        if told["ways"] != before:
            text = "\n".join(told["ways"])
            subprocess.run(["ip", "-force", "-batch", "-"], input=text, text=True, check=False, capture_output=True)
            before = told["ways"]
        for name, chains in told["tables"].items():
            fill(name, chains)
        yield "done"


def fill(name: str, chains: Chains) -> None:
    """Make a table these chains, with one commit."""
    import iptc

    table = iptc.Table(name)
    table.autocommit = False
    table.refresh()
    table.flush()
    for chain in chains:
        if not table.builtin_chain(chain):
            table.create_chain(chain)
    for chain, rules in chains.items():
        there = iptc.Chain(table, chain)
        if policy := POLICIES.get((name, chain)):
            there.set_policy(policy)
        for rule in rules:
            there.append_rule(encoded(rule))
    table.commit()
    table.refresh()


def encoded(wished: Rule) -> Any:
    """A rule for iptc. Not by iptc.easy, which leaves out what it does not understand and so makes the rule wider."""
    import iptc

    rule = iptc.Rule()
    for name in ("src", "dst", "protocol", "in_interface", "out_interface"):
        if name in wished:
            setattr(rule, name, wished[name])
    for name, values in wished.get("matches", {}).items():
        match = rule.create_match(name)
        for key, value in values.items():
            match.set_parameter(key, value)
    target, values = wished["target"]
    rule.target = iptc.Target(rule, target)
    for key, value in values.items():
        rule.target.set_parameter(key, value)
    return rule


if __name__ == "__main__":
    for answer in serve(sys.stdin):
        print(answer, flush=True)
