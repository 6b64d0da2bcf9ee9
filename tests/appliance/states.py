"""Random States over the whole vocabulary, such as a machine would take: what they name is there."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from appliance.state import (
    Address,
    Advert,
    Chain,
    Entry,
    File,
    FilterRule,
    Hook,
    Link,
    Match,
    Nat,
    NftSet,
    Peer,
    Route,
    Rule,
    Ruleset,
    SetMark,
    State,
    Sysctl,
    Unit,
    Verdict,
    VerdictMap,
    Wireguard,
)

MACS = tuple(f"02:00:00:00:00:0{i}" for i in range(1, 5))
NAMES = tuple(f"eth{i}" for i in range(4))
HOOKS = (
    Hook("filter", "input", 0, "drop"), Hook("nat", "prerouting", -100), Hook("filter", "forward", 0),
    Hook("nat", "postrouting", 100),
)  # fmt: skip
# name, key, value, interval, keys, values
SETS = (
    ("s_ports", "inet_service", "", False, ("22", "80", "443"), ("",)),
    ("s_nets", "ipv4_addr", "", True, ("10.0.0.0/8", "192.0.2.7", "198.51.100.0/24"), ("",)),
    (
        "m_nat",
        "ipv4_addr . inet_service",
        "ipv4_addr",
        False,
        ("192.0.2.1 . 80", "192.0.2.1 . 81"),
        ("10.0.0.1", "10.0.0.2"),
    ),
    ("m_mark", "ifname", "mark", False, ("eth0", "eth1"), ("1", "2")),
)
OWNERS = ("", "anna", "ben")
TUNNELS = ("wg-a", "wg-b")
KEYS = ("a" * 43 + "=", "b" * 43 + "=")


def of(*choices: str) -> st.SearchStrategy[str]:
    return st.sampled_from(choices)


@st.composite
def sets(draw: st.DrawFn, chains: tuple[str, ...]) -> Mapping[str, NftSet]:
    found = {}
    for name, key, value, interval, keys, values in draw(st.sets(st.sampled_from(SETS))):
        elements = draw(st.dictionaries(of(*keys), of(*values)))
        owners = {k: draw(of(*OWNERS)) for k in elements}
        found[name] = NftSet(name, key, value, interval, elements, {k: o for k, o in owners.items() if o})
    if draw(st.booleans()):
        verdicts = of("accept", "drop", *(f"jump {c}" for c in chains))
        elements = draw(st.dictionaries(of("10.0.0.1", "10.0.0.2", "10.0.0.3"), verdicts))
        found["m_verdict"] = NftSet("m_verdict", "ipv4_addr", "verdict", elements=elements)
    return {name: found[name] for name in sorted(found)}


@st.composite
def rules(draw: st.DrawFn, known: Mapping[str, NftSet], chains: tuple[str, ...]) -> FilterRule:
    matches = [
        Match(("iifname",), ("eth0",)),
        Match(("ct state",), ("established", "related")),
        Match(("ip saddr",), ("10.0.0.1",), negate=True),
        Match(("meta l4proto",), ("tcp", "udp")),
        *((Match(("th dport",), set="s_ports"),) if "s_ports" in known else ()),
        *((Match(("ip saddr",), set="s_nets"),) if "s_nets" in known else ()),
    ]
    statements = [
        Verdict("accept"),
        Verdict("drop"),
        Verdict("return"),
        SetMark("meta mark", copy="ct mark"),
        Nat("masquerade"),
        Nat("dnat", to="10.0.0.9"),
        *(Verdict("jump", c) for c in chains),
        *(Verdict("goto", c) for c in chains[:1]),
        *((Nat("dnat", ("ip daddr", "th dport"), "m_nat"),) if "m_nat" in known else ()),
        *((VerdictMap(("ip saddr",), "m_verdict"),) if "m_verdict" in known else ()),
        *((SetMark("ct mark", fields=("iifname",), map="m_mark"),) if "m_mark" in known else ()),
    ]
    return FilterRule(
        tuple(draw(st.lists(st.sampled_from(matches), max_size=2))),
        draw(st.sampled_from(statements)),
        draw(of("", "why not", 'a "quoted" reason')),
        draw(of(*OWNERS)),
        draw(st.booleans()),
    )


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    helpers = tuple(f"c{i}" for i in range(draw(st.integers(0, 3))))
    known = draw(sets(helpers))
    hooked = draw(st.lists(st.sampled_from(range(len(HOOKS))), unique=True, max_size=3))
    chains = [
        Chain(f"b{i}", tuple(draw(st.lists(rules(known, helpers), max_size=3))), HOOKS[i]) for i in sorted(hooked)
    ]
    for number, name in enumerate(helpers):  # a chain jumps only to later ones: no loops
        chains.append(Chain(name, tuple(draw(st.lists(rules(known, helpers[number + 1 :]), max_size=2)))))
    return Ruleset(known, tuple(chains))


@st.composite
def states(draw: st.DrawFn) -> State:
    links = draw(st.lists(st.sampled_from(range(4)), unique=True))
    tunnels = draw(st.lists(st.sampled_from(TUNNELS), unique=True))
    names = [*(NAMES[i] for i in links), *tunnels]
    units = draw(st.lists(of("dnsd", "vpnd"), unique=True))
    files = draw(st.dictionaries(of("/etc/a", "/etc/b", "/etc/c/d"), of("one\n", "two\n", ""), max_size=3))
    return State(
        files=tuple(
            File(path, content, draw(st.sampled_from((0o644, 0o600))), owner=draw(of(*OWNERS)))
            for path, content in files.items()
        ),
        units=tuple(
            Unit(
                name,
                (name, draw(of("-f", "-d"))),
                draw(of("", "HUP")),
                reload_on=tuple(p for p in files if draw(st.booleans())),
                restart_on=tuple(p for p in files if draw(st.booleans())),
            )
            for name in units
        ),
        entries=tuple(
            Entry(unit, f"/run/{unit}", kind, name, draw(of("{}", "[]")), secret=kind == "secret")
            for unit in units
            for kind, name in draw(
                st.lists(st.tuples(st.sampled_from(("secret", "connection")), of("a", "b")), unique=True, max_size=3)
            )
        ),
        sysctls=tuple(
            Sysctl(key, draw(of("0", "1"))) for key in ("net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter")
        ),
        links=(
            *(Link(NAMES[i], MACS[i], draw(st.sampled_from((1500, 1400)))) for i in links),
            *(Link(name, "", draw(st.sampled_from((1420, 1280))), kind="wireguard") for name in tunnels),
        ),
        wireguards=tuple(Wireguard(n, draw(of(*KEYS)), 51820 + TUNNELS.index(n)) for n in tunnels),
        peers=tuple(
            Peer(n, key, (f"10.99.{number}.2/32",), draw(of("", *KEYS)), draw(of("", "192.0.2.9:51820")))
            for n in tunnels
            for number, key in enumerate(draw(st.lists(of(*KEYS), unique=True)))
        ),
        addresses=tuple(
            Address(name, cidr, draw(st.booleans()))
            for name in names
            for cidr in draw(st.lists(of("10.0.0.1/24", "10.0.0.2/24", "192.0.2.1/24"), unique=True, max_size=2))
        ),
        routes=tuple(
            Route(destination, draw(of(*names)), "10.0.0.9", table, metric=metric)
            for destination, table, metric in (
                draw(
                    st.lists(
                        st.tuples(
                            of("0.0.0.0/0", "10.9.0.0/16"), st.sampled_from((254, 1000)), st.sampled_from((0, 10))
                        ),
                        unique=True,
                        max_size=3,
                    )
                )
                if names
                else ()
            )
        ),
        adverts=tuple(
            Advert(draw(of("eth0", "eth1")), "prefix", prefix)
            for prefix in draw(st.lists(of("2001:db8:1::/64", "2001:db8:2::/64"), unique=True))
        ),
        rules=tuple(Rule(p, 1000, mark=p, mask=0xFF) for p in draw(st.lists(st.sampled_from((110, 111)), unique=True))),
        ruleset=draw(rulesets()),
    )
