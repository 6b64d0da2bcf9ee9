"""Who may import whom (docs/design.md, section 2), by walking the syntax trees.

An import counts wherever it stands: in a function, under TYPE_CHECKING, relative, or by import_module("...").
So does a deed of `os` that starts a process: `os.fork` is read as if it were imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.lint.files import ROOT, tracked_files

HOUSE = ("appliance", "router", "ssvm", "consoleproxy", "mgmt")
ROLES = ("router", "ssvm", "consoleproxy")
PROCESSES = (
    "subprocess",
    "multiprocessing",
    "pty",
    "asyncio.create_subprocess_*",
    "os.exec*",
    "os.fork*",
    "os.popen",
    "os.posix_spawn*",
    "os.spawn*",
    "os.system",
)
SOCKETS = ("socket", "socketserver", "pyroute2")
REMOTE = ("fabric", "invoke", "paramiko")


@dataclass(frozen=True, slots=True)
class Rule:
    """Files of `inside`, but not those of `apart_from`, never import `never`, but may import `unless`.

    All are dotted names; each stands for itself and everything below it.
    """

    why: str
    inside: tuple[str, ...]
    never: tuple[str, ...]
    unless: tuple[str, ...] = ()
    apart_from: tuple[str, ...] = ()


RULES = (
    Rule(
        "the agent knows no role, except roles.py by name",
        inside=("appliance",),
        never=(*ROLES, "mgmt"),
        apart_from=("appliance.roles",),
    ),
    *(
        Rule(
            "a role sees values, document and state of the agent, and no other role",
            inside=(role,),
            never=tuple(package for package in HOUSE if package != role),
            unless=("appliance.values", "appliance.document", "appliance.state"),
        )
        for role in ROLES
    ),
    Rule(
        "the manager sees documents and their meaning, never an engine or a host",
        inside=("mgmt",),
        never=("appliance", *ROLES),
        unless=(
            "appliance.values",
            "appliance.document",
            "appliance.version",
            *(f"{role}.{part}" for role in ROLES for part in ("config", "checks")),
        ),
    ),
    Rule("nothing that ships imports the tests", inside=HOUSE, never=("tests",)),
    Rule(
        "in an appliance only the doors touch the machine",
        inside=("appliance",),
        never=(*PROCESSES, *SOCKETS, *REMOTE),
        apart_from=tuple(
            f"appliance.{door}"
            for door in (
                *("host", "nft", "haproxy", "members", "units", "systemd", "probe", "watch", "server"),
                *("netlink", "wireguard", "wire", "rtnl", "arp", "ndp", "adverts", "conntrack"),
                *("nftelement", "nftlist", "nftdata", "flowlist", "meters", "tc", "events"),
                *("supervisor", "process", "join", "notify", "boot", "charon"),
                *("checkup", "dhcpask", "probe6"),
                *("release", "upgrade", "trial", "seed", "seeddisk"),
            )
        )
        + ("appliance.legacy",),
    ),
    Rule(
        "the early boot stands alone: beside it lie only these files of the agent",
        inside=("appliance.seed", "appliance.seeddisk", "appliance.seedtext", "appliance.settings"),
        never=("appliance", "netaddr", "pydantic"),
        unless=("appliance.seeddisk", "appliance.seedtext", "appliance.settings"),
    ),
    Rule(
        "the early boot waits for no import that it can do without",
        inside=("appliance.seed", "appliance.seeddisk"),
        never=("typing", "dataclasses", "enum", "pathlib", "hashlib", "tarfile", "yaml"),
    ),
    Rule(
        "a role touches no machine, but by a program of its own that the agent runs as a unit",
        inside=ROLES,
        never=(*PROCESSES, *SOCKETS, *REMOTE),
        apart_from=("router.metadata_service", "router.peer", "router.peer_packets"),
    ),
    Rule(
        "the metadata service is run from a folder of its own, in which only these lie",
        inside=("router.metadata_service", "router.metadata_given", "router.metadata_guest"),
        never=(*HOUSE, "netaddr", "pydantic", "subprocess"),
        unless=("router.metadata_given", "router.metadata_guest"),
    ),
    Rule(
        "the metadata service is run, never imported",
        inside=HOUSE,
        never=("router.metadata_service",),
    ),
    Rule(
        "peer.py is run from a folder of its own, in which only these lie",
        inside=("router.peer", "router.peer_files", "router.peer_packets"),
        never=(*HOUSE, "netaddr", "pydantic"),
        unless=("router.peer_files", "router.peer_packets"),
    ),
    Rule("peer.py is run, never imported", inside=HOUSE, never=("router.peer",)),
    Rule(
        "in the manager only hosts/, image/ and push.py reach outside the process",
        inside=("mgmt",),
        never=(*PROCESSES, *SOCKETS, *REMOTE),
        apart_from=("mgmt.hosts", "mgmt.image", "mgmt.push"),
    ),
    Rule(
        "python-iptables lives in a child process of its own",
        inside=HOUSE,
        never=("iptc",),
        apart_from=("appliance.legacy",),
    ),
    Rule("legacy.py is run, never imported", inside=HOUSE, never=("appliance.legacy",)),
)


def imports_of(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything the source imports, names taken out of a module included."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("os", "asyncio"):
            yield node.lineno, ast.unparse(node)


def stands_under(name: str, tops: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, top) or fnmatchcase(name, f"{top}.*") for top in tops)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for every import that a rule forbids."""
    rules = [r for r in RULES if stands_under(module, r.inside) and not stands_under(module, r.apart_from)]
    return [
        f"{module}:{line}: imports {name}: {rule.why}"
        for line, name in imports_of(source, module, is_package)
        for rule in rules
        if stands_under(name, rule.never) and not stands_under(name, rule.unless)
    ]


