"""The second engine: a document as legacy iptables and ip6tables, by hand. Pure; xtables.py puts it into the kernel.

It was written from router/README.md and not from the compiler, so that a misunderstanding must happen twice, in two
engines of the kernel, before the tests miss it. `tables` says the rules, `ways` the addresses and routes, both of a
document as one family sees it (family.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from appliance.values import bounds, contains, dotted, subnet
from router.config import AclItem, Config, EgressRule, Firewall, Forward, IngressRule, Interface, Network

# src, dst, protocol, in_interface, out_interface; matches: {module: {option: value}}; target: [name, {option: value}]
Rule = dict[str, Any]
Chains = dict[str, list[Rule]]

METADATA = "169.254.169.254"
TURNED = "0x1000000"  # mark: leaves by the interface it came in by, translated


def tables(config: Config, names: Mapping[str, str], v6: bool = False) -> dict[str, Chains]:
    """The rules of a document by table and chain. `names` are its interfaces' links. Policies are in `POLICIES`."""
    found = {"mangle": mangle(config, names, v6), "filter": filtering(config, names, v6)}
    return found if v6 else {**found, "nat": nat(config, names)}


POLICIES = {("filter", "INPUT"): "DROP", ("filter", "FORWARD"): "DROP"}


# --- mangle: senders, the firewall of public addresses, uplinks ---


def mangle(config: Config, names: Mapping[str, str], v6: bool) -> Chains:
    chains: Chains = {
        "PREROUTING": [
            {"in_interface": "lo", **to("RETURN")},
            {**state("ESTABLISHED,RELATED"), **RESTORE},
            {**state("ESTABLISHED,RELATED"), **to("RETURN")},
            {**state("INVALID"), **to("DROP")},
            {**to("sender")},
            *({"dst": address, **to(firewall_chain(config, address))} for address in publics(config)),
            *uplinks(config, names),
            {**RESTORE},
        ],
        "OUTPUT": [
            {**RESTORE},
            *(
                {**state("NEW"), "src": address, **to("MARK", {"set-mark": hex(number)})}
                for number, uplink in numbered(config)
                for address in own(uplink)
            ),
        ],
        "FORWARD": [
            *({"in_interface": n, "out_interface": n, **state("DNAT"), **marked(TURNED)} for n in names.values()),
        ],
        "sender": [*(nobodys6(config) if v6 else ()), *senders(config, names, v6)],
    }
    for address in publics(config):
        rules = [r for r in config.firewall if r.address == address]
        chains[firewall_chain(config, address)] = [
            *({**match, **to("RETURN")} for rule in rules for match in judged(rule)),
            {**to("DROP")},
        ]
    return chains


def nobodys6(config: Config) -> Iterator[Rule]:
    """Rule 0, as far as the kernel sees to it in IPv4 and not in IPv6."""
    yield from ({"src": nobody, **to("DROP")} for nobody in ("::/127", "ff00::/8"))
    yield {"dst": "::/127", **to("DROP")}
    for cidr in (c for i in config.interfaces for c in i.addresses):
        yield {"src": cidr.partition("/")[0], **to("DROP")}
        if int(cidr.partition("/")[2]) < 127:
            yield {"src": subnet(cidr).partition("/")[0], **to("DROP")}


def senders(config: Config, names: Mapping[str, str], v6: bool) -> Iterator[Rule]:
    """Rule 0, as far as the kernel does not see to it: who may be behind which interface."""
    for interface in config.interfaces:
        if interface.use != "public":
            for cidr in interface.addresses:
                yield {"in_interface": names[interface.id], "src": subnet(cidr), **to("RETURN")}
                yield {"src": subnet(cidr), **to("DROP")}
    for guest in used(config, "guest"):
        asks = {"src": "fe80::/10"} if v6 else {"src": "0.0.0.0", "dst": "255.255.255.255"}
        yield {"in_interface": names[guest.id], **asks, **to("RETURN")}
        yield {"in_interface": names[guest.id], **to("DROP")}


def uplinks(config: Config, names: Mapping[str, str]) -> Iterator[Rule]:
    """Which uplink a new flow belongs to; the later rule wins."""
    numbers = {uplink.id: number for number, uplink in numbered(config)}
    for uplink in used(config, "public"):
        yield {"in_interface": names[uplink.id], **connmark(numbers[uplink.id])}
    for network in config.networks:
        holder = holder_of(config, network.source_nat) if network.source_nat else first_uplink(config)
        if holder:
            where = {"in_interface": names[network.interface], "src": network.cidr}
            yield {**where, **connmark(numbers[holder.id])}
    for one in config.static_nats:
        guest = next(n for n in config.networks if contains(n.cidr, one.target))
        where = {"in_interface": names[guest.interface], "src": one.target}
        yield {**where, **connmark(numbers[holder_of(config, one.address).id])}


