"""One address family or two: what a router that has no IPv6 address leaves out, so that it costs nothing.

Each chain is written for both families at one place; `spoken` takes out what such a router need not ask.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.state import FilterRule, NftSet
from appliance.values import is_v6
from router.config import Config

_OF_V6 = frozenset({"ip6 saddr", "ip6 daddr", "icmpv6 type", "icmpv6 code"})


def speaks_v6(config: Config) -> bool:
    """Does a router have an IPv6 address, or a tunnel of IPv6? One that has none sends nothing of IPv6 on."""
    found = [c for i in config.interfaces for c in i.addresses]
    found += [c for w in config.wireguard for c in w.addresses]
    found += [c for s in config.wireguard_sites for c in s.networks]
    return any(map(is_v6, found))


def spoken(rules: Iterable[FilterRule], v6: bool) -> tuple[FilterRule, ...]:
    """The rules that a router asks which speaks IPv6 (`v6`) or doesn't."""
    return tuple(r for r in rules if v6 or not _is_of_v6(r))


def spoken_sets(sets: Iterable[NftSet], v6: bool) -> dict[str, NftSet]:
    """The same of sets, by name."""
    return {s.name: s for s in sets if v6 or "ipv6_addr" not in s.key}


def _is_of_v6(rule: FilterRule) -> bool:
    fields = {str(f) for m in rule.matches for f in m.fields} | set(map(str, getattr(rule.statement, "fields", ())))
    return not fields.isdisjoint(_OF_V6) or any(m.values == ("ipv6",) for m in rule.matches)
