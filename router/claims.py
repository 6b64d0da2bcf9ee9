"""Who claims a public address and its ports: forwards, static NATs, firewall rules; and egress rules beside
them.

Two forwards clash where they share an address, a protocol, a port and a source. One that names its sources
and one that doesn't never clash: the named ones are asked first (README.md, 2).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

from appliance.state import Problem
from appliance.values import bounds, is_v6
from router.config import Acl, AclItem, Config, EgressRule, Firewall, Forward, IngressRule, StaticNat
from router.gate import distinct
from router.topology import Ground, listed, only, untranslated

_ALL_OF_V4 = ((0, (1 << 32) - 1),)


# --- forwards -----------------------------------------------------------------------------------------------


def forward_problems(forward: Forward, ground: Ground, static: Mapping[str, StaticNat]) -> Iterator[Problem]:
    """One forward. `static` are the static NATs by their public address."""
    path = f"config.forwards[{forward.id}]"
    if is_v6(forward.address):
        yield untranslated(f"{path}.address", forward.address)
    elif forward.address not in ground.public:
        yield from ground.not_public(f"{path}.address", forward.address)
    elif forward.address in static:
        other = static[forward.address].id
        told = f"{forward.address} is static NAT {other}'s whole; remove that, or forward from another address"
        yield Problem(f"{path}.address", told)
    yield from ground.no_guest(f"{path}.target", forward.target)
    if forward.sources:
        yield from only(f"{path}.sources", forward.sources)
    wide, inner = forward.ports, forward.target_ports
    if inner is not None and wide.last - wide.first != inner.last - inner.first:
        told = f"{_span(inner)} is not as long as {_span(wide)}; give as many target ports as ports, or none"
        yield Problem(f"{path}.target_ports", told)


def _span(ports: object) -> str:
    first, last = getattr(ports, "first", 0), getattr(ports, "last", 0)
    return f"{first}-{last}" if first != last else f"{first}"


def clash_problems(forwards: Iterable[Forward], blame: frozenset[str] = frozenset()) -> Iterator[Problem]:
    """The clashes between forwards, told at the one in `blame`, else at the later id."""
    groups: dict[tuple[str, str, bool], list[Forward]] = {}
    for forward in forwards:
        groups.setdefault((forward.address, forward.protocol, bool(forward.sources)), []).append(forward)
    for group in groups.values():
        if len(group) > 1:
            for one, two in _clashes(group):
                told, other = (one, two) if (one.id in blame, one.id) > (two.id in blame, two.id) else (two, one)
                yield _clash(told, other)


def _clash(told: Forward, other: Forward) -> Problem:
    first = max(told.ports.first, other.ports.first)
    port = f"port {first}/{told.protocol} of {told.address} is forwarded by {other.id} too"
    if told.sources:
        return Problem(
            f"config.forwards[{told.id}].sources",
            f"{port}, and their sources overlap; make the sources disjoint, or take another port",
        )
    return Problem(f"config.forwards[{told.id}].ports", f"{port}; take another port, or give one of them sources")


# Sources of a live forward: first and last address, the last of its ports, the forward.
_Claim = tuple[int, int, int, Forward]


def _clashes(group: list[Forward]) -> Iterator[tuple[Forward, Forward]]:
    """The pairs that share a port and a source, of forwards of one address and protocol.

    A sweep over the ports: the claims alive at a port are disjoint ranges of sources, kept in order, so that
    each new one is compared with its neighbours only.
    """
    alive: list[_Claim] = []
    by_first = itemgetter(0)
    found: set[tuple[str, str]] = set()
    for forward in sorted(group, key=lambda f: (f.ports.first, f.id)):
        port, end = forward.ports.first, forward.ports.last
        for first, last in _ranges(forward):
            place = bisect_left(alive, first, key=by_first)
            if place and alive[place - 1][1] >= first:
                place -= 1
            free = True
            while place < len(alive) and alive[place][0] <= last:
                _, _, until, other = alive[place]
                if until >= port:
                    if (other.id, forward.id) not in found:
                        found.add((other.id, forward.id))
                        yield other, forward
                    free = end > until
                if free or until < port:
                    del alive[place]
                else:
                    place += 1
            if free:
                insort(alive, (first, last, end, forward), key=by_first)


def _ranges(forward: Forward) -> Sequence[tuple[int, int]]:
    """The sources of a forward as disjoint ranges of numbers."""
    sources = tuple(c for c in forward.sources if not is_v6(c))
    return [bounds(c) for c in distinct(sources)] or _ALL_OF_V4


# --- static NATs --------------------------------------------------------------------------------------------


def static_nat_problems(config: Config, ground: Ground) -> Iterator[Problem]:
    """Each static NAT by itself and among each other. Forwards of their addresses are told at the forward."""
    addresses: dict[str, str] = {}
    targets: dict[str, str] = {}
    for nat in config.static_nats:
        path = f"config.static_nats[{nat.id}]"
        if is_v6(nat.address):
            yield untranslated(f"{path}.address", nat.address)
        else:
            yield from ground.not_public(f"{path}.address", nat.address)
        yield from ground.no_guest(f"{path}.target", nat.target)
        if (other := addresses.setdefault(nat.address, nat.id)) != nat.id:
            told = f"{nat.address} is the public address of static NAT {other} already; give another"
            yield Problem(f"{path}.address", told)
        if (other := targets.setdefault(nat.target, nat.id)) != nat.id:
            told = f"{nat.target} has a public address by static NAT {other} already; remove one of them"
            yield Problem(f"{path}.target", told)


# --- firewall and egress ------------------------------------------------------------------------------------


def firewall_problems(rule: Firewall, ground: Ground) -> Iterator[Problem]:
    """One firewall rule."""
    v6 = is_v6(rule.address)
    if rule.address not in ground.public:
        yield from ground.not_public(f"config.firewall[{rule.id}].address", rule.address)
    if rule.sources:
        yield from only(f"config.firewall[{rule.id}].sources", rule.sources, v6)
    if rule.protocol == ("icmp" if v6 else "icmpv6"):
        told = f"{rule.address} speaks {'icmpv6' if v6 else 'icmp'}, not {rule.protocol}; correct it"
        yield Problem(f"config.firewall[{rule.id}].protocol", told)
    yield from _protocol_problems(rule, f"config.firewall[{rule.id}]")


def egress_problems(rule: EgressRule, ground: Ground) -> Iterator[Problem]:
    """One egress rule."""
    path = f"config.egress[{rule.id}]"
    yield from _of_a_network(rule, ground, "leaves it; write this as an item of its egress list", path)
    yield from _protocol_problems(rule, path)


def ingress_problems(rule: IngressRule, ground: Ground) -> Iterator[Problem]:
    """One ingress rule."""
    path = f"config.ingress[{rule.id}]"
    yield from _of_a_network(rule, ground, "comes into it; write this as an item of its ingress list", path)
    lot = ground.lots.get(rule.network)
    if lot and not lot.network.routed and lot.network.cidr6 is None:
        told = f"nobody reaches the guests of network {rule.network} by their own addresses"
        yield Problem(f"{path}.network", f"{told}; give it routed or a cidr6, or write a forward and a firewall rule")
    yield from _protocol_problems(rule, path)


def _of_a_network(rule: EgressRule | IngressRule, ground: Ground, judged: str, path: str) -> Iterator[Problem]:
    if rule.network not in ground.lots:
        known = listed(ground.lots) or "none"
        yield Problem(f"{path}.network", f"there is no network {rule.network}; the networks are: {known}")
    elif ground.lots[rule.network].network.acl is not None:
        yield Problem(f"{path}.network", f"the ACL of network {rule.network} judges what {judged}")


def acl_problems(acl: Acl) -> Iterator[Problem]:
    """One ACL: the items of its lists."""
    for side, items in (("ingress", acl.ingress), ("egress", acl.egress)):
        seen: set[str] = set()
        for item in items:
            path = f"config.acls[{acl.id}].{side}[{item.id}]"
            if item.id in seen:
                yield Problem(f"{path}.id", f"there are two items of this id in {side}; give each its own")
            seen.add(item.id)
            yield from _protocol_problems(item, path)


def _protocol_problems(rule: Firewall | EgressRule | IngressRule | AclItem, path: str) -> Iterator[Problem]:
    protocol = rule.protocol
    if rule.ports is not None and protocol not in ("tcp", "udp"):
        named = {6: "; write tcp for 6", 17: "; write udp for 17"}.get(protocol if isinstance(protocol, int) else 0, "")
        told = f"ports go with tcp and udp, not with {protocol}{named or '; remove them'}"
        yield Problem(f"{path}.ports", told)
    if rule.icmp_type is not None and protocol not in ("icmp", "icmpv6"):
        told = f"icmp_type goes with protocol icmp or icmpv6, not with {protocol}; remove it"
        yield Problem(f"{path}.icmp_type", told)
    if rule.icmp_code is not None and (protocol not in ("icmp", "icmpv6") or rule.icmp_type is None):
        told = "a code needs protocol icmp or icmpv6 and an icmp_type; add the type, or remove the code"
        yield Problem(f"{path}.icmp_code", told)
