"""Load balancing: what a document may say, what is told while haproxy runs and what needs a reload, what it counted."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.document import DocumentError, validate
from appliance.haproxy import Count, Live, Workers, as_wished, counts_of, rows_of, servers_of, workers_of
from appliance.plan import Lost, diff, plan
from appliance.state import Nat, Pool, Server, State, Touched
from router.certificate import certificate_problem, key_problem
from router.checks import problems
from router.compile import compile, revise
from router.config import Config
from router.oracle import verdict
from router.packet import Packet
from router.trace import trace
from tests.router.samples import GUESTS, PUBLIC, document, facts_of, forward, made, ports
from tests.router.samples import rule as samples_rule

PAIRS = {
    "rsa": (
        """-----BEGIN CERTIFICATE-----
MIICBDCCAW2gAwIBAgIUH6miH0A6+xY913oMW8KvffMT+jswDQYJKoZIhvcNAQEL
BQAwEzERMA8GA1UEAwwIb25lLnRlc3QwIBcNMjYxMTI4MTM0ODQzWhgPMjEyNjEx
MDQxMzQ4NDNaMBMxETAPBgNVBAMMCG9uZS50ZXN0MIGfMA0GCSqGSIb3DQEBAQUA
A4GNADCBiQKBgQDlW4rYvMuhycv02vusjYTP9aVxVJX+yatpxBN3JaSf89cNghqQ
dOOhd+yUhsuR5huESGiADrV1wlt2V/pFPQwJvRkSntyb1WwwOp78WGk7ZvnhFOUS
OHgV6jHsqIWUa4N9Sov0dB1XG8rapS7/odp+NTOJwEyzIa0aZmr0pe5FjwIDAQAB
o1MwUTAdBgNVHQ4EFgQUtaV3iy/v1DBDxrnbZZEcjimXEDwwHwYDVR0jBBgwFoAU
taV3iy/v1DBDxrnbZZEcjimXEDwwDwYDVR0TAQH/BAUwAwEB/zANBgkqhkiG9w0B
AQsFAAOBgQDKEr8VFnaaANyMjGtVBf3oVlIo7LGDZNOaDqZWkNd3IDvj1E7yqF0q
4ypVoiHU/Q0opOc8BDhgBgoBmbgNQQEivvBRPqa1WkPzvjtSZ+h9kcWHUIbvSSZV
bBYAoTAtvC2X+i3jSlNwYbw7+Qn8AyWFJMtBfoCpK5u6pQdWYxj2Pg==
-----END CERTIFICATE-----
""",
        """-----BEGIN PRIVATE KEY-----
MIICeAIBADANBgkqhkiG9w0BAQEFAASCAmIwggJeAgEAAoGBAOVbiti8y6HJy/Ta
+6yNhM/1pXFUlf7Jq2nEE3clpJ/z1w2CGpB046F37JSGy5HmG4RIaIAOtXXCW3ZX
+kU9DAm9GRKe3JvVbDA6nvxYaTtm+eEU5RI4eBXqMeyohZRrg31Ki/R0HVcbytql
Lv+h2n41M4nATLMhrRpmavSl7kWPAgMBAAECgYEAwELZhE/Wvxui/fFnUUEcWRtJ
AVRvnDI/n5x+2LzUYEUOO8OZMwjZHCykQ+ku0nG7FUuBVf9+e2VeODkNkWbYI+d8
xY/6qnq1WrB0JS/yV2gOWrdcav2KwoT0iHFwINHL2pm4eji6o5r5YAJf2UCR903k
nHwgj4QEwxUO7Q3XRpkCQQD0owMELlDORpLxBEis0ML5jW7W2w+ulozfBO3VSpfd
X5kmJHETSL504grYePbM6ovjQT272dquYqOlXScmWDpdAkEA8ALYWTaLwbEwpdyH
bc7HmzenzxwmMjrRgsV7y0OWZZ/A8YSfrnEDVk/qlyo+kU6xH9RvRUbVpteEoJ7/
33A42wJAMC/Pz0oENq1mEj1ix0+TqC44r++UZjJXazKAWmwH/93tv7qb302L3mAL
/NnO20wz476dF1xxG7poO5FevcnRLQJBAOoCPCKvlg/hzQbKP5kGlYN2/jxmu68Z
vhB8r7h9S3QGEL7qii4wrgpHnPiKDbrrOLNKErs+1yz20K8yl1OpPSUCQQCO6Tme
ryx2wAYlpPaUtfjqZPxAio5hrtYKBfxLQTbkFd0o+seML/NvHxekMVWKTWe9Xb54
nxNLIuwZ/7uLQSMa
-----END PRIVATE KEY-----
""",
    ),
    "curve": (
        """-----BEGIN CERTIFICATE-----
