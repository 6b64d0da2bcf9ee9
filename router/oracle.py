"""What a document means: the fate of any packet that starts a flow, in plain Python, without a kernel.

This is router/README.md's rules once more, in their order and in their words. It knows nothing of nftables, marks
or routing tables, on purpose: it was written without looking at the compiler, and the tests hold compiler, kernel and
this page against each other. To learn what the product does, read `verdict` and go down.

    verdict ── sender_is_a_lie?  ── rule 0: what nobody honest sends
            ── to_public         ── rule 2: the address's firewall, then forwards, then static NAT, then the router
            │    └─ translated   ── rules 3, 4: to the new destination and nowhere else; hairpin
            ── from_router       ── rule 5: its own packets are translated alike and never judged
            ── to_router         ── rule 8: what each side may ask of the router itself
            └─ onwards           ── rules 6, 7, 11: guests go out, tiers to tiers, and who may comes in
                 ├─ beyond       ── rule 12: out of tunnels and into them
                 └─ sent_from    ── rule 6: source NAT
    what another sends on: acls_of, refusal ── rule 10: the ACL of where it comes from, and of where it goes
    every way out: way_out, uplink_of  ── rule 9

Rule 1 (what follows in a flow follows its first packet) is the kernel's connection tracking: here is only which way an
`answer` goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from appliance.values import bounds, contains, number, subnet
from router.config import (
    Acl,
    AclItem,
    Config,
    EgressRule,
    Firewall,
    Forward,
    IngressRule,
    Interface,
    Network,
    Ports,
    StaticNat,
)
from router.config_balancer import Balancer, StatsPage
from router.config_wireguard import Wireguard
from router.packet import NUMBERS, Outcome, Packet, Verdict
from router.tunnels import Tunnel, devices, tunnels

# ICMP messages that ask for an answer: echo, timestamp, information, address mask (RFC 792, 950). No other starts a
# flow: an error or an answer belongs to the flow it is about, and without one it belongs to nothing.
# ICMPv6: echo, node information (RFC 4443, 4620).
QUESTIONS = frozenset({8, 13, 15, 17})
QUESTIONS6 = frozenset({128, 139})
NEIGHBOURLY = frozenset({133, 134, 135, 136})  # neighbour discovery (RFC 4861): between two ends of a link, no flow
EVERYONE = "255.255.255.255"
ALL_HOSTS = "224.0.0.1"  # the one group that every machine is in (RFC 1112)
DHCP_SERVERS = "ff02::1:2"  # of a link (RFC 8415)
METADATA = "169.254.169.254"  # the router's on every link with a network that has metadata
# No source, and nowhere to send on to.
NOBODYS = (
    "0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/127", "ff00::/8",
)  # fmt: skip
OF_A_LINK = ("fe80::/10",)  # any link has them: nothing from or to them is sent on
GROUPS_OF_A_LINK = ("ff02::/16",)


@dataclass(frozen=True, slots=True)
class Mouth:
    """The router's end of tunnels (rule 12), in the place of an interface."""

    id: str
    addresses: tuple[str, ...]
    use: Literal["tunnel"] = "tunnel"
    acl: None = None
    gateway: None = None
    gateway6: None = None
    source_nat: Literal[False] = False


Side = Interface | Mouth


def sides(config: Config) -> tuple[Side, ...]:
    """Wherever a packet can come in or go out."""
    return (*config.interfaces, *(Mouth(d.id, d.addresses) for d in devices(config).values()))


def verdict(config: Config, packet: Packet) -> Outcome:
    """What becomes of a packet that starts a flow. `config` passed the checks."""
    if packet.in_interface == "":
        return from_router(config, packet)
    if packet.is_v6 and packet.is_icmp and packet.icmp_type in NEIGHBOURLY and is_for_us(config, packet.destination):
        return local(packet, "neighbour discovery")
    if not starts_a_flow(packet):
        return dropped(packet, "an ICMP message that asks nothing starts no flow")
    came_by = next(i for i in sides(config) if i.id == packet.in_interface)
    if lie := sender_is_a_lie(config, packet, came_by):
        return dropped(packet, lie, came_by.id)
    if holder_of(config, packet.destination, "public"):
        return to_public(config, packet, came_by)
    if is_for_us(config, packet.destination):
        return to_router(config, packet, came_by)
    return onwards(config, packet, came_by)


