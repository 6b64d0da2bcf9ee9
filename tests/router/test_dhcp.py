"""DHCP's files: who stands in them, what they are told, and that a revision is a whole compile."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.document import DocumentError, validate
from appliance.state import File, State, Touched
from router.checks import problems
from router.config import Config, Host
from router.dhcp import compile_dhcp, revise_dhcp
from router.dns import compile_dns, revise_dns
from tests.router.samples import INTERFACES, NETWORKS, document, facts_of, host, made

RANGE = {"first": "10.1.1.100", "last": "10.1.1.110", "lease": 600}


def network(**changes: Any) -> tuple[dict[str, Any], ...]:
    """The sample's networks, the first of them changed."""
    return ({**NETWORKS[0], **changes}, *NETWORKS[1:])


def text(config: Config, kind: str) -> str:
    """A file of the interface `web`."""
    files = {f.path: f.content for f in compile_dhcp(config, facts_of(config)).files}
    return files[f"/etc/narthex/dhcp/web.{kind}"]


def options(config: Config, tag: str) -> list[str]:
    """The options under exactly this tag, by code."""
    lines = (line.removeprefix(f"tag:{tag},") for line in text(config, "options").splitlines() if f"tag:{tag}," in line)
    return sorted(lines, key=lambda line: int(line.partition(",")[0]) if line[0].isdigit() else 999)


def test_a_line_for_each_host() -> None:
    hosts = (
        host("b", mac="02:01:00:00:00:02", address="10.1.1.11", name="b", lease=300),
        host("a", default=False),
        host("c", mac="02:01:00:00:00:03", address="10.1.1.12", name="ignore"),
        host("d", mac="02:01:00:00:00:04", address="10.1.1.13", name="d", dns=["9.9.9.9"], default=False),
        host("e", mac="02:01:00:00:00:05", address="10.1.2.13", name="e", network="db.1"),
    )
    assert text(made(hosts=hosts), "hosts").splitlines() == [
        "02:01:00:00:00:01,10.1.1.10,set:plain.web,set:aside,vm-1",
        "02:01:00:00:00:02,10.1.1.11,b,300",
        "02:01:00:00:00:03,10.1.1.12,set:host.c",
        "02:01:00:00:00:04,10.1.1.13,set:host.d,set:aside,d",
    ]


def test_options_of_a_network() -> None:
    config = made()
    assert options(config, "network.web") == ["3,10.1.1.1", "6,10.1.1.1", "15,web.test"]
    assert options(config, "plain.web") == ["3", "6", "15"]


def test_a_router_that_serves_no_names_gives_its_upstream() -> None:
    config = made(networks=network(dns=False, upstream=["192.0.2.53"]))
    assert "6,192.0.2.53" in options(config, "network.web")
    assert "6,192.0.2.54" in options(made(networks=network(dns=False), upstream=["192.0.2.54"]), "network.web")
    assert "6" in options(made(networks=network(dns=False)), "network.web")


def test_the_default_route_stands_in_the_classless_routes_too() -> None:
    routes = [{"destination": "192.168.7.0/24", "via": "10.1.1.9"}]
    config = made(networks=network(dhcp={"routes": routes}), hosts=[host(routers=["10.1.1.8"])])
    assert "121,192.168.7.0/24,10.1.1.9,0.0.0.0/0,10.1.1.1" in options(config, "network.web")
    assert "121,192.168.7.0/24,10.1.1.9" in options(config, "plain.web")
    assert "121,192.168.7.0/24,10.1.1.9,0.0.0.0/0,10.1.1.8" in options(config, "host.vm-1")


def test_only_known_hosts_and_nothing_remembered() -> None:
    conf = text(made(), "conf").splitlines()
    assert "dhcp-ignore=tag:!known" in conf
    assert "leasefile-ro" in conf
    assert "dhcp-range=set:network.web,10.1.1.0,static,255.255.255.0,infinite" in conf
    assert "grep" not in text(made(), "release")


def test_strangers_leases_are_kept() -> None:
    config = made(networks=network(dhcp=RANGE))
    conf = text(config, "conf").splitlines()
    assert "dhcp-range=set:network.web,10.1.1.100,10.1.1.110,255.255.255.0,600" in conf
    assert "dhcp-leasefile=/var/lib/narthex/dhcp/web.leases" in conf
    assert "dhcp-ignore=tag:!known" not in conf
    assert "/etc/narthex/dhcp/web.hosts" in text(config, "release")


def test_one_server_for_each_interface_with_dhcp() -> None:
    config = made()
    units = compile_dhcp(config, facts_of(config)).units
    assert [u.name for u in units] == ["dhcp-db", "dhcp-web"]
    assert [u.reload for u in units] == ["HUP", "HUP"]
    off = made(networks=network(dhcp={"enabled": False}))
    assert [u.name for u in compile_dhcp(off, facts_of(off)).units] == ["dhcp-db"]
    assert compile_dhcp(made(networks=[]), facts_of(config)) == State()


