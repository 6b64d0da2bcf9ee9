"""Documents for the tests of the router's functional core: one small one to change, and random sound ones.

The random ones live in a small world (a few addresses, ports and CIDRs that overlap), so that objects meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from appliance.document import validate
from appliance.state import Facts, LinkFact, Problem
from router.checks import problems
from router.config import Config

PUBLIC = ("203.0.113.10", "203.0.113.11", "198.51.100.10")
GUESTS = ("10.1.1.10", "10.1.1.11", "10.1.2.10")
CIDRS = ("0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.7/32", "10.1.0.0/16")
CIDRS6 = ("::/0", "2001:db8:77::/48", "2001:db8:77::7/128", "2001:db8:1::/64")
MANY = tuple(f"192.0.{i}.0/24" for i in range(0, 12, 2))
LONG = tuple(f"192.0.{i}.0/24" for i in range(0, 40, 2))  # more than gate.FLAT_CIDRS
INTERFACES: tuple[dict[str, Any], ...] = (
    {"id": "ctl", "mac": "02:00:00:00:00:01", "use": "control", "addresses": ["169.254.3.4/16"]},
    {
        "id": "isp-a",
        "mac": "02:00:00:00:00:02",
        "use": "public",
        "addresses": ["203.0.113.10/24", "203.0.113.11/24"],
        "gateway": "203.0.113.1",
    },
    {
        "id": "isp.b",
        "mac": "02:00:00:00:00:03",
        "use": "public",
        "addresses": ["198.51.100.10/24"],
        "gateway": "198.51.100.1",
    },
    {"id": "web", "mac": "02:00:00:00:00:04", "use": "guest", "addresses": ["10.1.1.1/24"]},
    {"id": "db", "mac": "02:00:00:00:00:05", "use": "guest", "addresses": ["10.1.2.1/24"]},
    {"id": "lan", "mac": "02:00:00:00:00:06", "use": "private", "addresses": ["172.16.0.2/24"]},
)
NETWORKS: tuple[dict[str, Any], ...] = (
    {"id": "web", "interface": "web", "cidr": "10.1.1.0/24", "source_nat": "203.0.113.10", "domain": "web.test"},
    {"id": "db.1", "interface": "db", "cidr": "10.1.2.0/24", "egress": {"default": "deny"}},
)


PUBLIC6 = "2001:db8::10"
V6_OF = {"isp-a": (f"{PUBLIC6}/64",), "web": ("2001:db8:1::1/64",), "lan": ("fd00:16::2/64",)}
# The same in both families: what is in it takes the place of its like above.
V6: dict[str, Any] = {
    "interfaces": [{**i, "addresses": [*i["addresses"], *V6_OF.get(i["id"], ())]} for i in INTERFACES],
    "networks": [
        {**NETWORKS[0], "cidr6": "2001:db8:1::/64", "advertise": {"addresses": "stateful"}},
        {**NETWORKS[1], "routed": True},
    ],
}


def document(**collections: Any) -> dict[str, Any]:
    """The small document's config, with these collections in place of its own."""
    return {"interfaces": list(INTERFACES), "networks": list(NETWORKS), **collections}


def made(**collections: Any) -> Config:
    """The small document as a Config."""
    return validate(Config, document(**collections))


def facts_of(config: Config) -> Facts:
    """A machine that has the interfaces of a config, named in the order of their MACs."""
    macs = sorted({i.mac for i in config.interfaces})
    return Facts("r-1", {mac: LinkFact(f"eth{n}", mac, n + 2, 1500, True) for n, mac in enumerate(macs)})


def ports(first: int, last: int | None = None) -> dict[str, int]:
    return {"first": first, "last": last or first}


def forward(ident: str = "fwd-1", **changes: Any) -> dict[str, Any]:
    plain = {"protocol": "tcp", "address": PUBLIC[0], "ports": ports(2222), "target": GUESTS[0]}
    return {"id": ident, **plain, "target_ports": ports(22), **changes}


def rule(ident: str = "fw-1", **changes: Any) -> dict[str, Any]:
    return {"id": ident, "address": PUBLIC[0], "protocol": "tcp", "ports": ports(2222), **changes}


def host(ident: str = "vm-1", **changes: Any) -> dict[str, Any]:
    plain = {"network": "web", "mac": "02:01:00:00:00:01", "address": GUESTS[0], "name": "vm-1"}
    return {"id": ident, **plain, **changes}


# --- random documents ------------------------------------------------------------------------------------------

_ids = st.integers(0, 5)
_sources: st.SearchStrategy[list[str]] = st.one_of(
    st.just([]),
    st.lists(st.sampled_from(CIDRS), min_size=1, max_size=2, unique=True),
    st.just(list(MANY)),
    st.just(list(LONG)),
)
_mixed = st.one_of(_sources, st.lists(st.sampled_from((*CIDRS, *CIDRS6)), min_size=1, max_size=4, unique=True))
_spans = st.sampled_from([(80, 80), (80, 82), (81, 81), (82, 90), (1000, 1063), (1000, 1064), (1, 65535)])


