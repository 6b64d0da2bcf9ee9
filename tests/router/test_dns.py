"""DNS's files: names of hosts, the router and records; whom each network asks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import Config
from router.dns import compile_dns
from router.listing import including, listing, without
from tests.router.samples import INTERFACES, NETWORKS, facts_of, host, made


def text(config: Config, kind: str, network: str = "web") -> str:
    files = {f.path: f.content for f in compile_dns(config, facts_of(config)).files}
    return files[f"/etc/narthex/dns/{network}.{kind}"]


def record(ident: str, name: str, kind: str, value: str, **more: Any) -> dict[str, Any]:
    return {"id": ident, "name": name, "type": kind, "value": value, **more}


def test_hosts_and_the_routers_own_names() -> None:
    config = made(hosts=[host(), host("e", mac="02:01:00:00:00:05", address="10.1.2.13", name="e", network="db.1")])
    assert text(config, "hosts").splitlines() == [
        "10.1.1.1 r-1.web.test r-1 data-server.web.test data-server",
        "10.1.1.10 vm-1.web.test vm-1",
    ]
    assert text(config, "hosts", "db.1").splitlines() == ["10.1.2.1 r-1 data-server", "10.1.2.13 e"]


def test_each_record_in_its_form() -> None:
    records = [
        record("1", "www", "A", "203.0.113.5"),
        record("2", "www.example.com", "AAAA", "2001:DB8:0::5"),
        record("3", "alias", "CNAME", "vm-1"),
        record("4", "note", "TXT", "a, b; c"),
        record("5", "web.test", "MX", "mail.example.com", priority=10),
        record("6", "_sip._tcp", "SRV", "vm-1", priority=1, weight=2, port=5060),
        record("7", "there", "A", "203.0.113.6", network="db.1"),
    ]
    config = made(records=records)
    assert text(config, "records").splitlines() == ["2001:db8::5 www.example.com", "203.0.113.5 www.web.test www"]
    assert text(config, "records", "db.1").splitlines() == [
        "2001:db8::5 www.example.com", "203.0.113.5 www", "203.0.113.6 there",
    ]  # fmt: skip
    conf = text(config, "conf").splitlines()
    assert conf[conf.index("local=/web.test/") + 1 :] == [
        "cname=alias.web.test,vm-1.web.test",
        "cname=alias,vm-1.web.test",
        'txt-record=note.web.test,"a, b; c"',
        'txt-record=note,"a, b; c"',
        "mx-host=web.test,mail.example.com,10",
        "srv-host=_sip._tcp.web.test,vm-1.web.test,5060,1,2",
        "srv-host=_sip._tcp,vm-1.web.test,5060,1,2",
    ]


def test_a_networks_own_upstream_is_the_only_one_it_has() -> None:
    networks = ({**NETWORKS[0], "upstream": ["192.0.2.53", "192.0.2.54"]}, NETWORKS[1])
    config = made(networks=networks, upstream=["192.0.2.55"])
    assert text(config, "servers") == "server=192.0.2.53\nserver=192.0.2.54\n"
    assert text(config, "servers", "db.1") == "server=192.0.2.55\n"
    assert text(made(), "servers") == ""


def test_one_server_for_each_network_with_dns() -> None:
    config = made(networks=({**NETWORKS[0], "dns": False}, NETWORKS[1]))
    assert [u.name for u in compile_dns(config, facts_of(config)).units] == ["dns-db.1"]


def test_the_router_of_a_network_is_its_own_address_there() -> None:
    web = {**INTERFACES[3], "addresses": ["10.1.9.1/24", "10.1.1.2/24", "10.1.1.1/24"]}
    config = made(interfaces=[*INTERFACES[:3], web, *INTERFACES[4:]])
    assert "listen-address=10.1.1.2" in text(config, "conf")


def test_a_network_without_the_routers_address_is_named() -> None:
    config = made(networks=({**NETWORKS[0], "cidr": "10.1.5.0/24"}, NETWORKS[1]))
    with pytest.raises(LookupError, match=r"10\.1\.5\.0/24"):
        compile_dns(config, facts_of(config))


# --- listings -----------------------------------------------------------------------------------------------

_lines = st.lists(st.text("ab ,.", min_size=1, max_size=4), max_size=12)


@given(_lines, st.text("ab ,.", min_size=1, max_size=4))
def test_a_line_more_and_a_line_less(lines: list[str], line: str) -> None:
    more = including(listing(lines), line)
    assert more == listing([*lines, line])
    assert without(more, line) == listing(lines)
    assert (without(listing(lines), line) is None) == (line not in lines)
