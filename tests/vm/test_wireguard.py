"""WireGuard in the image's kernel: users and a site come in from outside, with a far end of our own (noise.py).

alice, bob   on the left uplink's net: users of the listener `road`, split or full tunnel
branch       there too: another site, 10.50.0.0/16, whom the router calls itself
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.netns import calls
from tests.netns.calls import Call, echo, tcp, udp
from tests.netns.dual import LAN6, V6, WEB6, WORLD6, office6, servers6
from tests.netns.machines import Machine
from tests.netns.stage import (
    DB,
    DEPOT,
    L10,
    L20,
    LAN,
    LEFT,
    STORE,
    WEB,
    WORLD,
    Json,
    Stage,
    span,
)
from tests.netns.stage import allow as firewall
from tests.netns.stage import forward as forwarded
from tests.vm.noise import FarEnd, Key

ROUTER = Key()
PRESHARED = Key().text
PORT = 51820
ALICE, BOB, BRANCH = "10.99.0.2", "10.99.0.3", "10.50.0.7"
ALICE6, BOB6, BRANCH6 = "fd00:99::2", "fd00:99::3", "fd00:50::7"
INSIDE = ("10.1.0.0/16", "172.16.0.0/12", "2001:db8:1::/64", "2001:db8:2::/64", "10.99.0.0/24", "fd00:99::/64")
ENDS = {"alice": (ALICE, ALICE6, 70), "bob": (BOB, BOB6, 71), "branch": (BRANCH, BRANCH6, 72)}


class Outside:
    """The far ends, each in a machine of its own, which serves on its tunnel too."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.stack = stage, ExitStack()
        self.keys = {name: Key() for name in ENDS}
        self.machines: dict[str, Machine] = {}
        self.ends: dict[str, FarEnd] = {}
        for name, (v4, v6, host) in ENDS.items():
            machine = self.stack.enter_context(Machine(f"{stage.bed.name}-{name}", name))
            mac = f"02:00:00:00:0c:{host:02x}"
            machine.settle(stage.bed.ground, [("left", mac, [f"203.0.113.{host}/24"])], [])
            self.machines[name] = machine
            shared = PRESHARED if name == "alice" else ""
            self.ends[name] = self.join(name, shared, 51820 if name == "branch" else 0)
            routes = {to: v6 if ":" in to else v4 for to in INSIDE}
            self.ends[name].start([f"{v4}/32", f"{v6}/128"], routes)
            machine.macs["wg"] = ""
            stage.services.serve(machine)

    def join(self, name: str, preshared: str = "", port: int = 0, router: Key = ROUTER, to: int = PORT) -> FarEnd:
        end = FarEnd(self.machines[name], self.keys[name], router.public_text, (L10, to), preshared, port)
        self.stack.callback(end.close)
        return end

    def __getattr__(self, name: str) -> Machine:
        return self.machines[name]


@pytest.fixture(scope="module", name="outside")
def outside_fixture(stage: Stage) -> Iterator[Outside]:
    for name, addresses in {"web": [f"{WEB6}/64"], "world": ["2001:db8:a::1/64", f"{WORLD6}/128"]}.items():
        lines = [f"address add {a} dev eth0 nodad" for a in addresses]
        lines.append(f"route add default via {LAN6}" if name == "web" else "route add fd00::/8 via 2001:db8:a::2")
        stage.machines[name].run(("ip", "-6", "-batch", "-"), stdin="\n".join(lines))
    stage.world.run(("ip", "route", "add", "10.99.0.0/24", "via", LEFT))  # no honest outside host would
    stage.near.run(("ip", "route", "replace", "10.99.0.0/24", "via", LEFT))
    outside = Outside(stage)
    with outside.stack:
        stage.push(*document(outside))
        yield outside


@pytest.fixture(autouse=True)
def _new_flows(stage: Stage) -> None:
    stage.forget()


def listener(**more: Any) -> Json:
    plain = {"address": L10, "port": PORT, "private_key": ROUTER.text, "dns": "office", "mtu": 1420}
    return {"_": "wireguard", "id": "road", **plain, "addresses": ["10.99.0.1/24", "fd00:99::1/64"], **more}