def test_every_path_of_a_unit_is_a_file() -> None:
    config = made(hosts=[host()])
    for part in (compile_dhcp(config, facts_of(config)), compile_dns(config, facts_of(config))):
        paths = {f.path for f in part.files}
        for unit in part.units:
            assert {*unit.reload_on, *unit.restart_on, *unit.checks} <= paths
            assert "{" + unit.checks[0] + "}" in unit.check[-1]


def test_an_interface_that_is_not_plugged_is_named() -> None:
    config = made()
    with pytest.raises(LookupError, match="02:00:00:00:00:0"):
        compile_dhcp(config, facts_of(made(interfaces=INTERFACES[:3], networks=[])))


# --- a revision is a whole compile --------------------------------------------------------------------------

_numbers = st.integers(0, 9)
_some = st.sampled_from


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    number, web = draw(_numbers), draw(st.booleans())
    raw = {
        "id": f"vm-{number}",
        "network": "web" if web else "db.1",
        "mac": f"02:01:00:00:00:{draw(_numbers):02x}",
        "address": f"10.1.{1 if web else 2}.{draw(st.integers(10, 120))}",
        "name": draw(_some(["a", "b", "web", "ignore", "42", "B"])),
        "default": draw(st.booleans()),
        "lease": draw(_some([None, 300])),
        "dns": draw(_some([None, [], ["9.9.9.9"]])),
        "routers": draw(_some([None, ["10.1.1.7"]])),
    }
    return validate(Host, raw)


_sets = st.lists(hosts(), max_size=8, unique_by=lambda h: h.id)


@given(_sets, _sets, st.booleans())
def test_a_revision_is_a_whole_compile(before: list[Host], after: list[Host], off: bool) -> None:
    networks = network(dhcp={"enabled": not off}, dns=not off)
    first, second = (made(networks=networks).model_copy(update={"hosts": tuple(h)}) for h in (before, after))
    old, new = ({h.id: h for h in config.hosts} for config in (first, second))
    changed = sorted(i for i in {*old, *new} if old.get(i) != new.get(i))
    touched = [Touched("hosts", i, old.get(i), new.get(i)) for i in changed]
    facts = facts_of(first)
    for whole, revise in ((compile_dhcp, revise_dhcp), (compile_dns, revise_dns)):
        files = whole(first, facts).files
        revised = revise(files, second, touched, facts)
        assert revised == whole(second, facts).files
        kept = {f.path for f in files} - {f.path for f, g in zip(files, revised or (), strict=True) if f is not g}
        assert all(f.content == g.content for f, g in zip(files, revised or (), strict=True) if f.path in kept)


@given(_sets, st.randoms())
def test_the_order_of_a_document_means_nothing(found: list[Host], random: Any) -> None:
    config = made().model_copy(update={"hosts": tuple(found)})
    random.shuffle(found)
    other = made(networks=NETWORKS[::-1]).model_copy(update={"hosts": tuple(found)})
    facts = facts_of(config)
    assert compile_dhcp(config, facts) == compile_dhcp(other, facts)
    assert compile_dns(config, facts) == compile_dns(other, facts)


def test_a_revision_of_files_that_are_not_as_thought_is_a_whole_compile() -> None:
    config = made()
    gone = [Touched("hosts", "vm-1", validate(Host, host()), None)]
    assert revise_dhcp(compile_dhcp(config, facts_of(config)).files, config, gone, facts_of(config)) is None
    assert revise_dhcp((), config, [Touched("hosts", "vm-1", None, gone[0].before)], facts_of(config)) is None


# --- hostile strings ----------------------------------------------------------------------------------------

FULL: dict[str, Any] = document(
    networks=[
        {
            **NETWORKS[0],
            "upstream": ["192.0.2.53"],
            "dhcp": {
                "first": "10.1.1.100",
                "last": "10.1.1.110",
                "routers": ["10.1.1.1"],
                "dns": ["10.1.1.1"],
                "ntp": ["10.1.1.5"],
                "search": ["x.example"],
                "routes": [{"destination": "192.168.7.0/24", "via": "10.1.1.9"}],
            },
        },
        NETWORKS[1],
    ],
    hosts=[host(dns=["9.9.9.9"], routers=["10.1.1.7"])],
    records=[
        {"id": "1", "name": "www", "type": "A", "value": "203.0.113.5", "network": "web"},
        {"id": "2", "name": "note", "type": "TXT", "value": "hello"},
    ],
    upstream=["192.0.2.54"],
)
HOSTILE = ("\n", "\r", "\0", "\t", '"', "'", "\\", "{", "}", "{{", "%}", "$", "`", "#", "é", "ⓔ", "\u2028", "٣", "\x85")
COMMANDS = ("\nserver=/#/6.6.6.6", "{{ facts }}", "{% raw %}", '"\nconf-file=/etc/shadow', "$(reboot)", "é.example")