MIIBfDCCASOgAwIBAgIURJBWyqaeg/cEqVU/XOmp/swfjkMwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIdHdvLnRlc3QwIBcNMjYxMTI4MTM0ODQzWhgPMjEyNjExMDQx
MzQ4NDNaMBMxETAPBgNVBAMMCHR3by50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAE1Co9tDjTe2m1zfce7DDlQHqtxqUxRgv/lxnK9UBxH7HnrzXjh/dS44nO
qHd2H199uCLSICdy19ogZTTrgAwCB6NTMFEwHQYDVR0OBBYEFBDNdo9cezqSn5JF
/PdHrTfARUsvMB8GA1UdIwQYMBaAFBDNdo9cezqSn5JF/PdHrTfARUsvMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgXmhl2EmQ2iotjYZ1aZvEagpq
cK6BKg5Y65HMylQaOogCICgpbOfjIDQxUEV1eHwGLeg/uzgXqir1NSw2omBGT5Qn
-----END CERTIFICATE-----
""",
        """-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIAKJnFdvj9iR7XJvLuT3jZSBcqTp+cohfa/xP0qRKhLnoAoGCCqGSM49
AwEHoUQDQgAE1Co9tDjTe2m1zfce7DDlQHqtxqUxRgv/lxnK9UBxH7HnrzXjh/dS
44nOqHd2H199uCLSICdy19ogZTTrgAwCBw==
-----END EC PRIVATE KEY-----
""",
    ),
}


def backend(ident: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": ident, "address": GUESTS[0] if ident == "a" else GUESTS[1], "port": 80, **more}


def rule(ident: str = "site", **more: Any) -> dict[str, Any]:
    plain = {"address": PUBLIC[0], "port": 80, "protocol": "http", "backends": [backend(), backend("b")]}
    return {"id": ident, **plain, **more}


def certificate(ident: str = "one", kind: str = "rsa", **more: Any) -> dict[str, Any]:
    return {"id": ident, "certificate": PAIRS[kind][0], "key": PAIRS[kind][1], **more}


def page(**more: Any) -> dict[str, Any]:
    return {"id": "page", "address": PUBLIC[0], "user": "admin", "password": "a secret", **more}


def state(**collections: Any) -> State:
    config = made(**collections)
    assert problems(config) == []
    return compile(config, facts_of(config))


def steps(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [str(s).partition(" (")[0] for s in plan(state(**before), state(**after))]


FILE, SHAPE = (f"write file /etc/narthex/balancer/{name}" for name in ("haproxy.cfg", "shape"))

# --- what is told, and what needs a reload -------------------------------------------------------------------


def test_no_rule_no_haproxy() -> None:
    assert not any(u.name == "balancer" for u in state().units)
    assert state().pools == ()


@pytest.mark.parametrize(
    "backends",
    [
        [backend()],
        [backend(), backend("b"), {**backend("c"), "port": 81}],
        [backend(drain=True), backend("b")],
        [backend(weight=9), backend("b")],
        [backend(port=8080), backend("b")],
    ],
)
def test_servers_are_told_without_a_reload(backends: list[dict[str, Any]]) -> None:
    before, after = {"balancers": [rule()]}, {"balancers": [rule(backends=backends)]}
    assert steps(before, after) == [FILE, "set pool lb-site"]
    assert steps(after, before) == [FILE, "set pool lb-site"]


@pytest.mark.parametrize(
    "more",
    [
        {"backends": [backend(), backend("b", backup=True)]},
        {"timeouts": {"client": 7}},
        {"limits": {"backend_connections": 7}},
        {"health": {"kind": "off"}},
        {"health": {"interval": 9}},
        {"proxy_protocol": "v2"},
        {"algorithm": "leastconn"},
        {"sources": ["192.0.2.0/24"]},
        {"port": 81},
    ],
)
def test_all_else_is_a_reload(more: dict[str, Any]) -> None:
    found = steps({"balancers": [rule()]}, {"balancers": [rule(**more)]})
    assert found[:3] == [FILE, SHAPE, "reload unit balancer"]


def test_a_renewed_certificate_is_a_reload() -> None:
    secure = rule(tls={"certificates": ["one"]})
    before = {"balancers": [secure], "certificates": [certificate()]}
    after = {"balancers": [secure], "certificates": [certificate(kind="curve")]}
    assert steps(before, after) == ["write file /etc/narthex/balancer/one.pem", "reload unit balancer"]


def test_order_means_nothing() -> None:
    two = [rule(), rule("other", port=81)]
    turned = [rule("other", port=81, backends=[backend("b"), backend()]), rule()]
    assert steps({"balancers": two}, {"balancers": turned}) == []


def test_a_patch_makes_what_a_document_makes() -> None:
    before, after = made(balancers=[rule()]), made(balancers=[rule(backends=[backend()])])
    touched = (Touched("balancers", "site", before.balancers[0], after.balancers[0]),)
    revised = revise(compile(before, facts_of(before)), after, touched, facts_of(after))
    assert revised is not None
    assert revised == compile(after, facts_of(after))
    moved = made(balancers=[rule(address="10.1.1.1")])
    touched = (Touched("balancers", "site", before.balancers[0], moved.balancers[0]),)
    assert revise(compile(before, facts_of(before)), moved, touched, facts_of(moved)) is None


def test_secrets_are_shown_nowhere() -> None:
    secure = {"balancers": [rule(tls={"certificates": ["one"]})], "certificates": [certificate()]}
    told = state(**secure, stats_pages=[page()])
    text = diff(State(), told) + repr(told)
    assert "a secret" not in text
    assert PAIRS["rsa"][1].splitlines()[3] not in text
    assert "a secret" in next(f.content for f in told.files if f.path.endswith("haproxy.cfg"))
    assert all(f.mode == 0o600 for f in told.files if f.path.endswith((".pem", "haproxy.cfg")))


def test_an_internal_balancer_has_a_door_and_a_public_one_needs_a_rule() -> None:
    inner, public = state(balancers=[rule(address="10.1.1.1")]), state(balancers=[rule()])
    doors = [k for k, owner in inner.ruleset.sets["s_service"].owners.items() if owner == "site"]
    assert doors == ["eth3 . 10.1.1.1 . tcp . 80"]
    assert not any(owner == "site" for s in public.ruleset.sets.values() for owner in s.owners.values())


# --- UDP -----------------------------------------------------------------------------------------------------


def udp(*backends: dict[str, Any], **more: Any) -> dict[str, Any]:
    return rule("dns", protocol="udp", port=53, backends=list(backends or (backend(),)), **more)


def spread(*backends: dict[str, Any], **more: Any) -> Nat:
    chains = [c for c in state(balancers=[udp(*backends, **more)]).ruleset.chains if c.name.startswith("spread_")]
    statement = chains[0].rules[0].statement
    assert isinstance(statement, Nat)
    return statement


A, B = f"{GUESTS[0]} . 80", f"{GUESTS[1]} . 80"


def test_places_of_a_turn() -> None:
    assert spread(backend(weight=4), backend("b", weight=2)).targets == (A, B, A)
    assert spread(backend(weight=100), backend("b", weight=100)).targets == (A, B)
    assert spread(backend(), backend("b", backup=True)).targets == (A,)
    assert spread(backend(drain=True), backend("b", backup=True)).targets == (B,)
    many = [{**backend(), "id": f"b{n}", "port": n + 1, "weight": 1 + n % 256} for n in range(900)]
    assert 900 <= len(spread(*many).targets) <= 2048


def test_flows_of_a_backend_that_goes_end_and_of_one_that_drains_do_not() -> None:
    def ended(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        steps = plan(state(balancers=[before]), state(balancers=[after]))
        return [f.target for s in steps if isinstance(s.before, Lost) for f in s.before.flows]

    both, one, drained = udp(backend(), backend("b")), udp(backend()), udp(backend(), backend("b", drain=True))
    assert ended(both, one) == [GUESTS[1]]
    assert ended(both, drained) == ended(drained, both) == ended(one, both) == []
    assert ended(drained, one) == [GUESTS[1]]


def test_trace_and_oracle_walk_it() -> None:
    config = made(balancers=[udp()], firewall=[samples_rule(protocol="udp", ports=ports(53))])
    packet = Packet("isp-a", "192.0.2.7", PUBLIC[0], "udp", 999, 53)
    told = trace(compile(config, facts_of(config)), facts_of(config), packet).outcome
    assert (told.verdict, told.destination, told.destination_port) == ("forwarded", GUESTS[0], 80)
    assert "dns" in told.owners
    meant = verdict(config, packet)
    assert (meant.verdict, meant.destination, meant.destination_port) == ("forwarded", GUESTS[0], 80)
    inner = Packet("web", GUESTS[0], "10.1.1.1", "tcp", 999, 80)
    config = made(balancers=[rule(address="10.1.1.1")])
    assert trace(compile(config, facts_of(config)), facts_of(config), inner).outcome.verdict == "local"
    assert verdict(config, inner).verdict == "local"


# --- checks --------------------------------------------------------------------------------------------------

V6 = "2001:db8::1"


@pytest.mark.parametrize(
    ("collections", "path"),
    [
        ({"balancers": [rule(address="192.0.2.1")]}, "balancers[site].address"),
        ({"balancers": [rule(address="172.16.0.2")]}, "balancers[site].address"),
        (
            {"balancers": [rule(backends=[{**backend(), "address": "192.0.2.1"}])]},
            "balancers[site].backends[a].address",
        ),
        ({"balancers": [rule(backends=[{**backend(), "address": "10.1.1.1"}])]}, "balancers[site].backends[a].address"),
        ({"balancers": [rule(backends=[{**backend(), "address": V6}])]}, "balancers[site].backends[a].address"),
        ({"balancers": [rule(backends=[backend(), backend()])]}, "balancers[site].backends[a].id"),
        ({"balancers": [rule(backends=[backend(), {**backend(), "id": "b"}])]}, "balancers[site].backends[b]"),
        ({"balancers": [rule(), rule("two")]}, "balancers[two].port"),
        ({"balancers": [rule()], "stats_pages": [page(port=80)]}, "stats_pages[page].port"),
        ({"balancers": [rule()], "forwards": [forward(ports=ports(80), target_ports=None)]}, "balancers[site].port"),
        (
            {"balancers": [rule()], "static_nats": [{"id": "n", "address": PUBLIC[0], "target": GUESTS[0]}]},
            "balancers[site].address",
        ),
        ({"balancers": [rule(address="10.1.1.1", port=53)]}, "balancers[site].port"),
        ({"balancers": [rule(sources=["2001:db8::/32"])]}, "balancers[site].sources"),
        ({"balancers": [rule(tls={"certificates": ["none"]})]}, "balancers[site].tls.certificates"),
        (
            {"balancers": [rule(protocol="tcp", stickiness={"kind": "lb_cookie"})]},
            "balancers[site].stickiness.kind",
        ),
        ({"balancers": [rule(protocol="tcp", keep_alive=False)]}, "balancers[site].keep_alive"),
        ({"balancers": [rule(health={"path": "/x"})]}, "balancers[site].health.path"),
        ({"balancers": [rule(health={"kind": "udp"})]}, "balancers[site].health.kind"),
        ({"balancers": [rule(protocol="udp", algorithm="leastconn")]}, "balancers[site].algorithm"),
        ({"balancers": [rule(protocol="udp", stickiness={"kind": "source"})]}, "balancers[site].stickiness"),
        ({"balancers": [rule(protocol="udp", proxy_protocol="v1")]}, "balancers[site].proxy_protocol"),
        ({"balancers": [rule(protocol="udp", health={"kind": "http"})]}, "balancers[site].health.kind"),
        ({"certificates": [certificate(key=PAIRS["curve"][1])]}, "certificates[one].key"),
        ({"certificates": [certificate(key=PAIRS["rsa"][0])]}, "certificates[one].key"),
        ({"certificates": [certificate(certificate=PAIRS["rsa"][1])]}, "certificates[one].certificate"),
        ({"certificates": [certificate(chain=PAIRS["rsa"][1])]}, "certificates[one].chain"),
    ],
)
def test_problems(collections: dict[str, Any], path: str) -> None:
    assert [p.path for p in problems(made(**collections))] == [f"config.{path}"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"balancers": [rule(health={"kind": "http", "path": "/a b"})]},
        {"balancers": [rule(health={"kind": "http", "path": "/a\nserver x"})]},
        {"balancers": [rule(health={"kind": "http", "codes": "200 ok"})]},
        {"balancers": [rule(stickiness={"kind": "lb_cookie", "name": "a b"})]},
        {"balancers": [rule(stickiness={"kind": "lb_cookie", "mode": "rewrite", "indirect": True})]},
        {"balancers": [rule(stickiness={"kind": "other"})]},
        {"balancers": [rule(ident="a b")]},
        {"stats_pages": [page(path='/x"')]},
        {"stats_pages": [page(user="a:b")]},
        {"stats_pages": [page(password='a"b')]},
        {"certificates": [certificate(key="-----BEGIN PRIVATE KEY-----\nnot base64!\n-----END PRIVATE KEY-----\n")]},
        {"certificates": [certificate(certificate="nothing")]},
    ],
)
def test_what_no_document_says(wrong: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        validate(Config, document(**wrong))


@pytest.mark.parametrize("kind", ["rsa", "curve"])
def test_a_key_fits_its_certificate_alone(kind: str) -> None:
    cert, key = PAIRS[kind]
    other = PAIRS["curve" if kind == "rsa" else "rsa"][1]
    assert certificate_problem(cert) == key_problem(key, cert) == ""
    assert "belong together" in key_problem(other, cert)
    assert "cannot be read" in key_problem(key.replace(key.splitlines()[1], key.splitlines()[1][:20]), cert)
    assert "is encrypted" in key_problem(
        key.replace("BEGIN ", "BEGIN ENCRYPTED ").replace("END ", "END ENCRYPTED "), cert
    )


# --- what haproxy says ---------------------------------------------------------------------------------------

PROC = """#<PID>          <type>          <reloads>       <uptime>        <version>
12157           master          2 [failed: 1]   0d00h10m35s     2.6.12-1+deb12u4
# workers
14294           worker          0               0d00h00m02s     2.6.12-1+deb12u4
# old workers
14000           worker          1               0d00h00m09s     2.6.12-1+deb12u4
# programs