def user(outside: Outside, name: str, **more: Any) -> Json:
    v4, v6, _ = ENDS[name]
    shared = PRESHARED if name == "alice" else None
    return {
        "_": "vpn_users", "id": name, "wireguard": "road", "public_key": outside.keys[name].public_text,
        "preshared_key": shared, "addresses": [v4, v6], **more,
    }  # fmt: skip


def site(outside: Outside, **more: Any) -> Json:
    return {
        "_": "wireguard_sites", "id": "branch", "wireguard": "road", "endpoint": "203.0.113.72",
        "public_key": outside.keys["branch"].public_text, "networks": ["10.50.0.0/16", "fd00:50::/48"], **more,
    }  # fmt: skip


def document(outside: Outside, *more: Json, **of_listener: Any) -> tuple[Json, ...]:
    """Both users, the site; the network with DNS."""
    hosts = {"_": "hosts", "id": "h", "network": "office", "mac": "02:00:00:00:0d:01", "address": WEB, "name": "web"}
    objects = (listener(**of_listener), user(outside, "alice"), user(outside, "bob"), site(outside))
    return (*V6, office6(dns=True, domain="office.test"), servers6(), hosts, *objects, *more)


def meets(stage: Stage, name: str, *asked: Call, seen: str = "") -> None:
    """As stage.meets, for the machines in tunnels too: an echo is told by who was asked."""
    for call, reply in zip(asked, calls.met(stage.services, asked), strict=True):
        assert (reply.name, seen or reply.seen) == (name, reply.seen), f"{call}: {reply}, not {name} {seen}"


# --- users ------------------------------------------------------------------------------------------------------------


def test_a_user_comes_in(stage: Stage, outside: Outside) -> None:
    """To guests, by its own address, in both families; the other way round too."""
    meets(stage, "web", tcp(outside.alice, WEB, 80), udp(outside.alice, WEB, 80), echo(outside.alice, WEB), seen=ALICE)
    meets(stage, "web", tcp(outside.alice, WEB6, 80), echo(outside.alice, WEB6), seen=ALICE6)
    meets(stage, "db", tcp(outside.bob, DB, 80), seen=BOB)
    meets(stage, "alice", tcp(stage.web, ALICE, 80), echo(stage.web, ALICE), seen=WEB)
    meets(stage, "alice", tcp(stage.web, ALICE6, 80), seen=WEB6)
    assert outside.ends["alice"].handshakes == 1


def test_a_user_goes_nowhere_else(stage: Stage, outside: Outside) -> None:
    """Neither out, nor to private networks, other users, sites, the manager; nor from another's address."""
    for to in (WORLD, BRANCH, WORLD6):
        outside.alice.run(("ip", "route", "replace", to, "dev", "wg"))
    alice = outside.alice
    stage.silent(tcp(alice, WORLD, 80), tcp(alice, STORE, 80), tcp(alice, DEPOT, 80), tcp(alice, WORLD6, 80))
    stage.silent(tcp(alice, BOB, 80), tcp(alice, BRANCH, 80), tcp(alice, "10.99.0.1", 3922), tcp(alice, LAN, 22))
    alice.run(("ip", "address", "add", f"{BOB}/32", "dev", "wg"))
    stage.silent(tcp(alice, WEB, 80, BOB), echo(alice, WEB, BOB))
    alice.run(("ip", "address", "del", f"{BOB}/32", "dev", "wg"))
    stage.silent(tcp(stage.world, ALICE, 80), tcp(stage.near, ALICE, 80), tcp(stage.store, ALICE, 80))


def test_names_and_ping(stage: Stage, outside: Outside) -> None:
    """The names of the network that the listener names, at the router's address there; and a ping of its own end."""
    import dns.message
    import dns.query

    question = dns.message.make_query("web.office.test", "A")
    with outside.alice.entered():
        answer = dns.query.udp(question, LAN, timeout=20.0)
    assert WEB in str(answer.answer)
    meets(stage, "router", echo(outside.alice, "10.99.0.1"), echo(outside.alice, "fd00:99::1"))
    stage.silent(udp(stage.world, LAN, 53))


