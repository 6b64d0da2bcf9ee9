"""python-iptables in a namespace: what legacy.py says, put into the kernel's old tables.

iptc keeps its tables per process, whatever the namespace, and its chains by their name, whatever the family: `Legacy`
therefore runs it in a child for each family that stays inside one. There it changes the tables with autocommit off,
one commit each. iptc works on legacy tables alone, and these were frozen years ago: just what one wants of a second
opinion.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from router.config import Config
from tests.property.family import of_family
from tests.property.legacy import POLICIES, Chains, Rule, tables, ways
from tests.property.wire import inside


class Legacy:
    """A namespace whose packet filter is legacy iptables and ip6tables, by a child of ours inside it for each.

    `missing` says why there is none, "" where there is: kernels from 6.17 leave the old tables out unless asked.
    """

    def __init__(self, namespace: int) -> None:
        root = str(Path(__file__).parent.parent.parent)
        self._children: dict[bool, subprocess.Popen[str]] = {}
        for v6 in (False, True):
            with inside(namespace):
                self._children[v6] = subprocess.Popen(
                    [sys.executable, "-m", "tests.property.xtables", "-6" if v6 else "-4"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=root,
                )
        self.missing = "; ".join(filter(None, (self._answer(v6).removeprefix("ready") for v6 in self._children)))

    def load(self, config: Config, names: Mapping[str, str]) -> None:
        """Make the namespace this document. `names` are all links of the namespace, by interface."""
        for v6, child in self._children.items():
            seen = of_family(config, v6)
            assert child.stdin is not None
            child.stdin.write(json.dumps({"tables": tables(seen, names, v6), "ways": ways(seen, names, v6)}) + "\n")
            child.stdin.flush()
        answers = [self._answer(v6) for v6 in self._children]
        assert answers == ["done", "done"], answers

    def close(self) -> None:
        for child in self._children.values():
            child.communicate()

    def _answer(self, v6: bool) -> str:
        out = self._children[v6].stdout
        assert out is not None
        return out.readline().strip() or "the child of legacy iptables died"


def serve(lines: Iterable[str], v6: bool) -> Iterator[str]:
    """Say whether there are legacy tables; then apply what each line says, and answer done."""
    try:
        import iptc

        (iptc.Table6 if v6 else iptc.Table)("filter").refresh()
    except Exception as error:  # whatever it is, there is no second engine
        yield f"{type(error).__name__}: {error}"
        return
    yield "ready"
    for setting in (Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")):
        setting.write_text("1")
    for setting in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
        setting.write_text("0")
    before: list[str] = []
    for line in lines:
        told = json.loads(line)
        if told["ways"] != before:
            before = told["ways"]
            ip = ["ip", "-6" if v6 else "-4", "-force", "-batch", "-"]
            subprocess.run(ip, input="\n".join(before), text=True, check=False, capture_output=True)
        for name, chains in told["tables"].items():
            fill(name, chains, v6)
        yield "done"


def fill(name: str, chains: Chains, v6: bool) -> None:
    """Make a table these chains, with one commit."""
    import iptc

    table = (iptc.Table6 if v6 else iptc.Table)(name)
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
            there.append_rule(encoded(rule, v6))
    table.commit()
    table.refresh()


def encoded(wished: Rule, v6: bool) -> Any:
    """A rule for iptc. Not by iptc.easy, which leaves out what it does not understand and so makes the rule wider."""
    import iptc

    rule = iptc.Rule6() if v6 else iptc.Rule()
    for name in ("src", "dst", "protocol", "in_interface", "out_interface"):
        if name in wished:
            setattr(rule, name, wished[name])
    if v6:  # its own masks compare one bit of each letter: eth0 would be eth4
        for name, field in (("in_interface", "iniface_mask"), ("out_interface", "outiface_mask")):
            if name in wished:
                setattr(rule.entry.ipv6, field, b"\xff" * (len(wished[name]) + 1))
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
    for answer in serve(sys.stdin, v6=sys.argv[1] == "-6"):
        print(answer, flush=True)