def starts_a_flow(packet: Packet) -> bool:
    return not packet.is_icmp or packet.icmp_type in (QUESTIONS6 if packet.is_v6 else QUESTIONS)


# --- rule 0: senders ---


def sender_is_a_lie(config: Config, packet: Packet, came_by: Side) -> str:
    """Why no honest sender can have sent this in by that interface, "" where one can."""
    source = packet.source
    if source == "0.0.0.0" and packet.destination == EVERYONE:
        return ""
    if is_among(source, NOBODYS):
        return f"{source} is nobody's address"
    if is_own(config, source):
        return f"{source} is the router's own address"
    if is_broadcast(sides(config), source):
        return f"{source} is a broadcast address"
    home = inner_home_of(config, source)
    if home is not None and home.id != came_by.id:
        return f"{source} lives behind {home.id}"
    if came_by.use in ("guest", "tunnel") and home is None and not is_among(source, OF_A_LINK):
        return f"{source} is a stranger among the guests of {came_by.id}"
    return ""


def inner_home_of(config: Config, source: str) -> Side | None:
    """The guest, private or control interface in whose subnet an address lies, or the tunnels beyond which it does."""
    if tunnel := tunnel_of(config, source):
        return mouth_of(config, tunnel)
    return next((i for i in config.interfaces if i.use != "public" and is_connected(i, source)), None)


def tunnel_of(config: Config, address: str) -> Tunnel | None:
    """The tunnel beyond which an address lies."""
    return next((t for t in tunnels(config) if t.cidrs and is_among(address, t.cidrs)), None)


def mouth_of(config: Config, tunnel: Tunnel) -> Side:
    return next(side for side in sides(config) if side.id == tunnel.device.id)


# --- rule 1: answers ---


def answer(config: Config, packet: Packet) -> Outcome:
    """What becomes of the answer to a packet that was let in (rule 1): back from where the question was sent to.

    The outcome is the answer's: of the packet's addresses and ports each in the other's place.
    """
    came_by = next((i for i in sides(config) if i.id == packet.in_interface), None)
    sport, dport = (packet.destination_port, packet.source_port) if packet.has_ports else (None, None)
    if came_by is None:
        return Outcome("local", "", packet.destination, packet.source, sport, dport, (), "an answer to the router")
    out = way_out(config, packet.source, uplink_of(config, packet, came_by))
    if out is None:
        return dropped(packet, f"there is no way back to {packet.source}")
    return Outcome("forwarded", out.id, packet.destination, packet.source, sport, dport, (out.id,), "an answer")


# --- rule 2: to a public address ---


def to_public(config: Config, packet: Packet, came_by: Side) -> Outcome:
    """The firewall of the address judges the packet as it was sent; then it is translated or is the router's."""
    let_in = next((rule for rule in config.firewall if firewall_allows(rule, packet)), None)
    if listener := next((w for w in config.wireguard if is_called(config, w, packet)), None):
        return local(packet, "a tunnel's peers", listener.id)
    if ident := ipsec_of(config, packet):
        return local(packet, "a tunnel's peers", ident)
    if let_in is None:
        return dropped(packet, f"no firewall rule of {packet.destination} lets it in")
    translation = translation_of(config, packet)
    if translation is None:
        return local(packet, "the firewall let it in, and nothing translates it", let_in.id)
    return translated(config, packet, translation, came_by, let_in.id)


def firewall_allows(rule: Firewall, packet: Packet) -> bool:
    return rule.address == packet.destination and is_of(rule, packet) and is_among(packet.source, rule.sources)


def is_called(config: Config, listener: Wireguard, packet: Packet) -> bool:
    """Is it sent to a listener's port, at its address, or at that from which it calls sites?"""
    if not is_to_port(packet, "udp", listener.port):
        return False
    if packet.destination == listener.address:
        return True
    calls = any(site.wireguard == listener.id and site.endpoint for site in config.wireguard_sites)
    own = [a for i in config.interfaces if listener.address in addresses(i) for a in addresses(i)]
    first = [a for v6 in (False, True) for a in [a for a in own if (":" in a) is v6][:1]]
    return calls and packet.destination in first


