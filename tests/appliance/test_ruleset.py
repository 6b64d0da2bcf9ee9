"""The packet filter as text: the delta and the whole lead to one table, and what is read back is recognised."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings

from appliance import ruleset as nftext
from appliance.plan import plan
from appliance.ruleset import Listing, delta, observed, rule_digest, rule_text, same_spec, whole
from appliance.state import (
    Chain,
    FilterRule,
    Hook,
    Match,
    Nat,
    NftSet,
    Ruleset,
    SetMark,
    State,
    Verdict,
    VerdictMap,
)
from tests.appliance.nfttext import Refused, Table
from tests.appliance.states import rulesets

HOOK = Hook("filter", "input", 0, "drop")
DROP = Verdict("drop")


def test_a_small_table() -> None:
    """For reading: the whole text of a table with one of each."""
    table = Ruleset(
        {
            "m_door": NftSet(
                "m_door",
                "ipv4_addr . inet_service",
                "ipv4_addr . inet_service",
                elements={"192.0.2.1 . 80": "10.0.0.1 . 8080"},
                owners={"192.0.2.1 . 80": "web"},
            ),
            "s_net": NftSet("s_net", "ipv4_addr", interval=True, elements={"10.0.0.0/8": "", "192.0.2.7": ""}),
            "s_empty": NftSet("s_empty", "ifname"),
        },
        (
            Chain("input", (FilterRule((Match(("iifname",), ("lo",)),), Verdict("accept"), "loopback"),), HOOK),
            Chain(
                "dstnat",
                (FilterRule((), Nat("dnat", ("ip daddr", "th dport"), "m_door")),),
                Hook("nat", "prerouting", -100),
            ),
            Chain(
                "aside",
                (FilterRule((Match(("ip saddr",), set="s_net", negate=True),), DROP, owner="rule-1", counter=True),),
            ),
        ),
    )
    text = re.sub(r"#[0-9a-f]{12}", "#", whole(table))
    assert text == (
        "add table inet narthex\n"
        "delete table inet narthex\n"
        "table inet narthex {\n"
        "\tmap m_door { type ipv4_addr . inet_service : ipv4_addr . inet_service;\n"
        '\t\telements = { 192.0.2.1 . 80 comment "web" : 10.0.0.1 . 8080 }\n'
        "\t}\n"
        "\tset s_net { type ipv4_addr; flags interval;\n"
        "\t\telements = { 10.0.0.0/8, 192.0.2.7 }\n"
        "\t}\n"
        "\tset s_empty { type ifname;\n"
        "\t}\n"
        "\tchain input {\n"
        "\t\ttype filter hook input priority 0; policy drop;\n"
        '\t\tiifname "lo" accept comment "loopback #"\n'
        "\t}\n"
        "\tchain dstnat {\n"
        "\t\ttype nat hook prerouting priority -100; policy accept;\n"
        '\t\tdnat ip to ip daddr . th dport map @m_door comment "#"\n'
        "\t}\n"
        "\tchain aside {\n"
        '\t\tip saddr != @s_net counter drop comment "rule-1 #"\n'
        "\t}\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (FilterRule((Match(("ct state",), ("new", "invalid")),), DROP), "ct state new,invalid drop"),
        (FilterRule((Match(("ct status",), ("dnat",), negate=True),), DROP), "ct status != dnat drop"),
        (FilterRule((Match(("iifname",), ("a", "b")),), DROP), 'iifname { "a", "b" } drop'),
        (FilterRule((Match(("th dport",), ("80-90",), negate=True),), DROP), "th dport != 80-90 drop"),
        (FilterRule((Match(("ip daddr", "th dport"), set="s"),), DROP), "ip daddr . th dport @s drop"),
        (FilterRule((), Verdict("goto", "c")), "goto c"),
        (FilterRule((), VerdictMap(("ip saddr",), "m")), "ip saddr vmap @m"),
        (FilterRule((), Nat("masquerade")), "masquerade"),
        (FilterRule((), Nat("snat", to="192.0.2.1")), "snat ip to 192.0.2.1"),
        (FilterRule((), Nat("snat", ("ip saddr",), "m", family="ip6")), "snat ip6 to ip saddr map @m"),
        (FilterRule((), SetMark("ct mark", "0x1")), "ct mark set 0x1"),
        (FilterRule((), SetMark("meta mark", copy="ct mark")), "meta mark set ct mark"),
        (FilterRule((), SetMark("ct mark", fields=("iifname",), map="m")), "ct mark set iifname map @m"),
    ],
)
def test_rules(rule: FilterRule, text: str) -> None:
    assert rule_text(rule).partition(" comment ")[0] == text


def test_a_comment_is_short_and_holds_no_quote() -> None:
    comment = rule_text(FilterRule((), DROP, 'why "' + "y" * 200, "o" * 63)).partition(" comment ")[2]
    assert comment.count('"') == 2
    assert len(comment) - 2 <= 128  # nft(8): NFTNL_UDATA_COMMENT_MAXLEN


def test_a_rule_is_known_by_all_that_it_says() -> None:
    rule = FilterRule((Match(("th dport",), ("80",)),), DROP, "why", "owner")
    others = [replace(rule, why="x"), replace(rule, owner="x"), replace(rule, counter=True), replace(rule, matches=())]
    assert len({rule_digest(r) for r in (rule, *others)}) == 5


@settings(max_examples=25)
@given(rulesets(), rulesets())
def test_a_delta_leads_where_the_whole_leads(before: Ruleset, after: Ruleset) -> None:
    change = delta(before, after)
    if change is None:
        hooks = {c.name: c.hook for c in before.chains}
        moved = any(hooks.get(c.name, c.hook) != c.hook for c in after.chains)
        unhooked = any(c.hook and c.name not in {n.name for n in after.chains} for c in before.chains)
        assert moved or unhooked or not before.chains
        return
    assert Table().take(whole(before)).take(change.text) == Table().take(whole(after))


@settings(max_examples=25)
@given(rulesets())
def test_no_delta_to_oneself(table: Ruleset) -> None:
    copy = Ruleset(dict(table.sets), tuple(replace(c) for c in table.chains))
    change = delta(table, copy)
    assert (change is None and not table.chains) or (change is not None and change.text == "")
    assert plan(State(ruleset=table), State(ruleset=copy)) == ()


def test_a_verdict_map_goes_before_the_chain_it_names() -> None:
    """nf_tables refuses to delete a chain that an element jumps to, in the same transaction too: EBUSY."""
    keep = Chain("input", (), HOOK)
    before = Ruleset(
        {"m": NftSet("m", "inet_service", "verdict", elements={"1": "jump c"})},
        (Chain("input", (FilterRule((), VerdictMap(("th dport",), "m")),), HOOK), Chain("c", (FilterRule((), DROP),))),
    )
    change = delta(before, Ruleset({}, (keep,)))
    assert change is not None
    lines = change.text.splitlines()
    assert lines.index("delete map inet narthex m") < lines.index("delete chain inet narthex c")
    assert Table().take(whole(before)).take(change.text) == Table().take(whole(Ruleset({}, (keep,))))


@pytest.mark.parametrize(
    "after",
    [
        Ruleset({"s": NftSet("s", "ipv4_addr")}, (Chain("input", (), HOOK),)),
        Ruleset({"s": NftSet("s", "inet_service", "mark")}, (Chain("input", (), HOOK),)),
        Ruleset({"s": NftSet("s", "inet_service", interval=True)}, (Chain("input", (), HOOK),)),
        Ruleset({"s": NftSet("s", "inet_service")}, (Chain("input", (), replace(HOOK, policy="accept")),)),
        Ruleset({"s": NftSet("s", "inet_service")}, ()),
    ],
)
def test_what_no_delta_can_change_is_replaced(after: Ruleset) -> None:
    before = Ruleset({"s": NftSet("s", "inet_service")}, (Chain("input", (), HOOK),))
    assert delta(before, after) is None
    (step,) = plan(State(ruleset=before), State(ruleset=after))
    assert step.whole
    assert step.text == whole(after)


def test_a_long_delta_is_replaced_by_the_whole() -> None:
    chain = (Chain("input", (), HOOK),)
    before = Ruleset({"s": NftSet("s", "inet_service")}, chain)
    after = Ruleset({"s": NftSet("s", "inet_service", elements={str(i): "" for i in range(10)})}, chain)
    assert delta(before, after, most=10) is not None
    assert delta(before, after, most=9) is None
    assert delta(after, before, most=9) is None


def test_a_delta_costs_what_changes() -> None:
    elements = {str(i): f"10.0.{i >> 8}.{i & 255}" for i in range(2000)}
    chain = (Chain("input", (FilterRule((), Nat("dnat", ("th dport",), "m")),), HOOK),)
    before = Ruleset({"m": NftSet("m", "inet_service", "ipv4_addr", elements=elements)}, chain)
    after = Ruleset({"m": replace(before.sets["m"], elements={**elements, "9999": "10.9.9.9"})}, chain)
    change = delta(before, after)
    assert change is not None
    assert change.text == "add element inet narthex m { 9999 : 10.9.9.9 }\n"


def listing(table: Ruleset) -> Listing:
    """What the kernel would say of a table: comments and elements, no owners, in an order of its own."""
    sets = {n: NftSet(n, s.key, s.value, s.interval, dict(reversed(s.elements.items()))) for n, s in table.sets.items()}
    comments = {c.name: [rule_text(r).rpartition(' comment "')[2][:-1] for r in c.rules] for c in table.chains}
    return Listing({c.name: c.hook for c in reversed(table.chains)}, comments, sets)


@settings(max_examples=25)
@given(rulesets())
def test_what_is_as_wished_is_the_wished(table: Ruleset) -> None:
    seen = observed(listing(table), table)
    assert seen == table
    assert all(seen.sets[n] is s for n, s in table.sets.items())


@settings(max_examples=25)
@given(rulesets(), rulesets())
def test_what_is_otherwise_is_seen_and_put_right(there: Ruleset, wished: Ruleset) -> None:
    seen = observed(listing(there), wished)
    steps = [s for s in plan(State(ruleset=seen), State(ruleset=wished)) if s.kind != "flows"]
    assert bool(steps) == bool(plan(State(ruleset=there), State(ruleset=wished)))
    for step in steps:
        if not step.whole:
            assert Table().take(whole(there)).take(step.text) == Table().take(whole(wished))


def test_rules_that_are_not_ours_are_seen() -> None:
    table = Ruleset({}, (Chain("input", (FilterRule((), DROP),), HOOK),))
    for comments in ([], ["#000000000000"], [*listing(table).comments["input"], ""]):
        seen = observed(Listing({"input": HOOK}, {"input": comments}, {}), table)
        assert seen.chains[0].rules == (nftext.UNKNOWN,)
        assert plan(State(ruleset=seen), State(ruleset=table))
    seen = observed(Listing({"input": HOOK, "alien": None}, listing(table).comments, {}), table)
    assert [c.name for c in seen.chains] == ["input", "alien"]


def test_same_spec() -> None:
    spec = NftSet("s", "ipv4_addr")
    assert same_spec(spec, replace(spec, elements={"10.0.0.1": ""}))
    assert not same_spec(spec, replace(spec, interval=True))


def test_the_reader_of_these_tests_bites() -> None:
    table = whole(
        Ruleset({}, (Chain("c", (FilterRule((), DROP),)), Chain("d", (FilterRule((), Verdict("jump", "c")),))))
    )
    for text in (
        "delete chain inet narthex c",
        "flush chain inet narthex c\ndelete chain inet narthex c",
        "add rule inet narthex c jump e",
        "add rule inet narthex c th dport @s drop",
        "add chain inet narthex c",
    ):
        with pytest.raises(Refused):
            Table().take(table).take(text)
