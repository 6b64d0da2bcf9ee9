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
from appliance.values import bounds, contains, dotted
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
CIDRS = (
    "0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "198.51.100.0/24", "10.0.0.0/8",
    "10.1.1.0/24", "10.1.1.10/31", "10.1.1.11/32", "10.1.2.0/23", "172.16.0.0/12", "203.0.113.0/24", "128.0.0.0/1",
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
    for name in ("forwards", "static_nats", "firewall", "egress", "routes"):
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

    def document(self) -> Raw:
        interfaces = self.interfaces()
        self.publics = [c.partition("/")[0] for i in interfaces if i["use"] == "public" for c in i["addresses"]]
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
            rules += [{**self.gated(), "address": self.luck.choice(self.publics)} for _ in range(self.some() // 2)]
        if networks:
            exceptions = [self.exception(self.luck.choice(networks)) for _ in range(self.some())]
        acls = _named("acl", [self.acl() for _ in range(self.luck.choice((0, 0, 1, 2, 3)))])
        if acls:
            self.guard(acls, interfaces, networks)
        routes = [{"destination": d, "via": v} for d, v in self.luck.sample(ROUTES, self.luck.randint(0, 3))]
        return {
            "interfaces": interfaces,
            "networks": networks,
            "forwards": _named("fwd", forwards),
            "static_nats": _named("nat", nats),
            "firewall": _named("fw", rules),
            "egress": _named("out", exceptions),
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
        return found

    def networks(self, interface: Raw) -> list[Raw]:
        """One for most addresses of a guest interface."""
        return [
            {
                "interface": interface["id"],
                "cidr": f"{dotted(bounds(cidr)[0])}/{cidr.partition('/')[2]}",
                "source_nat": self.luck.choice([*self.publics, None]),
                "egress": {"default": self.luck.choice(("allow", "allow", "deny"))},
                "dhcp": {"enabled": self.luck.random() < 0.5},
                "dns": self.luck.random() < 0.5,
            }
            for cidr in interface["addresses"]
            if self.luck.random() < 0.9
        ]

    def sources(self) -> list[str]:
        kind = self.luck.random()
        if kind < 0.4:
            return []
        return self.luck.choice((MANY, LONG)) if kind < 0.5 else self.luck.sample(CIDRS, self.luck.randint(1, 3))

    def forward(self) -> Raw:
        sources = self.sources()
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
        return {**rule, "sources": self.luck.choice(([], self.sources()))}

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

    def gated(self) -> Raw:
        """What firewall and egress rules have in common."""
        protocol = self.luck.choice(("tcp", "tcp", "udp", "icmp", "any", 47, 6, 1, 50))
        found: Raw = {"protocol": protocol, "sources": self.sources()}
        if protocol in ("tcp", "udp") and self.luck.random() < 0.8:
            found["ports"] = _ports(*self.luck.choice(SPANS))
        if protocol == "icmp" and self.luck.random() < 0.8:
            found["icmp_type"] = self.luck.choice((8, 8, 13, 0))
            found["icmp_code"] = self.luck.choice((None, 0, 1))
        return found


def _interface(ident: str, use: str, addresses: list[str]) -> Raw:
    return {"id": ident, "mac": MACS[ident], "use": use, "addresses": addresses}


def _ports(first: int, last: int) -> dict[str, int]:
    return {"first": first, "last": last}


def _named(kind: str, objects: list[Raw]) -> list[Raw]:
    return [{"id": f"{kind}-{n}", **o} for n, o in enumerate(objects)]
