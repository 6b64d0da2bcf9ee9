"""Metadata as guests see it: the real service, real clients (curl, wget), and guests that lie about who they are."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from mgmt.hosts.namespace import Namespace
from tests.bed import wait_for
from tests.netns.machines import Machine
from tests.netns.stage import DB, DESK, DMZ, LAN, LEFT, MAIL, WEB, Json, Stage, allow, office, put, remove, servers

WELL_KNOWN = "169.254.169.254"
MACS = {"web": "02:00:00:00:0b:05", "mail": "02:00:00:00:0b:06", "desk": "02:00:00:00:0b:07", "db": "02:00:00:00:0b:08"}
ADDRESSES = {"web": WEB, "mail": MAIL, "desk": DESK, "db": DB}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJEk0LxIoGmzFvMqGAyvTBiS9bSKqFkBGBrJ0kYkUZpK"
KEYS = [f"{KEY} ada@example", f"{KEY} grace@example"]
BINARY = bytes(random.Random(5).randbytes(1 << 20))  # the most that a guest may have
SCRIPT = b"#cloud-config\nruncmd: [[touch, /tmp/here]]\n"
SECRETS = ("wOrd-of-web", "wOrd-of-mail", "wOrd-of-db")


def host(name: str, metadata: Json | None = None, **more: Any) -> Json:
    network = "servers" if name == "db" else "office"
    plain = {"network": network, "mac": MACS[name], "address": ADDRESSES[name], "name": name, "metadata": metadata}
    return {"_": "hosts", "id": f"vm-{name}", **plain, **more}


def told(name: str, data: bytes | None = SCRIPT, password: str | None = None, **values: str) -> Json:
    """Metadata with a password of this id."""
    coded = None if data is None else base64.b64encode(data).decode()
    word = {"id": password, "value": f"wOrd-of-{name}"} if password else None
    return {"user_data": coded, "ssh_keys": KEYS, "password": word, "values": values}


OFFICE, SERVERS = office(metadata=True, dns=True), servers(metadata=True)
ALL = (
    OFFICE, SERVERS,
    host("web", told("web", SCRIPT, "p-1", **{"service-offering": "Small", "placement/availability-zone": "z-1"})),
    host("mail", told("mail", data=BINARY)), host("desk"), host("db", told("db", data=b"")),
)  # fmt: skip


@pytest.fixture(scope="module", name="stage")
def stage_fixture() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(name="full")
def full_fixture(stage: Stage) -> Iterator[Stage]:
    """Every guest there, with nothing acknowledged."""
    stage.push(OFFICE, SERVERS)
    stage.bed.run("find", "/var/lib/narthex/metadata", "-type", "f", "-delete", check=False)
    stage.push(*ALL)
    wait_for(lambda: get(stage.web, "/")[0] == 200)  # a first start takes a moment
    yield stage
    stage.forget()


def get(machine: Namespace, path: str, at: str = LAN, *options: str, port: int = 80) -> tuple[int, bytes]:
    """(status, body) by curl, (0, b"") where nobody answers."""
    with machine.entered():
        argv = ("curl", "-s", "-m", "3", "--path-as-is", "-w", "\n%{http_code}", *options, f"http://{at}:{port}{path}")
        said = subprocess.run(argv, capture_output=True, check=False).stdout
    body, _, status = said.rpartition(b"\n")
    return int(status), body


def is_told(machine: Namespace, at: str, port: int) -> bool:
    """Does anything answer there with so much as a word?"""
    try:
        with machine.connect(at, port, 1.0) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(100) != b""
    except OSError:
        return False


def text(machine: Namespace, path: str, at: str = LAN) -> str:
    status, body = get(machine, path, at)
    assert status == 200, (path, status, body)
    return body.decode()


def password(machine: Namespace, request: str, at: str = LAN) -> str:
    """As CloudStack's guests ask for it."""
    done = machine.run(
        ("wget", "-q", "-t", "1", "-T", "3", "-O", "-", "--header", f"DomU_Request: {request}", f"http://{at}:8080"),
        check=False,
    )
    return done.stdout if done.returncode == 0 else f"wget ends in {done.returncode}"


# --- what is told -----------------------------------------------------------------------------------------------------