"""
SERVERS = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight ...
2 lb-site 1 a 10.1.1.10 2 0 3 1 4 6 3 4 6 0 0 0 - 8080 - 0 0 - - 0
2 lb-site 2 b 10.1.1.11 2 1 1 1 1 1 0 2 6 0 0 0 - 80 - 0 0 - - 0

"""


def test_its_workers() -> None:
    assert workers_of(PROC) == Workers(2, 1, 14294, {14294: 0, 14000: 1})
    assert workers_of("") == Workers(0, 0, 0, {})


def test_its_counts() -> None:
    said = (
        "# pxname,svname,scur,stot,bin,bout,type,req_tot,\nlb-site,FRONTEND,0,5,100,200,0,7,\n"
        "lb-site,a,0,3,60,120,2,,\nlb-site,BACKEND,0,5,100,200,1,7,\nstats-page,FRONTEND,0,1,1,1,0,1,\n\n"
    )
    assert list(counts_of(rows_of(said), 3, "12 34")) == [
        Count("lb-site", "", 3, "12 34", (100, 200, 5, 7)),
        Count("lb-site", "a", 3, "12 34", (60, 120, 3, 0)),
    ]


def test_its_servers() -> None:
    a, b = Server("a", "10.1.1.10", 8080, 3), Server("b", "10.1.1.11", 80, 1)
    live = servers_of(SERVERS)
    assert live == {"lb-site": {"a": Live(a, False), "b": Live(b, True)}}
    wished = Pool("/x", "lb-site", (Server("a", "10.1.1.10", 8080, 3, ("check",)),))
    assert as_wished(live, (wished,))[0] is wished
    assert as_wished(live, (Pool("/x", "lb-none", ()),)) == ()
    assert as_wished(live, (Pool("/x", "lb-site", (a, b)),)) == (Pool("/x", "lb-site", (a,)),)