def ipsec_of(config: Config, packet: Packet) -> str | None:
    """Whose IKE or ESP it is, by the address it was sent to."""
    if packet.protocol != 50 and not (is_to_port(packet, "udp", 500) or is_to_port(packet, "udp", 4500)):
        return None
    sites = [s.id for s in config.ipsec_sites if s.address == packet.destination]
    return next(iter(sites + [a.id for a in config.ipsec_access if a.address == packet.destination]), None)


def translation_of(config: Config, packet: Packet) -> Forward | StaticNat | None:
    """What translates a packet to a public address: a forward for this source, a forward for all, a rule that balances
    UDP, a static NAT."""
    forwards = [f for f in config.forwards if f.address == packet.destination and is_forwarded(f, packet)]
    for forward in forwards:
        if forward.sources and is_among(packet.source, forward.sources):
            return forward
    for forward in forwards:
        if not forward.sources:
            return forward
    if spread := spread_of(config, packet):
        return spread
    return next((nat for nat in config.static_nats if nat.address == packet.destination), None)


def spread_of(config: Config, packet: Packet) -> Forward | None:
    """The rule that balances UDP here, as a forward to one of its backends; of several any may be asked."""
    for rule in config.balancers:
        is_here = rule.address == packet.destination and is_to_port(packet, "udp", rule.port)
        if rule.protocol == "udp" and is_here and is_among(packet.source, rule.sources):
            willing = [b for b in rule.backends if not b.drain]
            if not willing:
                return None
            first = min(willing, key=lambda b: (b.backup, b.id))
            here, there = (Ports(first=p, last=p) for p in (rule.port, first.port))
            return Forward(
                id=rule.id, protocol="udp", address=rule.address, ports=here, target=first.address, target_ports=there
            )
    return None


def is_forwarded(forward: Forward, packet: Packet) -> bool:
    return packet.protocol == forward.protocol and holds(forward.ports, packet.destination_port)


# --- rules 3, 4: translated packets ---


def translated(config: Config, packet: Packet, by: Forward | StaticNat, came_by: Side | None, *let_in: str) -> Outcome:
    """To the new destination, and nowhere else. Back out where it came in: from the router, so that answers return."""
    port = packet.destination_port
    if isinstance(by, Forward) and by.target_ports is not None:
        port += by.target_ports.first - by.ports.first
    out = way_out(config, by.target, uplink_of(config, packet, came_by))
    if out is None:
        return dropped(packet, f"there is no way to {by.target}", *let_in, by.id)
    sent = replace(packet, destination=by.target, destination_port=port)
    if came_by and (refused := refusal(config, sent, came_by, out)):
        return dropped(packet, refused[0], *let_in, by.id, *refused[1:])
    source, why = packet.source, f"translated to {by.target}"
    if came_by is out:
        source, why = first_address(out), f"{why}, and back by the interface it came in by"
    else:
        source, _ = sent_from(config, packet, out)
    return forwarded(packet, out, source, by.target, port, why, *let_in, by.id)


# --- rule 5: from the router itself ---


def from_router(config: Config, packet: Packet) -> Outcome:
    """Its own packets are translated as anyone's are, and go where they want."""
    if starts_a_flow(packet) and (translation := translation_of(config, packet)):
        return translated(config, packet, translation, None)
    if is_own(config, packet.destination) or is_among(packet.destination, ("127.0.0.0/8", "::1/128")):
        return local(packet, "from the router to itself")
    out = way_out(config, packet.destination, uplink_of(config, packet, None))
    if out is None:
        return dropped(packet, f"there is no way to {packet.destination}")
    source, by = sent_from(config, packet, out)
    return forwarded(packet, out, source, packet.destination, packet.destination_port, "the router's own", *by)


# --- rules 6, 7: onwards ---