def test_full_tunnel(stage: Stage, outside: Outside) -> None:
    """Out by the uplink, with the address that the listener says; answers come back, and nothing from outside."""
    stage.push(*document(outside, internet=L20))
    for to in (WORLD, WORLD6):
        outside.alice.run(("ip", "route", "replace", to, "dev", "wg"))
    meets(stage, "world", tcp(outside.alice, WORLD, 80), udp(outside.alice, WORLD, 80), seen=L20)
    meets(stage, "world", tcp(outside.alice, WORLD6, 80), seen=ALICE6)
    stage.silent(tcp(stage.world, ALICE6, 80), tcp(outside.alice, STORE, 80))
    stage.push(*document(outside))
    stage.silent(tcp(outside.alice, WORLD, 80))


def test_acls_judge(stage: Stage, outside: Outside) -> None:
    """Both ways, by the far end's address."""
    one = {"id": "one", "action": "allow", "protocol": "tcp", "ports": span(80), "cidrs": [f"{ALICE}/32"]}
    out = {"id": "out", "action": "deny", "protocol": "any", "ports": None, "cidrs": [f"{BOB}/32"]}
    guard = {"_": "acls", "id": "guard", "ingress": [one], "egress": [out]}
    stage.push(*document(outside, guard, office6(acl="guard", dns=True)))
    meets(stage, "web", tcp(outside.alice, WEB, 80), seen=ALICE)
    stage.silent(tcp(outside.alice, WEB, 22), tcp(outside.bob, WEB, 80), tcp(outside.alice, WEB6, 80))
    meets(stage, "alice", tcp(stage.web, ALICE, 80), tcp(stage.web, ALICE, 22))
    stage.silent(tcp(stage.web, BOB, 80))
    stage.push(*document(outside))


def test_to_a_forward(stage: Stage, outside: Outside) -> None:
    """A public address is judged as for anyone, from inside a tunnel too."""
    outside.alice.run(("ip", "route", "replace", L20, "dev", "wg", "src", ALICE))
    way = forwarded("f", L20, 80, WEB)
    stage.push(*document(outside, way, firewall("a", L20, "tcp", 80, [f"{ALICE}/32"])))
    meets(stage, "web", tcp(outside.alice, L20, 80), seen=ALICE)
    stage.push(*document(outside, way, firewall("a", L20, "tcp", 80, [f"{BOB}/32"])))
    stage.silent(tcp(outside.alice, L20, 80))
    stage.push(*document(outside))


# --- sites ------------------------------------------------------------------------------------------------------------


def test_a_site(stage: Stage, outside: Outside) -> None:
    """The router calls it when a guest wants something; then both ways, in both families."""
    meets(stage, "branch", tcp(stage.web, BRANCH, 80), udp(stage.web, BRANCH, 80), echo(stage.web, BRANCH), seen=WEB)
    meets(stage, "branch", tcp(stage.web, BRANCH6, 80), seen=WEB6)
    meets(stage, "web", tcp(outside.branch, WEB, 80), echo(outside.branch, WEB), seen=BRANCH)
    meets(stage, "web", tcp(outside.branch, WEB6, 80), seen=BRANCH6)
    stage.silent(tcp(outside.branch, ALICE, 80), tcp(outside.branch, STORE, 80))


def test_transit(stage: Stage, outside: Outside) -> None:
    """From users to each other and to the site, where the listener says so."""
    stage.push(*document(outside, transit=True))
    outside.alice.run(("ip", "route", "replace", "10.50.0.0/16", "dev", "wg", "src", ALICE))
    meets(stage, "bob", tcp(outside.alice, BOB, 80), seen=ALICE)
    meets(stage, "branch", tcp(outside.alice, BRANCH, 80), seen=ALICE)
    stage.push(*document(outside))
    stage.silent(tcp(outside.alice, BOB, 80), tcp(outside.alice, BRANCH, 80))