# --- nat: forwards, static NAT, hairpin, source NAT ---


def nat(config: Config, names: Mapping[str, str]) -> Chains:
    narrow = [f for f in config.forwards if f.sources]
    wide = [f for f in config.forwards if not f.sources]
    return {
        "PREROUTING": [{**to("translate")}],
        "OUTPUT": [{**to("translate")}],
        "translate": [
            *(rule for forward in narrow + wide for rule in forwarding(forward)),
            *({"dst": s.address, **dnat(s.target)} for s in config.static_nats),
        ],
        "POSTROUTING": [
            *(
                {"out_interface": names[i.id], **mark(TURNED), **snat(own(i)[0])}
                for i in config.interfaces
                if i.addresses
            ),
            *(
                {"src": s.target, "out_interface": names[out.id], **snat(s.address)}
                for s in config.static_nats
                for out in used(config, "public")
            ),
            *source_nats(config, names),
        ],
    }


def forwarding(forward: Forward) -> Iterator[Rule]:
    """The DNAT of a forward: port by port where the ports shift."""
    shift = forward.target_ports.first - forward.ports.first if forward.target_ports else 0
    first, last = forward.ports.first, forward.ports.last
    spans = [(p, p) for p in range(first, last + 1)] if shift else [(first, last)]
    for low, high in spans:
        target = f"{forward.target}:{low + shift}" if shift else forward.target
        for source in forward.sources or ("0.0.0.0/0",):
            yield {
                "src": source,
                "dst": forward.address,
                "protocol": forward.protocol,
                "matches": {forward.protocol: {"dport": f"{low}:{high}"}},
                **dnat(target),
            }


def source_nats(config: Config, names: Mapping[str, str]) -> Iterator[Rule]:
    for network in config.networks:
        if network.source_nat is None:
            continue
        holder = holder_of(config, network.source_nat)
        for out in used(config, "public"):
            address = network.source_nat if out is holder else own(out)[0]
            where = {"src": network.cidr, "out_interface": names[out.id]}
            yield {**where, **snat(address)}
    for gateway in (i for i in used(config, "private") if i.source_nat):
        for network in config.networks:
            yield {"src": network.cidr, "out_interface": names[gateway.id], **snat(own(gateway)[0])}


# --- filter: what the router takes, what it forwards ---


def filtering(config: Config, names: Mapping[str, str], v6: bool) -> Chains:
    chains: Chains = {
        "INPUT": [
            {"in_interface": "lo", **to("ACCEPT")},
            {**state("ESTABLISHED,RELATED"), **to("ACCEPT")},
            {**state("INVALID"), **to("DROP")},
            *({"dst": address, **to("ACCEPT")} for address in publics(config)),
            *({**rule, **to("ACCEPT")} for i in config.interfaces for rule in offers(config, i, names[i.id], v6)),
        ],
        "FORWARD": [
            {**state("ESTABLISHED,RELATED"), **to("ACCEPT")},
            {**state("INVALID"), **to("DROP")},
            *guarded(config, names),
            {**state("DNAT"), **to("ACCEPT")},
            *between_tiers(config, names),
            *(
                {
                    "in_interface": names[network.interface],
                    "src": network.cidr,
                    "out_interface": names[out.id],
                    **to(egress_chain(config, network)),
                }
                for network in config.networks
                for out in config.interfaces
                if out.use in ("public", "private")
            ),
            *(
                {
                    "in_interface": names[came_by.id],
                    "dst": network.cidr,
                    "out_interface": names[network.interface],
                    **to(ingress_chain(config, network)),
                }
                for network in config.networks
                for came_by in config.interfaces
                if network.routed and came_by.use in ("public", "private")
            ),
        ],
    }
    for network in config.networks:
        usual, else_ = ("ACCEPT", "DROP") if network.egress.default == "allow" else ("DROP", "ACCEPT")
        rules = [r for r in config.egress if r.network == network.id]
        chains[egress_chain(config, network)] = [
            *({**match, **to(else_)} for rule in rules for match in judged(rule)),
            {**to(usual)},
        ]
        let_in = [r for r in config.ingress if r.network == network.id]
        chains[ingress_chain(config, network)] = [
            *({**match, **to("ACCEPT")} for rule in let_in for match in judged(rule)),
            {**to("ACCEPT" if network.acl else "DROP")},
        ]
    for acl in config.acls:
        for side, items, default in (
            ("src", acl.ingress, acl.ingress_default),
            ("dst", acl.egress, acl.egress_default),
        ):
            said = {"allow": "RETURN", "deny": "DROP"}
            chains[acl_chain(config, acl.id, side)] = [
                *({**match, **to(said[item.action])} for item in items for match in asked_of(item, side)),
                {**to(said[default])},
            ]
    return chains


