"""The command line against a real cell: what a person types, in a namespace that stands for the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmt.hosts.cell import CellDriver
from mgmt.hosts.namespace import Bridge, Namespace
from mgmt.keys import kept_key

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "router.json"


class Person:
    """Types commands on a host of its own."""

    def __init__(self, host: Namespace, state: Path) -> None:
        self.host = host
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "NARTHEX_STATE": str(state)}

    def types(self, *words: str, stdin: str = "", ends_in: int = 0) -> str:
        with self.host.entered():
            ran = subprocess.run(
                [sys.executable, "-P", "-m", "mgmt.cli", *words],
                input=stdin, capture_output=True, text=True, env=self.environment, timeout=60,
            )  # fmt: skip
        assert ran.returncode == ends_in, f"{words}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
        assert "Traceback" not in ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with Namespace(f"cli-{os.getpid()}") as host, Bridge("public", host), Bridge("guest", host):
        person = Person(host, tmp_path)
        driver = CellDriver(state=tmp_path)
        try:
            yield person
        finally:
            with host.entered():
                for cell in driver.list():
                    driver.destroy(cell.name)


def test_a_cell_from_nothing_to_a_router_and_away(person: Person) -> None:
    # Its control address and MAC are the example's: the name is r1, and it is the first cell.
    nics = ("--nic", "02:00:5e:00:01:02=nx-public", "--nic", "02:00:5e:00:01:03=nx-guest")
    assert "no cell yet" in person.types("cell", "list")
    assert "no cell runs" in person.types("router", "state", ends_in=6)
    assert "169.254.240.2/20" in person.types("cell", "create", "r1", *nics)
    assert "there is a cell of this name" in person.types("cell", "create", "r1", ends_in=1)
    assert "generation 0" in person.types("cell", "start", "r1")
    assert json.loads(person.types("cell", "list", "--json"))[0]["state"] == "running"

    planned = json.loads(person.types("router", "plan", "--json", str(EXAMPLE)))
    assert planned["confirm"] is True
    pushed = person.types("router", "push", "--plan", planned["plan"], str(EXAMPLE))
    assert "generation 1 applied" in pushed
    assert "confirmed over a new connection" in pushed
    assert "unchanged" in person.types("router", "push", "--next", str(EXAMPLE))

    change = (
        '{"version": 1, "role": "router", "operations": [{"op": "remove", "collection": "forwards", "id": "web-ssh"}]}'
    )
    assert "generation 3 applied" in person.types("router", "push", "-", stdin=change)
    assert "-nft element m_forward_from" in person.types("router", "diff", "2", "3")
    assert "generation 4 applied" in person.types("router", "rollback", "1")
    assert "stale" in person.types("router", "push", str(EXAMPLE), ends_in=4)

    broken = EXAMPLE.read_text().replace('"10.1.1.30"', '"10.9.9.9"')
    refused = person.types("router", "push", "--next", "-", stdin=broken, ends_in=3)
    assert "config.hosts[vm-desk].address" in refused

    assert "m_forward" in person.types("cell", "exec", "r1", "--", "nft", "list", "ruleset")
    person.types("cell", "exec", "r1", "sh", "-c", "exit 7", ends_in=7)
    assert '"event": "ready"' in person.types("cell", "logs", "r1", "--unit", "agent")
    assert "healthy" in person.types("router", "watch", "--times", "1")

    person.types("cell", "stop", "r1")
    person.types("cell", "start", "r1")
    assert json.loads(person.types("router", "state", "--json"))["generation"] == 4
    person.types("cell", "destroy", "r1")
    assert "no cell yet" in person.types("cell", "list")


def test_a_stranger_s_key_is_refused_with_words(person: Person, tmp_path: Path) -> None:
    person.types("cell", "create", "r1")
    told = json.loads(person.types("cell", "start", "r1", "--json"))[0]
    address = told["control_address"].partition("/")[0]
    key = str(tmp_path / "manager" / "key")
    way = ("--address", address, "--key", key, "--host-key")
    assert "generation 0" in person.types("router", "state", *way, told["host_key"])
    other = kept_key(tmp_path / "manager" / "key").public
    assert "another host key" in person.types("router", "state", *way, other, ends_in=6)
