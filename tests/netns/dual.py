"""The stage in both address families: the same machines, each with an IPv6 address beside its IPv4 one.

                  world (2001:db8:77::/48)
       2001:db8:a::1 |                     | 2001:db8:b::1
                left ::2, ::10        right ::2         2001:db8:a::/64   2001:db8:b::/64
                     |      router         |
   2001:db8:1::/64 lan      |  |  back     dmz 2001:db8:2::/64
                            |  fd00:16::/64: store ::5, and behind it 2001:db8:d::/48
                         control

World knows the router as the way to the guests' prefixes, as a provider that delegated them would; what was asked by
the right link it answers by that.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tests.netns.calls import checksum, met, udp
from tests.netns.machines import Machine
from tests.netns.stage import BACK, DMZ, LAN, Json, Stage, interface, left, office, right, servers, span

LEFT6, L6, RIGHT6 = "2001:db8:a::2", "2001:db8:a::10", "2001:db8:b::2"
WORLD6, WORLD6_HIGH = "2001:db8:77::7", "2001:db8:77:8000::7"
NEAR6, FAR6 = "2001:db8:a::99", "2001:db8:b::99"
LAN6, DMZ6, BACK6 = "2001:db8:1::1", "2001:db8:2::1", "fd00:16::1"
WEB6, MAIL6, DESK6, DB6 = "2001:db8:1::10", "2001:db8:1::20", "2001:db8:1::30", "2001:db8:2::10"
STORE6, DEPOT6 = "fd00:16::5", "2001:db8:d::5"
OFFICE6, SERVERS6 = "2001:db8:1::/64", "2001:db8:2::/64"

# addresses by link, and routes
_MACHINES: Mapping[str, tuple[Mapping[str, Sequence[str]], Mapping[str, str]]] = {
    "world": (
        {"eth0": ("2001:db8:a::1/64", f"{WORLD6}/128", f"{WORLD6_HIGH}/128"), "eth1": ("2001:db8:b::1/64",)},
        {
            **dict.fromkeys(("2001:db8:1::/64", "2001:db8:2::/64", "fd00::/8", "2001:db8:d::/48"), LEFT6),
            **dict.fromkeys(("2001:db8:1::/64 metric 2048", "2001:db8:2::/64 metric 2048"), RIGHT6),
        },
    ),
    "near": ({"eth0": (f"{NEAR6}/64",)}, {"default": LEFT6}),
    "far": ({"eth0": (f"{FAR6}/64",)}, {"default": RIGHT6}),
    "web": ({"eth0": (f"{WEB6}/64",)}, {"default": LAN6}),
    "mail": ({"eth0": (f"{MAIL6}/64",)}, {"default": LAN6}),
    "desk": ({"eth0": (f"{DESK6}/64",)}, {"default": LAN6}),
    "db": ({"eth0": (f"{DB6}/64",)}, {"default": DMZ6}),
    "store": ({"eth0": (f"{STORE6}/64", f"{DEPOT6}/128")}, {"default": BACK6}),
}


class DualStage(Stage):
    def __enter__(self) -> Self:
        super().__enter__()
        for name, (addresses, routes) in _MACHINES.items():
            machine = self.machines[name]
            lines = [f"address add {a} dev {link} nodad" for link, found in addresses.items() for a in found]
            lines += [f"route add via {via} {to}" for to, via in routes.items()]
            machine.run(("ip", "-6", "-batch", "-"), stdin="\n".join(lines))
        self.run("sysctl -eqw net.ipv6.icmp.ratelimit=0")
        return self


# --- objects of the document

V6: tuple[Json, ...] = (
    left(f"{LEFT6}/64", f"{L6}/64", gateway6="2001:db8:a::1"),
    right(f"{RIGHT6}/64", gateway6="2001:db8:b::1"),
    interface("lan", "guest", f"{LAN}/24", f"{LAN6}/64"),
    interface("dmz", "guest", f"{DMZ}/24", f"{DMZ6}/64"),
    interface("back", "private", f"{BACK}/24", f"{BACK6}/64"),
)


def office6(**more: Any) -> Json:
    return office(**{"cidr6": OFFICE6, "advertise": {"addresses": "off"}, **more})


def servers6(**more: Any) -> Json:
    return servers(**{"cidr6": SERVERS6, "advertise": {"addresses": "off"}, **more})


def enter(
    name: str, where: str, protocol: str | int = "any", at: int | tuple[int, int] | None = None, **more: Any
) -> Json:
    """An ingress rule."""
    return {"_": "ingress", "id": name, "network": where, "protocol": protocol, "ports": span(at), **more}


# --- senders that lie

_tokens = itertools.count()
_OUR_MAC = bytes.fromhex("020000000bfe")


def arrives(stage: Stage, sender: Machine, source: str, to: str, port: int = 80) -> tuple[str, str] | None:
    """Who gets a datagram with a made-up source, and what source he sees; None where nobody does.

    It goes to the router's MAC by eth0, as a frame: the sender's kernel has no say. An honest one goes after it and is
    answered: then the other has been handled.
    """
    token = b"spoof6 %d" % next(_tokens)
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    size = 8 + len(token)
    datagram = struct.pack("!HHHH", 4444, port, size, 0) + token
    summed = checksum(ends + struct.pack("!II", size, 17) + datagram) or 0xFFFF
    datagram = datagram[:6] + struct.pack("!H", summed) + datagram[8:]
    inside = sender in (stage.web, stage.mail, stage.desk)
    router = V6[2 if inside else 0]["mac"]
    frame = bytes.fromhex(router.replace(":", "")) + _OUR_MAC + struct.pack("!H", 0x86DD)
    with sender.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind(("eth0", 0))
        out.send(frame + struct.pack("!IHBB", 6 << 28, size, 17, 64) + ends + datagram)
    met(stage.services, [udp(sender, WORLD6 if inside else WEB6, 80)])
    return stage.services.heard.get(token)