def guarded(config: Config, names: Mapping[str, str]) -> Iterator[Rule]:
    """Who passes which list of which ACL: first out of places, then into them."""
    for flow, far in (("in_interface", "dst"), ("out_interface", "src")):
        near = "src" if far == "dst" else "dst"
        for n in (n for n in config.networks if n.acl):
            yield {flow: names[n.interface], near: n.cidr, **to(acl_chain(config, n.acl, far))}
        for i in (i for i in config.interfaces if i.acl):
            yield {flow: names[i.id], **to(acl_chain(config, i.acl, far))}


def between_tiers(config: Config, names: Mapping[str, str]) -> Iterator[Rule]:
    tiers = [n for n in config.networks if n.acl]
    for there in tiers:
        into = {"out_interface": names[there.interface], "dst": there.cidr, **to("ACCEPT")}
        for here in tiers:
            yield {"in_interface": names[here.interface], "src": here.cidr, **into}
        for gateway in used(config, "private"):
            yield {"in_interface": names[gateway.id], **into}


def acl_chain(config: Config, name: str | None, far: str) -> str:
    """The list of an ACL that asks of that end of a packet."""
    return f"acl_{[a.id for a in config.acls].index(str(name))}_{far}"


def asked_of(item: AclItem, far: str) -> Iterator[Rule]:
    for match in judged(item):
        for cidr in item.cidrs or (None,):
            yield {**match, far: cidr} if cidr else match


def offers(config: Config, interface: Interface, link: str, v6: bool) -> Iterator[Rule]:
    """What the router offers behind an interface."""
    echo: Rule = icmp(v6, "128" if v6 else "8")
    if interface.use == "control":
        for address in (a for i in config.interfaces for a in own(i)):
            yield {"in_interface": link, "dst": address, **echo}
            yield {"in_interface": link, "dst": address, **port("tcp", 3922)}
        if any(n.metadata for n in config.networks) and not v6:
            yield {"in_interface": link, "dst": METADATA, **echo}
            yield {"in_interface": link, "dst": METADATA, **port("tcp", 3922)}
    if interface.use in ("guest", "private"):
        for address in own(interface):
            yield {"in_interface": link, "dst": address, **echo}
    for network in networks(config, interface):
        asked = [echo]
        asked += [port("udp", 67)] if network.dhcp.enabled and not v6 else []
        asked += [port("udp", 53), port("tcp", 53)] if network.dns else []
        if v6 and network.advertise.addresses != "off":
            yield {"in_interface": link, "dst": "ff02::1:2", **port("udp", 547)}
        doors = [] if v6 else ["255.255.255.255", dotted(bounds(network.cidr)[1])]
        doors += [address for address in own(interface) if contains(network.cidr, address)]
        for address in doors:
            for rule in asked:
                yield {"in_interface": link, "dst": address, **rule}
        if network.metadata and not v6:
            router = next(a for a in own(interface) if contains(network.cidr, a))
            for address, number in ((router, 80), (router, 8080), (METADATA, 80)):
                yield {"in_interface": link, "dst": address, **port("tcp", number)}


# --- pieces of rules ---


def judged(rule: Firewall | EgressRule | IngressRule | AclItem) -> Iterator[Rule]:
    """The matches of a firewall or egress rule: one for each source and destination."""
    base: Rule = {}
    if rule.protocol != "any":
        base["protocol"] = {"icmp": "1", "icmpv6": "58"}.get(str(rule.protocol), str(rule.protocol))
    if rule.ports is not None:
        base["matches"] = {str(rule.protocol): {"dport": f"{rule.ports.first}:{rule.ports.last}"}}
    if rule.icmp_type is not None:
        code = "" if rule.icmp_code is None else f"/{rule.icmp_code}"
        base = icmp(rule.protocol == "icmpv6", f"{rule.icmp_type}{code}")
    for source in getattr(rule, "sources", ()) or (None,):
        for destination in getattr(rule, "destinations", ()) or (None,):
            # A firewall rule's destination is matched by the jump to its address's chain.
            ends = {"src": source, "dst": destination}
            yield {**base, **{name: cidr for name, cidr in ends.items() if cidr}}


