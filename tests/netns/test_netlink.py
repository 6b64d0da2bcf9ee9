"""Links, addresses, routes and rules against the real kernel, read back by ip(8) too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.netlink import PROTOCOL, Netlink, NetlinkError
from appliance.plan import plan
from appliance.state import Address, Link, Route, Rule, State
from tests.netns.namespaces import Namespace, fresh_namespace, tool


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """In a namespace with the veth pair wan and far; far is up, wan is down."""
    with fresh_namespace():
        tool("ip link add wan type veth peer name far")
        tool("ip link set far up")
        opened = Netlink()
        yield opened
        opened.close()


@pytest.fixture
def up(netlink: Netlink) -> Netlink:
    tool("ip link set wan up")
    return netlink


def mac_of(netlink: Netlink, name: str) -> str:
    return next(mac for mac, link in netlink.facts().items() if link.name == name)


def addresses_by_ip(link: str) -> set[str]:
    (found,) = json.loads(tool(f"ip -j address show dev {link}"))
    return {f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["scope"] != "link"}


# --- links


def test_facts_are_all_links_with_a_mac_except_loopback(netlink: Netlink) -> None:
    assert {link.name for link in netlink.facts().values()} == {"wan", "far"}
    link = netlink.facts()[mac_of(netlink, "wan")]
    assert (link.mtu, link.up, link.index) == (1500, False, socket.if_nametoindex("wan"))


def test_of_links_that_share_a_mac_the_oldest_is_the_fact(netlink: Netlink) -> None:
    tool(f"ip link set far address {mac_of(netlink, 'wan')}")
    (found,) = netlink.facts().values()
    assert found.index == min(socket.if_nametoindex("wan"), socket.if_nametoindex("far"))


def test_a_link_gets_its_mtu_and_comes_up_and_goes_down(netlink: Netlink) -> None:
    wished = Link("wan", mac_of(netlink, "wan"), 1400)
    netlink.set_link(wished)
    netlink.set_link(wished)
    assert netlink.observe_links([wished]) == (wished,)
    assert netlink.observe_links([replace(wished, mtu=0)]) == (replace(wished, mtu=0),)
    netlink.set_link(replace(wished, up=False))
    assert netlink.observe_links([wished]) == (replace(wished, up=False),)


def test_another_card_under_the_name_is_refused(netlink: Netlink) -> None:
    with pytest.raises(NetlinkError, match=r"set link wan: it has the MAC .*, not 02:00:00:00:00:01"):
        netlink.set_link(Link("wan", "02:00:00:00:00:01"))


def test_a_link_that_is_gone_is_down(netlink: Netlink) -> None:
    netlink.set_link(Link("gone", "02:00:00:00:00:01", up=False))
    with pytest.raises(NetlinkError, match="ENODEV"):
        netlink.set_link(Link("gone", "02:00:00:00:00:01"))
    assert netlink.observe_links([Link("gone", "02:00:00:00:00:01")]) == ()


# --- addresses

ADDRESSES = (
    Address("wan", "10.1.1.1/24"),
    Address("wan", "10.1.1.2/24"),
    Address("wan", "10.1.1.3/24"),
    Address("wan", "198.51.100.7/26", connected=False, owner="if-wan"),
    Address("wan", "192.0.2.1/32"),
    Address("wan", "192.0.2.4/31"),
    Address("wan", "fd00::1/64"),
    Address("wan", "fd01::1/64", connected=False),
)


def test_addresses_are_added_once_and_read_back_as_wished(up: Netlink) -> None:
    for address in ADDRESSES * 2:
        up.add_address(address)
    observed = up.observe_addresses(["wan"], ADDRESSES)
    assert not plan(State(addresses=observed), State(addresses=ADDRESSES))
    assert addresses_by_ip("wan") == {a.cidr for a in ADDRESSES}
    routes = tool("ip route show dev wan")
    assert "10.1.1.0/24" in routes
    assert "198.51.100" not in routes


def test_an_observed_address_is_the_wished_one_and_knows_its_owner(up: Netlink) -> None:
    up.add_address(ADDRESSES[3])
    assert up.observe_addresses(["wan"], ADDRESSES)[0] is ADDRESSES[3]


def test_a_strangers_address_is_observed(up: Netlink) -> None:
    tool("ip address add 10.9.9.9/24 dev wan")
    assert up.observe_addresses(["wan"]) == (Address("wan", "10.9.9.9/24"),)
    assert up.observe_addresses(["far"]) == ()
    assert up.observe_addresses(["gone"]) == ()


def test_an_address_gets_its_broadcast_address(up: Netlink) -> None:
    up.add_address(Address("wan", "10.1.1.1/26"))
    assert "brd 10.1.1.63" in tool("ip address show dev wan")


def test_the_subnets_route_can_be_taken_from_and_given_to_a_standing_address(up: Netlink) -> None:
    alone, connected = Address("wan", "10.1.1.1/24", connected=False), Address("wan", "10.1.1.1/24")
    for wished in (connected, alone, connected):
        up.add_address(wished)
        assert up.observe_addresses(["wan"]) == (wished,)


def test_an_address_that_was_only_lent_becomes_permanent(up: Netlink) -> None:
    tool("ip address add 10.1.1.1/24 dev wan valid_lft 100 preferred_lft 100")
    assert up.observe_addresses(["wan"]) == ()
    up.add_address(Address("wan", "10.1.1.1/24"))
    assert up.observe_addresses(["wan"]) == (Address("wan", "10.1.1.1/24"),)


@pytest.mark.parametrize("promote", ["0", "1"])
def test_removing_the_first_address_leaves_the_others(up: Netlink, promote: str) -> None:
    for name in ("all", "wan"):
        tool(f"sysctl -qw net.ipv4.conf.{name}.promote_secondaries={promote}")
    for address in ADDRESSES:
        up.add_address(address)
    up.remove_address(ADDRESSES[0])
    up.remove_address(ADDRESSES[0])
    assert set(up.observe_addresses(["wan"])) == set(ADDRESSES[1:])


def test_only_the_address_with_this_length_is_removed(up: Netlink) -> None:
    up.add_address(Address("wan", "10.1.1.1/24"))
    up.add_address(Address("wan", "10.1.1.1/25"))
    up.remove_address(Address("wan", "10.1.1.1/24"))
    up.remove_address(Address("wan", "10.1.1.1/16"))
    assert up.observe_addresses(["wan"]) == (Address("wan", "10.1.1.1/25"),)


def test_an_address_of_a_link_that_is_gone_is_gone(up: Netlink) -> None:
    up.remove_address(Address("gone", "10.1.1.1/24"))
    with pytest.raises(NetlinkError, match=r"add address 10.1.1.1/24 on gone: ENODEV: there is no interface gone"):
        up.add_address(Address("gone", "10.1.1.1/24"))


# --- routes

ROUTES = (
    Route("0.0.0.0/0", "wan", "10.9.9.9", table=7_000_123, source="10.1.1.1"),  # a gateway outside of every subnet
    Route("0.0.0.0/0", "wan", "10.1.1.254"),
    Route("0.0.0.0/0", "wan", "10.1.1.253", metric=50),
    Route("172.16.0.0/12", "wan", metric=5, owner="static"),
    Route("10.5.0.1/32", "wan", table=200),
    Route("::/0", "wan", "fe80::1"),
    Route("fd02::/64", "wan", table=7_000_123),
)


@pytest.fixture
def routed(up: Netlink) -> Netlink:
    up.add_address(Address("wan", "10.1.1.1/24"))
    for route in ROUTES * 2:
        up.add_route(route)
    return up


def test_routes_of_all_tables_are_read_back_as_wished(routed: Netlink) -> None:
    assert not plan(State(routes=routed.observe_routes(ROUTES)), State(routes=ROUTES))


def test_only_our_routes_are_observed(routed: Netlink) -> None:
    tool("ip route add 10.77.0.0/16 dev wan")
    assert set(routed.observe_routes()) == set(ROUTES)
    tool(f"ip route add 10.78.0.0/16 dev wan proto {PROTOCOL}")
    assert set(routed.observe_routes()) == {*ROUTES, Route("10.78.0.0/16", "wan")}


def test_a_route_with_the_same_key_is_replaced(routed: Netlink) -> None:
    routed.add_route(Route("0.0.0.0/0", "wan", "10.9.9.8", table=7_000_123))
    observed = routed.observe_routes()
    assert len(observed) == len(ROUTES)
    assert Route("0.0.0.0/0", "wan", "10.9.9.8", table=7_000_123) in observed


def test_our_route_takes_the_place_of_a_strangers(routed: Netlink) -> None:
    tool("ip route add 10.88.0.0/16 via 10.1.1.9")
    routed.add_route(Route("10.88.0.0/16", "wan", "10.1.1.8"))
    assert tool("ip route show 10.88.0.0/16").split()[:3] == ["10.88.0.0/16", "via", "10.1.1.8"]


def test_removed_routes_are_gone_and_a_strangers_equal_one_is_not(routed: Netlink) -> None:
    tool("ip route add 10.5.0.1 dev wan table 201")
    routed.remove_route(Route("10.5.0.1/32", "wan", table=201))
    for route in ROUTES * 2:
        routed.remove_route(route)
    assert routed.observe_routes() == ()
    assert "10.5.0.1" in tool("ip route show table 201")


@pytest.mark.parametrize("kind", ["blackhole", "unreachable"])
def test_a_route_of_ours_without_words_for_it_is_seen_and_removed(routed: Netlink, kind: str) -> None:
    tool(f"ip route add {kind} 10.66.0.0/16 proto {PROTOCOL}")
    (odd,) = set(routed.observe_routes()) - set(ROUTES)
    routed.remove_route(odd)
    assert set(routed.observe_routes()) == set(ROUTES)


def test_a_route_over_several_gateways_is_seen_and_removed(routed: Netlink) -> None:
    tool(f"ip route add 10.66.0.0/16 proto {PROTOCOL} nexthop via 10.1.1.5 nexthop via 10.1.1.6")
    (odd,) = set(routed.observe_routes()) - set(ROUTES)
    routed.remove_route(odd)
    assert set(routed.observe_routes()) == set(ROUTES)


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (Route("10.0.0.0/8", "gone"), "ENODEV: there is no interface gone"),
        (Route("10.0.0.0/8", "wan", source="9.9.9.9"), "EINVAL: Invalid prefsrc address"),
        (Route("10.0.0.0/8", "wan", "10.1.1.1"), "EINVAL: Nexthop has invalid gateway"),
    ],
)
def test_a_refused_route_says_why(routed: Netlink, route: Route, reason: str) -> None:
    with pytest.raises(NetlinkError) as refused:
        routed.add_route(route)
    assert refused.value.what.startswith("add route 10.0.0.0/8")
    assert refused.value.reason == reason


def test_the_way_to_an_address(routed: Netlink) -> None:
    assert routed.way("10.1.1.77") == ("wan", "", "10.1.1.1")
    assert routed.way("198.51.100.1")[:2] == ("wan", "10.1.1.254")


# --- rules

RULES = (
    Rule(100, 254, suppress=0),
    Rule(110, 7_000_123, mark=0x7B, mask=0xFFFF, owner="if-wan"),
    Rule(111, 7_000_123, mark=0, mask=0xFF),
    Rule(112, 200, source="10.0.0.0/8"),
    Rule(113, 200, source="10.1.1.1/32"),
    Rule(114, 200, source="fd00::/8", family=6),
    Rule(115, 254, suppress=0, family=6),
)


def test_rules_are_added_once_and_read_back_as_wished(netlink: Netlink) -> None:
    for rule in RULES * 2:
        netlink.add_rule(rule)
    assert not plan(State(rules=netlink.observe_rules(RULES)), State(rules=RULES))
    assert len(tool("ip rule").splitlines()) == 3 + 5


def test_removed_rules_are_gone(netlink: Netlink) -> None:
    for rule in RULES:
        netlink.add_rule(rule)
    for rule in RULES * 2:
        netlink.remove_rule(rule)
    assert netlink.observe_rules() == ()
    assert len(tool("ip rule").splitlines()) == 3


def test_a_strangers_equal_rule_is_neither_ours_nor_removed(netlink: Netlink) -> None:
    tool("ip rule add pref 112 from 10.0.0.0/8 table 200")
    netlink.add_rule(RULES[3])
    assert netlink.observe_rules() == (RULES[3],)
    netlink.remove_rule(RULES[3])
    assert netlink.observe_rules() == ()
    assert "10.0.0.0/8" in tool("ip rule")


# --- announcements


def test_an_announcement_is_two_arp_requests_for_oneself(up: Netlink) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as heard:
        heard.bind(("far", 0x0806))
        heard.settimeout(2)
        assert up.announce("wan", "198.51.100.7/26")
        for _ in range(2):
            frame = heard.recv(100)
            mac = bytes.fromhex(mac_of(up, "wan").replace(":", ""))
            address = socket.inet_aton("198.51.100.7")
            assert frame[:12] == b"\xff" * 6 + mac
            assert frame[20:42] == b"\0\1" + mac + address + bytes(6) + address


def test_an_announcement_on_a_link_that_is_down_is_not_waited_for(netlink: Netlink) -> None:
    assert not netlink.announce("wan", "198.51.100.7/26")


# --- the socket


def test_it_outlives_its_socket(up: Netlink) -> None:
    os.close(up._channel._socket.fileno())
    up.add_address(ADDRESSES[0])
    os.close(up._channel._socket.fileno())
    assert up.observe_addresses(["wan"]) == (ADDRESSES[0],)


def test_many_threads_take_turns(up: Netlink) -> None:
    with_errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for count in range(20):
                address = Address("wan", f"10.{number}.{count}.1/24")
                up.add_address(address)
                assert address in up.observe_addresses(["wan"])
        except Exception as error:
            with_errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not with_errors
    assert len(up.observe_addresses(["wan"])) == 80


def test_pyroute2_as_a_whole_still_imports_afterwards() -> None:
    code = "import appliance.netlink, pyroute2; pyroute2.IPRoute().close(); print(pyroute2.netlink.rtnl.rtmsg.rtmsg)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_agent_does_not_load_all_of_pyroute2() -> None:
    code = "import sys, appliance.netlink; print('asyncio' in sys.modules or 'pyroute2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_namespaces_are_apart() -> None:
    with fresh_namespace():
        other = Namespace()
        try:
            tool("ip link add here type veth peer name there")
            tool(f"ip link set there netns {other.path}")
            with other.entered():
                inside = Netlink()
                assert [link.name for link in inside.facts().values()] == ["there"]
                inside.close()
        finally:
            other.close()