def onwards(config: Config, packet: Packet, came_by: Side) -> Outcome:
    """Untranslated, to somewhere else: for guests on their way out, for whoever comes in to guests by their own
    addresses, and for whoever goes to a tier."""
    if is_among(packet.source, OF_A_LINK):
        return dropped(packet, f"{packet.source} is of one link alone")
    out = way_out(config, packet.destination, uplink_of(config, packet, came_by))
    if out is None:
        return dropped(packet, f"there is no way to {packet.destination}")
    if refused := refusal(config, packet, came_by, out):
        return dropped(packet, *refused)
    if "tunnel" in (came_by.use, out.use):
        return beyond(config, packet, came_by, out)
    network = network_of(config, came_by, packet.source)
    if network and out.use in ("public", "private"):
        return outwards(config, packet, network, out)
    there = network_of(config, out, packet.destination)
    if there and came_by.use in ("public", "private") and (packet.is_v6 or there.routed):
        return inwards(config, packet, there, out)
    if there and there.acl and ((network and network.acl) or came_by.use == "private"):
        source, by = sent_from(config, packet, out)
        why = f"into tier {there.id}, and no ACL forbids it"
        return forwarded(packet, out, source, packet.destination, packet.destination_port, why, there.acl, *by)
    return dropped(packet, f"nothing goes untranslated from {came_by.id} to {out.id}", came_by.id)


def beyond(config: Config, packet: Packet, came_by: Side, out: Side) -> Outcome:
    """Out of a tunnel or into one: to and from guest networks; to another tunnel where both have transit; and to the
    internet for whoever has that."""
    here, there = tunnel_of(config, packet.source), tunnel_of(config, packet.destination)
    source, why, by = packet.source, "", ""
    if out.use == came_by.use:
        if here and there and here.transit and there.transit:
            why, by = "from tunnel to tunnel, which both allow", here.owner
    elif out.use == "tunnel":
        if network := network_of(config, came_by, packet.source):
            why, by = "to the far end of a tunnel", network.id
    elif network := network_of(config, out, packet.destination):
        why, by = "from the far end of a tunnel", network.id
    elif out.use == "public" and here and here.internet:
        why, by = "by the tunnel to the internet", here.owner
        if not packet.is_v6:
            source = here.internet if holder_of(config, here.internet) is out else first_address(out)
    if not why:
        return dropped(packet, f"no tunnel leads from {came_by.id} to {out.id}")
    return forwarded(packet, out, source, packet.destination, packet.destination_port, why, by)


def outwards(config: Config, packet: Packet, network: Network, out: Side) -> Outcome:
    """From a guest network out of a public or private interface: its egress judges, or, of a tier, its ACL has."""
    exception = next((rule for rule in config.egress if is_exception(rule, network, packet)), None)
    judges = (network.id, exception.id) if exception else (network.id,)
    if (network.egress.default == "allow") == (exception is not None):
        return dropped(packet, f"the egress of {network.id} forbids it", *judges)
    source, by = sent_from(config, packet, out)
    why = f"the egress of {network.id} allows it"
    return forwarded(packet, out, source, packet.destination, packet.destination_port, why, *judges, *by)


def inwards(config: Config, packet: Packet, network: Network, out: Side) -> Outcome:
    """From outside to a guest by its own address: a rule of `ingress` lets it in, or, of a tier, its ACL has."""
    rule = next((rule for rule in config.ingress if is_exception(rule, network, packet)), None)
    if rule is None and network.acl is None:
        return dropped(packet, f"no ingress rule of {network.id} lets it in", network.id)
    by = rule.id if rule else str(network.acl)
    why = "let in, by the guest's own address"
    return forwarded(packet, out, packet.source, packet.destination, packet.destination_port, why, network.id, by)


def is_exception(rule: EgressRule | IngressRule, network: Network, packet: Packet) -> bool:
    return (
        rule.network == network.id
        and is_of(rule, packet)
        and is_among(packet.source, rule.sources)
        and is_among(packet.destination, rule.destinations)
    )


def sent_from(config: Config, packet: Packet, out: Side) -> tuple[str, tuple[str, ...]]:
    """The source with which a packet leaves, and the object that says so. What is from no network keeps its own."""
    network = next((n for n in config.networks if contains(n.cidr, packet.source)), None)
    if network and out.use == "private" and out.source_nat:
        return first_address(out), (out.id,)
    if out.use != "public" or network is None:
        return packet.source, ()
    if own := static_nat_of(config, packet.source):
        return own.address, (own.id,)
    if network.source_nat is None:
        return packet.source, ()
    if holder_of(config, network.source_nat) is out:
        return network.source_nat, (network.id,)
    return first_address(out), (network.id, out.id)


