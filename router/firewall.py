"""The packet filter: what may come in to a public address, what the router answers itself, what it passes on.

    ingress    prerouting mangle: senders.py, the mark of the flow's uplink, the firewall of the public address
    input      what is for the router itself (README.md, 8)
    forward    translated packets, and guests outwards (egress.py)
    reroute    output: the router's own packets take their flow's uplink

The firewall judges a packet before its translation, by the address and port it was sent to, so that it says
the same whatever is behind the port. A packet to a public address meets two lookups in chain `public`:

    m_ingress           address . protocol . port -> accept, or a chain that asks for the source
    m_ingress_address   address -> a chain of what no element can say: icmp, whole protocols, wide ranges

and is dropped if neither takes it. Several rules that share an element unite in it: any of them may accept.

Marks come first in ingress and the firewall last, because a verdict from a map ends the chain; a flow that is
dropped leaves no mark behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from appliance.state import (
    Chain,
    Facts,
    FieldName,
    FilterRule,
    Hook,
    Match,
    NftSet,
    Ruleset,
    SetMark,
    State,
    Touched,
    Verdict,
    VerdictMap,
)
from appliance.values import bounds, dotted, number
from router.config import Config, Firewall, Interface, Network
from router.gate import Screen, amended, asked, exact_ports, open_to, owner_of, screen, terms_of, verdict_map
from router.links import link_names, own_addresses
from router.routing import Uplink, uplink_of, uplinks

ACCEPT, DROP = Verdict("accept"), Verdict("drop")
SENT_TO: tuple[FieldName, ...] = ("ip daddr", "meta l4proto", "th dport")
PORT_KEY = "ipv4_addr . inet_proto . inet_service"
CONTROL_PORT = "3922"

_KNOWN = Match(("ct state",), ("established", "related"))
_INVALID = Match(("ct state",), ("invalid",))
_ECHO = Match(("icmp type",), ("8",))
_LOOPBACK = Match(("iifname",), ("lo",))


def compile_firewall(config: Config, facts: Facts) -> State:
    """The chains of ingress, input and forward, with their sets."""
    known = uplinks(config, facts)
    inward, screens = _ingress(config.firewall)
    sets = [*_links(config, facts), *_marks(config, known), *_own(config, facts), *inward]
    sets += [s for found in screens for s in found.sets]
    return State(
        ruleset=Ruleset(
            {s.name: s for s in sets},
            (
                Chain("ingress", _ingress_rules(), Hook("filter", "prerouting", -150)),
                Chain("input", _input_rules(config, facts), Hook("filter", "input", 0, "drop")),
                Chain("forward", _forward_rules(), Hook("filter", "forward", 0, "drop")),
                Chain("reroute", _reroute_rules(), Hook("route", "output", -150)),
                Chain("public", _public_rules()),
                *(found.chain for found in screens),
            ),
        )
    )


def revise_firewall(ruleset: Ruleset, config: Config, touched: Sequence[Touched]) -> Ruleset:
    """`ruleset` after these firewall rules changed: their elements, and nobody else's."""
    before = [t.before for t in touched if isinstance(t.before, Firewall)]
    after = [t.after for t in touched if isinstance(t.after, Firewall)]
    ids = {t.id for t in touched}
    edits: dict[str, dict[str, tuple[str | Screen, str] | None]] = {}
    for name, keys_of, judge in (
        ("m_ingress", _exact_keys, _exact_verdict),
        ("m_ingress_address", _address_keys, _address_verdict),
    ):
        keys = {k for rule in (*before, *after) for k in keys_of(rule)}
        owners = ruleset.sets[name].owners
        # An element of one owner who is touched has nobody else: only the others must be searched for.
        shared = any(owners.get(k, "") not in ids and k in owners for k in keys)
        groups = _grouped(config.firewall if shared else after, keys_of, keys)
        edits[name] = {k: (judge(g), owner_of([r.id for r in g])) if (g := groups.get(k)) else None for k in keys}
    return amended(ruleset, edits)


# --- ingress ------------------------------------------------------------------------------------------------


