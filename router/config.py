"""What a router may be asked to be. Models only: meaning across objects is in checks.py, the packets' in oracle.py.

Both address families mean the same wherever addresses stand; what translates takes IPv4 alone, and checks.py says so.
A list of CIDRs may mix them: it says of each family's packets what its own members say, and one that has members of the
other family alone says nothing of this one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from appliance.document import Model
from appliance.values import Address, Cidr, HostCidr, Hostname, Identifier, Label, Mac, Mtu, Port, Text
from router.config_balancer import Balancer, Certificate, StatsPage
from router.config_bandwidth import Limit
from router.config_bgp import Bgp, BgpPeer
from router.config_ipsec import IpsecAccess as IpsecAccess
from router.config_ipsec import IpsecSite
from router.config_ipsec import IpsecUser as IpsecUser
from router.config_metadata import Metadata
from router.config_redundancy import Redundancy
from router.config_wireguard import VpnUser as VpnUser
from router.config_wireguard import Wireguard as Wireguard
from router.config_wireguard import WireguardSite as WireguardSite

Protocol = Literal["tcp", "udp", "icmp", "icmpv6", "any"] | Annotated[int, Field(ge=0, le=255)]


class Ports(Model):
    """A range of ports, both ends in it. One port: first and last alike."""

    first: Port
    last: Port

    @model_validator(mode="after")
    def ordered(self) -> Ports:
        if self.last < self.first:
            raise ValueError(f"the range ends ({self.last}) before it starts ({self.first}); swap them")
        return self


class Interface(Model):
    """A network interface, named by its MAC. The first of `addresses` is its own; a public one has a `gateway`.

    Of a private one (a private gateway): `acl` guards what is behind it, as a network's does; with `source_nat` guests
    leave by it with its own address.
    """

    id: Identifier
    mac: Mac
    use: Literal["control", "public", "guest", "private"]
    addresses: tuple[HostCidr, ...] = ()
    gateway: Address | None = None
    gateway6: Address | None = None
    mtu: Mtu = 1500
    acl: Identifier | None = None
    source_nat: bool = False


class Egress(Model):
    """What a network's guests may reach outside: `default`, and the rules in `Config.egress` are its exceptions."""

    default: Literal["allow", "deny"] = "allow"


class ClasslessRoute(Model):
    """A route given to guests by DHCP option 121 (RFC 3442)."""

    destination: Cidr
    via: Address


Servers = Annotated[tuple[Address, ...], Field(max_length=16)]  # an option has 255 bytes, the whole answer 576


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/@+ -]{1,200}$")]


class DhcpOption(Model):
    """An option that guests are given beside those that Dhcp has words for, by its number (RFC 2132 and IANA's list).

    Its values are addresses, numbers or text, as the option wants them; dnsmasq(8) knows the types of the usual ones.
    """

    code: Annotated[int, Field(ge=1, le=254)]
    values: Annotated[tuple[Word, ...], Field(min_length=1, max_length=16)]


