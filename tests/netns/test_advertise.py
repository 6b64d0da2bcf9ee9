"""IPv6 as guests get it: advertisements, the kernel's own addresses, DHCPv6 by dhclient, DNS; and the taking back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.calls import echo, tcp
from tests.netns.dual import DMZ6, LAN6, OFFICE6, SERVERS6, V6, WORLD6, DualStage, enter, office6, servers6
from tests.netns.stage import Json, config, interface, put, remove
from tests.netns.surfer import Heard, Surfer, answering

MACS = [f"02:00:00:00:0d:{n:02x}" for n in range(1, 9)]
DAY = 86_400
Make = Callable[..., Surfer]


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[DualStage]:
    with DualStage() as stage:
        yield stage


@pytest.fixture(name="surfer")
def surfer_fixture(stage: DualStage, tmp_path: Path) -> Iterator[Make]:
    """Makes guests on a bridge: lan, dmz."""
    made: list[Surfer] = []

    def make(number: int = 0, bridge: str = "lan") -> Surfer:
        name = f"{stage.bed.name}-s{number}"
        made.append(Surfer(name, bridge, MACS[number], stage.bed.ground, tmp_path))
        return made[-1].create()

    yield make
    for surfer in made:
        surfer.destroy()


def office(addresses: str = "slaac", dns: bool = True, dhcp: Json | None = None, **more: Any) -> Json:
    told = {"dhcp": dhcp} if dhcp else {}
    return office6(dns=dns, domain="a.internal", advertise={"addresses": addresses, **more}, **told)


def servers(addresses: str = "stateful", **more: Any) -> Json:
    return servers6(dns=True, domain="b.internal", advertise={"addresses": addresses, **more})


def host(number: int, address6: str | None, network: str = "servers", **more: Any) -> Json:
    at = f"10.1.{1 if network == 'office' else 2}.{100 + number}"
    own = {"mac": MACS[number], "address": at, "address6": address6, "name": f"vm-{number}"}
    return {"_": "hosts", "id": f"vm-{number}", "network": network, **own, **more}


def own(prefix: str, number: int) -> str:
    """The address that a kernel makes of a prefix and a MAC (RFC 4291, A)."""
    return f"{prefix.removesuffix('/64')}ff:fe00:d{number + 1:02x}"


# --- addresses of their own choice ------------------------------------------------------------------------------------


def test_a_guest_chooses_an_address_and_is_online(stage: DualStage, surfer: Make) -> None:
    stage.push(*V6, office(), servers6(), enter("in", "office", "tcp", 80))
    guest = surfer()
    address = own(OFFICE6, 0)
    wait_for(lambda: address in guest.addresses() and guest.has_way_out())
    assert DAY - 100 < guest.addresses()[address] <= DAY
    stage.meets("world", tcp(guest, WORLD6, 80), echo(guest, WORLD6), seen=address)
    stage.meets("router", echo(guest, LAN6))


def test_what_an_advertisement_says(stage: DualStage, surfer: Make) -> None:
    stage.push(*V6, office(), servers6())
    heard = surfer().heard()
    assert heard == Heard(
        1800, managed=False, other=True, mtu=1500,
        prefixes={OFFICE6: ("LA", DAY, DAY)}, servers={LAN6: DAY}, domains={"a.internal": DAY},
    )  # fmt: skip
    dns, search = ["2001:db8:53::1", "2001:db8:53::2"], ["x.example", "y.example"]
    stage.push(*V6, office(dns=True, search=search), servers6())
    assert set(surfer(1).heard(lambda h: "x.example" in h.domains).domains) == set(search)
    stage.push(*V6, office6(advertise={"dns": dns}), servers6())
    assert set(surfer(2).heard(lambda h: len(h.servers) == 2).servers) == set(dns)


def test_a_guest_without_rdnss_asks_for_the_rest(stage: DualStage, surfer: Make) -> None:
    """By stateless DHCPv6."""
    stage.push(*V6, office(), servers6())
    lease = surfer().lease(stateless=True)
    assert lease is not None
    assert (lease["new_dhcp6_name_servers"], lease["new_dhcp6_domain_search"]) == (LAN6, "a.internal.")
    assert "new_ip6_address" not in lease


def test_no_way_out(stage: DualStage, surfer: Make) -> None:
    """A network that is no guest's way out says so; addresses it tells all the same."""
    stage.push(*V6, office(default=False), servers6())
    guest = surfer()
    wait_for(lambda: own(OFFICE6, 0) in guest.addresses())
    assert guest.heard().router_s == 0
    assert not guest.has_way_out()
    stage.meets("router", echo(guest, LAN6))


