"""One failing document per check: where it is told, and that it names the other object or the remedy."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.state import Facts, Touched
from router.checks import problems, revised
from router.claims import clash_problems
from router.config import Config, Forward
from tests.router.samples import (
    COLLECTIONS,
    INTERFACES,
    NETWORKS,
    configs,
    facts_of,
    forward,
    host,
    made,
    ports,
    rule,
)


def interfaces(ident: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**i, **changes} if i["id"] == ident else i for i in INTERFACES]


def networks(ident: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**n, **changes} if n["id"] == ident else n for n in NETWORKS]


def dual(inside: str = "2001:db8:1::1/64", **uplink: Any) -> list[dict[str, Any]]:
    """The interfaces, of which isp-a and web have IPv6."""
    more = {"isp-a": "2001:db8::2/64", "web": inside}
    found = [{**i, "addresses": [*i["addresses"], more[i["id"]]]} if i["id"] in more else i for i in INTERFACES]
    return [{**i, **uplink} if i["id"] == "isp-a" else i for i in found]


def prefixed(**changes: Any) -> list[dict[str, Any]]:
    return networks("web", cidr6="2001:db8:1::/64", **changes)


def another(**interface: Any) -> list[dict[str, Any]]:
    return [*INTERFACES, {"id": "new", "mac": "02:00:00:00:00:99", "use": "guest", **interface}]


def record(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": "r", "name": "www.test", "type": "A", "value": "192.0.2.1", **changes}]


def static(ident: str = "nat-1", **changes: Any) -> dict[str, Any]:
    return {"id": ident, "address": "203.0.113.11", "target": "10.1.1.11", **changes}


def way(**changes: Any) -> dict[str, Any]:
    return {"id": "way", "destination": "172.20.0.0/16", "via": "172.16.0.1", **changes}


def out(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": "out-1", "network": "web", "protocol": "tcp", **changes}]


def acls(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": "acl-1", "ingress": [{"id": "i", "action": "allow", "protocol": "tcp", **changes}]}]


def optional(*codes: int, words: str = "1") -> list[dict[str, Any]]:
    return [{"code": code, "values": [words]} for code in codes]


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("option with a field of its own", {"networks": networks("web", dhcp={"options": optional(6)})},
     "networks[web].dhcp.options", "option 6 has a field of its own: dns"),
    ("option of the protocol", {"hosts": [host(options=optional(54))]},
     "hosts[vm-1].options", "option 54 is the protocol's own"),
    ("option twice", {"hosts": [host(options=optional(23, 23))]},
     "hosts[vm-1].options", "option 23 stands twice"),
    ("option too long", {"hosts": [host(options=[{"code": 17, "values": ["x" * 128, "y" * 128]}])]},
     "hosts[vm-1].options", "option 17 is longer than 255 bytes"),
    ("boot server of IPv6", {"networks": networks("web", dhcp={"boot": {"file": "a", "server": "2001:db8::1"}})},
     "networks[web].dhcp.boot.server", "2001:db8::1 is IPv6, and this takes IPv4"),
    ("same id", {"hosts": [host(), host(address="10.1.1.11", mac="02:01:00:00:00:02", name="b")]},
     "hosts[vm-1].id", "own"),
    ("no control", {"interfaces": INTERFACES[1:]}, "interfaces", "none"),
    ("two controls", {"interfaces": another(use="control", addresses=["10.9.0.1/24"])}, "interfaces", "ctl, new"),
    ("acl item twice", {"acls": [{**acls()[0], "egress": acls()[0]["ingress"] * 2}]},
     "acls[acl-1].egress[i].id", "own"),
    ("acl item with ports of icmp", {"acls": acls(protocol="icmp", ports=ports(80))},
     "acls[acl-1].ingress[i].ports", "tcp"),
    ("no such acl", {"networks": networks("web", acl="acl-2"), "acls": acls()}, "networks[web].acl", "acl-1"),
    ("acl and egress", {"networks": networks("db.1", acl="acl-1"), "acls": acls()},
     "networks[db.1].egress.default", "egress_default"),
    ("acl and exception", {"networks": networks("web", acl="acl-1"), "acls": acls(), "egress": out()},
     "egress[out-1].network", "egress list"),
    ("acl of a guest interface", {"interfaces": interfaces("web", acl="acl-1"), "acls": acls()},
     "interfaces[web].acl", "private"),
    ("no such acl of a gateway", {"interfaces": interfaces("lan", acl="x")}, "interfaces[lan].acl", "none"),
    ("source NAT of a guest interface", {"interfaces": interfaces("web", source_nat=True)},
     "interfaces[web].source_nat", "private"),
    ("source NAT to nothing", {"interfaces": interfaces("lan", source_nat=True, addresses=[])},
     "interfaces[lan].source_nat", "add one"),
    ("same mac", {"interfaces": another(mac="02:00:00:00:00:01")}, "interfaces[new].mac", "ctl"),
    ("link's address", {"interfaces": another(addresses=["fe80::1/64"])}, "interfaces[new].addresses", "link alone"),
    ("any router's address", {"interfaces": another(addresses=["2001:db8::/64"])}, "interfaces[new].addresses", "4291"),
    ("v6 group", {"interfaces": another(addresses=["ff05::1/64"])}, "interfaces[new].addresses", "unicast"),
    ("v6 gateway without an address", {"interfaces": interfaces("isp-a", gateway6="2001:db8::1")},
     "interfaces[isp-a].gateway6", "add one"),
    ("v6 gateway as gateway", {"interfaces": interfaces("isp-a", gateway="2001:db8::1")}, "interfaces[isp-a].gateway",
     "gateway6"),
    ("v4 gateway as gateway6", {"interfaces": interfaces("isp-a", gateway6="203.0.113.1")},
     "interfaces[isp-a].gateway6", "IPv4"),
    ("v6 gateway of a guest", {"interfaces": interfaces("web", gateway6="2001:db8::1")}, "interfaces[web].gateway6",
     "static route"),
    ("v6 gateway afar", {"interfaces": dual(gateway6="2001:db8:99::1")}, "interfaces[isp-a].gateway6",
     "2001:db8::/64"),
    ("v6 overlap", {"interfaces": [*dual(), {**another(addresses=["2001:db8:1::9/125"])[-1]}]},
     "interfaces[new].addresses", "web"),
    ("v6 address twice", {"interfaces": [*dual(), another(
        use="public", addresses=["192.0.2.9/24", "2001:db8:1::1/128"], gateway="192.0.2.1")[-1]]},
     "interfaces[new].addresses", "web"),
    ("broadcast as address", {"interfaces": another(addresses=["10.9.0.255/24"])}, "interfaces[new].addresses",
     "broadcast"),
    ("multicast as address", {"interfaces": another(addresses=["224.0.0.5/24"])}, "interfaces[new].addresses",
     "unicast"),
    ("address twice", {"interfaces": another(use="public", addresses=["203.0.113.10/24"], gateway="203.0.113.1")},
     "interfaces[new].addresses", "isp-a"),
    ("no address", {"interfaces": interfaces("isp.b", addresses=[])}, "interfaces[isp.b].addresses", "add one"),
    ("no gateway", {"interfaces": interfaces("isp-a", gateway=None)}, "interfaces[isp-a].gateway", "needs"),
    ("gateway afar", {"interfaces": interfaces("isp-a", gateway="192.0.2.1")}, "interfaces[isp-a].gateway",
     "203.0.113.0/24"),
    ("gateway is own", {"interfaces": interfaces("isp-a", gateway="203.0.113.11")}, "interfaces[isp-a].gateway",
     "own address"),
    ("gateway of a guest", {"interfaces": interfaces("web", gateway="10.1.1.9")}, "interfaces[web].gateway",
     "static route"),
    ("overlap", {"interfaces": another(addresses=["10.1.1.129/25"])}, "interfaces[new].addresses", "web"),
    ("overlap with control", {"interfaces": another(use="private", addresses=["169.254.9.1/24"])},
     "interfaces[new].addresses", "ctl"),
    ("unknown interface", {"networks": networks("web", interface="nope")}, "networks[web].interface", "db"),
    ("wrong use", {"networks": networks("web", interface="lan")}, "networks[web].interface", "private"),
    ("cidr of none", {"networks": networks("web", cidr="10.1.1.0/25")}, "networks[web].cidr", "10.1.1.0/24"),
    ("same cidr", {"networks": [*NETWORKS, {**NETWORKS[0], "id": "again"}]}, "networks[again].cidr", "web"),
    ("source_nat not public", {"networks": networks("web", source_nat="10.1.1.1")}, "networks[web].source_nat",
     "203.0.113.10"),
    ("half a range", {"networks": networks("web", dhcp={"first": "10.1.1.100"})}, "networks[web].dhcp", "both"),
    ("range outside", {"networks": networks("web", dhcp={"first": "10.1.1.100", "last": "10.1.2.10"})},
     "networks[web].dhcp.last", "inside"),
    ("range upside down", {"networks": networks("web", dhcp={"first": "10.1.1.100", "last": "10.1.1.9"})},
     "networks[web].dhcp", "swap"),
    ("v6 server", {"networks": networks("web", dhcp={"ntp": ["2001:db8::1"]})}, "networks[web].dhcp.ntp", "remove"),
    ("v6 as cidr", {"networks": networks("web", cidr="2001:db8:1::/64")}, "networks[web].cidr", "cidr6"),
    ("v4 as cidr6", {"networks": networks("web", cidr6="10.1.1.0/24")}, "networks[web].cidr6", "IPv4"),
    ("cidr6 of none", {"networks": networks("web", cidr6="2001:db8:1::/64")}, "networks[web].cidr6", "none"),
    ("slaac in a /80", {"interfaces": dual(inside="2001:db8:1::1/80"),
                        "networks": networks("web", cidr6="2001:db8:1::/80")}, "networks[web].cidr6", "stateful"),
    ("stateful in a /48", {"interfaces": dual(inside="2001:db8:1::1/48"),
                           "networks": networks("web", cidr6="2001:db8:1::/48",
                                                advertise={"addresses": "stateful"})}, "networks[web].cidr6", "/64"),
    ("nothing to advertise", {"networks": networks("web", advertise={"addresses": "off"})}, "networks[web].advertise",
     "cidr6"),
    ("v4 server advertised", {"interfaces": dual(), "networks": prefixed(advertise={"dns": ["192.0.2.1"]})},
     "networks[web].advertise.dns", "IPv6"),
    ("routed and translated", {"networks": networks("web", routed=True)}, "networks[web].source_nat", "routed"),
    ("v6 source_nat", {"networks": networks("web", source_nat="2001:db8::1")}, "networks[web].source_nat", "ingress"),
    ("forward of no public", {"forwards": [forward(address="192.0.2.1")]}, "forwards[fwd-1].address", "203.0.113.10"),
    ("forward to nowhere", {"forwards": [forward(target="192.0.2.1")]}, "forwards[fwd-1].target", "10.1.1.0/24"),
    ("forward to the router", {"forwards": [forward(target="10.1.1.1")]}, "forwards[fwd-1].target", "own"),
    ("forward to broadcast", {"forwards": [forward(target="10.1.1.255")]}, "forwards[fwd-1].target", "broadcast"),
    ("v6 target", {"forwards": [forward(target="2001:db8::1")]}, "forwards[fwd-1].target", "ingress"),
    ("forward of v6", {"interfaces": dual(), "forwards": [forward(address="2001:db8::2")]}, "forwards[fwd-1].address",
     "ingress"),
    ("static NAT of v6", {"interfaces": dual(), "static_nats": [static(address="2001:db8::2")]},
     "static_nats[nat-1].address", "ingress"),
    ("v6 source", {"forwards": [forward(sources=["2001:db8::/32", "192.0.2.0/24"])]}, "forwards[fwd-1].sources",
     "IPv4"),
    ("range to a port", {"forwards": [forward(ports=ports(80, 90))]}, "forwards[fwd-1].target_ports", "as many"),
    ("same port", {"forwards": [forward(), forward("fwd-2")]}, "forwards[fwd-2].ports", "fwd-1"),
    ("port in range", {"forwards": [forward(), forward("a", ports=ports(2000, 3000), target_ports=None)]},
     "forwards[fwd-1].ports", "a"),
    ("overlapping sources", {"forwards": [forward(sources=["192.0.2.0/24"]),
                                          forward("fwd-2", sources=["10.0.0.0/8", "192.0.2.7/32"])]},
     "forwards[fwd-2].sources", "fwd-1"),
    ("forward of a static NAT", {"forwards": [forward(address="203.0.113.11")], "static_nats": [static()]},
     "forwards[fwd-1].address", "nat-1"),
    ("static NAT of no public", {"static_nats": [static(address="192.0.2.1")]}, "static_nats[nat-1].address", "203"),
    ("static NAT to nowhere", {"static_nats": [static(target="192.0.2.1")]}, "static_nats[nat-1].target", "db.1"),
    ("static NAT twice", {"static_nats": [static(), static("nat-2", target="10.1.1.12")]},
     "static_nats[nat-2].address", "nat-1"),
    ("one target twice", {"static_nats": [static(), static("nat-2", address="203.0.113.10")]},
     "static_nats[nat-2].target", "nat-1"),
    ("firewall of no public", {"firewall": [rule(address="192.0.2.1")]}, "firewall[fw-1].address", "203.0.113.10"),
    ("firewall from the other family", {"firewall": [rule(sources=["2001:db8::/32"])]}, "firewall[fw-1].sources",
     "IPv4"),
    ("icmpv6 of v4", {"firewall": [rule(protocol="icmpv6", ports=None)]}, "firewall[fw-1].protocol", "speaks icmp,"),
    ("icmp of v6", {"interfaces": dual(), "firewall": [rule(address="2001:db8::2", protocol="icmp", ports=None)]},
     "firewall[fw-1].protocol", "speaks icmpv6,"),
    ("ports of icmp", {"firewall": [rule(protocol="icmp")]}, "firewall[fw-1].ports", "remove"),
    ("ports of 6", {"firewall": [rule(protocol=6)]}, "firewall[fw-1].ports", "write tcp"),
    ("icmp type of tcp", {"firewall": [rule(icmp_type=8)]}, "firewall[fw-1].icmp_type", "icmp"),
    ("code without type", {"firewall": [rule(protocol="icmp", ports=None, icmp_code=0)]}, "firewall[fw-1].icmp_code",
     "type"),
    ("egress of no network", {"egress": out(network="nope")}, "egress[out-1].network", "db.1"),
    ("egress ports of any", {"egress": out(protocol="any", ports=ports(80))}, "egress[out-1].ports", "remove"),
    ("ingress of no network", {"ingress": out(network="nope")}, "ingress[out-1].network", "db.1"),
    ("ingress to the translated", {"ingress": out()}, "ingress[out-1].network", "cidr6"),
    ("ingress ports of icmpv6", {"networks": networks("db.1", routed=True),
                                 "ingress": out(network="db.1", protocol="icmpv6", ports=ports(80))},
     "ingress[out-1].ports", "remove"),
    ("ingress of a tier", {"networks": networks("web", routed=True, source_nat=None, acl="acl-1"), "acls": acls(),
                           "ingress": out()}, "ingress[out-1].network", "ingress list"),
    ("route by the router", {"routes": [way(via="172.16.0.2")]}, "routes[way].via", "lan"),
    ("route by nobody", {"routes": [way(via="192.0.2.1")]}, "routes[way].via", "neighbour"),
    ("route twice", {"routes": [way(), way(id="two", via="172.16.0.9")]}, "routes[two].destination", "way"),
    ("route to a neighbour", {"routes": [way(destination="10.1.1.0/24")]}, "routes[way].destination", "web"),
    ("second default", {"routes": [way(destination="0.0.0.0/0")]}, "routes[way].destination", "isp-a"),
    ("v6 route", {"routes": [way(destination="2001:db8::/32")]}, "routes[way].via", "family"),
    ("second v6 default", {"interfaces": dual(), "routes": [way(destination="::/0", via="2001:db8:1::9")]},
     "routes[way].destination", "gateway6"),
    ("host of no network", {"hosts": [host(network="nope")]}, "hosts[vm-1].network", "web"),
    ("host elsewhere", {"hosts": [host(address="10.1.2.9")]}, "hosts[vm-1].address", "10.1.1.0/24"),
    ("host is router", {"hosts": [host(address="10.1.1.1")]}, "hosts[vm-1].address", "own"),
    ("v6 host", {"hosts": [host(address="2001:db8::1")]}, "hosts[vm-1].address", "address6"),
    ("address6 without a prefix", {"hosts": [host(address6="2001:db8:1::9")]}, "hosts[vm-1].address6", "cidr6"),
    ("address6 of v4", {"hosts": [host(address6="10.1.1.9")]}, "hosts[vm-1].address6", "IPv4"),
    ("address6 elsewhere", {"interfaces": dual(), "networks": prefixed(), "hosts": [host(address6="2001:db8:2::9")]},
     "hosts[vm-1].address6", "2001:db8:1::/64"),
    ("address6 is router's", {"interfaces": dual(), "networks": prefixed(), "hosts": [host(address6="2001:db8:1::1")]},
     "hosts[vm-1].address6", "own"),
    ("address6 is any router's", {"interfaces": dual(), "networks": prefixed(),
                                  "hosts": [host(address6="2001:db8:1::")]}, "hosts[vm-1].address6", "any router"),
    ("address6 taken", {"interfaces": dual(), "networks": prefixed(), "hosts": [
        host(address6="2001:db8:1::9"),
        host("vm-2", mac="02:01:00:00:00:02", name="b", address="10.1.1.9", address6="2001:db8:1::9")]},
     "hosts[vm-2].address6", "vm-1"),
    ("host's v6 dns", {"hosts": [host(dns=["2001:db8::1"])]}, "hosts[vm-1].dns", "IPv4"),
    ("address taken", {"hosts": [host(), host("vm-2", mac="02:01:00:00:00:02", name="b")]}, "hosts[vm-2].address",
     "vm-1"),
    ("mac taken", {"hosts": [host(), host("vm-2", address="10.1.1.9", name="b")]}, "hosts[vm-2].mac", "vm-1"),
    ("name taken", {"hosts": [host(), host("vm-2", address="10.1.1.9", mac="02:01:00:00:00:02", name="VM-1")]},
     "hosts[vm-2].name", "vm-1"),
    ("A of a name", {"records": record(value="www.test")}, "records[r].value", "IPv4 address"),
    ("AAAA of v4", {"records": record(type="AAAA")}, "records[r].value", "IPv6 address"),
    ("CNAME of text", {"records": record(type="CNAME", value="a b")}, "records[r].value", "name"),
    ("SRV without port", {"records": record(type="SRV", value="a.test")}, "records[r].port", "port"),
    ("priority of A", {"records": record(priority=5)}, "records[r].priority", "MX"),
    ("record of no network", {"records": record(network="nope")}, "records[r].network", "db.1"),
    ("CNAME beside A", {"records": record() + record(id="c", type="CNAME", value="b.test")}, "records[c].name", "r"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "says"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_is_told(changes: dict[str, Any], path: str, says: str) -> None:
    found = problems(made(**changes))
    assert [p.path for p in found] == [f"config.{path}"]
    assert says in found[0].message


SOUND: dict[str, dict[str, Any]] = {
    "the small document": {},
    "a port by disjoint sources": {
        "forwards": [forward(sources=["192.0.2.0/25"]), forward("b", sources=["192.0.2.128/25"])]
    },
    "a port with and without sources": {"forwards": [forward(sources=["0.0.0.0/0"]), forward("b")]},
    "a port by protocol": {"forwards": [forward(), forward("b", protocol="udp")]},
    "a port by address": {"forwards": [forward(), forward("b", address="203.0.113.11")]},
    "two public interfaces on one subnet": {
        "interfaces": another(use="public", addresses=["203.0.113.77/24"], gateway="203.0.113.1")
    },
    "a public address of another subnet": {
        "interfaces": interfaces("isp-a", addresses=["203.0.113.10/24", "192.0.2.200/32"])
    },
    "a name in each network": {
        "hosts": [host(), host("b", network="db.1", address="10.1.2.9")]
    },
    "a default by the private gateway": {
        "interfaces": [i for i in INTERFACES if i["use"] != "public"],
        "networks": networks("web", source_nat=None),
        "routes": [way(destination="0.0.0.0/0")],
    },
    "a guest interface of IPv6 alone": {"interfaces": another(addresses=["2001:db8:9::1/64"])},
    "both families": {
        "interfaces": dual(gateway6="2001:db8::1"),
        "networks": prefixed(upstream=["2001:db8::53", "192.0.2.53"]),
        "firewall": [rule(address="2001:db8::2", sources=["2001:db8::/32"]),
                     rule(id="fw-2", address="2001:db8::2", protocol="icmpv6", ports=None, icmp_type=128)],
        "egress": out(destinations=["2001:db8::/32", "192.0.2.0/24"]),
        "ingress": out(sources=["2001:db8::/32"], ports=ports(80)),
        "routes": [way(destination="2001:db8:5::/48", via="2001:db8:1::9")],
        "hosts": [host(address6="2001:db8:1::9"), host("b", address="10.1.1.11", mac="02:01:00:00:00:02", name="b")],
    },
    "a routed network": {
        "networks": networks("web", routed=True, source_nat=None), "ingress": out(sources=["192.0.2.0/24"]),
    },
    "no advertisements in a /80": {
        "interfaces": dual(inside="2001:db8:1::1/80"),
        "networks": networks("web", cidr6="2001:db8:1::/80", advertise={"addresses": "off"}),
    },
    "records": {
        "records": record()
        + record(id="m", type="MX", value="mail.test", priority=10)
        + record(id="s", type="SRV", name="_sip._tcp.test", value="sip.test", port=5060)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_is_sound(name: str) -> None:
    assert problems(made(**SOUND[name])) == []


def test_all_problems_at_once() -> None:
    found = problems(
        made(forwards=[forward(target="192.0.2.1")], hosts=[host(network="nope")], routes=[way(via="192.0.2.1")])
    )
    assert len(found) == 3


def test_unplugged_interface() -> None:
    config = made()
    facts = facts_of(config)
    plugged = Facts("r", {mac: link for mac, link in facts.links.items() if not mac.endswith("06")})
    (found,) = problems(config, plugged)
    assert found.path == "config.interfaces[lan].mac"
    assert "02:00:00:00:00:05" in found.message


def test_control_interface_of_another_machine() -> None:
    config = made()
    facts = facts_of(config)
    (found,) = problems(config, Facts("r", facts.links, control="02:00:00:00:00:77"))
    assert found.path == "config.interfaces[ctl].mac"


@given(st.lists(COLLECTIONS["forwards"], max_size=8, unique_by=lambda f: f["id"]))
def test_clashes_are_those_of_every_pair(raw: list[dict[str, Any]]) -> None:
    """The sweep over ports finds something exactly where comparing each with each does."""
    forwards = made(forwards=raw).forwards
    assert bool(list(clash_problems(forwards))) == any(clash(a, b) for a, b in combinations(forwards, 2))


def clash(a: Forward, b: Forward) -> bool:
    if (a.address, a.protocol, bool(a.sources)) != (b.address, b.protocol, bool(b.sources)):
        return False
    apart = a.ports.last < b.ports.first or b.ports.last < a.ports.first
    sources = ([ip_network(c) for c in f.sources or ("0.0.0.0/0",)] for f in (a, b))
    return not apart and any(x.overlaps(y) for x, y in product(*sources))


# --- a change alone --------------------------------------------------------------------------------------------


@given(configs(), st.data())
def test_revised_finds_what_the_whole_finds(config: Config, data: st.DataObject) -> None:
    """After a change of a sound document: revised finds something exactly where problems does."""
    name = data.draw(st.sampled_from(["forwards", "firewall", "hosts"]))
    raw = data.draw(COLLECTIONS[name])
    new = getattr(made(**{name: [raw]}), name)[0]
    old = {o.id: o for o in getattr(config, name)}
    after = config.model_copy(update={name: tuple({**old, new.id: new}.values())})
    found = revised(after, (Touched(name, new.id, old.get(new.id), new),))
    assert found is not None
    assert bool(found) == bool(problems(after))
    assert all(f"[{new.id}]" in p.path for p in found)


def test_revised_leaves_the_rest_to_problems() -> None:
    assert revised(made(), (Touched("networks", "web", None, None),)) is None