class Boot(Model):
    """What a guest without a disk boots (PXE): a `file`, from the TFTP server at `server`, None for the router."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,127}$")]
    server: Address | None = None


class Dhcp(Model):
    """DHCP of one network. Known hosts only, unless `first`/`last` give a range for strangers.

    `lease` is in seconds, None for infinite. An option that is None is what the router itself is (router, DNS) or is
    left out (the others); an empty tuple sends none.
    """

    enabled: bool = True
    first: Address | None = None
    last: Address | None = None
    lease: Annotated[int, Field(ge=120, le=4_294_967_294)] | None = None
    routers: Servers | None = None
    dns: Servers | None = None
    ntp: Servers = ()
    search: tuple[Hostname, ...] = ()
    mtu: Mtu | None = None
    routes: Annotated[tuple[ClasslessRoute, ...], Field(max_length=27)] = ()  # an option has 255 bytes
    options: tuple[DhcpOption, ...] = ()
    boot: Boot | None = None

    @model_validator(mode="after")
    def short(self) -> Dhcp:
        if sum(len(name) + 2 for name in self.search) > 255:
            raise ValueError("the search list is longer than a DHCP option, 255 bytes; shorten it")
        return self


class Advertise(Model):
    """How guests of a network get their IPv6 addresses: by router advertisements (RFC 4861) that let them choose
    (slaac), by DHCPv6 for the hosts that have an `address6` (stateful), or not from us (off). `default` False: the
    router is no way out of here. `dns` None: the router; `search` empty: the network's domain.
    """

    addresses: Literal["slaac", "stateful", "off"] = "slaac"
    default: bool = True
    dns: Servers | None = None
    search: tuple[Hostname, ...] = ()

    @model_validator(mode="after")
    def short(self) -> Advertise:
        if sum(len(name) + 2 for name in self.search) > 255:
            raise ValueError("the search list is longer than 255 bytes, which not every guest takes; shorten it")
        return self


class Network(Model):
    """A guest network behind one interface. `cidr` is the subnet of one of the interface's addresses.

    `cidr6` is its IPv6 prefix, likewise; nothing of IPv6 is translated. A `routed` network is not translated in IPv4
    either: its guests are reached by their own addresses, where `Config.ingress` or its ACL allows it.

    A network with an `acl` is a tier of a VPC: the ACL judges what goes in and out, and takes the place of `egress`;
    tiers reach each other where both ACLs allow it. `source_nat` is the public address its guests go out by, None for
    no translation. `upstream` are the name servers asked for what we don't know ourselves. With `metadata` the router
    tells the hosts of the network what their `metadata` says, by HTTP.
    """

    id: Identifier
    interface: Identifier
    cidr: Cidr
    cidr6: Cidr | None = None
    routed: bool = False
    domain: Hostname | None = None
    source_nat: Address | None = None
    acl: Identifier | None = None
    egress: Egress = Egress()
    dhcp: Dhcp = Dhcp()
    advertise: Advertise = Advertise()
    dns: bool = True
    metadata: bool = False
    upstream: tuple[Address, ...] = ()


class Forward(Model):
    """A port forward: what comes to `address`:`ports` goes to `target`:`target_ports` (None: the same ports).

    `sources` says who may use it (empty: anyone). Of two forwards of one port the one with sources is asked first;
    forwards of one port whose sources overlap are refused. The firewall of `address` must allow the port as well.
    """

    id: Identifier
    protocol: Literal["tcp", "udp"]
    address: Address
    ports: Ports
    target: Address
    target_ports: Ports | None = None
    sources: tuple[Cidr, ...] = ()


class StaticNat(Model):
    """A public address that is a guest's own, in and out. Forwards of the same address are refused."""

    id: Identifier
    address: Address
    target: Address


class Firewall(Model):
    """One thing that may come in to a public address (default: nothing). `ports` for tcp and udp, None for all.

    icmp: `type` and `code`, None for any. `sources` empty: anyone. It judges every new connection to the address,
    from wherever it comes, by the port and address it was sent to.
    """

    id: Identifier
    address: Address
    protocol: Protocol
    ports: Ports | None = None
    icmp_type: Annotated[int, Field(ge=0, le=255)] | None = None
    icmp_code: Annotated[int, Field(ge=0, le=255)] | None = None
    sources: tuple[Cidr, ...] = ()


class EgressRule(Model):
    """An exception to a network's egress default: from `sources` to `destinations` (empty: any)."""

    id: Identifier
    network: Identifier
    protocol: Protocol
    ports: Ports | None = None
    icmp_type: Annotated[int, Field(ge=0, le=255)] | None = None
    icmp_code: Annotated[int, Field(ge=0, le=255)] | None = None
    sources: tuple[Cidr, ...] = ()
    destinations: tuple[Cidr, ...] = ()


class IngressRule(Model):
    """What may come in from outside (public and private interfaces) to guests by their own addresses: to those of a
    network in IPv6, and in IPv4 where it is `routed`. Default: nothing."""

    id: Identifier
    network: Identifier
    protocol: Protocol
    ports: Ports | None = None
    icmp_type: Annotated[int, Field(ge=0, le=255)] | None = None
    icmp_code: Annotated[int, Field(ge=0, le=255)] | None = None
    sources: tuple[Cidr, ...] = ()
    destinations: tuple[Cidr, ...] = ()


