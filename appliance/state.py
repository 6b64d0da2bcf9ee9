"""The vocabulary in which a role says what a machine shall be.

Plain data: stdlib, frozen, slotted, comparable, hashable where it matters. A role makes a `State`; `plan.py` compares
two of them; `engine.py` makes the machine equal to one. Nothing in here acts, and nothing in here knows a role.

Every part carries `owner`: the id of the document's object it came from ("" where it belongs to the whole), so that
drift and failures can be named in the words of the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Literal

EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a document: `path` as in `config.forwards[fwd-1].target`, `message` with its remedy."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class LinkFact:
    """A network interface that the machine has: facts are observed, never wished for."""

    name: str
    mac: str  # lower case, colons
    index: int
    mtu: int
    up: bool
    kind: str = ""  # as `ip link add type` says it, "" for hardware
    if_id: int = 0  # of kind xfrm


@dataclass(frozen=True, slots=True)
class Facts:
    """What a role may know of its machine: `links` by MAC, and the name and control address from the seed."""

    name: str
    links: Mapping[str, LinkFact]
    control: str = ""  # MAC of the control interface
    state_dir: str = "/var/lib/narthex"
    run_dir: str = "/run/narthex"
    down: frozenset[str] = frozenset()  # members that are not well, by their key


# --- files, units, sysctls -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class File:
    """A file with exactly this content. Paths are absolute in the appliance; `mode` is the permission bits.

    `group` is an account whose daemon may read it beside root, with mode 0640; "" for root's own group.
    """

    path: str
    content: str
    mode: int = 0o644
    secret: bool = False  # a secret file's content is never shown in a diff or a log
    group: str = ""
    owner: str = field(default="", compare=False)

    def __repr__(self) -> str:
        shown = f"blake2b {blake2b(self.content.encode(), digest_size=6).hexdigest()}" if self.secret else self.content
        group = f", group={self.group!r}" if self.group else ""
        return f"File({self.path!r}, {shown!r}, mode={self.mode:#o}, secret={self.secret}{group})"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a unit may beyond what any unit may, where systemd confines it (a cell's supervisor does not).

    `capabilities` as in capabilities(7) without CAP_, `families` of sockets as in socket(2) without AF_ (UNIX is
    anybody's), `writable` files and folders, absolute.
    """

    capabilities: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    descriptors: int = 0  # how many files and sockets it may have open, 0 for systemd's own limit
    makes_code: bool = False  # it compiles what it runs (regular expressions), into memory that is written and run


@dataclass(frozen=True, slots=True)
class Unit:
    """A long-running process that shall be active.

    `command` is its argv; it stays in the foreground. When one of `reload_on` changes the unit is sent `reload`
    (a signal's name, "" for none), or the command `reload_by` is run, which shall end well; when one of `restart_on` or
    the unit itself changes it is restarted. `check` is the daemon's own dry check: an argv in which `{PATH}` stands for
    a temporary copy of the file PATH in `checks`; each PATH is one of the State's files.
    """

    name: str
    command: tuple[str, ...]
    reload: str = ""
    reload_on: tuple[str, ...] = ()
    restart_on: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    directories: tuple[tuple[str, int, str], ...] = ()  # made before start: path, mode, user or "user:group"
    sandbox: Sandbox = Sandbox()
    console: str = ""  # of a haproxy: its master's socket. It says when a reload is through, and is told of pools
    apart: str = ""  # the folder of its files. Refused, they and the unit stay as they were, and nothing else waits
    reload_by: tuple[str, ...] = ()
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a pool; `weight` 0: it gets nothing new. `options` are what it is added with beside these, words of
    haproxy's `server`; of one that is there only a reload changes them."""

    name: str
    address: str
    port: int
    weight: int = 1
    options: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Pool:
    """The servers that a haproxy has under `name`, by name: told to it by its `console`, without a reload. Its file
    says the same, for its next start. `cookie_key`: what their cookies are made from, "" for none."""

    console: str
    name: str
    servers: tuple[Server, ...]
    cookie_key: str = field(default="", compare=False)
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a running unit is given over its socket, for it has no file of which it could read one object anew.

    It forgets with its end, and is given all again. `kind` and `name` say what of it, `content` is JSON in its own
    words (charon.py), of which nothing is shown where it is `secret`. One that others stand on comes before them.
    """

    unit: str
    socket: str
    kind: Literal["pool", "key", "secret", "connection"]
    name: str
    content: str
    secret: bool = False
    owner: str = field(default="", compare=False)

    def __repr__(self) -> str:
        shown = blake2b(self.content.encode(), digest_size=6).hexdigest()
        return f"Entry({self.unit!r}, {self.kind!r}, {self.name!r}, blake2b {shown})"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting, by its key as sysctl(8) writes it: net.ipv4.ip_forward."""

    key: str
    value: str
    owner: str = field(default="", compare=False)