@st.composite
def _forwards(draw: st.DrawFn) -> dict[str, Any]:
    first, last = draw(_spans.filter(lambda s: s[1] < 60000))
    shift = draw(st.sampled_from([None, 0, 1000]))
    return {
        "id": f"fwd-{draw(_ids)}",
        "protocol": draw(st.sampled_from(["tcp", "udp"])),
        "address": draw(st.sampled_from(PUBLIC)),
        "ports": ports(first, last),
        "target": draw(st.sampled_from(GUESTS)),
        "target_ports": None if shift is None else ports(first + shift, last + shift),
        "sources": draw(_sources),
    }


@st.composite
def _gated(draw: st.DrawFn, ident: str) -> dict[str, Any]:
    protocol = draw(st.sampled_from(["tcp", "tcp", "udp", "icmp", "icmpv6", "any", 47, 6]))
    found: dict[str, Any] = {"id": f"{ident}-{draw(_ids)}", "protocol": protocol, "sources": draw(_mixed)}
    if protocol in ("tcp", "udp"):
        found["ports"] = draw(st.one_of(st.none(), _spans.map(lambda s: ports(*s))))
    if protocol in ("icmp", "icmpv6"):
        found["icmp_type"] = draw(st.sampled_from([None, 8, 13] if protocol == "icmp" else [None, 128]))
        found["icmp_code"] = draw(st.sampled_from([None, 0])) if found["icmp_type"] is not None else None
    return found


@st.composite
def _rules(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(_gated("fw")), "address": draw(st.sampled_from((*PUBLIC, PUBLIC6)))}


@st.composite
def _egress(draw: st.DrawFn) -> dict[str, Any]:
    network = draw(st.sampled_from(["web", "db.1"]))
    return {**draw(_gated("out")), "network": network, "destinations": draw(_mixed)}


@st.composite
def _ingress(draw: st.DrawFn) -> dict[str, Any]:
    network = draw(st.sampled_from(["web", "db.1"]))
    return {**draw(_gated("in")), "network": network, "destinations": draw(_mixed)}


@st.composite
def _static_nats(draw: st.DrawFn) -> dict[str, Any]:
    address, target = draw(st.sampled_from(PUBLIC)), draw(st.sampled_from(GUESTS))
    return {"id": f"nat-{draw(_ids)}", "address": address, "target": target}


@st.composite
def _hosts(draw: st.DrawFn) -> dict[str, Any]:
    number, where = draw(_ids), draw(st.sampled_from(GUESTS))
    return {
        "id": f"vm-{number}",
        "network": "db.1" if where.startswith("10.1.2.") else "web",
        "mac": f"02:01:00:00:00:{draw(_ids):02x}",
        "address": where,
        "name": f"vm-{draw(_ids)}",
        "address6": draw(st.sampled_from([None, f"2001:db8:1::{draw(_ids) + 16:x}"])),
    }


@st.composite
def _acls(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {"id": f"acl-{draw(st.integers(0, 2))}"}
    for side in ("ingress", "egress"):
        items = draw(st.lists(_gated("item"), max_size=3, unique_by=lambda o: o["id"]))
        found[side] = [{**item, "cidrs": item["sources"], "action": draw(_ACTIONS)} for item in items]
        for item in found[side]:
            del item["sources"]
        found[f"{side}_default"] = draw(_ACTIONS)
    return found


_ACTIONS = st.sampled_from(["allow", "deny"])


def _many(objects: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(objects, max_size=6, unique_by=lambda o: o["id"])


COLLECTIONS = {
    "forwards": _forwards(),
    "firewall": _rules(),
    "egress": _egress(),
    "ingress": _ingress(),
    "static_nats": _static_nats(),
    "hosts": _hosts(),
    "acls": _acls(),
}


GROUNDS: tuple[dict[str, Any], ...] = (V6, {})


@st.composite
def configs(draw: st.DrawFn, grounds: Sequence[dict[str, Any]] = GROUNDS) -> Config:
    """A sound document; of all grounds every second is in both address families."""
    own = {name: draw(_many(objects)) for name, objects in COLLECTIONS.items()}
    return sound(document(**(draw(st.sampled_from(grounds)) | own)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Config, Config]:
    """Two sound documents of one ground: they differ in what a PATCH may change."""
    ground = (draw(st.sampled_from(GROUNDS)),)
    return draw(configs(ground)), draw(configs(ground))


def sound(raw: dict[str, Any]) -> Config:
    """The document without the objects that have problems."""
    while True:
        config = validate(Config, raw)
        found = problems(config)
        if not found:
            return config
        raw = without(raw, found)


def without(raw: dict[str, Any], found: list[Problem]) -> dict[str, Any]:
    places = {(p.path.split(".")[1].partition("[")[0], p.path.partition("[")[2].partition("]")[0]) for p in found}
    return {
        name: [o for o in objects if (name, o["id"]) not in places] if isinstance(objects, list) else objects
        for name, objects in raw.items()
    }
