"""The control interface: the manager's way in, nobody else's, and no way out; and IPv6, which does not pass at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mgmt.hosts.namespace import Ground
from tests.bed import CONTROL
from tests.netns.calls import both, echo, heard, raw, tcp, udp
from tests.netns.machines import Machine
from tests.netns.stage import (
    BACK,
    L10,
    L20,
    LAN,
    LEFT,
    NEAR,
    R10,
    RIGHT,
    STORE,
    WEB,
    WORLD,
    Stage,
    allow,
    forward,
    static,
)

HERE = CONTROL.partition("/")[0]
WAY_IN = 3922


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    # Reported only: what a test breaks on purpose must stay so for a while.
    with Stage(heal="report") as stage:
        yield stage


def test_tcp_3922_and_ping_and_nothing_else(stage: Stage) -> None:
    stage.push(allow("a", L10))
    ground = stage.bed.ground
    ground.connect(HERE, WAY_IN).close()
    stage.meets("router", echo(ground, HERE))
    stage.silent(*(call for port in (22, 53, 67, 80, 443, 3921, 3923, 8080) for call in both(ground, HERE, port)))
    stage.silent(
        udp(ground, HERE, WAY_IN), echo(ground, HERE, icmp=(13, 0)), raw(ground, HERE, 99), raw(ground, HERE, 47)
    )


def test_before_the_first_document_too() -> None:
    with Stage() as fresh:
        fresh.bed.ground.connect(HERE, WAY_IN).close()
        fresh.silent(*both(fresh.bed.ground, HERE, 80), tcp(fresh.near, LEFT, WAY_IN), tcp(fresh.web, LAN, WAY_IN))


def test_the_way_in_is_closed_to_all_others(stage: Stage) -> None:
    """By whatever address of the router, and by the control address, though they send it to the router."""
    stage.push(forward("f", L10, 80, WEB), allow("a", L10, "tcp", 80))
    for who in (stage.web, stage.near, stage.far, stage.store):
        stage.silent(*(tcp(who, address, WAY_IN) for address in (LAN, LEFT, L10, RIGHT, R10, BACK)))
        stage.silent(tcp(who, HERE, WAY_IN), echo(who, HERE), *both(who, HERE, 80))


def test_an_open_address_does_not_open_it(stage: Stage) -> None:
    """Everything is let in to the address, and nobody listens there."""
    stage.push(allow("a", LEFT), allow("b", R10))
    stage.meets("refused", tcp(stage.near, LEFT, WAY_IN), tcp(stage.web, R10, WAY_IN))
    stage.silent(tcp(stage.near, HERE, WAY_IN), tcp(stage.web, HERE, WAY_IN))


def test_nobody_passes_by_the_control_link(stage: Stage) -> None:
    """Neither from the manager's side to guests and outside, nor from there to the manager."""
    stage.push(allow("a", L20), static("s", L20, WEB))
    ground, manager = stage.bed.ground, "169.254.240.1"
    for to in ("10.1.1.0/24", "203.0.113.0/24", "172.16.0.0/24"):
        ground.run(("ip", "route", "add", to, "via", HERE))
    stage.silent(*both(ground, WEB, 80), echo(ground, WEB), *both(ground, NEAR, 80), *both(ground, STORE, 80))
    stage.silent(*both(ground, LAN, 80), *both(ground, LEFT, WAY_IN), echo(ground, LEFT))
    for who in (stage.web, stage.near, stage.store):
        stage.silent(*both(who, manager, WAY_IN), echo(who, manager))


# --- IPv6 -------------------------------------------------------------------------------------------------------------


def test_ipv6_does_not_pass(stage: Stage) -> None:
    """Not even where somebody has given the router addresses and switched forwarding on."""
    stage.push()
    stage.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    for machine, net, link in (
        (stage.web, "fd00:1", "lan"),
        (stage.near, "fd00:2", "left"),
        (stage.store, "fd00:3", "back"),
    ):
        machine.run(("ip", "-6", "address", "add", f"{net}::5/64", "dev", "eth0", "nodad"))
        machine.run(("ip", "-6", "route", "add", "default", "via", f"{net}::1"))
        stage.run(f"ip -6 address add {net}::1/64 dev {_link(stage, link)} nodad")
    assert _pings(stage.web, "fd00:1::5")
    for who, to in (
        (stage.web, "fd00:2::5"), (stage.near, "fd00:1::5"), (stage.store, "fd00:1::5"), (stage.web, "fd00:3::5"),
        (stage.web, "fd00:1::1"), (stage.near, "fd00:2::1"), (stage.store, "fd00:3::1"),
    ):  # fmt: skip
        assert not _pings(who, to), f"{getattr(who, 'label', '')} reached {to}"
    for who, near in ((stage.near, "fd00:2::1"), (stage.web, "fd00:1::1")):  # neighbour discovery is the exception
        assert "lladdr" in who.run(("ip", "-6", "neigh", "show", near)).stdout, near


def _link(stage: Stage, name: str) -> str:
    """What the router calls an interface of the document."""
    mac = next(i["mac"] for i in stage.bed.appliance.config().body["config"]["interfaces"] if i["id"] == name)
    return next(line.split()[0].partition("@")[0] for line in stage.run("ip -br link").splitlines() if mac in line)


def _pings(machine: Ground, to: str) -> bool:
    assert isinstance(machine, Machine)
    return machine.run(("ping", "-6", "-c", "1", "-W", "1", to), check=False).returncode == 0


def test_what_ipv6_reaches_on_the_link(stage: Stage) -> None:
    """By its link-local address the router serves nothing either."""
    stage.push()
    shown = stage.run(f"ip -6 -br address show dev {_link(stage, 'lan')} scope link").split()
    near = next((word.partition("/")[0] for word in shown if word.startswith("fe80")), "")
    if near:
        assert not _pings(stage.web, f"{near}%eth0")
    replies = heard(stage.services, [echo(stage.web, WORLD)], 5.0)
    assert replies[0], "IPv4 does"
