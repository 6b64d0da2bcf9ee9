"""GET /v1/trace: what would happen to a packet, and which object of the document decides. In words, for people.

    ?in=ISP&src=192.0.2.7&dst=203.0.113.10&proto=tcp&dport=2222

`dst` alone is a packet of the router's own; `in` without `src` is from a neighbour on that interface; `src` without
`in` comes by the interface that leads back to it. `proto` is tcp, udp, icmp, icmpv6 or a number: tcp where a port is
said (`dport`), else a ping. `sport`, `icmp_type` (an echo) and `icmp_code` (0) may be said. The answer repeats the
packet as it was understood, names each rule that it met, and says its fate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from appliance.state import Facts, State
from appliance.values import address, address_text, bounds, is_v6, number
from router.fib import Fib
from router.packet import NAMES, NUMBERS, Packet
from router.trace import Tracer

_FIELDS = ("in", "src", "dst", "proto", "sport", "dport", "icmp_type", "icmp_code")
_STRANGER = 40000  # a source port that means nothing


def answer(state: State, facts: Facts, query: Mapping[str, str]) -> dict[str, object]:
    """The trace that `query` asks for. Raises ValueError that says what is wrong with the question."""
    if unknown := sorted(set(query) - set(_FIELDS)):
        raise ValueError(f"there is no {', '.join(unknown)} to ask with; there are: {', '.join(_FIELDS)}")
    if not state.links:
        raise ValueError("the router has no document yet, and drops everything; push one first")
    tracer = Tracer(state)
    packet = _packet(tracer, query)
    traced = tracer.trace(packet)
    return {
        "packet": _sent(packet),
        "steps": [asdict(step) for step in traced.steps],
        "outcome": asdict(traced.outcome),
    }


def _sent(packet: Packet) -> dict[str, object]:
    """The packet as it was understood: without what its protocol does not have."""
    told = asdict(packet)
    absent = {"source_port", "destination_port"} if not packet.has_ports else set()
    absent |= {"icmp_type", "icmp_code"} if not packet.is_icmp else set()
    return {name: value for name, value in told.items() if name not in absent}


def _packet(tracer: Tracer, query: Mapping[str, str]) -> Packet:
    if not query.get("dst"):
        raise ValueError("say where to: dst=ADDRESS")
    destination = _address("dst", query["dst"])
    source = _address("src", query["src"]) if query.get("src") else ""
    v6 = is_v6(destination)
    if source and is_v6(source) is not v6:
        raise ValueError(f"src: {source} and dst: {destination} are of two families; no packet is")
    came_by = query.get("in", "")
    if came_by and not source:
        source = _neighbour(tracer, came_by, v6)
    elif not source:
        source = _own_source(tracer, destination)
    elif not came_by:
        came_by = _way_back(tracer, source)
    protocol = _protocol(query.get("proto") or ("tcp" if "dport" in query else "icmpv6" if v6 else "icmp"))
    if protocol in ("tcp", "udp") and "dport" not in query:
        raise ValueError(f"say to which port: dport=NUMBER, or another proto than {protocol}")
    return Packet(
        came_by,
        source,
        destination,
        protocol,
        _number(query, "sport", 65535, _STRANGER),
        _number(query, "dport", 65535, 0),
        _number(query, "icmp_type", 255, 128 if v6 else 8),
        _number(query, "icmp_code", 255, 0),
    )


def _address(name: str, text: str) -> str:
    try:
        return address(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _fib(tracer: Tracer, address: str) -> Fib:
    return tracer.fib6 if is_v6(address) else tracer.fib


def _own_source(tracer: Tracer, destination: str) -> str:
    """The source that the router would take by itself."""
    fib = _fib(tracer, destination)
    if found := fib.source_for(fib.look(number(destination), 0)):
        return found
    raise ValueError(f"the router has no way to {destination}, nor a source to send from; say src=ADDRESS")


def _neighbour(tracer: Tracer, came_by: str, v6: bool) -> str:
    """The first address on an interface's first subnet that isn't the router's."""
    link = tracer.link(came_by)
    fib = tracer.fib6 if v6 else tracer.fib
    for own in (a.cidr for a in tracer.state.addresses if a.link == link and is_v6(a.cidr) is v6):
        first, last = bounds(own)
        for place in range(first + 1, last):
            if fib.look(place, 0).kind != "local":
                return address_text(place, v6)
    raise ValueError(f"there is nobody to come in by {came_by}; say src=ADDRESS")


def _way_back(tracer: Tracer, source: str) -> str:
    """The interface behind which a source is; "" for one of the router's own."""
    way = _fib(tracer, source).look(number(source), 0)
    if way.kind == "local":
        return ""
    if way.kind != "unicast":
        raise ValueError(f"nothing leads back to {source}; say by which interface it comes: in=INTERFACE")
    return tracer.ids.get(way.link, way.link)


def _protocol(text: str) -> str | int:
    if text in NUMBERS:
        return text
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        raise ValueError(f"proto: {text!r} is no protocol; say tcp, udp, icmp, icmpv6 or a number from 0 to 255")
    return NAMES.get(int(text), int(text))


def _number(query: Mapping[str, str], name: str, most: int, unsaid: int) -> int:
    text = query.get(name, str(unsaid))
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ValueError(f"{name}: {text!r} is not a number from 0 to {most}")
    return int(text)
