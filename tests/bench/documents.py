"""Documents of any size, made the same way each time: N forwards, N firewall rules with a source each, N hosts."""

from __future__ import annotations

from typing import Any

CONTROL = "02:00:00:00:00:01"
PUBLIC = "02:00:00:00:00:02"
GUEST = "02:00:00:00:00:03"
GATEWAY = "203.0.113.1"
ROUTER = "203.0.113.2"
PER_ADDRESS = 2500  # forwards to one public address


def public(n: int) -> list[str]:
    """The public addresses that n forwards need: .10, .11, ..."""
    return [f"203.0.113.{10 + i}" for i in range((n + PER_ADDRESS - 1) // PER_ADDRESS or 1)]


def guest(i: int) -> str:
    """The address of the i-th guest: 10.64.0.10 and on."""
    value = i + 10
    return f"10.{64 + (value >> 16)}.{value >> 8 & 255}.{value & 255}"


def forward(i: int, target: str | None = None, port: int = 22) -> dict[str, Any]:
    at = 10_000 + i % PER_ADDRESS
    return {
        "id": f"fwd-{i}", "protocol": "tcp", "address": public(i + 1)[-1], "ports": {"first": at, "last": at},
        "target": target or guest(i), "target_ports": {"first": port, "last": port},
    }  # fmt: skip


def firewall(i: int, source: str | None = None) -> dict[str, Any]:
    at = 10_000 + i % PER_ADDRESS
    return {
        "id": f"fw-{i}", "address": public(i + 1)[-1], "protocol": "tcp", "ports": {"first": at, "last": at},
        "sources": [source or f"{100 + (i >> 16)}.{i >> 8 & 255}.{i & 255}.0/24"],
    }  # fmt: skip


def host(i: int) -> dict[str, Any]:
    mac = f"02:01:00:{i >> 16:02x}:{i >> 8 & 255:02x}:{i & 255:02x}"
    return {"id": f"vm-{i}", "network": "net", "mac": mac, "address": guest(i), "name": f"vm-{i}"}


def acl(items: int) -> dict[str, Any]:
    """An ACL of so many items, each for another port and source."""
    ingress = [
        {
            "id": f"item-{i}", "action": "deny" if i % 2 else "allow", "protocol": "tcp",
            "ports": {"first": 1_000 + i, "last": 1_000 + i}, "cidrs": [f"198.18.{i % 256}.0/24"],
        }
        for i in range(items)
    ]  # fmt: skip
    return {"id": "acl", "ingress": ingress}


def document(
    n: int,
    generation: int = 1,
    control: str = "169.254.3.4/16",
    last_target: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """A router with n of each object. `last_target`: where the last forward leads; `source`: whom all rules let in."""
    forwards = [forward(i) for i in range(n)]
    if last_target and forwards:
        forwards[-1] = forward(n - 1, last_target)
    return {
        "version": 1, "role": "router", "generation": generation,
        "config": {
            "interfaces": [
                {"id": "control", "mac": CONTROL, "use": "control", "addresses": [control]},
                {
                    "id": "public", "mac": PUBLIC, "use": "public", "gateway": GATEWAY,
                    "addresses": [f"{ROUTER}/24", *(f"{a}/24" for a in public(n + 1))],
                },
                {"id": "guest", "mac": GUEST, "use": "guest", "addresses": ["10.64.0.1/10"]},
            ],
            "networks": [
                {
                    "id": "net", "interface": "guest", "cidr": "10.64.0.0/10",
                    "domain": "cloud.internal", "source_nat": ROUTER,
                }
            ],
            "forwards": forwards,
            "firewall": [firewall(i, source) for i in range(n)],
            "hosts": [host(i) for i in range(n)],
        },
    }  # fmt: skip


def everything(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with something of every feature that works in a cell on any kernel."""
    control, outer, inner = config["interfaces"]
    net = config["networks"][0]
    hosts = [
        {**h, "address6": f"2001:db8:1::{i + 10:x}", "metadata": {"values": {"vm-id": h["id"]}}} if i < 100 else h
        for i, h in enumerate(config["hosts"])
    ]
    backends = [{"id": f"b-{i}", "address": guest(i), "port": 8080} for i in range(8)]
    return {
        **config,
        "interfaces": [
            control,
            {**outer, "addresses": [*outer["addresses"], "2001:db8::2/64"], "gateway6": "2001:db8::1"},
            {**inner, "addresses": [*inner["addresses"], "2001:db8:1::1/64"]},
        ],
        "networks": [{**net, "cidr6": "2001:db8:1::/64", "advertise": {"addresses": "stateful"}}],
        "hosts": hosts,
        "ingress": [
            {
                "id": f"in-{i}", "network": net["id"], "protocol": "tcp", "ports": {"first": 80 + i, "last": 80 + i},
                "destinations": [f"2001:db8:1::{i + 10:x}/128"],
            }
            for i in range(100)
        ],
        "egress": [
            {"id": "no-mail", "network": net["id"], "protocol": "tcp", "ports": {"first": 25, "last": 25}},
        ],
        "balancers": [
            {"id": "www", "address": ROUTER, "port": 80, "protocol": "http", "backends": backends},
            {"id": "db", "address": ROUTER, "port": 5432, "protocol": "tcp", "backends": backends},
            {"id": "dns", "address": ROUTER, "port": 5300, "protocol": "udp", "backends": backends},
        ],
        "stats_pages": [{"id": "page", "address": ROUTER, "user": "ops", "password": "not-a-secret"}],
        "limits": [
            {"id": "all", "network": net["id"], "up_kbit": 1_000_000, "down_kbit": 1_000_000},
            *({"id": f"of-{h['id']}", "host": h["id"], "up_kbit": 50_000} for h in hosts[:100]),
        ],
        "bgp": {"asn": 64512},
        "bgp_peers": [{"id": "isp", "address": GATEWAY, "asn": 64513, "prefixes": ["203.0.113.0/24"]}],
        "usage": True,
    }  # fmt: skip


def change(base: int, generation: int, *operations: dict[str, Any]) -> dict[str, Any]:
    """A PATCH made of operations."""
    return {"version": 1, "role": "router", "base": base, "generation": generation, "operations": list(operations)}


def put(collection: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"op": "put", "collection": collection, "object": item}


def remove(collection: str, ident: str) -> dict[str, Any]:
    return {"op": "remove", "collection": collection, "id": ident}