def icmp(v6: bool, kind: str) -> Rule:
    if v6:
        return {"protocol": "icmpv6", "matches": {"icmp6": {"icmpv6-type": kind}}}
    return {"protocol": "icmp", "matches": {"icmp": {"icmp-type": kind}}}


def to(target: str, values: Mapping[str, str] = MappingProxyType({})) -> Rule:
    return {"target": [target, dict(values)]}


RESTORE = to("CONNMARK", {"restore-mark": ""})


def state(names: str) -> Rule:
    return {"matches": {"conntrack": {"ctstate": names}}}


def port(protocol: str, number: int) -> Rule:
    return {"protocol": protocol, "matches": {protocol: {"dport": str(number)}}}


def mark(bit: str) -> Rule:
    return {"matches": {"mark": {"mark": f"{bit}/{bit}"}}}


def marked(bit: str) -> Rule:
    return to("MARK", {"set-xmark": f"{bit}/{bit}"})


def connmark(number: int) -> Rule:
    return to("CONNMARK", {"set-mark": hex(number)})


def dnat(destination: str) -> Rule:
    return to("DNAT", {"to-destination": destination})


def snat(source: str) -> Rule:
    return to("SNAT", {"to-source": source})


def firewall_chain(config: Config, address: str) -> str:
    return f"public_{publics(config).index(address)}"


def egress_chain(config: Config, network: Network) -> str:
    return f"egress_{config.networks.index(network)}"


def ingress_chain(config: Config, network: Network) -> str:
    return f"ingress_{config.networks.index(network)}"


# --- the document's parts ---


def used(config: Config, use: str) -> list[Interface]:
    return [i for i in config.interfaces if i.use == use]


def own(interface: Interface) -> list[str]:
    return [cidr.partition("/")[0] for cidr in interface.addresses]


def publics(config: Config) -> list[str]:
    return [address for i in used(config, "public") for address in own(i)]


def numbered(config: Config) -> list[tuple[int, Interface]]:
    return list(enumerate(used(config, "public"), 1))


def first_uplink(config: Config) -> Interface | None:
    return next(iter(used(config, "public")), None)


def holder_of(config: Config, address: str) -> Interface:
    return next(i for i in used(config, "public") if address in own(i))


def networks(config: Config, interface: Interface) -> list[Network]:
    return [n for n in config.networks if n.interface == interface.id]


# --- routes ---


def ways(config: Config, names: Mapping[str, str], v6: bool = False) -> list[str]:
    """Addresses, routes and rules as ip(8)'s batch, from whatever was there before on any of the links."""
    lines = [f"address flush dev {link} scope global" for link in names.values()]
    lines += [
        "route flush table main",
        "rule flush",
        "rule add pref 32766 table main",
        *(f"route flush table {n}" for n in (99, 101, 102, 103)),
    ]
    for interface in config.interfaces:
        alone = (" noprefixroute" if interface.use == "public" else "") + (" nodad" if v6 else "")
        lines += [f"address add {cidr} dev {names[interface.id]}{alone}" for cidr in interface.addresses]
    told = dict.fromkeys(names[n.interface] for n in config.networks if n.metadata and not v6)
    lines += [f"address add {METADATA}/32 dev {link}" for link in told]
    for number, uplink in numbered(config):
        link, table = names[uplink.id], 100 + number
        for net in dict.fromkeys(map(subnet, uplink.addresses)):
            lines += [f"route add {net} dev {link} table {table}", f"route append {net} dev {link} table 99"]
        lines += [f"rule add pref 200 fwmark {number}/0xffff table {table}"]
        if uplink.gateway is None:
            continue
        lines += [f"route add default via {uplink.gateway} dev {link} onlink table {table}"]
        if uplink is next(i for i in used(config, "public") if i.gateway):
            lines += [f"route add default via {uplink.gateway} dev {link} onlink table main"]
    for route in config.routes:
        behind = [(subnet(c), i) for i in config.interfaces for c in i.addresses if contains(subnet(c), route.via)]
        _, interface = max(behind, key=lambda b: int(b[0].partition("/")[2]))
        lines += [f"route add {route.destination} via {route.via} dev {names[interface.id]} onlink table main"]
    return [*lines, "rule add pref 100 table main suppress_prefixlength 0", "rule add pref 300 table 99"]
