"""DHCP as guests see it: real dnsmasq, real clients (udhcpc, dhclient), leases that are the document's."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.config import Config
from tests.netns.segment import CONTROL, Guest, Segment, until

GUESTS = "02:00:00:00:00:03"
OTHERS = "02:00:00:00:00:04"
INFINITE = "4294967295"


def mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def host(number: int, address: str | None = None, **more: Any) -> dict[str, Any]:
    at = address or f"10.1.1.{number}"
    ident = f"vm-{number}"
    return {"id": ident, "network": "a", "mac": mac(number), "address": at, "name": ident, **more}


def network(ident: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": ident, "interface": "guest", "cidr": "10.1.1.0/24", "domain": "a.internal", **more}


def document(*hosts: dict[str, Any], networks: tuple[dict[str, Any], ...] = (), **more: Any) -> Config:
    interfaces = [
        {"id": "control", "mac": CONTROL, "use": "control", "addresses": ["169.254.3.4/16"]},
        {"id": "guest", "mac": GUESTS, "use": "guest", "addresses": ["10.1.1.1/24", "10.1.9.1/24"]},
        {"id": "other", "mac": OTHERS, "use": "guest", "addresses": ["10.1.2.1/24"]},
    ]
    raw = {"interfaces": interfaces, "networks": list(networks) or [network()], "hosts": list(hosts), **more}
    return Config.model_validate_json(json.dumps(raw))


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment("dhcp")
    try:
        made.link("eth2", GUESTS, "10.1.1.1/24", "10.1.9.1/24")
        made.link("eth3", OTHERS, "10.1.2.1/24")
        yield made
    finally:
        made.close()


def address(guest: Guest, *arguments: str, tries: int = 3) -> str | None:
    lease = guest.lease(*arguments, tries=tries)
    return lease["ip"] if lease else None


# --- who gets what ------------------------------------------------------------------------------------------


def test_a_known_host_gets_its_address_and_a_stranger_nothing(segment: Segment) -> None:
    segment.make(document(host(10)))
    lease = segment.guest("eth2", mac(10)).lease()
    assert lease is not None
    assert lease["ip"] == "10.1.1.10"
    assert lease["subnet"] == "255.255.255.0"
    assert lease["router"] == lease["dns"] == lease["serverid"] == "10.1.1.1"
    assert lease["domain"] == "a.internal"
    assert lease["hostname"] == "vm-10"
    assert lease["lease"] == INFINITE
    assert not lease.keys() & {"mtu", "ntpsrv", "search", "staticroutes"}
    assert segment.guest("eth2", mac(99)).lease(tries=2) is None


def test_options_of_the_network(segment: Segment) -> None:
    dhcp = {
        "lease": 3600,
        "routers": ["10.1.1.254"],
        "dns": ["10.1.1.1", "9.9.9.9"],
        "ntp": ["10.1.1.5", "10.1.1.6"],
        "search": ["x.example", "y.example"],
        "mtu": 1400,
        "routes": [{"destination": "192.168.7.0/24", "via": "10.1.1.9"}],
    }
    segment.make(document(host(10), networks=(network(dhcp=dhcp),)))
    lease = segment.guest("eth2", mac(10)).lease()
    assert lease is not None
    assert lease["lease"] == "3600"
    assert lease["router"] == "10.1.1.254"
    assert lease["dns"] == "10.1.1.1 9.9.9.9"
    assert lease["ntpsrv"] == "10.1.1.5 10.1.1.6"
    assert lease["search"] == "x.example y.example"
    assert lease["mtu"] == "1400"
    assert lease["staticroutes"] == "192.168.7.0/24 10.1.1.9 0.0.0.0/0 10.1.1.254"


@pytest.mark.parametrize("more", [{}, {"lease": 300}, {"name": "ignore"}, {"dns": ["9.9.9.9"]}])
def test_a_second_interface_is_no_way_out(segment: Segment, more: dict[str, Any]) -> None:
    dhcp = {"search": ["x.example"], "mtu": 1400, "routes": [{"destination": "192.168.7.0/24", "via": "10.1.1.9"}]}
    segment.make(document(host(10, default=False, **more), networks=(network(dhcp=dhcp),)))
    lease = segment.guest("eth2", mac(10)).lease()
    assert lease is not None
    assert lease["ip"] == "10.1.1.10"
    assert lease["mtu"] == "1400"
    assert lease["staticroutes"] == "192.168.7.0/24 10.1.1.9"
    assert lease.get("dns") == (more["dns"][0] if "dns" in more else None)
    assert not lease.keys() & {"router", "domain", "search"}


def test_options_that_the_document_has_no_words_for(segment: Segment) -> None:
    """A number, text and addresses; a host's own win over its network's; what a guest without a disk boots."""
    options = [
        {"code": 23, "values": ["77"]},
        {"code": 17, "values": ["/nfs/root"]},
        {"code": 44, "values": ["10.1.1.5"]},
    ]
    dhcp = {"options": options, "boot": {"file": "pxelinux.0", "server": "10.1.1.8"}}
    own = [{"code": 23, "values": ["99"]}]
    segment.make(document(host(10), host(11, options=own), networks=(network(dhcp=dhcp),)))
    asked = ("-O", "ipttl", "-O", "rootpath", "-O", "wins")
    first, second = (segment.guest("eth2", mac(n)).lease(*asked) for n in (10, 11))
    assert first is not None
    assert second is not None
    assert (first["ipttl"], first["rootpath"], first["wins"]) == ("77", "/nfs/root", "10.1.1.5")
    assert (first["boot_file"], first["siaddr"]) == ("pxelinux.0", "10.1.1.8")
    assert (second["ipttl"], second["rootpath"]) == ("99", "/nfs/root")
    assert second["router"] == "10.1.1.1"


def test_options_of_one_host(segment: Segment) -> None:
    hosts = (host(10, routers=["10.1.1.7"], dns=["9.9.9.9"], lease=300), host(11, routers=[], dns=[]), host(12))
    segment.make(document(*hosts))
    first, second, third = (segment.guest("eth2", mac(n)).lease() for n in (10, 11, 12))
    assert first is not None
    assert (first["router"], first["dns"], first["lease"]) == ("10.1.1.7", "9.9.9.9", "300")
    assert first["domain"] == "a.internal"
    assert second is not None
    assert not second.keys() & {"router", "dns"}
    assert third is not None
    assert (third["router"], third["dns"], third["lease"]) == ("10.1.1.1", "10.1.1.1", INFINITE)


@pytest.mark.parametrize("name", ["ignore", "infinite", "45m", "3600", "known", "a", "1w", "0"])
def test_names_that_dnsmasq_has_another_meaning_for(segment: Segment, name: str) -> None:
    segment.make(document(host(10, name=name)))
    lease = segment.guest("eth2", mac(10)).lease()
    assert lease is not None
    assert (lease["ip"], lease["hostname"], lease["lease"]) == ("10.1.1.10", name, INFINITE)


def test_two_networks_on_one_interface(segment: Segment) -> None:
    networks = (network(), network("b", cidr="10.1.9.0/24", domain="b.internal", dhcp={"lease": 600}))
    hosts = (host(10), host(11, "10.1.9.11", network="b"))
    assert segment.make(document(*hosts, networks=networks)) == ["start dhcp-guest", "start dns-a", "start dns-b"]
    first, second = (segment.guest("eth2", mac(n)).stay() for n in (10, 11))
    for guest, domain, router in zip(segment.guests, "ab", ("10.1.1.1", "10.1.9.1"), strict=True):
        assert guest.seen()["router"] == guest.seen()["dns"] == guest.seen()["serverid"] == router
        assert guest.seen()["domain"] == f"{domain}.internal"
    for client, guest in zip((first, second), segment.guests, strict=True):
        guest.renew(client)
    assert "DHCPNAK" not in segment.said("dhcp-guest")


def test_a_host_has_its_lease_on_its_own_interface_only(segment: Segment) -> None:
    networks = (network(), network("c", interface="other", cidr="10.1.2.0/24"))
    segment.make(document(host(10), host(11, "10.1.2.11", network="c"), networks=networks))
    assert address(segment.guest("eth3", mac(11))) == "10.1.2.11"
    assert address(segment.guest("eth2", mac(10))) == "10.1.1.10"
    assert address(segment.guest("eth3", mac(10)), tries=1) is None
    assert address(segment.guest("eth2", mac(11)), tries=1) is None


def test_two_machines_with_one_client_id_are_two(segment: Segment) -> None:
    """Clones of one image send one client identifier (RFC 4361 makes it from the machine's id)."""
    segment.make(document(host(10), host(11)))
    same = ("-x", "0x3d:ff00000001")
    found = [address(segment.guest("eth2", mac(n)), *same) for n in (10, 11)]
    assert found == ["10.1.1.10", "10.1.1.11"]


def test_a_name_that_a_client_claims_gives_it_nothing(segment: Segment) -> None:
    segment.make(document(host(10), host(11)))
    known = segment.guest("eth2", mac(10)).lease("-x", "hostname:vm-11")
    assert known is not None
    assert (known["ip"], known["hostname"]) == ("10.1.1.10", "vm-10")
    assert segment.guest("eth2", mac(99)).lease("-x", "hostname:vm-11", tries=1) is None


# --- leases are the document's ------------------------------------------------------------------------------


def test_a_lease_outlives_the_router(segment: Segment) -> None:
    segment.make(document(host(10, lease=600)))
    guest = segment.guest("eth2", mac(10))
    client = guest.stay()
    guest.renew(client)
    segment.restart("dhcp-guest")
    guest.renew(client)
    segment.rebuilt()
    segment.make(document(host(10, lease=600)))
    guest.renew(client)
    assert "DHCPDISCOVER" not in segment.said("dhcp-guest")
    assert "DHCPNAK" not in segment.said("dhcp-guest")


def test_init_reboot_at_a_rebuilt_router(segment: Segment, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "script").chmod(0o755)
    segment.make(document(host(10)))
    guest = segment.guest("eth2", mac(10))
    argv = ("-4", "-1", "-lf", f"{tmp_path}/leases", "-pf", f"{tmp_path}/pid", "-sf", f"{tmp_path}/script", "eth0")
    for _ in range(2):
        guest.exec("dhclient", *argv)
        guest.exec("dhclient", "-x", *argv, check=False)
        heard = segment.said("dhcp-guest")
        segment.rebuilt()
        segment.make(document(host(10)))
    assert "DHCPDISCOVER" not in heard
    assert "DHCPACK(eth2) 10.1.1.10" in heard


def test_another_address_is_taken_at_the_next_renewal(segment: Segment) -> None:
    segment.make(document(host(10)))
    guest = segment.guest("eth2", mac(10))
    client = guest.stay()
    assert segment.make(document(host(10, "10.1.1.20"))) == ["reload dhcp-guest", "reload dns-a"]
    client.send_signal(signal.SIGUSR1)
    until(lambda: guest.seen().get("ip") == "10.1.1.20", 10)
    assert "DHCPNAK" in segment.said("dhcp-guest")


def test_an_address_goes_to_another_host_at_once(segment: Segment) -> None:
    """CloudStack's #10436: "not using configured address ... because it is leased to ..."."""
    segment.make(document(host(10)))
    segment.guest("eth2", mac(10)).stay()
    segment.make(document(host(11, "10.1.1.10")))
    assert address(segment.guest("eth2", mac(11)), tries=1) == "10.1.1.10"
    segment.make(document(host(10), host(11)))
    assert address(segment.guests[1], tries=1) == "10.1.1.11"
    assert "not using configured address" not in segment.said("dhcp-guest")


def test_two_hosts_change_addresses(segment: Segment) -> None:
    segment.make(document(host(10), host(11)))
    first, second = (segment.guest("eth2", mac(n)) for n in (10, 11))
    assert (address(first), address(second)) == ("10.1.1.10", "10.1.1.11")
    segment.make(document(host(10, "10.1.1.11"), host(11, "10.1.1.10")))
    assert (address(first, tries=1), address(second, tries=1)) == ("10.1.1.11", "10.1.1.10")


def test_another_card_in_the_same_host(segment: Segment) -> None:
    segment.make(document(host(10)))
    guest = segment.guest("eth2", mac(10))
    assert address(guest) == "10.1.1.10"
    segment.make(document(host(10, mac=mac(50))))
    guest.set_mac(mac(50))
    assert address(guest, tries=1) == "10.1.1.10"
    guest.set_mac(mac(10))
    assert address(guest, tries=1) is None


def test_a_host_that_goes_is_a_stranger(segment: Segment) -> None:
    segment.make(document(host(10), host(11)))
    guest = segment.guest("eth2", mac(10))
    client = guest.stay()
    pids = segment.pids()
    assert segment.make(document(host(11))) == ["reload dhcp-guest", "reload dns-a"]
    client.send_signal(signal.SIGUSR1)
    time.sleep(1.0)
    assert guest.seen()["event"] == "bound"  # nobody renewed it
    assert guest.lease(tries=2) is None
    assert segment.said("dhcp-guest").count("DHCPACK") == 1
    assert segment.pids() == pids


def test_a_host_that_comes_is_known_without_a_restart(segment: Segment) -> None:
    segment.make(document(host(10)))
    guest, pids = segment.guest("eth2", mac(11)), segment.pids()
    assert guest.lease(tries=1) is None
    assert segment.make(document(host(10), host(11, routers=["10.1.1.7"]))) == ["reload dhcp-guest", "reload dns-a"]
    lease = guest.lease(tries=1)
    assert lease is not None
    assert (lease["ip"], lease["router"]) == ("10.1.1.11", "10.1.1.7")
    assert segment.pids() == pids


def test_another_range_restarts_its_own_interface_only(segment: Segment) -> None:
    other = network("c", interface="other", cidr="10.1.2.0/24", domain="c.internal")
    segment.make(document(host(10), networks=(network(), other)))
    steps = segment.make(document(host(10), networks=(network(dhcp={"lease": 300}), other)))
    assert steps == ["restart dhcp-guest"]
    steps = segment.make(document(host(10), networks=(network(dhcp={"lease": 300, "mtu": 1400}), other)))
    assert steps == ["reload dhcp-guest"]
    assert segment.make(document(host(10), networks=(other,))) == ["stop dhcp-guest", "stop dns-a"]


def test_a_server_that_is_killed_comes_back_knowing_all(segment: Segment) -> None:
    config = document(host(10), host(11))
    segment.make(config)
    guest = segment.guest("eth2", mac(10))
    client = guest.stay()
    segment.units["dhcp-guest"].kill()
    segment.make(document(host(10), host(12, "10.1.1.11")))
    segment.restart("dhcp-guest")
    guest.renew(client)
    assert address(segment.guest("eth2", mac(12)), tries=1) == "10.1.1.11"


def test_an_interface_that_is_plugged_again_is_served_again(segment: Segment) -> None:
    segment.make(document(host(10)))
    guest, pids = segment.guest("eth2", mac(10)), segment.pids()
    segment.unplug("eth2")
    segment.plug("eth2", GUESTS, "10.1.1.1/24")
    assert address(guest) == "10.1.1.10"
    assert guest.answers("10.1.1.1", "vm-10") == ["10.1.1.10"]
    assert segment.pids() == pids


def test_all_of_it_behind_the_packet_filter(segment: Segment) -> None:
    """A lease that is let go goes over loopback; a renewal is unicast: the filter must let both pass."""
    first = document(host(10), host(12))
    segment.guard(first)
    segment.make(first)
    guest = segment.guest("eth2", mac(10))
    client = guest.stay()
    guest.renew(client)
    segment.make(document(host(11, "10.1.1.10"), host(12)))
    assert address(segment.guest("eth2", mac(11)), tries=1) == "10.1.1.10"
    until(lambda: segment.said("dhcp-guest").count("DHCPRELEASE") == segment.said("dhcp-guest").count("DHCPACK"))


# --- strangers ----------------------------------------------------------------------------------------------

RANGE = {"first": "10.1.1.100", "last": "10.1.1.103", "lease": 600}


def test_strangers_have_a_range_and_their_leases_last(segment: Segment) -> None:
    config = document(host(10), networks=(network(dhcp=RANGE),))
    segment.make(config)
    strangers = [segment.guest("eth2", mac(n)) for n in (200, 201, 202)]
    found = [address(g, "-x", "hostname:vm-10") for g in strangers]
    assert len(set(found)) == 3
    assert set(found) <= {f"10.1.1.{n}" for n in range(100, 104)}
    assert address(segment.guest("eth2", mac(10)), tries=1) == "10.1.1.10"
    until(lambda: mac(10) not in leases(segment))
    assert all(f" {g.mac} {at} " in leases(segment) for g, at in zip(strangers, found, strict=True))
    segment.restart("dhcp-guest")
    assert [address(g) for g in strangers] == found
    assert segment.guests[0].answers("10.1.1.1", "vm-10") == ["10.1.1.10"]


def leases(segment: Segment) -> str:
    return (segment.directory / "state/dhcp/guest.leases").read_text()


def test_a_strangers_address_that_becomes_a_hosts(segment: Segment) -> None:
    segment.make(document(networks=(network(dhcp=RANGE),)))
    stranger = segment.guest("eth2", mac(200))
    at = address(stranger)
    assert at is not None
    segment.make(document(host(10, at), networks=(network(dhcp=RANGE),)))
    until(lambda: at not in leases(segment))
    assert address(segment.guest("eth2", mac(10)), tries=1) == at
    assert address(stranger) not in (at, None)


def test_a_stranger_that_becomes_known(segment: Segment) -> None:
    segment.make(document(networks=(network(dhcp=RANGE),)))
    guest = segment.guest("eth2", mac(10))
    guest.stay()
    segment.make(document(host(10), networks=(network(dhcp=RANGE),)))
    until(lambda: mac(10) not in leases(segment))
    assert address(guest, tries=1) == "10.1.1.10"


def test_strangers_on_one_network_of_two(segment: Segment) -> None:
    networks = (network(dhcp=RANGE), network("b", cidr="10.1.9.0/24"))
    segment.make(document(host(11, "10.1.9.11", network="b"), networks=networks))
    stranger = address(segment.guest("eth2", mac(200)))
    assert stranger is not None
    assert stranger.startswith("10.1.1.10")
    assert address(segment.guest("eth2", mac(11)), tries=1) == "10.1.9.11"
