"""WireGuard's figures: one more user by PATCH beside many. Only where the kernel has WireGuard."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

from tests.bed import Bed
from tests.bench import documents as d
from tests.bench.figures import Figure, figure, middle

USERS = 1_000


def has_wireguard(bed: Bed) -> bool:
    """Can a link of that kind be made in the router?"""
    made = bed.driver.run("bed", ("ip", "link", "add", "wg-probe", "type", "wireguard"), check=False)
    if made.returncode == 0:
        bed.run("ip", "link", "del", "wg-probe")
    return bool(made.returncode == 0)


def users(bed: Bed, config: dict[str, Any]) -> list[Figure]:
    """A user more and a user less, again and again, at a thousand; nothing where there is no WireGuard."""
    if not has_wireguard(bed):
        return []
    listener = {
        "id": "road", "address": d.ROUTER, "private_key": _key(1 << 200), "addresses": ["10.128.0.1/16"],
    }  # fmt: skip
    bed.push({**config, "wireguard": [listener], "vpn_users": [_user(i) for i in range(USERS)]})
    times = []
    for i in range(15):
        put = d.change(bed.generation, bed.generation + 1, d.put("vpn_users", _user(USERS + i)))
        body = json.dumps(put).encode()
        started = time.perf_counter()
        answer = bed.appliance.patch(body)
        times.append((time.perf_counter() - started) * 1000)
        bed.settled(answer)
        assert answer.status == 200, answer.body
        bed.patch(d.remove("vpn_users", f"user-{USERS + i}"))
    return [figure(f"one more WireGuard user by PATCH at {USERS:,}", middle(times), "ms", most=50)]


def _user(i: int) -> dict[str, Any]:
    place = i + 2
    address = f"10.128.{place >> 8}.{place & 255}"
    return {"id": f"user-{i}", "wireguard": "road", "public_key": _key(i + 1), "addresses": [address]}


def _key(number: int) -> str:
    return b64encode(number.to_bytes(32)).decode()
