"""Load balancing as clients and servers see it: real haproxy in a cell, web servers in the guests' namespaces."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import wait_for
from tests.netns.calls import tcp
from tests.netns.dual import L6, LAN6, NEAR6, V6, WEB6, WORLD6, DualStage, office6
from tests.netns.machines import Machine
from tests.netns.stage import (
    DB,
    DESK,
    L10,
    L20,
    LAN,
    LEFT,
    MAIL,
    NEAR,
    WEB,
    WORLD,
    WORLD_LOW,
    Json,
    Stage,
    allow,
    put,
)  # fmt: skip
from tests.trials import trials

PORT = 8080
WHERE = {"web": WEB, "mail": MAIL, "desk": DESK, "db": DB}
PAGE = {"_": "stats_pages", "id": "page", "address": L10, "user": "admin", "password": "a secret of ours"}


class Webs:
    """The web servers, one in each guest, and the way to them."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in WHERE:
            self.start(name)

    def start(self, name: str) -> None:
        argv = (sys.executable, str(Path(__file__).with_name("web.py")), name, str(PORT), str(self.folder))
        machine: Machine = getattr(self.stage, name)
        process = machine.popen(argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        self.processes[name] = process

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()

    def ill(self, name: str, ill: bool = True) -> None:
        flag = self.folder / f"{name}.ill"
        flag.touch() if ill else flag.unlink(missing_ok=True)

    def close(self) -> None:
        for name in list(self.processes):
            self.stop(name)


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[DualStage]:
    with DualStage(watch_seconds=1.0) as stage:
        yield stage


@pytest.fixture(scope="module", name="webs")
def webs_fixture(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webs]:
    webs = Webs(stage, tmp_path_factory.mktemp("webs"))
    try:
        yield webs
    finally:
        webs.close()


def backend(name: str, **more: Any) -> Json:
    return {"id": name, "address": WHERE[name], "port": PORT, **more}


def rule(name: str = "site", *backends: Json, **more: Any) -> Json:
    plain = {
        "address": L10,
        "port": 80,
        "protocol": "http",
        "backends": list(backends or (backend("web"), backend("mail"))),
    }
    return {"_": "balancers", "id": name, **plain, **more}


OPEN = (allow("open", L10, "tcp"), allow("open-udp", L10, "udp"))


def ask(
    machine: Machine, path: str = "/", at: tuple[str, int] = (L10, 80), tls: ssl.SSLContext | None = None,
    name: str | None = None, source: str = "", **headers: str,
) -> tuple[int, Json, http.client.HTTPMessage]:  # fmt: skip
    """One request over a connection of its own: status, what the server says, headers of the answer."""
    with machine.entered():
        plain = socket.create_connection(at, 5, (source, 0) if source else None)
    sock = tls.wrap_socket(plain, server_hostname=name) if tls else plain
    try:
        connection = http.client.HTTPConnection(*at)
        connection.sock = sock
        connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body.startswith(b"{") else {}, answer.headers
    finally:
        sock.close()


def who(machine: Machine, times: int = 8, **more: Any) -> Counter[str]:
    """Who answers so many requests."""
    return Counter(ask(machine, **more)[1].get("who", "nobody") for _ in range(times))


def worker(stage: Stage) -> str:
    """The pids of haproxy's workers: another set after a reload."""
    return " ".join(sorted(stage.bed.run("pgrep", "-x", "haproxy", check=False).split()))


# --- algorithms, and changes while it runs ----------------------------------------------------------------------------


def test_turns_are_taken_by_weight(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", backend("web", weight=3), backend("mail")), *OPEN)
    assert who(stage.world) == {"web": 6, "mail": 2}
    status, told, _ = ask(stage.world, X_Forwarded_Proto="lie")
    assert status == 200
    assert told["headers"]["x-forwarded-for"] == WORLD or told["headers"]["x-forwarded-for"].startswith("203.0.113.1")
    assert (told["headers"]["x-forwarded-proto"], told["headers"]["x-forwarded-port"]) == ("http", "80")
    assert told["peer"] == LAN


def test_the_firewall_judges_who_reaches_it(stage: Stage, webs: Webs) -> None:
    stage.push(rule(), allow("open", L10, "tcp", 80, sources=[f"{NEAR}/32"]))
    assert who(stage.near, 2) == {"web": 1, "mail": 1}
    stage.silent(tcp(stage.world, L10, 80))


def test_servers_come_drain_and_go_without_a_reload(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", backend("web")), *OPEN)
    before = worker(stage)
    assert who(stage.world) == {"web": 8}
    stage.bed.patch(put(rule("site", backend("web"), backend("mail"), backend("desk"))))
    assert set(who(stage.world, 9)) == {"web", "mail", "desk"}
    stage.bed.patch(put(rule("site", backend("web", drain=True), backend("mail", weight=2), backend("desk"))))
    found = who(stage.world, 30)
    assert found.keys() == {"mail", "desk"}
    assert abs(found["mail"] - 20) <= 2
    stage.bed.patch(put(rule("site", backend("desk"))))
    assert who(stage.world) == {"desk": 8}
    stage.bed.patch(put(rule("site", {**backend("desk"), "address": MAIL}, backend("web"))))
    assert set(who(stage.world, 24)) == {"mail", "web"}  # who has just come is asked a few times in a row
    assert worker(stage) == before
    assert stage.bed.appliance.state().body["drift"] == []


def test_a_server_that_goes_ends_what_it_has(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", backend("web")), *OPEN)
    found: list[int] = []
    slow = threading.Thread(target=lambda: found.append(ask(stage.world, "/slow")[0]))
    slow.start()
    time.sleep(0.3)
    stage.bed.patch(put(rule("site", backend("mail"))))
    assert who(stage.world, 3) == {"mail": 3}
    slow.join()
    assert found == [200]
    stage.bed.patch(put(rule("site", backend("mail"), backend("web"))))
    assert set(who(stage.world, 24)) == {"mail", "web"}


# --- TLS --------------------------------------------------------------------------------------------------------------


KINDS = {"rsa": ("rsa:2048",), "curve": ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"), "ed25519": ("ed25519",)}


def certificate(folder: Path, name: str, kind: str = "rsa") -> Json:
    """A self-signed certificate for `name`, as a document has it."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    argv = ("openssl", "req", "-x509", "-newkey", *KINDS[kind], "-nodes", "-keyout", str(key), "-out", str(cert))
    more = ("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
    subprocess.run((*argv, *more), check=True, capture_output=True)
    return {"_": "certificates", "id": name, "certificate": cert.read_text(), "key": key.read_text()}


def trusting(*certificates: Json, offers: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata="".join(c["certificate"] for c in certificates))
    context.set_alpn_protocols(list(offers))
    return context


def shake(machine: Machine, context: ssl.SSLContext, name: str, port: int = 443) -> ssl.SSLSocket:
    with machine.entered():
        return context.wrap_socket(socket.create_connection((L10, port), 5), server_hostname=name)


def test_tls_ends_here_by_the_name_asked_for(stage: Stage, webs: Webs, tmp_path: Path) -> None:
    one, two = certificate(tmp_path, "one.test"), certificate(tmp_path, "two.test", "curve")
    tls = {"certificates": ["one.test", "two.test"]}
    secure = rule("site", port=443, tls=tls)
    stage.push(secure, one, two, *OPEN)
    for name in ("one.test", "two.test"):
        status, told, _ = ask(stage.world, at=(L10, 443), tls=trusting(one, two), name=name)
        assert (status, told["headers"]["x-forwarded-proto"]) == (200, "https")
        assert told["headers"]["x-forwarded-port"] == "443"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(stage.world, trusting(two), "other.test")
    with shake(stage.world, trusting(one, offers=("h2", "http/1.1")), "one.test") as sock:
        assert sock.selected_alpn_protocol() == "h2"
        assert sock.version() == "TLSv1.3"
    old = trusting(one)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    shake(stage.world, old, "one.test").close()
    stage.push(rule("site", port=443, tls={**tls, "minimum": "1.3", "http2": False}), one, two, *OPEN)
    with pytest.raises(ssl.SSLError):
        shake(stage.world, old, "one.test")
    with shake(stage.world, trusting(one, offers=("h2", "http/1.1")), "one.test") as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"


def test_http2_is_spoken(stage: Stage, webs: Webs, tmp_path: Path) -> None:
    one = certificate(tmp_path, "one.test")
    stage.push(rule("site", port=443, tls={"certificates": ["one.test"]}), one, *OPEN)
    argv = ("curl", "-sk", "--http2", "--resolve", f"one.test:443:{L10}", "-w", " %{http_version}", "https://one.test/")
    said = stage.world.run(argv).stdout
    assert said.endswith(" 2"), said
    assert json.loads(said[:-2])["who"] in WHERE


def test_a_certificate_is_renewed_and_nobody_is_lost(stage: Stage, webs: Webs, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    one, new = certificate(tmp_path, "one.test"), certificate(tmp_path / "new", "one.test")
    secure = rule("site", port=443, tls={"certificates": ["one.test"]})
    stage.push(secure, one, *OPEN)
    ends, failed = threading.Event(), list[str]()
    asked = [0]

    def go_on() -> None:
        while not ends.is_set():
            try:
                assert ask(stage.world, at=(L10, 443), tls=trusting(one, new), name="one.test")[0] == 200
                asked[0] += 1
            except Exception as error:
                failed.append(repr(error))

    asking = threading.Thread(target=go_on)
    asking.start()
    try:
        held = shake(stage.world, trusting(one), "one.test")  # a connection that is there when the certificate changes
        stage.bed.patch(put(new))
        for some in (one, new, one, new):
            stage.bed.patch(put(some))
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(stage.world, trusting(one), "one.test")
        shake(stage.world, trusting(new), "one.test").close()
        held.sendall(b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n")
        assert held.recv(4096).startswith(b"HTTP/1.1 200")
        held.close()
    finally:
        ends.set()
        asking.join()
    assert failed == []
    assert asked[0] > 10


def test_tls_passes_through(stage: Stage, webs: Webs, tmp_path: Path) -> None:
    one = certificate(tmp_path, "one.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "one.test.crt", tmp_path / "one.test.key")
    with stage.web.entered():
        listener = socket.create_server((WEB, 8443))

    def serve() -> None:
        with listener.accept()[0] as sock, context.wrap_socket(sock, server_side=True) as inner:
            inner.sendall(b"sealed")

    serving = threading.Thread(target=serve)
    stage.push(rule("site", {**backend("web"), "port": 8443}, port=443, protocol="tcp", health={"kind": "off"}), *OPEN)
    serving.start()
    with shake(stage.world, trusting(one), "one.test") as sock:
        assert sock.recv(64) == b"sealed"
    serving.join()
    listener.close()


# --- who is told of the client ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_proxy_protocol(stage: Stage, webs: Webs, version: str) -> None:
    stage.push(rule("site", backend("web"), protocol="tcp", proxy_protocol=version), *OPEN)
    assert ask(stage.near)[1]["proxy"] == f"{version} {NEAR}"
    stage.bed.patch(put(rule("site", backend("web"), backend("mail"), protocol="tcp", proxy_protocol=version)))
    assert {ask(stage.near)[1]["proxy"] for _ in range(4)} == {f"{version} {NEAR}"}


def test_proxy_protocol_from_the_client(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", backend("web"), accept_proxy=True), *OPEN)
    with stage.near.entered():
        sock = socket.create_connection((L10, 80), 5)
    with sock:
        sock.sendall(b"PROXY TCP4 192.0.2.77 203.0.113.10 1000 80\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = sock.recv(65536).decode()
    assert json.loads(answer.partition("\r\n\r\n")[2])["headers"]["x-forwarded-for"] == "192.0.2.77"


def test_sources(stage: Stage, webs: Webs) -> None:
    many = [f"198.51.{n}.0/24" for n in range(101, 180)]  # more than a line of haproxy's has words
    stage.push(rule("site", sources=[*many, f"{NEAR}/32"]), *OPEN)
    assert ask(stage.near)[0] == 200
    with pytest.raises(ConnectionError):
        ask(stage.world)


# --- stickiness -------------------------------------------------------------------------------------------------------

ALL = tuple(backend(name) for name in ("web", "mail", "desk"))


def cookie(headers: http.client.HTTPMessage, name: str) -> str:
    found = re.search(rf"{name}=([^;]+)", "; ".join(headers.get_all("Set-Cookie", [])))
    assert found, headers.items()
    return found[0]


@pytest.mark.parametrize("more", [{}, {"indirect": True, "nocache": True, "domains": ["a.test"]}])
def test_a_cookie_of_the_balancers_own(stage: Stage, webs: Webs, more: Json) -> None:
    sticky = {"kind": "lb_cookie", "name": "LB", **more}
    stage.push(rule("site", *ALL[:2], stickiness=sticky), *OPEN)
    stage.bed.patch(put(rule("site", *ALL, stickiness=sticky)))  # one that came while it ran has its cookie too
    seen = set()
    for _ in range(6):
        _, told, headers = ask(stage.world)
        seen.add(told["who"])
        assert ("Domain=a.test" in headers["Set-Cookie"] or "domain=a.test" in headers["Set-Cookie"]) is bool(more)
        assert headers.get("Cache-Control", "") == ("private" if more else "")
        mine = cookie(headers, "LB")
        again = [ask(stage.world, Cookie=mine)[1] for _ in range(3)]
        assert {a["who"] for a in again} == {told["who"]}
        assert all(("LB=" in a["headers"].get("cookie", "")) is not bool(more) for a in again)
    assert seen == {"web", "mail", "desk"}


def test_a_cookie_after_a_post_alone(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", *ALL, stickiness={"kind": "lb_cookie", "name": "LB", "postonly": True}), *OPEN)
    assert "Set-Cookie" not in ask(stage.world)[2]


@pytest.mark.parametrize("mode", ["rewrite", "prefix"])
def test_a_cookie_within_the_applications(stage: Stage, webs: Webs, mode: str) -> None:
    stage.push(rule("site", *ALL, stickiness={"kind": "lb_cookie", "mode": mode}), *OPEN)
    for _ in range(4):
        _, told, headers = ask(stage.world, "/rewrite")
        mine = cookie(headers, "SRVID")
        assert mine.endswith(f"~app-{told['who']}") is (mode == "prefix")
        again = [ask(stage.world, "/", Cookie=mine)[1] for _ in range(3)]
        assert {a["who"] for a in again} == {told["who"]}
        if mode == "prefix":  # the application sees its own alone
            assert again[0]["headers"]["cookie"] == f"SRVID=app-{told['who']}"


@pytest.mark.parametrize(
    ("more", "told_by"),
    [
        ({}, "cookie"),
        ({"mode": "path_parameters"}, "path"),
        ({"mode": "query_string"}, "query"),
        ({"name": "APPSES", "prefix": True}, "cookie"),
    ],
)
def test_the_applications_session(stage: Stage, webs: Webs, more: Json, told_by: str) -> None:
    sticky = {"kind": "app_cookie", "name": "APPSESSION", **more}
    stage.push(rule("site", *ALL, stickiness=sticky, port=80), *OPEN)
    for _ in range(3):
        _, told, headers = ask(stage.world, "/login")
        value = cookie(headers, "APPSESSION")
        path = {"path": f"/a;{value}", "query": f"/a?{value}"}.get(told_by, "/a")
        brought = f"first=1; {value}; last=2" if told_by == "cookie" else "first=1"
        assert {ask(stage.world, path, Cookie=brought)[1]["who"] for _ in range(4)} == {told["who"]}
    assert len({ask(stage.world, "/a", Cookie="APPSESSION=unknown")[1]["who"] for _ in range(6)}) == 3


def test_a_session_is_learned_from_requests(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", *ALL, stickiness={"kind": "app_cookie", "name": "S", "request_learn": True}), *OPEN)
    for value in ("a", "b", "c"):
        assert len({ask(stage.world, Cookie=f"S={value}")[1]["who"] for _ in range(4)}) == 1


def test_a_source_sticks_over_a_reload(stage: Stage, webs: Webs) -> None:
    sticky = {"kind": "source"}
    site = rule("site", *ALL, stickiness=sticky)
    stage.push(site, *OPEN)
    sources = (WORLD, WORLD_LOW)
    first = {source: ask(stage.world, source=source)[1]["who"] for source in sources}
    assert first[WORLD] != first[WORLD_LOW]
    time.sleep(6)  # one that has begun just now still asks the one before it, and teaches nobody
    before = worker(stage)
    stage.bed.patch(put({**site, "timeouts": {"client": 40}}))
    assert worker(stage) != before
    wait_for(lambda: bool(counted(stage)) and len(worker(stage).split()) == 2, 10)  # the old one is gone
    for source in sources:
        assert {ask(stage.world, source=source)[1]["who"] for _ in range(3)} == {first[source]}


def test_the_source_decides(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", *ALL, algorithm="source"), *OPEN)
    for source in (WORLD, WORLD_LOW):
        assert len({ask(stage.world, source=source)[1]["who"] for _ in range(4)}) == 1


def test_the_least_connected_is_asked(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", *ALL[:2], algorithm="leastconn"), *OPEN)
    found: list[str] = []
    slow = [threading.Thread(target=lambda: found.append(ask(stage.world, "/slow")[1]["who"])) for _ in range(2)]
    for thread in slow:
        thread.start()
        time.sleep(0.2)
    for thread in slow:
        thread.join()
    assert sorted(found) == ["mail", "web"]


# --- health -----------------------------------------------------------------------------------------------------------


def test_an_ill_server_is_not_asked(stage: Stage, webs: Webs) -> None:
    health = {"kind": "http", "path": "/health", "host": "site.test", "interval": 1, "rise": 1, "fall": 2}
    stage.push(rule(health=health), *OPEN)
    webs.ill("web")
    try:
        wait_for(lambda: who(stage.world, 4) == {"mail": 4}, 8)
        # A reload forgets it as little.
        stage.bed.patch(put(rule(health=health, timeouts={"client": 40})))
        assert who(stage.world, 6) == {"mail": 6}
    finally:
        webs.ill("web", False)
    wait_for(lambda: set(who(stage.world, 4)) == {"mail", "web"}, 8)


def test_a_dead_server_is_not_asked_and_a_backup_is(stage: Stage, webs: Webs) -> None:
    health = {"kind": "tcp", "interval": 1, "fall": 1, "rise": 1}
    stage.push(rule("site", backend("desk"), backend("db", backup=True), health=health), *OPEN)
    assert who(stage.world, 4) == {"desk": 4}
    webs.stop("desk")
    try:
        wait_for(lambda: who(stage.world, 4) == {"db": 4}, 8)
    finally:
        webs.start("desk")
    wait_for(lambda: who(stage.world, 4) == {"desk": 4}, 8)


# --- UDP --------------------------------------------------------------------------------------------------------------


def datagram(machine: Machine, at: tuple[str, int] = (L10, 53), source: str = "", port: int = 0) -> str:
    """Who answers a datagram, "" for nobody."""
    with machine.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, port))
        sock.settimeout(1.5)
        sock.connect(at)
        try:
            sock.send(b"who?")
            return sock.recv(64).decode()
        except (TimeoutError, ConnectionError):
            return ""


def dns(*backends: Json, **more: Any) -> Json:
    return rule("dns", *backends, **{"port": 53, "protocol": "udp", **more})


def test_datagrams_take_turns_by_weight(stage: Stage, webs: Webs) -> None:
    stage.push(dns(backend("web", weight=2), backend("mail"), backend("desk", backup=True)), *OPEN)
    assert Counter(datagram(stage.world) for _ in range(12)) == {"web": 8, "mail": 4}
    assert {datagram(stage.world, port=4444) for _ in range(4)} in ({"web"}, {"mail"})  # one flow, one backend


def test_datagrams_of_a_source_stay_together(stage: Stage, webs: Webs) -> None:
    stage.push(dns(*ALL, algorithm="source"), *OPEN)
    for source in (WORLD, WORLD_LOW):
        assert len({datagram(stage.world, source=source) for _ in range(6)}) == 1


def test_backends_of_datagrams_come_drain_and_go(stage: Stage, webs: Webs) -> None:
    stage.push(dns(backend("web")), *OPEN)
    assert datagram(stage.world, port=4321) == "web"
    stage.bed.patch(put(dns(backend("web", drain=True), backend("mail"))))
    assert datagram(stage.world, port=4321) == "web"  # a flow that was there
    assert {datagram(stage.world) for _ in range(4)} == {"mail"}
    stage.bed.patch(put(dns(backend("mail"))))
    assert datagram(stage.world, port=4321) == "mail"  # its backend is gone, and so is the flow
    stage.bed.patch(put(dns(backend("desk", backup=True))))
    assert datagram(stage.world, port=4321) == "desk"
    stage.push(*OPEN)
    assert datagram(stage.world) == ""


def test_datagrams_by_source_and_inside(stage: Stage, webs: Webs) -> None:
    inside = dns(backend("web"), address=LAN, port=5353)
    stage.push(dns(*ALL, sources=[f"{NEAR}/32"]), {**inside, "id": "inside"}, *OPEN)
    assert datagram(stage.near) in WHERE
    assert datagram(stage.world) == ""
    assert datagram(stage.desk, (LAN, 5353)) == "web"
    assert datagram(stage.db, (LAN, 5353)) == ""
    assert datagram(stage.world, (LAN, 5353)) == ""


def test_a_dead_backend_of_datagrams_is_not_asked(stage: Stage, webs: Webs) -> None:
    """One whose port nobody has, and one whose address nobody has; a push meanwhile forgets neither."""
    health = {"interval": 1, "fall": 2, "rise": 1}
    nobody = {"id": "nobody", "address": "10.1.1.77", "port": PORT}
    stage.push(dns(backend("web"), backend("mail"), nobody, health=health), *OPEN)
    wait_for(lambda: {datagram(stage.world) for _ in range(9)} == {"web", "mail"}, 20)
    flow = next(p for p in range(4400, 4440) if datagram(stage.world, port=p) == "mail")
    webs.stop("mail")
    try:
        wait_for(lambda: {datagram(stage.world) for _ in range(4)} == {"web"}, 15)
        wait_for(lambda: datagram(stage.world, port=flow) == "web", 10)  # its flow ends last
        generation = stage.bed.appliance.state().body["generation"]
        stage.bed.patch(put(allow("more", L20, "tcp", 22)))
        assert {datagram(stage.world) for _ in range(4)} == {"web"}
        assert stage.bed.appliance.state().body["generation"] == generation + 1
    finally:
        webs.start("mail")
    wait_for(lambda: {datagram(stage.world) for _ in range(6)} == {"web", "mail"}, 15)
    assert stage.bed.appliance.state().body["drift"] == []


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_refused_configuration_blocks_nothing(stage: Stage, webs: Webs, tmp_path: Path) -> None:
    """A key that is not its certificate's, which cannot be told of this kind without cryptography: haproxy does."""
    stage.push(rule(), *OPEN)
    before = worker(stage)
    (tmp_path / "other").mkdir()
    one, other = (certificate(folder, "one.test", "ed25519") for folder in (tmp_path, tmp_path / "other"))
    wrong = {**one, "key": other["key"]}
    secure = rule("secure", port=443, tls={"certificates": ["one.test"]})
    answer = stage.bed.patch(put(secure), put(wrong), put(allow("more", L20, "tcp", 22)))
    (told,) = answer.body["refused"]
    assert told["path"] == "unit balancer (listen lb-secure)"
    assert "one.test.pem" in told["message"]
    assert who(stage.world) == {"web": 4, "mail": 4}
    assert worker(stage) == before
    health = stage.bed.appliance.health()
    assert health.status == 503
    assert "lb-secure" in health.body["refused"][0]
    # What comes after it is made all the same, until it is right.
    assert "refused" in stage.bed.patch(put(allow("again", L20, "tcp", 23))).body
    assert "refused" not in stage.bed.patch(put(one)).body
    assert ask(stage.world, at=(L10, 443), tls=trusting(one), name="one.test")[0] == 200
    assert stage.bed.appliance.health().body["refused"] == []


def test_what_it_cannot_do_blocks_nothing(stage: Stage, webs: Webs) -> None:
    """A port that another process has: its dry check does not see that, its reload does."""
    stage.push(rule(), *OPEN)
    with stage.router.entered():
        taken = socket.create_server((L10, 81))
    with taken:
        answer = stage.bed.patch(put(rule("two", port=81)), put(allow("more", L20, "tcp", 22)))
        assert "reload unit balancer" in answer.body["refused"][0]["path"]
        assert who(stage.world) == {"web": 4, "mail": 4}
    assert "refused" not in stage.bed.patch(put(rule("two", port=81)), put(allow("more", L20, "tcp", 23))).body
    assert who(stage.world, at=(L10, 81)) == {"web": 4, "mail": 4}


# --- counters ---------------------------------------------------------------------------------------------------------


WAYS = ("received", "sent")


def counted(stage: Stage, kind: str = "balancers", ident: str = "site") -> Counter[str]:
    told = stage.bed.appliance.usage().body["usage"].get(kind, {}).get(ident, {})
    return Counter(
        {name: told.get(name, 0) for name in ("received_bytes", "sent_bytes", "received_packets", "sent_packets")}
    )


def test_counters_outlive_changes_and_reloads(stage: Stage, webs: Webs) -> None:
    """Every request is counted, whatever happens to the worker that had it: one is answered while it is old."""
    stage.push(rule(), *OPEN)
    before, of_web = counted(stage), counted(stage, "backends", "site/web")
    sent = 0
    for n in range(3):
        who(stage.world, 8)
        slow = threading.Thread(target=lambda: ask(stage.world, "/slow"))
        slow.start()
        time.sleep(0.3)
        stage.bed.patch(put(rule("site", *ALL[: 2 + n % 2], timeouts={"client": 40 + n})))
        stage.bed.patch(put(rule("site", backend("mail"), timeouts={"client": 40 + n})))
        stage.bed.patch(put(rule("site", backend("mail"), backend("web"), timeouts={"client": 40 + n})))
        who(stage.world, 2)
        slow.join()
        sent += 11
        now = counted(stage)
        assert (now - before)["sent_packets"] == (now - before)["received_packets"] == sent
    assert (counted(stage) - before)["sent_bytes"] > 100 * sent
    assert counted(stage, "backends", "site/web")["received_packets"] > of_web["received_packets"]
    # The workers that were kept for it are let go.
    wait_for(lambda: bool(counted(stage)) and len(worker(stage).split()) == 2, 10)


# --- inside, and in IPv6 ----------------------------------------------------------------------------------------------


def test_an_internal_balancer(stage: Stage, webs: Webs) -> None:
    stage.push(
        rule("inside", backend("web"), backend("db"), address=LAN, port=5432, protocol="tcp", sources=[f"{DESK}/32"])
    )
    assert who(stage.desk, at=(LAN, 5432)) == {"web": 4, "db": 4}
    with pytest.raises(ConnectionError):
        ask(stage.mail, at=(LAN, 5432))
    stage.silent(tcp(stage.db, LAN, 5432), tcp(stage.world, LAN, 5432), tcp(stage.near, LEFT, 5432))


def test_in_ipv6(stage: Stage, webs: Webs) -> None:
    """A public address of IPv6 before backends of both families; one comes while it runs; a source sticks."""
    six, four = {"id": "web", "address": WEB6, "port": PORT}, backend("mail")
    site = rule("site", six, address=L6, sources=[f"{NEAR6}/128", f"{WORLD6}/128"])
    stage.push(*V6, office6(), site, allow("open", L6, "tcp", 80))
    status, told, _ = ask(stage.near, at=(L6, 80))
    assert (status, told["who"], told["headers"]["x-forwarded-for"], told["peer"]) == (200, "web", NEAR6, LAN6)
    before = worker(stage)
    stage.bed.patch(put({**site, "backends": [six, four]}))
    assert set(who(stage.near, 20, at=(L6, 80))) == {"web", "mail"}
    stage.bed.patch(put({**site, "backends": [{**six, "weight": 2}, four]}))
    assert worker(stage) == before
    stage.bed.patch(put({**site, "backends": [six, four], "stickiness": {"kind": "source"}}))
    assert len(who(stage.near, 4, at=(L6, 80))) == 1
    stage.push(*V6, office6(), rule("inside", six, address=LAN6))
    assert who(stage.mail, 2, at=(LAN6, 80)) == {"web": 2}


def test_the_page_of_figures(stage: Stage, webs: Webs) -> None:
    stage.push(rule(), PAGE, *OPEN)
    who(stage.world)
    for password, status in (("a secret of ours", "200"), ("another", "401"), ("", "401")):
        argv = (
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-u",
            f"admin:{password}",
            f"http://{L10}:8081/stats",
        )
        assert stage.near.run(argv).stdout == status
    page = stage.near.run(("curl", "-s", "-u", "admin:a secret of ours", f"http://{L10}:8081/stats;csv")).stdout
    assert "lb-site,BACKEND" in page


def test_a_dead_haproxy_is_started_anew(stage: Stage, webs: Webs) -> None:
    stage.push(rule("site", backend("web")), *OPEN)
    stage.bed.patch(put(rule("site", backend("web"), backend("mail", weight=2))))
    stage.run("pkill -KILL -x haproxy")

    def answers() -> bool:
        try:
            return ask(stage.world)[0] == 200
        except ConnectionError:
            return False

    wait_for(answers, 15)
    assert set(who(stage.world, 24)) == {"web", "mail"}
    wait_for(lambda: stage.bed.appliance.state().body["converged"], 10)


def test_what_another_hand_changed_is_put_right(stage: Stage, webs: Webs) -> None:
    stage.push(rule(), *OPEN)
    root = Path(f"/proc/{stage.bed.driver.list()[0].pid}/root")
    with socket.socket(socket.AF_UNIX) as hand:
        hand.connect(str(root / "run/narthex/balancer/master.sock"))
        told = stage.drift_after(lambda: hand.sendall(b"@1 set server lb-site/web state maint\n"))
    assert "site" in told
    assert set(who(stage.world, 24)) == {"web", "mail"}


# --- under load -------------------------------------------------------------------------------------------------------

REQUESTS = trials(100_000)


def load(machine: Machine, seconds: int) -> tuple[int, int]:
    """wrk for so long: how many requests, how many failed (sockets that did, answers that are not 2xx or 3xx)."""
    with machine.entered():
        argv = ("wrk", "-t", "1", "-c", "16", "-d", f"{seconds}s", "--timeout", "5s", f"http://{L10}/")
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    errors = [int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", said)]
    refused = [int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", said)]
    return int(re.findall(r"(\d+) requests in", said)[0]), sum(errors) + sum(refused)


@pytest.mark.soak("router")
def test_no_request_fails_while_servers_come_and_go(stage: Stage, webs: Webs, record_figure: Any) -> None:
    """Servers come, drain and go over the socket, and every tenth change is a reload."""
    stage.push(rule("site", *ALL), *OPEN)
    done = failed = changes = 0
    found: list[tuple[int, int]] = []
    while done < REQUESTS:
        loading = threading.Thread(target=lambda: found.append(load(stage.world, 8)))
        loading.start()
        while loading.is_alive():
            left = [b for n, b in enumerate(ALL) if n != changes % 3]
            drained = {**ALL[changes % 3], "drain": True}
            more = {"timeouts": {"client": 40 + changes % 9}} if changes % 10 == 9 else {}
            for some in ((*left, drained), left, ALL):
                stage.bed.patch(put(rule("site", *some, **more)))
                time.sleep(0.02)
            changes += 1
        loading.join()
        done, failed = done + found[-1][0], failed + found[-1][1]
    record_figure(f"requests failed of {done} while backends change ({changes} rounds)", failed, "")
    assert failed == 0, f"{failed} of {done} in {changes} changes"