# --- links, addresses, routes, rules ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """An interface that the machine has and we set: its name now, its MAC, its MTU in bytes (0: leave), up or down.

    With a `kind` it is ours: made by us, without a MAC, and removed when nobody wishes it any more. `if_id` is of kind
    xfrm alone (ip-xfrm(8)).
    """

    name: str
    mac: str
    mtu: int = 0
    up: bool = True
    kind: Literal["", "wireguard", "xfrm"] = ""
    if_id: int = 0
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Wireguard:
    """What a link of kind wireguard is: its private key (base64, clamped as RFC 7748, 5 says), its UDP port, and the
    mark of the packets that it sends out itself (0: none)."""

    link: str
    private_key: str
    port: int
    mark: int = 0
    owner: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"Wireguard({self.link!r}, key {_hidden(self.private_key)}, port={self.port}, mark={self.mark})"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who may be at the far end of a wireguard link, with which source addresses: `networks`, CIDRs, sorted.

    Keys in base64, "" for no preshared one. `endpoint` is where to call, "192.0.2.1:51820" or "[2001:db8::1]:51820", ""
    where the peer calls first; where a peer that is there has moved to is no difference. `keepalive` in seconds.
    `counted`: the kind of usage (appliance/usage.py) that its traffic is.
    """

    link: str
    public_key: str
    networks: tuple[str, ...]
    preshared_key: str = ""
    endpoint: str = ""
    keepalive: int = 0
    owner: str = field(default="", compare=False)
    counted: str = field(default="", compare=False)

    def __repr__(self) -> str:
        shown = f"Peer({self.link!r}, {self.public_key!r}, {self.networks!r}, preshared {_hidden(self.preshared_key)}"
        return f"{shown}, endpoint={self.endpoint!r}, keepalive={self.keepalive})"


def _hidden(key: str) -> str:
    """A key as a digest: what is shown of it, so that a change of it is seen."""
    return blake2b(key.encode(), digest_size=6).hexdigest() if key else "none"


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link, `cidr` as 10.1.1.1/24. Not `connected`: no route for its subnet (IFA_F_NOPREFIXROUTE).

    `announce`: send a gratuitous ARP (RFC 5227, 3; IPv6: RFC 4861, 7.2.6) when it is added. `floating`: one of the
    State's units adds and removes it, as it agrees with another machine on whose it is: right if there and if not.
    """

    link: str
    cidr: str
    connected: bool = True
    announce: bool = field(default=True, compare=False)
    floating: bool = False
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """A route. `destination` is a CIDR (0.0.0.0/0: the default), `via` a gateway or "" for on-link, `table` 254 = main.

    `source` is the preferred source address or "". A gateway is taken as on-link (RTNH_F_ONLINK). `floating`: as an
    address is; it comes and goes with its source.
    """

    destination: str
    link: str
    via: str = ""
    table: int = 254
    source: str = ""
    metric: int = 0
    floating: bool = False
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy routing rule (ip-rule(8)): `priority` orders; the selectors are fwmark/mask and `source` (a CIDR or "").

    `suppress` is suppress_prefixlength, -1 for none.
    """

    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: str = ""
    suppress: int = -1
    family: Literal[4, 6] = 4
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Advert:
    """What a daemon's router advertisements tell on a link, and what must be taken back there when it is no more.

    The `router` as a way out, a `prefix` in which guests choose addresses, one that is `onlink`, a name `server`, a
    search `domain`. `lifetime_s` and `managed` are the head of the same advertisements: for how long the router is a
    way out (0: it is none), and whether addresses come by DHCPv6.
    """

    link: str
    kind: Literal["router", "prefix", "onlink", "server", "domain"]
    value: str = ""
    lifetime_s: int = field(default=0, compare=False)
    managed: bool = field(default=False, compare=False)
    owner: str = field(default="", compare=False)