def test_every_path(full: Stage) -> None:
    web = full.web
    assert text(web, "/").splitlines()[-1] == "latest"
    assert text(web, "/latest/").split() == ["meta-data/", "user-data"]
    index = ["instance-id", "local-hostname", "local-ipv4", "mac", "placement/", "public-keys", "service-offering"]
    for path in ("/latest/meta-data", "/latest/meta-data/", "//latest//meta-data/?all"):
        assert text(web, path).split() == index
    values = {"instance-id": "vm-web", "local-hostname": "web", "local-ipv4": WEB, "mac": MACS["web"]}
    for path, value in {**values, "service-offering": "Small"}.items():
        assert text(web, f"/latest/meta-data/{path}") == text(web, f"/latest/{path}") == value
        assert text(web, f"/2009-04-04/meta-data/{path}", WELL_KNOWN) == value
    assert text(web, "/latest/meta-data/placement/") == "availability-zone"
    assert text(web, "/latest/meta-data/placement/availability-zone") == "z-1"
    assert text(web, "/latest/user-data").encode() == text(web, "/1.0/user-data").encode() == SCRIPT
    assert text(web, "/latest/public-keys").splitlines() == KEYS
    assert text(web, "/2009-04-04/meta-data/").split()[-2] == "public-keys/"
    assert text(web, "/2009-04-04/meta-data/public-keys/") == "0=key-0\n1=key-1"
    assert text(web, "/latest/meta-data/public-keys/1/openssh-key") == KEYS[1]
    for path in ("/latest/nothing", "/latest/meta-data/public-keys/2", "/3/meta-data", "/latest/meta-data/password"):
        assert get(web, path)[0] == 404


def test_any_bytes_a_megabyte_of_them_or_none(full: Stage) -> None:
    assert get(full.mail, "/latest/user-data") == (200, BINARY)
    assert get(full.db, "/latest/user-data", DMZ) == (200, b"")
    assert get(full.mail, "/latest/user-data", LAN, "-I")[1].count(f"Content-Length: {len(BINARY)}".encode()) == 1
    full.bed.patch(put(host("web", told("web", data=None))))
    assert get(full.web, "/latest/user-data")[0] == 404
    for size in range(1, 5):
        full.bed.patch(put(host("web", told("web", data=BINARY[:size]))))
        assert get(full.web, "/latest/user-data") == (200, BINARY[:size])


def test_methods_and_nonsense(full: Stage) -> None:
    assert get(full.web, "/latest/user-data", LAN, "-X", "PUT")[0] == 405
    assert get(full.web, "/latest/api/token", LAN, "-X", "PUT", "-d", "x")[0] == 405
    for words in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET x HTTP/1.1\r\n\r\n",
        b"\0" * 9000,
        b"G /\n\n",
    ):
        with full.web.connect(LAN, 80) as sock:
            sock.sendall(words)
            assert sock.recv(100).startswith(b"HTTP/1.1 400 "), words


def test_health_looks_whether_it_is_told(full: Stage) -> None:
    def outcomes() -> list[bool]:
        checks = full.bed.appliance.health(now=True).body["checks"]
        return [c["ok"] for c in checks if c["kind"] == "tcp" and c["target"].startswith((LAN, DMZ))]

    assert outcomes() == [True, True]


# --- passwords --------------------------------------------------------------------------------------------------------


def test_a_password_is_given_until_it_is_acknowledged_and_never_again(full: Stage) -> None:
    web = full.web
    assert password(web, "send_my_password") == password(web, "send_my_password") == "wOrd-of-web"
    assert password(web, "hello") == "bad_request"
    assert password(full.mail, "send_my_password") == "saved_password", "it has none"
    assert password(full.mail, "saved_password") == "saved_password"
    assert password(web, "saved_password") == "saved_password"
    assert password(web, "send_my_password") == "saved_password"
    # The service anew, the same document once more, another change of the same host: all know.
    restart(full)
    assert password(web, "send_my_password") == "saved_password"
    full.push(office(), servers())
    full.push(*ALL)
    wait_for(lambda: get(web, "/")[0] == 200)
    full.bed.patch(put(host("web", told("web", password="p-1", zone="elsewhere"))))
    assert password(web, "send_my_password") == "saved_password"
    full.bed.patch(put(host("web", told("web", password="p-2"))))
    assert password(web, "send_my_password") == "wOrd-of-web"
    restart(full)
    assert password(web, "send_my_password") == "wOrd-of-web", "that it was sent is no acknowledgement"


def test_who_acknowledges_the_old_password_is_given_the_new_one(full: Stage) -> None:
    assert password(full.web, "send_my_password") == "wOrd-of-web"
    full.bed.patch(put(host("web", told("web", password="p-2"))))
    assert password(full.web, "saved_password") == "saved_password"
    assert password(full.web, "send_my_password") == "wOrd-of-web"
    assert password(full.web, "saved_password") == "saved_password"
    assert password(full.web, "send_my_password") == "saved_password"


def test_a_password_is_in_no_log_and_no_difference(full: Stage) -> None:
    assert password(full.web, "send_my_password") == "wOrd-of-web"
    document = {**full.bed.appliance.config().body, "generation": full.bed.generation + 1}
    for guest in document["config"]["hosts"]:
        if guest["id"] == "vm-web":
            guest["metadata"]["password"] = {"id": "p-9", "value": "wOrd-of-mail"}
    planned = json.dumps(full.bed.appliance.plan(json.dumps(document).encode()).body)
    assert "/metadata/10.1.1.10" in planned
    shown = json.dumps(full.bed.appliance.state(view="machine").body)
    logs = full.run("cat /var/log/narthex/agent.log /var/log/narthex/metadata.log")
    for secret in (*SECRETS, base64.b64encode(SCRIPT).decode()):
        assert secret not in planned + shown + logs