def _ingress_rules() -> tuple[FilterRule, ...]:
    from_guest = Match(("iifname",), set="s_guest")
    take_mark = SetMark("meta mark", copy="ct mark")
    return (
        FilterRule((_LOOPBACK,), ACCEPT, "the router to itself"),
        FilterRule((), take_mark, "a flow's packets take its uplink"),
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow", counter=True),
        FilterRule((), Verdict("jump", "senders"), "is it from where it says"),
        FilterRule((), SetMark("ct mark", fields=("iifname",), map="m_uplink"), "answers leave as questions came"),
        FilterRule((from_guest,), SetMark("ct mark", fields=("ip saddr",), map="m_uplink_net"), "a network's uplink"),
        FilterRule(
            (from_guest,),
            SetMark("ct mark", fields=("ip saddr",), map="m_uplink_host"),
            "a static NAT's uplink",
        ),
        FilterRule((), take_mark, "the first packet too"),
        FilterRule((Match(("ip daddr",), set="s_public"),), Verdict("jump", "public"), "the firewall judges"),
    )


def _public_rules() -> tuple[FilterRule, ...]:
    return (
        FilterRule((), VerdictMap(SENT_TO, "m_ingress"), "open ports"),
        FilterRule((), VerdictMap(("ip daddr",), "m_ingress_address"), "what else an address takes"),
        FilterRule((), DROP, "no firewall rule lets it in", counter=True),
    )


def _ingress(rules: Iterable[Firewall]) -> tuple[tuple[NftSet, ...], list[Screen]]:
    """m_ingress and m_ingress_address, and the chains they lead to."""
    exact: dict[str, list[Firewall]] = {}
    wide: dict[str, list[Firewall]] = {}
    for rule in rules:
        for key in (keys := _exact_keys(rule)):
            exact.setdefault(key, []).append(rule)
        if not keys:
            wide.setdefault(rule.address, []).append(rule)
    ports = {key: _exact_verdict(group) for key, group in exact.items()}
    addresses = {key: _address_verdict(group) for key, group in wide.items()}
    return (
        verdict_map("m_ingress", PORT_KEY, ports, exact),
        verdict_map("m_ingress_address", "ipv4_addr", addresses, wide),
    ), [v for v in (*ports.values(), *addresses.values()) if isinstance(v, Screen)]


def _exact_keys(rule: Firewall) -> Sequence[str]:
    ports = exact_ports(rule)
    if ports is None:
        return ()
    head = f"{rule.address} . {rule.protocol} . "
    return [f"{head}{port}" for port in ports]


def _address_keys(rule: Firewall) -> Sequence[str]:
    return (rule.address,) if exact_ports(rule) is None else ()


def _exact_verdict(rules: Sequence[Firewall]) -> str | Screen:
    return open_to(rules, "accept", "from", "from where the firewall allows")


def _address_verdict(rules: Sequence[Firewall]) -> str | Screen:
    return screen("open", asked(map(terms_of, rules)), ACCEPT, "the firewall allows")


def _grouped(
    rules: Iterable[Firewall], keys_of: Callable[[Firewall], Sequence[str]], wanted: set[str]
) -> dict[str, list[Firewall]]:
    addresses = {key.partition(" ")[0] for key in wanted}
    groups: dict[str, list[Firewall]] = {}
    for rule in rules:
        if rule.address in addresses:
            for key in wanted.intersection(keys_of(rule)):
                groups.setdefault(key, []).append(rule)
    return groups


# --- the ways out, and the router's own flows ---------------------------------------------------------------


def _marks(config: Config, known: tuple[Uplink, ...]) -> Iterator[NftSet]:
    """The mark of whoever starts a flow: by the link it comes in by, by guest network, guest, own address."""
    owners = {u.link: u.interface.id for u in known}
    yield NftSet("m_uplink", "ifname", "mark", elements={u.link: str(u.mark) for u in known}, owners=owners)
    own = {a: u for u in known for a in u.addresses}
    marks = {a: str(u.mark) for a, u in own.items()}
    owners = {a: u.interface.id for a, u in own.items()}
    yield NftSet("m_uplink_own", "ipv4_addr", "mark", elements=marks, owners=owners)
    yield NftSet("s_public", "ipv4_addr", elements=dict.fromkeys(own, ""), owners=owners)
    networks = config.networks if known else ()
    marks = {n.cidr: str(uplink_of(n.source_nat, known).mark) for n in networks}
    owners = {n.cidr: n.id for n in networks}
    yield NftSet("m_uplink_net", "ipv4_addr", "mark", interval=True, elements=marks, owners=owners)