# --- queues ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Class:
    """A share of a link's egress: at least `rate_kbit`, at most `ceil_kbit` as far as its parent lends it; `burst`
    bytes at once. `parent` is the number of the class that it is a part of, 0: the link's own."""

    parent: int
    rate_kbit: int
    ceil_kbit: int
    burst: int
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Shaper:
    """The classes of one link by their numbers: below 0x8000 those that have parts, from there on those that packets
    are put into (appliance/tc.py), by `meta priority`. A packet that is put into none passes."""

    link: str
    classes: Mapping[int, Class]


# --- the packet filter -----------------------------------------------------------------------------------------------

# The fields of a packet that our rules may look at: exactly nft(8)'s words. trace.py knows each of them.
FieldName = Literal[
    "iifname", "oifname", "meta l4proto", "meta nfproto", "meta mark", "ct mark", "ct state", "ct status",
    "ct direction", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "th sport", "th dport", "icmp type",
    "icmp code", "icmpv6 type", "icmpv6 code", "fib daddr type", "meta priority", "ct original ip daddr",
    "ct reply ip daddr",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Masked:
    """The first `prefix` bits of an IPv4 address, the others zero: looks for its network in a set or map of `/prefix`.

    Only in look-ups: a literal to compare with is a CIDR already.
    """

    field: Literal["ip saddr", "ip daddr"]
    prefix: int

    @property
    def mask(self) -> int:
        """The netmask as a number."""
        return 0xFFFFFFFF << 32 - self.prefix & 0xFFFFFFFF

    def __str__(self) -> str:
        return f"{self.field} & {IPv4Address(self.mask)}"


Field = FieldName | Masked


@dataclass(frozen=True, slots=True)
class Match:
    """One condition: the packet's `fields` are (`negate`: are not) `values`, or members of the set named `set`.

    With `values` there is one field and a tuple of literals (any of them matches; a literal may be a range "a-b" or a
    CIDR). With `set` the fields are concatenated in the set's order.
    """

    fields: tuple[Field, ...]
    values: tuple[str, ...] = ()
    set: str = ""
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """accept, drop, return, continue (nothing: what counts is the look-up), or jump/goto to `chain`."""

    kind: Literal["accept", "drop", "return", "jump", "goto", "continue"]
    chain: str = ""


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """Look `fields` up in the map named `map`; its value is the verdict. No entry: go on with the next rule."""

    fields: tuple[Field, ...]
    map: str


@dataclass(frozen=True, slots=True)
class Nat:
    """`dnat` or `snat` to the value that the map named `map` has for `fields`, or to the literal `to`, or `masquerade`.

    No entry in the map: go on with the next rule. Or with `spread` to one of `targets` ("address . port"): to each in
    turn, or always the same for a source. Flows to `keeps` go on, and no new one goes there.
    """

    kind: Literal["dnat", "snat", "masquerade"]
    fields: tuple[Field, ...] = ()
    map: str = ""
    to: str = ""
    family: Literal["ip", "ip6"] = "ip"
    spread: Literal["", "turn", "source"] = ""
    targets: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetMark:
    """Set `field` (meta mark or ct mark) to `value`, to the other mark (`copy`), or to what `map` has for `fields`.

    meta priority is the class of a Shaper that a packet is put into, "6e78:8001".
    """

    field: Literal["meta mark", "ct mark", "meta priority"]
    value: str = ""
    copy: Literal["", "meta mark", "ct mark"] = ""
    fields: tuple[Field, ...] = ()
    map: str = ""


Statement = Verdict | VerdictMap | Nat | SetMark


@dataclass(frozen=True, slots=True)
class FilterRule:
    """All `matches` hold -> `statement`. `why` is a short phrase for people; it becomes part of the rule's comment."""

    matches: tuple[Match, ...]
    statement: Statement
    why: str = ""
    owner: str = ""
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain is hooked: nft(8) "Chains". `priority` is a number; `policy` what happens at its end."""

    type: Literal["filter", "nat", "route"]
    hook: Literal["prerouting", "input", "forward", "output", "postrouting"]
    priority: int
    policy: Literal["accept", "drop"] = "accept"


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[FilterRule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set, or a map where `value` names what its elements map to ("verdict", "ipv4_addr . inet_service", "mark").

    `key` is the type of the key, fields joined by " . " ("ipv4_addr . inet_proto . inet_service"). `interval` says that
    keys may be ranges and CIDRs. `elements` maps the key's text to the value's text ("" in a set); `owners` names, for
    keys that came from an object of the document, that object's id. Keys are written in ONE canonical way (as
    `nft -j list` gives them back, fields joined by " . "): addresses and CIDRs canonical, a one-address CIDR without
    its length, protocols as tcp udp icmp ipv6-icmp or a number, ports as numbers, ranges as "a-b". `counter`: each
    element counts the packets that are found by it.
    """

    name: str
    key: str
    value: str = ""
    interval: bool = False
    elements: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    owners: Mapping[str, str] = field(default_factory=lambda: EMPTY, compare=False)
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole of a table: its sets by name and its chains in order."""

    sets: Mapping[str, NftSet] = field(default_factory=lambda: MappingProxyType({}))
    chains: tuple[Chain, ...] = ()


# --- health ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is asked again and again while the State stands, outside of any transaction, disturbing nobody.

    kind       target         is it so that
    gateway    an address     it answers ping, ARP or neighbour discovery on `link`
    dns        an address     the server there answers for `name`, with `expect` ("": with anything)
    dhcp       a network      the host with the MAC `name` is offered the address `expect` on `link`
    tcp        an address     it takes connections on the port `name`
    forwards   ""             what the ruleset's maps translate TCP to takes connections: a sample, in turn
    bgp        an address     the session with this peer stands
    wireguard  a public key   this peer of `link` has shaken hands within the last four minutes
    ipsec      a socket       charon there has a session by the connection `name`
    report     a path         a daemon's own word there: JSON {"ok", "words"}, not older than `name` seconds

    `here`: an address without which it is not asked: what it asks of is with whoever has that now.
    """

    kind: Literal["gateway", "dns", "dhcp", "tcp", "forwards", "bgp", "wireguard", "ipsec", "report"]
    target: str = ""
    name: str = ""
    expect: str = ""
    link: str = ""
    here: str = ""
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """Who is asked each `interval` seconds whether he is well, at `address` and `port` (IPv4): `key` is in Facts.down
    after `fall` noes in a row, until `rise` yeses. What that means for the State, the role says when it compiles."""

    key: str
    address: str
    port: int
    kind: Literal["tcp", "udp"]
    interval: int = 2
    timeout: int = 2
    rise: int = 2
    fall: int = 3
    owner: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class State:
    """What a machine shall be: the whole of it that is ours. Two equal States make two equal machines."""

    files: tuple[File, ...] = ()
    units: tuple[Unit, ...] = ()
    pools: tuple[Pool, ...] = ()
    members: tuple[Member, ...] = ()  # asked while this State is; they are nothing that a machine is
    sysctls: tuple[Sysctl, ...] = ()
    links: tuple[Link, ...] = ()
    wireguards: tuple[Wireguard, ...] = ()
    peers: tuple[Peer, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    shapers: tuple[Shaper, ...] = ()
    ruleset: Ruleset = field(default_factory=Ruleset)  # table inet narthex
    meters: Ruleset = field(default_factory=Ruleset)  # table inet narthex_usage: see appliance/usage.py
    adverts: tuple[Advert, ...] = ()
    entries: tuple[Entry, ...] = ()
    probes: tuple[str, ...] = ()  # addresses to try (gateways) as evidence for confirm
    checks: tuple[Check, ...] = ()  # beside what any State has to be well: its units, its files' certificates


@dataclass(frozen=True, slots=True)
class LiveFlow:
    """A flow that the kernel tracks: how it was sent, and (`reply_...`) how its answers come in.

    `protocol` is tcp, udp, icmp, icmpv6 or a number; a port is 0 where it has none. `state` is TCP's, or unanswered,
    answered, assured. `began` in seconds since the epoch, 0 where nobody noted it; `sent` and `received` are (bytes,
    packets) as whoever began it sees them, None where nobody counts.
    """

    id: int
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int
    reply_destination: str
    reply_destination_port: int
    icmp_type: int = 0
    icmp_code: int = 0
    mark: int = 0
    state: str = ""
    expires_s: int = 0
    began: float = 0.0
    sent: tuple[int, int] | None = None
    received: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Touched:
    """One object that a change touches: `before` and `after` are its models, None where it is not there."""

    collection: str
    id: str
    before: object | None
    after: object | None