def restart(stage: Stage) -> None:
    """The service dies; its keeper starts it anew."""
    before = pid_of(stage)
    stage.run(f"kill -9 {before}")
    wait_for(lambda: pid_of(stage) not in ("", before) and get(stage.web, "/latest/instance-id")[0] == 200)


def pid_of(stage: Stage) -> str:
    return stage.bed.run("pgrep", "-f", "[m]etadata/program", check=False).strip()


# --- who is told ------------------------------------------------------------------------------------------------------


def test_each_is_told_of_itself_alone(full: Stage) -> None:
    for name, at in (("web", LAN), ("mail", LAN), ("db", DMZ), ("mail", WELL_KNOWN), ("db", WELL_KNOWN)):
        assert text(full.machines[name], "/latest/instance-id", at) == f"vm-{name}"
    assert get(full.desk, "/latest/instance-id") == (404, b"nothing is known of this address")


@pytest.mark.parametrize(
    "lie",
    [
        ("-H", f"X-Forwarded-For: {WEB}"), ("-H", f"Forwarded: for={WEB}"), ("-H", f"X-Real-IP: {WEB}"),
        ("-H", f"Host: {WEB}"), ("-H", "X-Instance-ID: vm-web"), ("-H", f"Via: 1.1 {WEB}"),
    ],
)  # fmt: skip
def test_no_header_makes_a_guest_another(full: Stage, lie: tuple[str, ...]) -> None:
    assert get(full.mail, "/latest/instance-id", LAN, *lie) == (200, b"vm-mail")
    assert get(full.desk, "/latest/instance-id", LAN, *lie)[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        f"/../{WEB}", f"/latest/../../{WEB}", f"/latest/meta-data/../../metadata/{WEB}", f"/{WEB}",
        "/latest/meta-data/..%2f..%2f..%2fetc%2fpasswd", "/latest//etc/passwd", "/latest/meta-data/%2e%2e/",
        f"/latest/user-data/{WEB}", f"/metadata/{WEB}/user-data", "/.htaccess",
    ],
)  # fmt: skip
def test_no_path_leads_to_another(full: Stage, path: str) -> None:
    status, body = get(full.mail, path)
    assert status in (400, 404), body
    assert b"vm-web" not in body
    assert SCRIPT not in body


def test_from_another_network_or_from_outside_nobody_is_told(full: Stage) -> None:
    full.bed.patch(put(allow("all", LEFT)))
    places = (
        ("db", LAN), ("web", DMZ), ("world", LAN), ("world", WELL_KNOWN), ("near", WELL_KNOWN), ("store", WELL_KNOWN),
        ("store", LAN), ("near", LEFT),
    )  # fmt: skip
    asked = [(name, at, port) for name, at in places for port in (80, 8080)]
    asked += [("web", WELL_KNOWN, 8080), ("web", "10.1.1.255", 80)]
    with ThreadPoolExecutor(len(asked)) as pool:  # each waits for a second
        for one, found in zip(asked, pool.map(lambda a: is_told(full.machines[a[0]], *a[1:]), asked), strict=True):
            assert not found, one
    full.bed.patch(remove({"_": "firewall", "id": "all"}))


def test_who_takes_anothers_address_is_refused(full: Stage) -> None:
    """On the same segment, with the address of a guest that is down; the router asks who has it, and sees the MAC."""
    with away(full.web), borrowed(full.desk, f"{WEB}/24"):
        wait_for(lambda: get(full.desk, "/latest/instance-id", LAN, "--interface", WEB)[0] == 403, 5)
        assert get(full.desk, "/latest/user-data", LAN, "--interface", WEB) == (403, b"this address is another's")
        assert get(full.desk, "/", LAN, "--interface", WEB, "-H", "DomU_Request: send_my_password", port=8080)[0] == 403
        assert get(full.desk, "/", LAN, "--interface", WEB, "-H", "DomU_Request: saved_password", port=8080)[0] == 403
    wait_for(lambda: get(full.web, "/latest/instance-id") == (200, b"vm-web"), 5)
    assert password(full.web, "send_my_password") == "wOrd-of-web", "nobody else has acknowledged it"


def test_with_anothers_address_from_another_network(full: Stage) -> None:
    with borrowed(full.db, f"{WEB}/32"):
        for at in (DMZ, WELL_KNOWN):
            assert get(full.db, "/latest/user-data", at, "--interface", WEB, "-m", "1") == (0, b"")