def _reroute_rules() -> tuple[FilterRule, ...]:
    return (
        FilterRule(
            (Match(("ct state",), ("new",)),),
            SetMark("ct mark", fields=("ip saddr",), map="m_uplink_own"),
            "own flows leave by their source's uplink",
        ),
        FilterRule((), SetMark("meta mark", copy="ct mark"), "own packets take their flow's uplink"),
    )


def _links(config: Config, facts: Facts) -> Iterator[NftSet]:
    for name, uses in (
        ("s_guest", ("guest",)),
        ("s_uplink", ("public",)),
        ("s_outside", ("public", "private")),
    ):
        found = link_names(config, facts, *uses)
        owners = {link: i.id for link, i in found.items()}
        yield NftSet(name, "ifname", elements=dict.fromkeys(found, ""), owners=owners)


# --- input --------------------------------------------------------------------------------------------------


def _input_rules(config: Config, facts: Facts) -> tuple[FilterRule, ...]:
    control = Match(("iifname",), tuple(link_names(config, facts, "control")))
    manager = (control, Match(("meta l4proto",), ("tcp",)), Match(("th dport",), (CONTROL_PORT,)))
    neighbours = Match(("icmpv6 type",), ("133", "134", "135", "136"))
    here: tuple[FieldName, ...] = ("iifname", "ip daddr")
    return (
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow"),
        FilterRule((_LOOPBACK,), ACCEPT, "the router to itself"),
        FilterRule((neighbours,), ACCEPT, "IPv6 neighbour discovery"),
        FilterRule(manager, ACCEPT, "the manager"),
        FilterRule((control, _ECHO), ACCEPT, "the manager's ping"),
        FilterRule((Match(("ip daddr",), set="s_public"),), ACCEPT, "the firewall has judged it"),
        FilterRule((Match(here, set="s_own"), _ECHO), ACCEPT, "ping from a neighbour"),
        FilterRule((Match((*here, "meta l4proto", "th dport"), set="s_service"),), ACCEPT, "DHCP, DNS"),
    )


def _own(config: Config, facts: Facts) -> Iterator[NftSet]:
    """s_own: where a neighbour may ping the router; s_service: where a guest may ask it."""
    own: dict[str, str] = {}
    services: dict[str, str] = {}
    for link, interface in link_names(config, facts, "guest", "private").items():
        networks = [n for n in config.networks if n.interface == interface.id]
        for address in own_addresses(interface):
            own[f"{link} . {address}"] = interface.id
        for network in networks:
            for address in _asked_at(network, interface):
                own[f"{link} . {address}"] = interface.id
                services.update((f"{link} . {address} . {s}", network.id) for s in _services(network))
    yield NftSet("s_own", "ifname . ipv4_addr", elements=dict.fromkeys(own, ""), owners=own)
    key = f"ifname . {PORT_KEY}"
    yield NftSet("s_service", key, elements=dict.fromkeys(services, ""), owners=services)


def _asked_at(network: Network, interface: Interface) -> Iterator[str]:
    """The router's addresses in a network, and the broadcasts by which a guest without an address asks."""
    first, last = bounds(network.cidr)
    yield from (a for a in own_addresses(interface) if first <= number(a) <= last)
    yield dotted(last)
    yield "255.255.255.255"


def _services(network: Network) -> Iterator[str]:
    if network.dhcp.enabled:
        yield "udp . 67"
    if network.dns:
        yield "udp . 53"
        yield "tcp . 53"


# --- forward ------------------------------------------------------------------------------------------------


def _forward_rules() -> tuple[FilterRule, ...]:
    outwards = Match(("oifname",), set="s_outside")
    return (
        FilterRule((_KNOWN,), ACCEPT, "flows that were let in"),
        FilterRule((_INVALID,), DROP, "belongs to no flow"),
        FilterRule((Match(("ct status",), ("dnat",)),), ACCEPT, "translated: the firewall has judged it"),
        FilterRule((outwards,), VerdictMap(("ip saddr",), "m_egress"), "guests outwards"),
    )
