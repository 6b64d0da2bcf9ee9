"""A router of two, compiled: what is the same on both members, what is a member's own, and what floats between them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.document import DocumentError, validate
from appliance.fake import FakeHost
from appliance.plan import plan
from appliance.state import Facts, LinkFact, State, Touched
from router.checks import problems
from router.compile import compile, revise
from router.config import Config
from router.packet import Packet
from router.redundancy import DIRECTORY, digest_of
from router.trace import Tracer

EXAMPLE = json.loads((Path(__file__).parents[2] / "docs/examples/redundant.json").read_text())["config"]
MACS = {
    "r-1": ("02:82:f3:e9:c6:95", "02:00:5e:00:01:02", "02:00:5e:00:01:03", "02:00:5e:00:01:04"),
    "r-2": ("02:82:f3:e9:c6:96", "02:00:5e:00:01:12", "02:00:5e:00:01:13", "02:00:5e:00:01:14"),
}


def made(**changes: Any) -> Config:
    return validate(Config, {**EXAMPLE, **changes})


def redundant(**changes: Any) -> Config:
    return made(redundancy={**EXAMPLE["redundancy"], **changes})


def machine(member: str) -> Facts:
    links = {mac: LinkFact(f"eth{n}", mac, n + 2, 1500, True) for n, mac in enumerate(MACS[member])}
    return Facts(member, links, MACS[member][0])


def both(config: Config) -> tuple[State, State]:
    return compile(config, machine("r-1")), compile(config, machine("r-2"))


def text(state: State, name: str) -> str:
    return next(f.content for f in state.files if f.path == f"{DIRECTORY}/{name}")


# --- two members ------------------------------------------------------------------------------------------------------


def test_the_same_router_by_other_links() -> None:
    first, second = both(made())
    named = {a: b for a, b in zip(MACS["r-1"], MACS["r-2"], strict=True)}
    assert [replace(link, mac=named[link.mac]) for link in first.links] == list(second.links)
    assert first.rules == second.rules, "a flow's mark would mean another uplink to the other member"
    assert first.ruleset.chains == second.ruleset.chains
    other = {n for n, s in first.ruleset.sets.items() if s != second.ruleset.sets[n]}
    assert other == {"m_hairpin", "s_own", "s_service", "s_protocol"}, (
        "where each is asked by the other, and nothing else"
    )
    files = [[f for f in state.files if DIRECTORY not in f.path] for state in (first, second)]
    assert [replace(f, content=f.content.replace("r-2", "r-1")) for f in files[1]] == files[0], "but for its own name"


def test_what_floats() -> None:
    first, second = both(made())
    assert {a.cidr for a in first.addresses if not a.floating} == {"169.254.240.2/20", "169.254.51.1/30"}
    assert {a.cidr for a in second.addresses if not a.floating} == {"169.254.240.3/20", "169.254.51.2/30"}
    for state in (first, second):
        floating = [a for a in state.addresses if a.floating]
        assert {a.cidr for a in floating} == {"203.0.113.2/24", "203.0.113.10/24", "10.1.1.1/24"}
        assert all(r.floating for r in state.routes)
        for part in floating:
            assert f"{part.cidr} dev {part.link}" in text(state, "keepalived.conf")


def test_a_router_alone_has_none_of_it() -> None:
    state = compile(made(redundancy=None), machine("r-1"))
    assert not any(DIRECTORY in f.path for f in state.files)
    assert not any(a.floating for a in state.addresses)
    assert not {u.name for u in state.units} & {"keepalived", "conntrackd", "peer"}


def test_the_trace_is_the_primary_s() -> None:
    for state in both(made()):
        traced = Tracer(state).trace(Packet("public", "192.0.2.7", "203.0.113.10", "tcp", 40000, 443))
        assert (traced.outcome.verdict, traced.outcome.destination) == ("forwarded", "10.1.1.10")


def test_where_the_members_are_heard() -> None:
    state = compile(made(), machine("r-1"))
    heard = [("112", 0), ("udp", 3780), ("udp", 3781)]
    for protocol, port in heard:
        number = 112 if protocol == "112" else protocol
        packet = Packet("sync", "169.254.51.2", "169.254.51.1", number, 3780, port)
        assert Tracer(state).trace(packet).outcome.verdict == "local"
        for link, source in (("lan", "10.1.1.10"), ("public", "169.254.51.2"), ("lan", "169.254.51.2")):
            packet = Packet(link, source, "169.254.51.1", number, 3780, port)
            assert Tracer(state).trace(packet).outcome.verdict == "dropped"


def test_checks_of_the_router_are_asked_of_the_primary() -> None:
    state = compile(made(), machine("r-2"))
    assert [c.kind for c in state.checks if not c.here] == ["report"]
    assert {c.here for c in state.checks if c.here} == {"127.112.0.51"}


# --- which document ---------------------------------------------------------------------------------------------------

HOST = {"id": "new", "network": "office", "mac": "02:00:5e:00:02:0b", "address": "10.1.1.11", "name": "new"}


def test_a_change_leads_to_the_same_state_and_digest() -> None:
    before, after = made(), made(hosts=[*EXAMPLE["hosts"], HOST])
    touched = (Touched("hosts", "new", None, after.hosts[-1]),)
    for member in MACS:
        state = compile(before, machine(member))
        assert revise(state, after, touched, machine(member)) == compile(after, machine(member))
        back = (Touched("hosts", "new", after.hosts[-1], None),)
        assert revise(compile(after, machine(member)), before, back, machine(member)) == state


def test_the_digest_is_the_document_s() -> None:
    assert digest_of(made()) == digest_of(made())
    told = [json.loads(text(s, "peer.json")) for s in both(made())]
    assert told[0]["document"] == told[1]["document"] == digest_of(made())
    assert (told[0]["stronger"], told[1]["stronger"]) == (True, False)
    others = [
        made(hosts=[]),
        made(interfaces=EXAMPLE["interfaces"][::-1]),
        redundant(interval=1.0),
        made(upstream=[]),
    ]
    assert len({digest_of(c) for c in (made(), *others)}) == 5


# --- what is refused --------------------------------------------------------------------------------------------------


def member(number: int, **changes: Any) -> list[dict[str, Any]]:
    """The members, one of them changed."""
    found = [dict(m) for m in EXAMPLE["redundancy"]["members"]]
    found[number] |= changes
    return found


def seats(number: int, name: str, **changes: Any) -> list[dict[str, Any]]:
    """The members, one seat changed."""
    those = EXAMPLE["redundancy"]["members"][number]["interfaces"]
    return member(number, interfaces=[{**s, **changes} if s["interface"] == name else s for s in those])


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"members": member(1, id="r-1")}, "members[r-1].id", "give each its own"),
        ({"members": member(1, priority=250)}, "members[r-2].priority", "Give them two"),
        ({"members": seats(1, "lan", mac="02:00:5e:00:01:03")}, "members[r-2].interfaces", "one MAC"),
        ({"members": seats(1, "lan", interface="lam")}, "members[r-2].interfaces", "there is no interface lam"),
        ({"members": seats(1, "lan", addresses=["10.1.1.3/24"])}, "members[r-2].interfaces", "overlaps 10.1.1.0/24"),
        ({"members": seats(1, "lan", addresses=["10.0.0.3/8"])}, "members[r-2].interfaces", "overlaps 10.1.1.0/24"),
        ({"members": seats(1, "sync", addresses=["169.254.51.1/30"])}, "members[r-2].interfaces", "is r-1's too"),
        ({"members": seats(1, "sync", addresses=["169.254.52.2/30"])}, "interface", "not in one subnet"),
        ({"members": seats(1, "sync", addresses=[])}, "members[r-2].interfaces", "no IPv4 address of its own"),
        ({"members": seats(1, "control", addresses=[])}, "members[r-2].interfaces", "is r-1's too"),
        ({"interface": "public"}, "interface", "guest or private"),
        ({"interface": "none"}, "interface", "there is no interface none"),
        ({"track": [{"interface": "none"}]}, "track[none]", "there is no interface none"),
        ({"track": [{"interface": "lan", "weight": 5}]}, "track[lan]", "set preempt"),
    ],
)
def test_refused(changes: dict[str, Any], path: str, words: str) -> None:
    found = problems(redundant(**changes))
    assert any(p.path == f"config.redundancy.{path}" and words in p.message for p in found), found


@pytest.mark.parametrize("changes", [{"members": member(0)[:1]}, {"interval": 0.01}, {"group": 0}, {"shared": True}])
def test_refused_by_the_model(changes: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        redundant(**changes)


def test_a_machine_that_is_neither() -> None:
    config, stranger = made(), Facts("x", {"02:00:00:00:00:01": LinkFact("eth0", "02:00:00:00:00:01", 2, 1500, True)})
    (found,) = problems(config, stranger)
    assert found.path == "config.redundancy.members"
    with pytest.raises(LookupError, match="neither member"):
        compile(config, stranger)
    for name in MACS:
        assert problems(config, machine(name)) == []
    unplugged = machine("r-2")
    links = {mac: fact for mac, fact in unplugged.links.items() if mac != MACS["r-2"][2]}
    (found,) = problems(config, replace(unplugged, links=links))
    assert f"no interface with MAC {MACS['r-2'][2]} (lan)" in found.message


# --- from one to two and back -----------------------------------------------------------------------------------------


def test_what_lands_comes_after_the_unit_that_had_it_has_stopped() -> None:
    """Else keepalived, as it ends, would take the address away again."""
    two, one = compile(made(), machine("r-1")), compile(made(redundancy=None), machine("r-1"))
    steps = [str(step) for step in plan(two, one)]
    stop = steps.index("stop unit keepalived")
    assert all(n > stop for n, step in enumerate(steps) if step.startswith(("add address", "add route")))
    host = FakeHost(machine("r-1"))
    for state, before in ((two, State()), (one, two), (two, one)):
        for step in plan(before, state):
            host.commit(step)
        assert not [s for s in plan(host.observe(state, []), state) if s.kind != "flows"]
