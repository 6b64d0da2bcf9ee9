"""The example document is one: it validates, its parts fit each other, and a cell named r1 can be given it as it is."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from appliance.document import Document, validate_json
from mgmt.hosts.cell import MANAGER_ADDRESS
from mgmt.hosts.celldisk import Definition
from mgmt.hosts.driver import Seed
from router.checks import problems
from router.config import Config

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "router.json"
DOCUMENTATION = [ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]


def example() -> Document[Config]:
    return validate_json(Document[Config], EXAMPLE.read_bytes())


def test_it_validates_and_has_no_problems() -> None:
    assert problems(example().config) == []


def test_it_shows_every_collection() -> None:
    raw: dict[str, Any] = json.loads(EXAMPLE.read_text())
    for collection in ("interfaces", "networks", "hosts", "forwards", "static_nats", "firewall", "egress", "records"):
        assert raw["config"][collection], collection


def test_its_control_interface_is_that_of_a_first_cell_r1() -> None:
    control = next(i for i in example().config.interfaces if i.use == "control")
    seed = Seed("r1", "router", control.addresses[0], "", "", "")
    assert Definition(seed, (), "").control_mac == control.mac
    first, length = MANAGER_ADDRESS.split("/")
    assert control.addresses == (f"{ip_address(first) + 1}/{length}",)


def test_its_public_addresses_are_for_documentation() -> None:
    for interface in example().config.interfaces:
        if interface.use == "public":
            for cidr in interface.addresses:
                address = ip_address(cidr.partition("/")[0])
                assert any(address in network for network in DOCUMENTATION)
