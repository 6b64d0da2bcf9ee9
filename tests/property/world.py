"""Random documents of a small world, where things meet; and the smallest part of one that still shows a failure.

Three uplinks, three guest interfaces and a private one at most, a handful of addresses on each, CIDRs that overlap,
ports that touch. Documents are drawn with plain random numbers from a seed: hypothesis, which gives the seeds, would
draw the documents themselves as variations of a few small ones. `smallest` does its other work, by leaving out objects.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import Phase

from appliance.document import validate
from appliance.state import Facts, LinkFact
from appliance.values import bounds, contains, dotted, is_v6, subnet
from router.checks import problems
from router.config import Config
from tests.router.samples import without

LINKS = ("ctl", "isp-a", "isp.b", "isp_c", "web", "db", "dmz", "lan")
MACS = {ident: f"02:00:00:00:00:{n:02x}" for n, ident in enumerate(LINKS, 1)}
NAMES = {ident: f"eth{n}" for n, ident in enumerate(LINKS)}
FACTS = Facts("r-1", {MACS[i]: LinkFact(NAMES[i], MACS[i], n + 2, 1500, True) for n, i in enumerate(LINKS)})

UPLINKS = {
    "isp-a": (("203.0.113.10/24", "203.0.113.11/24", "203.0.113.12/24", "192.0.2.130/26"), "203.0.113.1"),
    "isp.b": (("198.51.100.10/25", "198.51.100.11/25", "203.0.113.200/30"), "198.51.100.1"),
    "isp_c": (("192.0.2.10/26", "192.0.2.11/26"), "192.0.2.1"),
}
INSIDE = {
    "web": ("10.1.1.1/24", "10.1.4.1/28"),
    "db": ("10.1.2.1/24", "10.1.5.129/25"),
    "dmz": ("10.1.3.1/25", "10.1.3.129/25"),
}
GUESTS = ("10.1.1.10", "10.1.1.11", "10.1.4.2", "10.1.2.10", "10.1.2.20", "10.1.5.130", "10.1.3.10", "10.1.3.200")
GUESTS6 = ("2001:db8:1::a", "2001:db8:1::b", "2001:db8:4::2", "2001:db8:2::10", "fd00:5::130", "2001:db8:3::10")
CIDRS = (
    "0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "198.51.100.0/24", "10.0.0.0/8",
    "10.1.1.0/24", "10.1.1.10/31", "10.1.1.11/32", "10.1.2.0/23", "172.16.0.0/12", "203.0.113.0/24", "128.0.0.0/1",
)  # fmt: skip
UPLINKS6 = {
    "isp-a": (("2001:db8::10/64", "2001:db8::11/64", "2001:db8:0:9::1/127"), "2001:db8::1"),
    "isp.b": (("2001:db8:b::10/64", "2001:db8::200/120"), "2001:db8:b::1"),
    "isp_c": (("2001:db8:c::10/64", "2001:db8:c::11/128"), "2001:db8:c::1"),
}
INSIDE6 = {
    "web": ("2001:db8:1::1/64", "2001:db8:4::1/80"),
    "db": ("2001:db8:2::1/64", "fd00:5::1/112"),
    "dmz": ("2001:db8:3::1/64",),
}
CIDRS6 = (
    "::/0", "2001:db8:1::/64", "2001:db8:1::a/127", "2001:db8:1::b/128", "2001:db8:2::/47", "2001:db8:77::/48",
    "2001:db8::/32", "2001:db8:77::7/128", "fd00::/8", "8000::/1",
)  # fmt: skip
MANY6 = [*(f"2001:db8:7{i}::/48" for i in range(0, 8, 2)), "2001:db8:1::8/125", "2001:db8:77::7/128"]
ROUTES6 = (
    ("2001:db8:900::/40", "fd00:16::9"), ("2001:db8:77::/48", "2001:db8::1"), ("2001:db8:2::8000/113", "fd00:16::9"),
    ("2001:db8:0:9::/64", "2001:db8:1::20"), ("8000::/1", "2001:db8:b::1"), ("2001:db8::11/128", "fd00:16::9"),
)  # fmt: skip
MANY = [*(f"192.0.{i}.0/24" for i in range(0, 12, 2)), "10.1.1.8/29", "10.1.2.10/32"]
LONG = [*MANY, *(f"198.51.{i}.0/25" for i in range(100, 120, 2))]
ROUTES = (
    ("10.9.0.0/16", "172.16.0.9"), ("198.18.0.0/15", "203.0.113.1"), ("10.1.2.128/25", "172.16.0.9"),
    ("203.0.113.128/25", "10.1.1.20"), ("0.0.0.0/1", "198.51.100.1"), ("10.8.0.0/16", "10.1.2.77"),
    ("8.8.8.8/32", "192.0.2.1"), ("203.0.113.11/32", "172.16.0.9"), ("10.1.1.11/32", "203.0.113.1"),
)  # fmt: skip
SPANS = (
    (80, 80), (80, 82), (81, 81), (82, 90), (22, 22), (53, 53), (1000, 1063), (1000, 1070), (3000, 9000), (1, 65535),
    (65535, 65535),
)  # fmt: skip

# A smaller seed is no smaller document: hypothesis need not look for one.
BY_SEED = (Phase.explicit, Phase.reuse, Phase.generate)

Raw = dict[str, Any]


def document(seed: int, most: int = 6) -> Config:
    """The sound document of this seed, with at most about `most` objects in each collection."""
    return sound(_World(random.Random(seed), most).document())


def sound(raw: Raw) -> Config:
    """The document without the objects that have problems."""
    while True:
        config = validate(Config, raw)
        found = problems(config)
        if not found:
            return config
        raw = without(raw, found)


def part(config: Config, seed: int) -> Config:
    """The document without some of its objects."""
    luck = random.Random(seed)
    raw: Raw = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("forwards", "static_nats", "firewall", "egress", "ingress", "routes"):
        raw[name] = [item for item in raw.get(name, ()) if luck.random() < 0.6]
    return validate(Config, raw)


def smallest(config: Config, fails: Callable[[Config], bool]) -> Config:
    """A document that fails although nothing can be left out of it any more."""
    raw: Raw = config.model_dump(mode="json", exclude_defaults=True)
    shrunk = True
    while shrunk:
        shrunk = False
        for less in _smaller(raw):
            made = validate(Config, less)
            if not problems(made) and fails(made):
                raw, config, shrunk = less, made, True
                break
    return config


def _smaller(raw: Raw) -> list[Raw]:
    """The document without one object, or with one list of an object cut."""
    found = []
    for name, objects in raw.items():
        for i, item in enumerate(objects):
            found.append({**raw, name: objects[:i] + objects[i + 1 :]})
            for key, value in item.items():
                if isinstance(value, list) and value:
                    cut = {**item, key: value[:-1]}
                    found.append({**raw, name: [*objects[:i], cut, *objects[i + 1 :]]})
    return found


class _World:
    """Draws one document."""

    def __init__(self, luck: random.Random, most: int) -> None:
        self.luck, self.most = luck, most
        self.v6 = luck.random() < 0.6

    def document(self) -> Raw:
        interfaces = self.interfaces()
        publics = [c.partition("/")[0] for i in interfaces if i["use"] == "public" for c in i["addresses"]]
        self.publics = [a for a in publics if not is_v6(a)]
        networks = _named("net", [n for i in interfaces if i["use"] == "guest" for n in self.networks(i)])
        self.guests = [g for g in GUESTS if any(contains(n["cidr"], g) for n in networks)]
        forwards: list[Raw] = []
        nats: list[Raw] = []
        rules: list[Raw] = []
        exceptions: list[Raw] = []
        if self.publics and self.guests:
            forwards = [self.forward() for _ in range(self.some())]
            nats = [self.static_nat() for _ in range(min(3, self.some()))]
            rules = [self.opening(what) for what in (*forwards, *nats) if self.luck.random() < 0.75]
        if self.publics:
            rules += [self.open_by(self.luck.choice(publics)) for _ in range(self.some() // 2)]
        entries: list[Raw] = []
        if networks:
            exceptions = [self.exception(self.luck.choice(networks)) for _ in range(self.some())]
            entries = [self.exception(self.luck.choice(networks)) for _ in range(self.some() if self.v6 else 1)]
        acls = _named("acl", [self.acl() for _ in range(self.luck.choice((0, 0, 1, 2, 3)))])
        if acls:
            self.guard(acls, interfaces, networks)
        known = ROUTES + ROUTES6 if self.v6 else ROUTES
        routes = [{"destination": d, "via": v} for d, v in self.luck.sample(known, self.luck.randint(0, 3))]
        return {
            "interfaces": interfaces,
            "networks": networks,
            "forwards": _named("fwd", forwards),
            "static_nats": _named("nat", nats),
            "firewall": _named("fw", rules),
            "egress": _named("out", exceptions),
            "ingress": _named("in", entries),
            "acls": acls,
            "routes": _named("way", routes),
        }

    def some(self) -> int:
        return self.luck.randint(0, self.most)

    def interfaces(self) -> list[Raw]:
        """The control interface; uplinks, most often two, in any order; guests; perhaps a private one."""
        found = [_interface("ctl", "control", ["169.254.3.4/16"])]
        for ident in self.luck.sample(list(UPLINKS), self.luck.choice((0, 1, 1, 2, 2, 2, 3, 3))):
            own, gateway = UPLINKS[ident]
            more = self.luck.sample(own[1:], self.luck.randint(0, len(own) - 1))
            found.append({**_interface(ident, "public", [own[0], *more]), "gateway": gateway})
        for ident in self.luck.sample(list(INSIDE), self.luck.randint(1, 3)):
            found.append(_interface(ident, "guest", list(INSIDE[ident][: self.luck.randint(1, 2)])))
        if self.luck.random() < 0.5:
            gateway = _interface("lan", "private", ["172.16.0.2/24"])
            found.append({**gateway, "source_nat": self.luck.random() < 0.3})
        for interface in found if self.v6 else ():
            self.give_v6(interface)
        return found

    def give_v6(self, interface: Raw) -> None:
        """Addresses of IPv6 for most interfaces, and for most uplinks a gateway."""
        ident, luck = interface["id"], self.luck
        if ident in UPLINKS6 and luck.random() < 0.8:
            own, gateway = UPLINKS6[ident]
            interface["addresses"] += [own[0], *luck.sample(own[1:], luck.randint(0, len(own) - 1))]
            if luck.random() < 0.8:
                interface["gateway6"] = gateway
        elif ident in INSIDE6 and luck.random() < 0.8:
            interface["addresses"] += list(INSIDE6[ident][: luck.randint(1, 2)])
        elif ident == "lan" and luck.random() < 0.6:
            interface["addresses"].append("fd00:16::2/64")
        elif ident == "ctl" and luck.random() < 0.3:
            interface["addresses"].append("fd00:c::4/64")

    def networks(self, interface: Raw) -> list[Raw]:
        """One for most addresses of a guest interface."""
        prefixes = [subnet(c) for c in interface["addresses"] if is_v6(c)]
        found: list[Raw] = []
        for cidr in (c for c in interface["addresses"] if not is_v6(c)):
            routed = self.luck.random() < 0.2
            network: Raw = {
                "interface": interface["id"],
                "cidr": f"{dotted(bounds(cidr)[0])}/{cidr.partition('/')[2]}",
                "routed": routed,
                "source_nat": None if routed else self.luck.choice([*self.publics, None]),
                "egress": {"default": self.luck.choice(("allow", "allow", "deny"))},
                "dhcp": {"enabled": self.luck.random() < 0.5},
                "dns": self.luck.random() < 0.5,
                "metadata": self.luck.random() < 0.3,
            }
            if prefixes and self.luck.random() < 0.9:
                network["cidr6"] = prefixes.pop(0)
                kinds = ("slaac", "stateful", "off") if network["cidr6"].endswith("/64") else ("stateful", "off")
                network["advertise"] = {"addresses": self.luck.choice(kinds)}
            if self.luck.random() < 0.9:
                found.append(network)
        return found

    def sources(self, v6: bool | None = None) -> list[str]:
        """CIDRs of a family, or of whichever the document has."""
        kind = self.luck.random()
        if kind < 0.4:
            return []
        if v6 or (v6 is None and self.v6 and kind < 0.8):
            mixed = () if v6 else CIDRS[:7]
            return MANY6 if kind < 0.5 else self.luck.sample((*CIDRS6, *mixed), self.luck.randint(1, 3))
        return self.luck.choice((MANY, LONG)) if kind < 0.5 else self.luck.sample(CIDRS, self.luck.randint(1, 3))

    def forward(self) -> Raw:
        sources = self.sources(v6=False)
        # By source each port is an element: a range of all of them would take the test's time, and shows nothing more.
        first, last = self.luck.choice([s for s in SPANS if not sources or s[1] - s[0] < 100])
        shift = self.luck.choice((None, None, 0, 1, 1000))
        fits = shift is not None and last + shift < 65536 and last - first < 100
        return {
            "protocol": self.luck.choice(("tcp", "udp")),
            "address": self.luck.choice(self.publics),
            "ports": _ports(first, last),
            "target": self.luck.choice(self.guests),
            "target_ports": _ports(first + shift, last + shift) if fits and shift is not None else None,
            "sources": sources,
        }

    def static_nat(self) -> Raw:
        return {"address": self.luck.choice(self.publics), "target": self.luck.choice(self.guests)}

    def opening(self, what: Raw) -> Raw:
        """A firewall rule for a forward or a static NAT: without one nothing would ever reach it."""
        rule: Raw = {"protocol": what.get("protocol", "any"), "address": what["address"]}
        if "ports" in what:
            rule["ports"] = self.luck.choice((what["ports"], what["ports"], None, _ports(1, 65535)))
        return {**rule, "sources": self.luck.choice(([], self.sources(v6=False)))}

    def open_by(self, address: str) -> Raw:
        """A firewall rule for anything."""
        return {**self.gated(is_v6(address)), "address": address}

    def exception(self, network: Raw) -> Raw:
        return {**self.gated(), "network": network["id"], "destinations": self.sources()}

    def guard(self, acls: list[Raw], interfaces: list[Raw], networks: list[Raw]) -> None:
        """Most networks become tiers, a private interface too."""
        for place in (*networks, *(i for i in interfaces if i["use"] == "private")):
            if self.luck.random() < 0.7:
                place["acl"] = self.luck.choice(acls)["id"]
                if "egress" in place:
                    place["egress"] = {}

    def acl(self) -> Raw:
        found: Raw = {"ingress_default": self.luck.choice(("allow", "deny")), "egress_default": "allow"}
        if self.luck.random() < 0.3:
            found["egress_default"] = "deny"
        for side in ("ingress", "egress"):
            items = [self.gated() for _ in range(self.some())]
            for item in items:
                item["cidrs"] = item.pop("sources")
                item["action"] = self.luck.choice(("allow", "allow", "deny"))
            found[side] = _named("item", items)
        return found

    def gated(self, v6: bool | None = None) -> Raw:
        """What firewall, egress, ingress rules and ACL items have in common."""
        echo = "icmpv6" if v6 or (v6 is None and self.v6 and self.luck.random() < 0.5) else "icmp"
        protocol = self.luck.choice(("tcp", "tcp", "udp", echo, "any", 47, 6, 1, 50))
        found: Raw = {"protocol": protocol, "sources": self.sources(v6)}
        if protocol in ("tcp", "udp") and self.luck.random() < 0.8:
            found["ports"] = _ports(*self.luck.choice(SPANS))
        if protocol == "icmp" and self.luck.random() < 0.8:
            found["icmp_type"] = self.luck.choice((8, 8, 13, 0))
            found["icmp_code"] = self.luck.choice((None, 0, 1))
        if protocol == "icmpv6" and self.luck.random() < 0.8:
            found["icmp_type"] = self.luck.choice((128, 128, 139, 129))
            found["icmp_code"] = self.luck.choice((None, 0, 1))
        return found


def _interface(ident: str, use: str, addresses: list[str]) -> Raw:
    return {"id": ident, "mac": MACS[ident], "use": use, "addresses": addresses}


def _ports(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}


def _named(kind: str, objects: list[Raw]) -> list[Raw]:
    return [{"id": f"{kind}-{n}", **o} for n, o in enumerate(objects)]