def places_of(raw: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all texts in a document."""
    if isinstance(raw, str):
        return [at]
    inner = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list | tuple) else ()
    return [place for key, value in inner for place in places_of(value, (*at, key))]


def put(raw: Any, at: tuple[Any, ...], new: str) -> Any:
    """A document with another text at one place."""
    if not at:
        return new
    if isinstance(raw, dict):
        return {k: put(v, at[1:], new) if k == at[0] else v for k, v in raw.items()}
    return [put(v, at[1:], new) if i == at[0] else v for i, v in enumerate(raw)]


def text_at(raw: Any, at: tuple[Any, ...]) -> str:
    for key in at:
        raw = raw[key]
    return str(raw)


PLACES = [p for p in places_of(FULL) if p[0] in ("interfaces", "networks", "hosts", "records", "upstream")]
KEYS = re.compile(
    r"#.*|(port=0|user=nobody|group=nogroup|pid-file=|log-facility=-|except-interface=lo|bind-dynamic|no-resolv|no-hosts"
    r"|dhcp-authoritative|dhcp-ignore-clid|leasefile-ro|no-ping|domain-needed|bogus-priv"
    r"|(interface|listen-address|dhcp-option|dhcp-range|dhcp-ignore-names|dhcp-leasefile|dhcp-ignore|dhcp-lease-max"
    r"|dhcp-hostsfile|dhcp-optsfile|dhcp-script|dhcp-scriptuser|cache-size|dns-forward-max|servers-file|addn-hosts"
    r"|rev-server|local|cname|mx-host|srv-host)=[A-Za-z0-9_./:,!-]+"
    r'|txt-record=[A-Za-z0-9_.-]+,"[^"]*")'
)
LINES = {
    "conf": KEYS,
    "hosts": re.compile(r"[0-9a-f:]{17},[0-9.]+(,[A-Za-z0-9_.:-]+)*|[0-9.]+( [A-Za-z0-9_.-]+)+"),
    "options": re.compile(r"tag:[A-Za-z0-9_.:!,/-]+"),
    "records": re.compile(r"[0-9a-f.:]+( [A-Za-z0-9_.-]+)+"),
    "servers": re.compile(r"server=[0-9a-f.:]+"),
    "release": re.compile(r"(#|case|grep|exec dhcp_release) ?[A-Za-z0-9 !/:<>|.,$\"()*;&-]*"),
}


def files_of(raw: Any) -> tuple[File, ...]:
    config = validate(Config, raw)
    facts = facts_of(config)
    return (*compile_dhcp(config, facts).files, *compile_dns(config, facts).files)


def assert_whole(files: tuple[File, ...]) -> None:
    """Every line of every file is one of those that the file may have."""
    for file in files:
        kind = file.path.rpartition(".")[2]
        for line in file.content.removesuffix("\n").split("\n") if file.content else ():
            assert LINES[kind].fullmatch(line), f"{file.path}: {line!r}"


def test_the_sample_is_sound() -> None:
    assert not problems(validate(Config, FULL))
    assert_whole(files_of(FULL))


@pytest.mark.parametrize("at", PLACES, ids=lambda at: ".".join(map(str, at)))
def test_hostile_texts_are_refused_everywhere(at: tuple[Any, ...]) -> None:
    plain = text_at(FULL, at)
    for hostile in (*HOSTILE, *COMMANDS):
        for new in (hostile, plain + hostile, hostile + plain, plain[:2] + hostile + plain[2:]):
            with pytest.raises(DocumentError):
                validate(Config, put(FULL, at, new))


@given(st.sampled_from(PLACES), st.text() | st.text("ab01.-_:/ ,;=!*@~") | st.from_regex(r"[!-~]{1,20}"))
def test_what_is_not_refused_stays_in_its_line(at: tuple[Any, ...], new: str) -> None:
    raw = put(FULL, at, new)
    try:
        refused = problems(validate(Config, raw))
    except DocumentError:
        return
    if not refused:
        assert_whole(files_of(raw))


def test_lists_that_no_option_holds_are_refused() -> None:
    for dhcp in (
        {"dns": [f"10.1.1.{n}" for n in range(17)]},
        {"search": ["x" * 60 + ".example"] * 4},
        {"routes": [{"destination": f"10.{n}.0.0/16", "via": "10.1.1.9"} for n in range(28)]},
    ):
        with pytest.raises(DocumentError):
            validate(Config, document(networks=network(dhcp=dhcp)))