# --- rule 10: ACLs ---


def refusal(config: Config, packet: Packet, came_by: Side, out: Side) -> tuple[str, ...]:
    """Why an ACL forbids a packet on its way from one place to another, and which; () where none does.

    `packet` is as it goes on: to where a translation leads it.
    """
    leaving = acl_of(config, came_by, packet.source)
    if leaving and not allows(leaving.egress, leaving.egress_default, packet, packet.destination):
        return f"the egress of ACL {leaving.id} forbids it", leaving.id
    entering = acl_of(config, out, packet.destination)
    if entering and not allows(entering.ingress, entering.ingress_default, packet, packet.source):
        return f"the ingress of ACL {entering.id} forbids it", entering.id
    return ()


def acl_of(config: Config, interface: Side, address: str) -> Acl | None:
    """The ACL of the place behind an interface in which an address lies."""
    network = network_of(config, interface, address)
    name = network.acl if network else interface.acl
    return next((acl for acl in config.acls if acl.id == name), None)


def allows(items: tuple[AclItem, ...], default: str, packet: Packet, far: str) -> bool:
    """What the first item that fits says; `far` is the end of the packet that its CIDRs are about."""
    for item in items:
        if is_of(item, packet) and is_among(far, item.cidrs):
            return item.action == "allow"
    return default == "allow"


# --- rule 8: to the router ---


def to_router(config: Config, packet: Packet, came_by: Side) -> Outcome:
    """To the router itself, by an address that isn't public: what each side may ask of it."""
    echo = is_echo(packet)
    to_one = holder_of(config, packet.destination) is not None or tells_at(config, packet.destination)
    if came_by.use == "control" and to_one and (echo or is_to_port(packet, "tcp", 3922)):
        return local(packet, "the manager's way in", came_by.id)
    if came_by.use in ("guest", "private", "tunnel") and echo and packet.destination in addresses(came_by):
        return local(packet, "its own address answers echo", came_by.id)
    asked = came_by.use == "tunnel" and packet.destination in devices(config)[came_by.id].dns
    if asked and (is_to_port(packet, "udp", 53) or is_to_port(packet, "tcp", 53)):
        return local(packet, "DNS", came_by.id)
    if came_by.use == "guest" and packet.destination in addresses(came_by):
        if spread := spread_of(config, packet):
            return translated(config, packet, spread, came_by)
        listeners: tuple[Balancer | StatsPage, ...] = (*config.balancers, *config.stats_pages)
        for listener in listeners:
            is_tcp = not isinstance(listener, Balancer) or listener.protocol != "udp"
            if is_tcp and listener.address == packet.destination and is_to_port(packet, "tcp", listener.port):
                return local(packet, "an internal balancer", listener.id)
    if came_by.use == "guest":
        for network in networks_on(config, came_by):
            if (service := service_of(packet, network)) and is_asked(packet, network, came_by):
                return local(packet, service, network.id)
            if is_asked_of_metadata(packet, network, came_by):
                return local(packet, "metadata", network.id)
    return dropped(packet, f"the router offers no such thing to {came_by.id}", came_by.id)


def is_asked(packet: Packet, network: Network, interface: Side) -> bool:
    """Is it sent to the router's address in this network, or to everyone there?"""
    if packet.is_v6 and packet.destination == DHCP_SERVERS:
        return service_of(packet, network) == "DHCP"
    if packet.destination == EVERYONE or number(packet.destination) == bounds(network.cidr)[1]:
        return True
    asked = packet.destination in addresses(interface) and is_in(network, packet.destination)
    return asked and not (packet.is_v6 and service_of(packet, network) == "DHCP")


def service_of(packet: Packet, network: Network) -> str:
    """What a packet asks of a network's services, "" where the network has no such service."""
    if packet.is_v6 and network.cidr6 is None:
        return ""
    if is_echo(packet):
        return "echo"
    if not packet.is_v6 and network.dhcp.enabled and is_to_port(packet, "udp", 67):
        return "DHCP"
    if packet.is_v6 and network.advertise.addresses != "off" and is_to_port(packet, "udp", 547):
        return "DHCP"
    if network.dns and (is_to_port(packet, "udp", 53) or is_to_port(packet, "tcp", 53)):
        return "DNS"
    return ""