def test_nothing_is_told_where_it_is_off(stage: DualStage, surfer: Make) -> None:
    stage.push(*V6, office("off"), servers("slaac"))
    guest, other = surfer(), surfer(1, "dmz")
    wait_for(lambda: own(SERVERS6, 1) in other.addresses())
    assert other.has_way_out()
    guest.ask_routers()
    other.heard()
    assert not guest.addresses()
    assert not guest.has_way_out()


# --- addresses of the document ----------------------------------------------------------------------------------------


def test_a_known_host_gets_its_address_and_a_stranger_nothing(stage: DualStage, surfer: Make) -> None:
    stage.push(*V6, office(), servers(), host(0, "2001:db8:2::a0"))
    guest = surfer(0, "dmz")
    heard = guest.heard()
    assert (heard.managed, heard.prefixes) == (True, {SERVERS6: ("L", DAY, DAY)})
    lease = guest.lease()
    assert lease is not None
    assert lease["new_ip6_address"] == "2001:db8:2::a0"
    assert (lease["new_dhcp6_name_servers"], lease["new_dhcp6_domain_search"]) == (DMZ6, "b.internal.")
    wait_for(guest.has_way_out)
    assert set(guest.addresses()) == {"2001:db8:2::a0"}
    stage.meets("world", tcp(guest, WORLD6, 80), seen="2001:db8:2::a0")
    assert surfer(1, "dmz").lease(seconds=4.0) is None


def test_an_address_is_whose_the_document_says_at_once(stage: DualStage, surfer: Make) -> None:
    """A host that is installed anew (another DUID) gets its own again; one that is given it by PATCH, by his first
    question; and who had it gets another."""
    stage.push(*V6, office(), servers(), host(0, "2001:db8:2::a0"), host(1, "2001:db8:2::a1"))
    one, two = surfer(0, "dmz"), surfer(1, "dmz")
    for _ in range(2):
        assert _address(one) == "2001:db8:2::a0"
    stage.bed.patch(put(host(0, "2001:db8:2::a2")), put(host(1, "2001:db8:2::a0")))
    assert _address(two) == "2001:db8:2::a0"
    assert _address(one) == "2001:db8:2::a2"
    stage.bed.patch(remove(host(0, None)))
    assert _address(one, seconds=3.0) is None


def test_a_second_interface_is_told_no_name_server(stage: DualStage, surfer: Make) -> None:
    stage.push(*V6, office(), servers(), host(0, "2001:db8:2::a0", default=False, lease=7200))
    lease = surfer(0, "dmz").lease()
    assert lease is not None
    assert lease["new_ip6_address"] == "2001:db8:2::a0"
    assert int(lease["new_max_life"]) == 7200
    assert not {"new_dhcp6_name_servers", "new_dhcp6_domain_search"} & lease.keys()


def test_two_networks_on_one_link(stage: DualStage, surfer: Make) -> None:
    """One where guests choose, one where the document says; each with its own name server."""
    more = interface("dmz", "guest", "10.1.2.1/24", f"{DMZ6}/64", "10.1.7.1/24", "2001:db8:7::1/80")
    small = {**servers(), "id": "small", "cidr": "10.1.7.0/24", "cidr6": "2001:db8:7::/80", "source_nat": None}
    stage.push(*V6, office(), servers("slaac"), small, more, host(0, "2001:db8:7::a0", "small", address="10.1.7.9"))
    guest = surfer(0, "dmz")
    heard = guest.heard()
    assert heard.prefixes == {SERVERS6: ("LA", DAY, DAY), "2001:db8:7::/80": ("L", DAY, DAY)}
    assert set(heard.servers) == {DMZ6, "2001:db8:7::1"}
    assert _address(guest) == "2001:db8:7::a0"