class away:
    """A guest's link is down meanwhile."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __enter__(self) -> None:
        self.machine.run(("ip", "link", "set", "eth0", "down"))

    def __exit__(self, *error: object) -> None:
        self.machine.run(("ip", "link", "set", "eth0", "up"))
        self.machine.run(("ip", "route", "replace", "default", "via", LAN))
        self.machine.run(("arping", "-q", "-U", "-c", "2", "-w", "1", "-I", "eth0", WEB), check=False)


class borrowed:
    """A guest has one address more meanwhile, and says so to everybody."""

    def __init__(self, machine: Machine, cidr: str) -> None:
        self.machine, self.cidr = machine, cidr

    def __enter__(self) -> None:
        self.machine.run(("ip", "address", "add", self.cidr, "dev", "eth0"))
        self.machine.run(
            ("arping", "-q", "-U", "-c", "2", "-w", "1", "-I", "eth0", self.cidr.partition("/")[0]), check=False
        )

    def __exit__(self, *error: object) -> None:
        self.machine.run(("ip", "address", "del", self.cidr, "dev", "eth0"))


# --- who is gone ------------------------------------------------------------------------------------------------------


def files(stage: Stage) -> set[str]:
    return set(stage.run("ls /run/narthex/metadata").split())


def test_a_guest_that_goes_leaves_nothing_to_the_next_with_its_address(full: Stage) -> None:
    assert files(full) == {WEB, MAIL, DB}
    assert full.run(f"stat -c %a:%U:%G /run/narthex/metadata/{WEB}").strip() == "640:root:www-data"
    assert full.run("stat -c %a:%U:%G /run/narthex/metadata").strip() == "750:root:www-data"
    held = full.web.connect(LAN, 80)  # a connection that was there before
    full.bed.patch(remove(host("web")))
    assert files(full) == {MAIL, DB}
    assert get(full.web, "/latest/user-data") == (404, b"nothing is known of this address")
    with held:
        held.sendall(b"GET /latest/user-data HTTP/1.0\r\n\r\n")
        assert held.recv(100).startswith(b"HTTP/1.1 404 ")
    assert full.bed.run("grep", "-rl", "wOrd-of-web", "/run/narthex", "/etc/narthex", check=False) == ""
    # The next with its address and its MAC, and nothing of its own but a key.
    full.bed.patch(put({**host("web", {"ssh_keys": KEYS[:1]}), "id": "vm-next", "name": "next"}))
    assert text(full.web, "/latest/meta-data").split() == [
        "instance-id",
        "local-hostname",
        "local-ipv4",
        "mac",
        "public-keys",
    ]
    assert get(full.web, "/latest/user-data")[0] == 404
    assert password(full.web, "send_my_password") == "saved_password"


def test_without_metadata_nothing_is_there(full: Stage) -> None:
    full.push(office(), servers(), host("desk"))
    assert pid_of(full) == ""
    assert files(full) == set()
    assert WELL_KNOWN not in full.run("ip -4 address")
    assert get(full.web, "/latest/user-data", LAN, "-m", "1") == (0, b"")


# --- who is slow, or too many -----------------------------------------------------------------------------------------


def test_slow_and_greedy_guests_hold_up_nobody(full: Stage) -> None:
    with ExitStack() as stack:
        for _ in range(40):  # more than one may have; they say nothing, or something and never an end
            sock = stack.enter_context(full.mail.connect(LAN, 80))
            with suppress(OSError):
                sock.sendall(b"GET /latest/user-data HTTP/1.1\r\nX-Slow: ")
        unread = stack.enter_context(full.db.connect(DMZ, 80))
        unread.sendall(b"GET /latest/user-data HTTP/1.1\r\n\r\n")  # and never reads it
        started = time.monotonic()
        for _ in range(20):
            assert text(full.web, "/latest/instance-id") == "vm-web"
        assert time.monotonic() - started < 4
        assert get(full.mail, "/latest/user-data") == (200, BINARY), "its oldest made room"
        hammer = Hammer(full.mail)
        try:
            wait_for(lambda: hammer.refused > 10, 10)
            for _ in range(20):
                assert text(full.web, "/latest/instance-id") == "vm-web"
        finally:
            hammer.stop()
    memory = full.run(f"grep VmRSS /proc/{pid_of(full)}/status").split()
    assert int(memory[1]) <= 20 << 10


class Hammer:
    """A guest that asks as fast as it can, in a thread."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.refused, self.ends = machine, 0, False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.ends:
            with suppress(OSError), self.machine.connect(LAN, 80, 1.0) as sock:
                sock.sendall(b"GET /latest/meta-data HTTP/1.0\r\n\r\n")
                self.refused += sock.recv(100).startswith(b"HTTP/1.1 429 ")

    def stop(self) -> None:
        self.ends = True
        self.thread.join()
