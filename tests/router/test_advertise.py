"""Advertisements and DHCPv6: what is refused, who shares a daemon, what a change touches, what is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.fake import FakeHost
from appliance.plan import plan
from appliance.state import State, Touched
from router.checks import problems
from router.compile import compile, revise
from router.config import Config
from tests.router.samples import INTERFACES, V6, document, facts_of, host, made

DUAL: dict[str, Any] = {**document(), **V6}


def dual(advertise: dict[str, Any] | None = None, **more: Any) -> Config:
    """The small document in both families; what `advertise` says is the first network's."""
    first, second = DUAL["networks"]
    networks = [{**first, "advertise": advertise or {"addresses": "stateful"}}, second]
    return made(**{"interfaces": DUAL["interfaces"], "networks": networks, **more})


def compiled(config: Config) -> State:
    return compile(config, facts_of(config))


def told(state: State) -> set[tuple[str, str]]:
    return {(a.kind, a.value) for a in state.adverts}


def paths(config: Config) -> list[str]:
    return [p.path for p in problems(config)]


# --- what is refused --------------------------------------------------------------------------------------------------


def networks(**changes: Any) -> list[dict[str, Any]]:
    return [{**DUAL["networks"][0], **changes}, DUAL["networks"][1]]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"cidr6": "2001:db8:9::/64"}, "cidr6"),
        ({"cidr6": "10.1.9.0/24"}, "cidr6"),
        ({"cidr6": None, "advertise": {"addresses": "slaac", "dns": ["2001:db8::53"]}}, "advertise"),
        ({"advertise": {"dns": ["192.0.2.53"]}}, "advertise.dns"),
    ],
)
def test_a_prefix_that_is_none(changes: dict[str, Any], path: str) -> None:
    assert paths(made(interfaces=DUAL["interfaces"], networks=networks(**changes))) == [f"config.networks[web].{path}"]


@pytest.mark.parametrize(("length", "how", "good"), [(64, "slaac", True), (80, "slaac", False), (80, "stateful", True)])
def test_guests_choose_in_64_bits_alone(length: int, how: str, good: bool) -> None:
    interfaces = [
        {**i, "addresses": [*i["addresses"], *((f"2001:db8:1::1/{length}",) if i["id"] == "web" else ())]}
        for i in INTERFACES
    ]
    there = networks(cidr6=f"2001:db8:1::/{length}", advertise={"addresses": how})
    config = made(interfaces=interfaces, networks=there)
    assert paths(config) == ([] if good else ["config.networks[web].cidr6"])


def test_two_networks_of_one_link_say_the_same_of_the_way_out() -> None:
    interfaces = [
        {**i, "addresses": [*i["addresses"], "10.1.9.1/24", "2001:db8:9::1/64"]} if i["id"] == "web" else i
        for i in DUAL["interfaces"]
    ]
    other = {"id": "other", "interface": "web", "cidr": "10.1.9.0/24", "cidr6": "2001:db8:9::/64"}
    for default, found in ((True, []), (False, ["config.networks[other].advertise.default"])):
        second = {**other, "advertise": {"default": default}}
        assert paths(made(interfaces=interfaces, networks=[DUAL["networks"][0], second])) == found


def test_a_link_too_narrow_for_ipv6() -> None:
    interfaces = [{**i, "mtu": 1279} if i["id"] == "web" else i for i in DUAL["interfaces"]]
    assert paths(made(interfaces=interfaces, networks=DUAL["networks"])) == ["config.interfaces[web].mtu"]


# --- what is made -----------------------------------------------------------------------------------------------------


def test_a_document_without_ipv6_has_no_daemon_for_it() -> None:
    state = compiled(made())
    assert not [u for u in state.units if u.name.startswith("advertise")]
    assert state.adverts == ()


def test_a_network_that_tells_nothing_has_none_either() -> None:
    state = compiled(dual({"addresses": "off"}))
    assert not [u for u in state.units if u.name.startswith("advertise")]
    assert state.adverts == ()


def test_name_servers_of_each_family_for_its_guests() -> None:
    """Where the router answers no names itself, guests are told whom it would ask: by DHCP of IPv4, here of IPv6."""
    upstream = ["192.0.2.53", "2001:db8::53"]
    first = {**DUAL["networks"][0], "dns": False}
    state = compiled(made(interfaces=DUAL["interfaces"], networks=[first, DUAL["networks"][1]], upstream=upstream))
    assert ("server", "2001:db8::53") in told(state)
    options = next(f.content for f in state.files if f.path.endswith("dhcp/web.options"))
    assert "192.0.2.53" in options
    assert "2001:db8::53" not in options


def test_a_host_is_a_line_and_no_restart() -> None:
    before = dual(hosts=[host()])
    new = made(hosts=[host(address6="2001:db8:1::10")]).hosts[0]
    after = before.model_copy(update={"hosts": (new,)})
    was = compiled(before)
    found = revise(was, after, (Touched("hosts", new.id, before.hosts[0], new),), facts_of(before))
    assert found == compiled(after)
    steps = [(s.verb, s.name) for s in plan(was, compiled(after)) if s.kind == "unit"]
    assert ("reload", "advertise-web") in steps
    assert not [verb for verb, _ in steps if verb not in ("reload",)]


# --- what is taken back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advertise", "gone"),
    [
        ({"addresses": "slaac"}, set()),
        ({"addresses": "slaac", "default": False}, {"router"}),
        ({"addresses": "stateful"}, {"prefix"}),
        ({"addresses": "slaac", "dns": ["2001:db8::53"]}, {"server"}),
        ({"addresses": "slaac", "search": ["x.example"]}, {"domain"}),
        ({"addresses": "off"}, {"router", "prefix", "onlink", "server", "domain"}),
    ],
)
def test_what_goes_is_taken_back(advertise: dict[str, Any], gone: set[str]) -> None:
    before, after = compiled(dual({"addresses": "slaac"})), compiled(dual(advertise))
    steps = [s for s in plan(before, after) if (s.kind, s.verb) == ("advert", "remove")]
    assert {s.before.kind for s in steps if s.before} == gone  # type: ignore[union-attr]
    if "router" in gone and len(gone) > 1:
        assert steps[-1].before.kind == "router"  # type: ignore[union-attr]


def test_what_was_told_of_an_undone_generation_is_taken_back() -> None:
    config = dual({"addresses": "off"})
    told_of = dual({"addresses": "slaac"})
    quiet, loud, machine = compiled(config), compiled(told_of), FakeHost(facts_of(config))
    for step in (*plan(State(), quiet), *plan(quiet, loud)):
        machine.commit(step)
    undo = plan(machine.observe(quiet, [loud]), quiet)
    assert {s.before.kind for s in undo if s.kind == "advert"} >= {"prefix", "router"}  # type: ignore[union-attr]