def _address(surfer: Surfer, seconds: float = 8.0) -> str | None:
    lease = surfer.lease(seconds=seconds)
    return lease["new_ip6_address"] if lease else None


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_by_and_of_ipv6(stage: DualStage, surfer: Make) -> None:
    """Forward and back, by either address of the router; what it does not know it asks of a server by IPv6."""
    network = {**office(), "upstream": [WORLD6]}
    stage.push(*V6, network, servers6(), host(3, "2001:db8:1::a3", "office"))
    guest = surfer()
    wait_for(lambda: own(OFFICE6, 0) in guest.addresses())
    assert guest.answers(LAN6, "vm-3.a.internal", "AAAA") == ["2001:db8:1::a3"]
    assert guest.answers(LAN6, "vm-3", "A") == ["10.1.1.103"]
    assert guest.answers(LAN6, "2001:db8:1::a3", "PTR") == ["vm-3.a.internal."]
    assert guest.answers(LAN6, "10.1.1.103", "PTR") == ["vm-3.a.internal."]
    assert guest.answers(LAN6, "2001:db8:1::a4", "PTR") == ["NXDOMAIN"]
    stage.bed.patch(put(host(4, "2001:db8:1::a4", "office")))
    assert guest.answers(LAN6, "2001:db8:1::a4", "PTR") == ["vm-4.a.internal."]
    with answering(stage.world, WORLD6, "2001:db8::80") as asked:
        assert guest.answers(LAN6, "www.example.", "AAAA") == ["2001:db8::80"]
    assert asked == ["www.example."]


# --- the taking back --------------------------------------------------------------------------------------------------


def test_what_is_off_is_taken_back(stage: DualStage, surfer: Make) -> None:
    """At once: the router is no way out any more, no name server, and the address is for no new flow."""
    stage.push(*V6, office(), servers6())
    guest = surfer()
    address = own(OFFICE6, 0)
    wait_for(lambda: address in guest.addresses() and guest.has_way_out())
    guest.forget()
    stage.push(*V6, office("off"), servers6())
    assert guest.hears(lambda h: LAN6 in h.servers).servers == {LAN6: 0}
    assert guest.hears(lambda h: not h.prefixes and not h.servers and not h.domains).router_s == 0
    wait_for(lambda: not guest.has_way_out() and guest.addresses().get(address) == 0)
    stage.push(*V6, office(), servers6())
    wait_for(lambda: guest.has_way_out() and guest.addresses()[address] > DAY - 100)


def test_a_prefix_for_another(stage: DualStage, surfer: Make) -> None:
    """Guests take new addresses, leave the old ones for what goes on, and never lose their way out."""
    stage.push(*V6, office(), servers6())
    guest = surfer()
    wait_for(lambda: own(OFFICE6, 0) in guest.addresses() and guest.has_way_out())
    new = "2001:db8:11::/64"
    guest.forget()
    stage.push(
        *V6, {**office(), "cidr6": new}, servers6(), interface("lan", "guest", "10.1.1.1/24", "2001:db8:11::1/64")
    )
    assert guest.hears(lambda h: OFFICE6 in h.prefixes and h.prefixes[OFFICE6][1] == 0).router_s == 1800
    wait_for(lambda: guest.addresses().get(own(OFFICE6, 0)) == 0 and guest.addresses().get(own(new, 0), 0) > 0)
    assert guest.has_way_out()


def test_from_choice_to_dhcp(stage: DualStage, surfer: Make) -> None:
    """What was chosen is for no new flow; the prefix stays on the link."""
    stage.push(*V6, office(), servers6())
    guest = surfer()
    wait_for(lambda: own(OFFICE6, 0) in guest.addresses())
    stage.push(*V6, office("stateful"), servers6(), host(0, "2001:db8:1::a0", "office"))
    wait_for(lambda: guest.addresses().get(own(OFFICE6, 0)) == 0)
    heard = guest.heard(lambda h: h.managed and h.prefixes)
    assert heard.prefixes == {OFFICE6: ("L", DAY, DAY)}
    assert guest.has_way_out()
    assert _address(guest) == "2001:db8:1::a0"


def test_an_undone_push_is_taken_back_too(stage: DualStage, surfer: Make) -> None:
    """What guests heard of a generation that was not kept is no more."""
    stage.push(*V6, office("off"), servers6())
    guest = surfer()
    document = stage.bed.document(config(*V6, servers6(), office()), confirm={"seconds": 5})
    answer = stage.bed.appliance.put(json.dumps(document).encode())
    assert answer.status == 202, answer.body
    wait_for(lambda: own(OFFICE6, 0) in guest.addresses() and guest.has_way_out())
    wait_for(lambda: not guest.has_way_out() and guest.addresses()[own(OFFICE6, 0)] == 0)