def is_asked_of_metadata(packet: Packet, network: Network, interface: Interface) -> bool:
    """By HTTP at the router's address in the network or at the well-known one, for passwords at its own alone."""
    own = next((a for a in addresses(interface) if is_in(network, a) and ":" not in a), "")
    return network.metadata and (
        (is_to_port(packet, "tcp", 80) and packet.destination in (own, METADATA))
        or (is_to_port(packet, "tcp", 8080) and packet.destination == own)
    )


def tells_at(config: Config, address: str) -> bool:
    return address == METADATA and any(n.metadata for n in config.networks)


def is_echo(packet: Packet) -> bool:
    return packet.is_icmp and packet.icmp_type == (128 if packet.is_v6 else 8)


def is_to_port(packet: Packet, protocol: str, port: int) -> bool:
    return packet.protocol == protocol and packet.destination_port == port


# --- rule 9: which way out ---


def uplink_of(config: Config, packet: Packet, came_by: Side | None) -> Side | None:
    """The public interface that this flow belongs to, None where it belongs to none."""
    if came_by is None:
        return holder_of(config, packet.source, "public")
    if came_by.use == "public":
        return came_by
    if came_by.use == "tunnel":
        tunnel = tunnel_of(config, packet.source)
        return by_family(config, packet, holder_of(config, tunnel.internet)) if tunnel and tunnel.internet else None
    if (network := network_of(config, came_by, packet.source)) is None:
        return None
    if own := static_nat_of(config, packet.source):
        return holder_of(config, own.address)
    first = next((i for i in config.interfaces if i.use == "public"), None)
    return by_family(config, packet, holder_of(config, network.source_nat) if network.source_nat else first)


def by_family(config: Config, packet: Packet, uplink: Side | None) -> Side | None:
    """This uplink; for IPv6 the first that has a gateway6, where this one has none."""
    if packet.is_v6 and uplink and not uplink.gateway6:
        return next((i for i in config.interfaces if i.use == "public" and i.gateway6), uplink)
    return uplink


def way_out(config: Config, destination: str, uplink: Side | None) -> Side | None:
    """The interface by which a packet leaves: guests, private networks and static routes first, then its uplink."""
    if is_among(destination, NOBODYS) or is_among(destination, OF_A_LINK):
        return None
    v6 = ":" in destination
    ways: list[tuple[str, Side]] = [(subnet(a), i) for i in config.interfaces if i.use != "public" for a in i.addresses]
    ways += [(cidr, mouth_of(config, t)) for t in tunnels(config) for cidr in t.cidrs]
    ways += [(r.destination, i) for r in config.routes if (i := neighbour_of(config, r.via))]
    if inner := narrowest(ways, destination):
        return inner
    if uplink is not None and (has_gateway(uplink, v6) or is_connected(uplink, destination)):
        return uplink
    publics = [i for i in config.interfaces if i.use == "public"]
    nearby = narrowest([(subnet(a), i) for i in publics for a in i.addresses], destination)
    return nearby or next((i for i in publics if has_gateway(i, v6)), None)


def has_gateway(interface: Side, v6: bool) -> bool:
    """Does it lead anywhere? A public interface always does in IPv4."""
    return (interface.gateway6 if v6 else interface.gateway) is not None


def neighbour_of(config: Config, via: str) -> Side | None:
    """The interface in whose subnet a static route's next router lies."""
    return narrowest([(subnet(a), i) for i in config.interfaces for a in i.addresses], via)


def narrowest(ways: Sequence[tuple[str, Side]], destination: str) -> Side | None:
    """The way with the longest prefix that holds `destination`; of equal ones the first."""
    fitting = [(network, i) for network, i in ways if contains(network, destination)]
    return max(fitting, key=lambda way: int(way[0].partition("/")[2]))[1] if fitting else None


# --- whose is an address? ---


def addresses(interface: Side) -> list[str]:
    return [a.partition("/")[0] for a in interface.addresses]