def house_files() -> list[Path]:
    paths = (path.relative_to(ROOT) for path in tracked_files() if path.suffix == ".py")
    return [path for path in paths if path.parts[0] in HOUSE]


@pytest.mark.parametrize("path", house_files(), ids=str)
def test_walls_stand(path: Path) -> None:
    is_package = path.name == "__init__.py"
    module = ".".join(path.parent.parts if is_package else path.with_suffix("").parts)
    assert not violations((ROOT / path).read_text(), module, is_package)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("appliance.engine", "import router.compile"),
        ("appliance.engine", "from router import compile"),
        ("appliance.engine", "def f():\n    from router.compile import compile_state"),
        ("appliance.engine", "import importlib\nimportlib.import_module('router')"),
        ("appliance.api", "import mgmt"),
        ("router.compile", "from appliance import engine"),
        ("router.compile", "from appliance.host import LinuxHost"),
        ("router.compile", "import appliance"),
        ("router.compile", "from ssvm.config import Store"),
        (
            "router.nat",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from appliance.host import Host",
        ),
        ("router.nat", "from ..appliance import host"),
        ("router.nat", "import subprocess"),
        ("ssvm.compile", "import router.config"),
        ("consoleproxy.compile", "import mgmt.push"),
        ("mgmt.compose", "from router.compile import compile_state"),
        ("mgmt.compose", "from router import nat"),
        ("mgmt.push", "import appliance.engine"),
        ("mgmt.cli", "import subprocess as s"),
        ("mgmt.cli", "from fabric import Connection"),
        ("mgmt.cli", "import os\nos.execvp('ssh', [])"),
        ("appliance.engine", "from socket import AF_INET"),
        ("appliance.engine", "import subprocess"),
        ("appliance.store", "from pyroute2 import IPRoute"),
        ("appliance.store", "import os\nos.fork()"),
        ("appliance.store", "from os import system"),
        ("appliance.seedtext", "from appliance.values import mac"),
        ("appliance.seed", "from dataclasses import dataclass"),
        ("appliance.host", "import iptc"),
        ("router.firewall", "import iptc.ip4tc"),
        ("mgmt.hosts.libvirt", "import iptc"),
        ("appliance.host", "from appliance import legacy"),
        ("appliance.host", "from . import legacy"),
        ("mgmt.push", "from tests.trials import trials"),
        ("router.metadata", "from router import metadata_service"),
        ("router.metadata", "import socket"),
        ("router.metadata_service", "from router.config import Host"),
    ],
)
def test_rule_bites(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("appliance.roles", "import router"),
        ("appliance.host", "import subprocess, socket\nfrom . import state"),
        ("appliance.legacy", "import iptc"),
        ("appliance.engine", "import os\nos.replace('a', 'b')"),
        ("router.compile", "from appliance.state import File\nfrom . import nat"),
        ("router.compile", "from appliance import state, values"),
        ("mgmt.push", "import fabric\nfrom appliance.document import Document"),
        ("mgmt.hosts.cell", "import subprocess"),
        ("mgmt.compose", "from router import config\nfrom router.checks import check"),
    ],
)
def test_rule_lets_pass(module: str, source: str) -> None:
    assert not violations(source, module)