class AclItem(Model):
    """One item of an ACL: what it names is allowed or denied. `cidrs` are the far end: of ingress the sources, of
    egress the destinations (empty: everyone). `ports` are the destination's."""

    id: Identifier
    action: Literal["allow", "deny"]
    protocol: Protocol
    ports: Ports | None = None
    icmp_type: Annotated[int, Field(ge=0, le=255)] | None = None
    icmp_code: Annotated[int, Field(ge=0, le=255)] | None = None
    cidrs: tuple[Cidr, ...] = ()


class Acl(Model):
    """Two ordered lists for the networks and private interfaces that name it: the first item that fits decides, and
    where none does, the default. `ingress` judges new flows into such a place from anywhere else, by where they lead
    after translation; `egress` those out of it. Guests of one network do not pass the router to reach each other."""

    id: Identifier
    ingress: tuple[AclItem, ...] = ()
    egress: tuple[AclItem, ...] = ()
    ingress_default: Literal["allow", "deny"] = "deny"
    egress_default: Literal["allow", "deny"] = "allow"


class StaticRoute(Model):
    """A route of the router itself. The interface is the one in whose subnet `via` lies."""

    id: Identifier
    destination: Cidr
    via: Address


class Host(Model):
    """A guest's interface: its lease and its names. `default` False: this network isn't its way out, so that it gets
    no gateway, no DNS and no domain here (a machine with two interfaces has one default). `options` are its own, in
    place of those of the same number that its network has. `metadata` is what the router tells it, where its network
    has that."""

    id: Identifier
    network: Identifier
    mac: Mac
    address: Address
    name: Label
    address6: Address | None = None
    default: bool = True
    lease: Annotated[int, Field(ge=120, le=4_294_967_294)] | None = None
    dns: Servers | None = None
    routers: Servers | None = None
    options: tuple[DhcpOption, ...] = ()
    metadata: Metadata | None = None


class Record(Model):
    """An extra DNS record: A/AAAA, CNAME, TXT, MX or SRV in `network` (None: answered to every network)."""

    id: Identifier
    name: Hostname
    type: Literal["A", "AAAA", "CNAME", "TXT", "MX", "SRV"]
    value: Annotated[Text, Field(min_length=1)]
    network: Identifier | None = None
    priority: Annotated[int, Field(ge=0, le=65535)] = 0
    weight: Annotated[int, Field(ge=0, le=65535)] = 0
    port: Annotated[int, Field(ge=0, le=65535)] = 0


class Config(Model):
    """A router. Every object has an id, unique in its collection. Order means nothing, but for two things: the first
    public interface is the way out of whoever has no other, and an ACL's items are asked in their order.

    `usage`: count the bytes and packets of each public address, network and guest, and of each flow."""

    interfaces: tuple[Interface, ...]
    networks: tuple[Network, ...] = ()
    forwards: tuple[Forward, ...] = ()
    static_nats: tuple[StaticNat, ...] = ()
    firewall: tuple[Firewall, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    ingress: tuple[IngressRule, ...] = ()
    acls: tuple[Acl, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    hosts: tuple[Host, ...] = ()
    records: tuple[Record, ...] = ()
    wireguard: tuple[Wireguard, ...] = ()
    vpn_users: tuple[VpnUser, ...] = ()
    wireguard_sites: tuple[WireguardSite, ...] = ()
    balancers: tuple[Balancer, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    stats_pages: tuple[StatsPage, ...] = ()
    ipsec_sites: tuple[IpsecSite, ...] = ()
    ipsec_access: tuple[IpsecAccess, ...] = ()
    ipsec_users: tuple[IpsecUser, ...] = ()
    bgp: Bgp | None = None
    bgp_peers: tuple[BgpPeer, ...] = ()
    upstream: tuple[Address, ...] = ()
    limits: tuple[Limit, ...] = ()
    usage: bool = False
    redundancy: Redundancy | None = None
