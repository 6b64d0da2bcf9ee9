"""Addresses, routes and rules of the vocabulary as rtnetlink(7) messages, by pyroute2's message classes. Pure.

Only the message classes are taken from pyroute2: its `__init__` loads all of the library (12 MiB resident and 0.1 s,
against 0.6 MiB and 4 ms for these three), and its sockets bring an asyncio loop with three descriptors to every thread.
Sockets are in wire.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from socket import AF_INET, AF_INET6, inet_aton, inet_ntoa
from struct import Struct
from types import ModuleType
from typing import Any

from appliance import wire
from appliance.state import Address, LinkFact, Route, Rule

# Our mark on routes and rules: rtm_protocol and FRA_PROTOCOL. Not one that iproute2's rt_protos gives to anybody.
PROTOCOL = 110

NEWLINK, DELLINK, GETLINK = 16, 17, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWRULE, DELRULE, GETRULE = 32, 33, 34

UP = 0x1  # IFF_UP
_ONLINK = 0x4  # RTNH_F_ONLINK
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_UNICAST = 1
_TO_TABLE = 1  # FR_ACT_TO_TBL
_SECONDARY, _NODAD, _PERMANENT, _NOPREFIXROUTE = 0x01, 0x02, 0x80, 0x200
_V6_METRIC = 1024  # what the kernel makes of a v6 route's metric 0
_RTM_PROTOCOL = 5  # where it stands in a rtmsg
# Decoding costs pyroute2 30 to 45 us; what stands still is dumped as the same bytes each time, and remembered.
_REMEMBERED = 2048
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_INFO_KIND, _INFO_DATA, _XFRM_IF_ID = 1, 2, 2
_IFINFO = Struct("=BxHiII")  # family, hardware type, index, flags, change
_U32 = Struct("=I")


def _pyroute2_messages() -> tuple[Any, Any, Any]:
    """The classes rtmsg, ifaddrmsg, fibmsg, without running pyroute2's `__init__`.

    They are imported below an empty stand-in, and forgotten again: who wants all of pyroute2 still gets it.
    """
    found = find_spec("pyroute2")
    if found is None:
        raise ImportError("pyroute2 is not installed")
    is_loaded = "pyroute2" in sys.modules
    if not is_loaded:
        shell = ModuleType("pyroute2")
        shell.__path__ = list(found.submodule_search_locations or ())
        sys.modules["pyroute2"] = shell
    try:
        return (
            import_module("pyroute2.netlink.rtnl.rtmsg").rtmsg,
            import_module("pyroute2.netlink.rtnl.ifaddrmsg").ifaddrmsg,
            import_module("pyroute2.netlink.rtnl.fibmsg").fibmsg,
        )
    finally:
        if not is_loaded:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
                del sys.modules[name]


_rtmsg, _ifaddrmsg, _fibmsg = _pyroute2_messages()


def _encoded(kind: Any, fields: dict[str, int], attrs: list[tuple[str, Any]]) -> bytes:
    """A message's body: the header in front of it is the channel's."""
    message = kind()
    message.update(fields, attrs=attrs)
    message.encode()
    return bytes(message.data[16:])


def _decoded(kind: Any, body: bytes) -> Any:
    message = kind(_U32.pack(16 + len(body)) + bytes(12) + body)
    message.decode()
    return message


def family(text: str) -> int:
    """AF_INET or AF_INET6 of an address or a CIDR."""
    return AF_INET6 if ":" in text else AF_INET


# --- links -----------------------------------------------------------------------------------------------------------


def link_question(name: str = "") -> bytes:
    """The body of a GETLINK for the link named `name`, or for all."""
    body = _IFINFO.pack(0, 0, 0, 0, 0)
    return body + wire.attribute(_IFLA_IFNAME, name.encode() + b"\0") if name else body


def link_made(name: str, kind: str, if_id: int) -> bytes:
    """The body of a NEWLINK that makes a link."""
    data = (wire.nest(_INFO_DATA, wire.attribute(_XFRM_IF_ID, _U32.pack(if_id))),) if kind == "xfrm" else ()
    info = wire.nest(_IFLA_LINKINFO, wire.attribute(_INFO_KIND, kind.encode()), *data)
    return _IFINFO.pack(0, 0, 0, 0, 0) + wire.attribute(_IFLA_IFNAME, name.encode() + b"\0") + info


def link_gone(index: int) -> bytes:
    """The body of a DELLINK."""
    return _IFINFO.pack(0, 0, index, 0, 0)


def link_change(index: int, up: bool, mtu: int) -> bytes:
    """The body of a NEWLINK that sets a link up or down, and its MTU in bytes (0: leave)."""
    body = _IFINFO.pack(0, 0, index, UP if up else 0, UP)
    return body + wire.attribute(_IFLA_MTU, _U32.pack(mtu)) if mtu else body


def link_fact(body: bytes) -> LinkFact:
    """A NEWLINK, read by hand: pyroute2's ifinfmsg alone would load thirty modules. `mac` is "" where there is none."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = wire.attributes(body, _IFINFO.size)
    raw = found.get(_IFLA_ADDRESS, b"")
    mac = raw.hex(":") if len(raw) == 6 and any(raw) else ""
    name = found[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
    info = wire.attributes(found.get(_IFLA_LINKINFO, b""))
    kind = info.get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    data = wire.attributes(info.get(_INFO_DATA, b"")) if kind == "xfrm" else {}
    if_id = _U32.unpack(data[_XFRM_IF_ID])[0] if _XFRM_IF_ID in data else 0
    return LinkFact(name, mac, index, _U32.unpack(found[_IFLA_MTU])[0], bool(flags & UP), kind, if_id)


# --- addresses -------------------------------------------------------------------------------------------------------


def address_question(version: int, index: int = 0) -> bytes:
    """The body of a GETADDR dump of one family, of one link where `index` is given (strict checking)."""
    return _encoded(_ifaddrmsg, {"family": version, "index": index}, [])


def address_body(address: Address, index: int) -> bytes:
    """The body of a NEWADDR or DELADDR. A v4 address gets its subnet's broadcast address: DHCP servers ask for it.

    A v6 address is there at once, without duplicate address detection: a route may name it as its source right away.
    """
    local, _, length = address.cidr.partition("/")
    attrs: list[tuple[str, Any]] = [("IFA_LOCAL", local), ("IFA_ADDRESS", local)]
    if family(local) == AF_INET and int(length) < 31:
        attrs.append(("IFA_BROADCAST", _broadcast(local, int(length))))
    flags = (0 if address.connected else _NOPREFIXROUTE) | (_NODAD if family(local) == AF_INET6 else 0)
    if flags:
        attrs.append(("IFA_FLAGS", flags))
    return _encoded(_ifaddrmsg, {"family": family(local), "prefixlen": int(length), "index": index}, attrs)


@lru_cache(maxsize=_REMEMBERED)
def address_part(body: bytes, link: str) -> tuple[Address, bool] | None:
    """A NEWADDR as (address, is it a secondary); None where it isn't permanent or is link-local v6: nobody's wish."""
    message = _decoded(_ifaddrmsg, body)
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    if not flags & _PERMANENT or (message["family"] == AF_INET6 and message["scope"] == _SCOPE_LINK):
        return None
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    address = Address(link, f"{local}/{message['prefixlen']}", connected=not flags & _NOPREFIXROUTE)
    return address, bool(flags & _SECONDARY)


def _broadcast(local: str, length: int) -> str:
    number = int.from_bytes(inet_aton(local)) | (1 << 32 - length) - 1
    return inet_ntoa(number.to_bytes(4))


# --- routes ----------------------------------------------------------------------------------------------------------


def route_question(version: int) -> bytes:
    """The body of a GETROUTE dump: ours, of all tables (the kernel filters by our protocol: strict checking)."""
    return _encoded(_rtmsg, {"family": version, "proto": PROTOCOL}, [])


def way_question(address: str) -> bytes:
    """The body of a GETROUTE for the way that a packet of ours to `address` would take."""
    length = 128 if ":" in address else 32
    return _encoded(_rtmsg, {"family": family(address), "dst_len": length}, [("RTA_DST", address)])


def way(body: bytes) -> tuple[int, str, str]:
    """The answer to `way_question`: index of the link, gateway or "", our source address there or ""."""
    message = _decoded(_rtmsg, body)
    return (
        message.get_attr("RTA_OIF") or 0,
        message.get_attr("RTA_GATEWAY") or "",
        message.get_attr("RTA_PREFSRC") or "",
    )


def route_body(route: Route, index: int, gone: bool = False) -> bytes:
    """The body of a NEWROUTE or (`gone`) DELROUTE of ours. A delete names as little as it can; index 0: on any link."""
    destination, _, length = route.destination.partition("/")
    fields = {
        "family": family(destination),
        "dst_len": int(length),
        "proto": PROTOCOL,
        "type": _UNICAST,
        "scope": _SCOPE_UNIVERSE if route.via or ":" in destination else _SCOPE_LINK,
        "flags": _ONLINK if route.via else 0,
        "table": route.table if route.table < 256 else 0,
    }
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", route.table)]
    if index:
        attrs.append(("RTA_OIF", index))
    if int(length):
        attrs.append(("RTA_DST", destination))
    if route.via:
        attrs.append(("RTA_GATEWAY", route.via))
    if route.metric:
        attrs.append(("RTA_PRIORITY", route.metric))
    if gone:
        fields |= {"type": 0, "scope": _SCOPE_NOWHERE, "flags": 0}  # of any kind: our protocol says enough
    elif route.source:
        attrs.append(("RTA_PREFSRC", route.source))
    return _encoded(_rtmsg, fields, attrs)


def route_part(body: bytes, link_name: Callable[[int], str]) -> Route | None:
    """A NEWROUTE in our words, None where it isn't ours. What we have no words for (several gateways) has no link."""
    if body[_RTM_PROTOCOL] != PROTOCOL:
        return None
    route, index = _route(body)
    return replace(route, link=link_name(index))


@lru_cache(maxsize=_REMEMBERED)
def _route(body: bytes) -> tuple[Route, int]:
    """A route without its link's name, and that link's index (0: it has several, or none)."""
    message = _decoded(_rtmsg, body)
    is_v6 = message["family"] == AF_INET6
    metric = message.get_attr("RTA_PRIORITY") or 0
    route = Route(
        destination=f"{message.get_attr('RTA_DST') or ('::' if is_v6 else '0.0.0.0')}/{message['dst_len']}",
        link="",
        via=message.get_attr("RTA_GATEWAY") or "",
        table=message.get_attr("RTA_TABLE") or message["table"],
        source=message.get_attr("RTA_PREFSRC") or "",
        metric=0 if is_v6 and metric == _V6_METRIC else metric,
    )
    return route, message.get_attr("RTA_OIF") or 0


# --- policy rules ----------------------------------------------------------------------------------------------------


def rule_question(version: int) -> bytes:
    return _encoded(_fibmsg, {"family": version}, [])


def rule_body(rule: Rule) -> bytes:
    """The body of a NEWRULE or DELRULE of ours."""
    source, _, length = rule.source.partition("/")
    version = AF_INET6 if rule.family == 6 else AF_INET
    fields = {
        "family": version,
        "src_len": int(length or (32 if version == AF_INET else 128)) if source else 0,
        "table": rule.table if rule.table < 256 else 0,
        "action": _TO_TABLE,
    }
    attrs: list[tuple[str, Any]] = [
        ("FRA_PRIORITY", rule.priority),
        ("FRA_TABLE", rule.table),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    if source:
        attrs.append(("FRA_SRC", source))
    if rule.mask:
        attrs += [("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mask)]
    if rule.suppress >= 0:
        attrs.append(("FRA_SUPPRESS_PREFIXLEN", rule.suppress))
    return _encoded(_fibmsg, fields, attrs)


def rule_part(body: bytes) -> Rule | None:
    """A NEWRULE in our words, or None where it isn't ours."""
    message = _decoded(_fibmsg, body)
    if message.get_attr("FRA_PROTOCOL") != PROTOCOL:
        return None
    source = message.get_attr("FRA_SRC")
    suppress = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return Rule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=message.get_attr("FRA_TABLE") or message["table"],
        mark=message.get_attr("FRA_FWMARK") or 0,
        mask=message.get_attr("FRA_FWMASK") or 0,
        source=f"{source}/{message['src_len']}" if source else "",
        suppress=-1 if suppress is None or suppress == 0xFFFFFFFF else suppress,
        family=6 if message["family"] == AF_INET6 else 4,
    )