def first_address(interface: Side) -> str:
    """Its own, to which IPv4 is translated."""
    return next(a for a in addresses(interface) if ":" not in a)


def holder_of(config: Config, address: str, use: str = "") -> Side | None:
    """The interface of which `address` is one (and which is of that use)."""
    return next((i for i in sides(config) if address in addresses(i) and use in ("", i.use)), None)


def is_connected(interface: Side, address: str) -> bool:
    return any(contains(subnet(a), address) for a in interface.addresses)


def is_for_us(config: Config, destination: str) -> bool:
    """Is it the router's, alone or among others?"""
    if is_own(config, destination) or is_broadcast(sides(config), destination):
        return True
    return destination in (EVERYONE, ALL_HOSTS) or is_among(destination, GROUPS_OF_A_LINK)


def is_own(config: Config, address: str) -> bool:
    """Is it the router's, or, in IPv6, any router's of one of its subnets (RFC 4291, 2.6.1)?"""
    if holder_of(config, address) or tells_at(config, address):
        return True
    nets = [a for i in sides(config) for a in i.addresses if ":" in a and not a.endswith(("/127", "/128"))]
    return ":" in address and any(number(address) == bounds(net)[0] for net in nets)


def is_broadcast(interfaces: Sequence[Side], address: str) -> bool:
    """The last address of a subnet of one of the interfaces; a /31 has none (RFC 3021), nor has IPv6."""
    spans: Iterator[tuple[int, int]] = (bounds(a) for i in interfaces for a in i.addresses if ":" not in a)
    return ":" not in address and any(last - first > 1 and number(address) == last for first, last in spans)


def networks_on(config: Config, interface: Side) -> list[Network]:
    return [n for n in config.networks if n.interface == interface.id]


def network_of(config: Config, came_by: Side, source: str) -> Network | None:
    """The guest network behind this interface that a source belongs to."""
    return next((n for n in networks_on(config, came_by) if is_in(n, source)), None)


def is_in(network: Network, address: str) -> bool:
    return contains(network.cidr, address) or (network.cidr6 is not None and contains(network.cidr6, address))


def static_nat_of(config: Config, guest: str) -> StaticNat | None:
    return next((nat for nat in config.static_nats if nat.target == guest), None)


# --- what a rule says of a packet ---


def is_of(rule: Firewall | EgressRule | IngressRule | AclItem, packet: Packet) -> bool:
    """Protocol, port as sent, type and code."""
    if rule.protocol == "any":
        return True
    if (rule.protocol if isinstance(rule.protocol, int) else NUMBERS[rule.protocol]) != packet.number:
        return False
    if rule.ports is not None and not holds(rule.ports, packet.destination_port):
        return False
    if rule.icmp_type is not None and not packet.is_icmp:
        return False
    return rule.icmp_type in (None, packet.icmp_type) and rule.icmp_code in (None, packet.icmp_code)


def is_among(address: str, cidrs: tuple[str, ...]) -> bool:
    """Is it in one of them? An empty list is everyone's."""
    return not cidrs or any(contains(c, address) for c in cidrs)


def holds(ports: Ports, port: int) -> bool:
    return ports.first <= port <= ports.last


# --- outcomes ---


def dropped(packet: Packet, why: str, *owners: str) -> Outcome:
    return _outcome("dropped", packet, "", packet.source, packet.destination, packet.destination_port, why, owners)


def local(packet: Packet, why: str, *owners: str) -> Outcome:
    return _outcome("local", packet, "", packet.source, packet.destination, packet.destination_port, why, owners)


def forwarded(packet: Packet, out: Side, source: str, destination: str, port: int, why: str, *owners: str) -> Outcome:
    return _outcome("forwarded", packet, out.id, source, destination, port, why, owners)


def _outcome(
    verdict: Verdict,
    packet: Packet,
    out: str,
    source: str,
    destination: str,
    port: int,
    why: str,
    owners: tuple[str, ...],
) -> Outcome:
    sport, dport = (packet.source_port, port) if packet.has_ports else (None, None)
    return Outcome(verdict, out, source, destination, sport, dport, tuple(dict.fromkeys(owners)), why)
