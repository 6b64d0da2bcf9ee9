"""Metadata: what a document may say of it, what is made of it, and what the service tells of a guest's file."""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from appliance.decode import decode_document
from appliance.document import DocumentError, validate
from appliance.plan import diff, digest, plan
from appliance.state import Address, Check, File, State, Touched
from router.checks import problems, revised
from router.compile import compile, revise
from router.config import Config, Host
from router.config_metadata import MOST_USER_DATA, Metadata
from router.metadata_given import Given
from router.metadata_guest import USER_DATA, Guest, find, read_guest
from router.metadata_service import Buckets, parse
from router.packet import Packet
from router.trace import Tracer
from tests.router.samples import NETWORKS, facts_of, host, made

KEYS = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJEk0LxIoGmz ada@example", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB"]
SERVED = [{**NETWORKS[0], "metadata": True}, NETWORKS[1]]
FULL = {
    "user_data": base64.b64encode(b"#!/bin/sh\n").decode(),
    "ssh_keys": KEYS,
    "password": {"id": "p-1", "value": "Quiet-Harbour"},
    "values": {"placement/availability-zone": "zone 1"},
}


def told(*hosts: dict[str, Any], networks: Any = SERVED) -> Config:
    return made(networks=networks, hosts=list(hosts))


def state_of(config: Config) -> State:
    return compile(config, facts_of(config))


def files_of(config: Config) -> dict[str, File]:
    return {f.path: f for f in state_of(config).files if f.path.startswith("/run/narthex/metadata/")}


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("user_data", "not base64"), ("user_data", "YWI"), ("user_data", "YQ=="[:3]), ("user_data", "YQ=\n"),
        ("user_data", base64.b64encode(bytes(MOST_USER_DATA + 1)).decode()), ("ssh_keys", [f"restrict {KEYS[0]}"]),
        ("ssh_keys", [f"{KEYS[0]}\n{KEYS[1]}"]), ("ssh_keys", ["ssh-rsa short"]), ("ssh_keys", [f'{KEYS[0]}"']),
        ("password", {"id": "p"}), ("password", {"id": "p", "value": "two\nlines"}), ("values", {"user-data": "x"}),
        ("values", {"public-keys/0": "x"}), ("values", {"../up": "x"}), ("values", {"a": "x", "a/b": "y"}),
        ("values", {"A": "x"}), ("values", {"a": "two\nlines"}), ("values", {"a//b": "x"}), ("values", {"a/": "x"}),
    ],
)  # fmt: skip
def test_refused(field: str, wrong: Any) -> None:
    with pytest.raises(DocumentError):
        validate(Metadata, {field: wrong})


def test_a_megabyte_comes_through_the_door_and_many_wrong_values_do_not() -> None:
    largest = base64.b64encode(bytes(MOST_USER_DATA)).decode()
    config = {"interfaces": [], "networks": SERVED, "hosts": [host(metadata={"user_data": largest})]}
    raw = {"version": 1, "role": "router", "generation": 1, "config": config}
    assert decode_document(Config, raw).config.hosts[0].metadata.user_data == largest
    config["hosts"] = [host(dns=["x"] * 200_000)]
    with pytest.raises(DocumentError, match="one object has at most"):
        decode_document(Config, raw)


def test_where_the_network_has_none() -> None:
    config = told(host(metadata=FULL), networks=NETWORKS)
    (found,) = problems(config)
    assert found.path == "config.hosts[vm-1].metadata"
    assert "set its metadata to true" in found.message
    assert problems(told(host(metadata=FULL))) == problems(told(host(), networks=NETWORKS)) == []
    change = Touched("hosts", "vm-1", None, config.hosts[0])
    assert revised(config, (change,)) == [found]


def test_together_it_is_too_much() -> None:
    hosts = []
    for n in range(7):
        metadata = {"user_data": "AAAA" * (1_300_000 // 4)}
        place = {"address": f"10.1.1.{10 + n}", "mac": f"02:01:00:00:00:{n:02x}", "name": f"n{n}"}
        hosts.append(host(f"vm-{n}", metadata=metadata, **place))
    assert problems(told(*hosts[:6])) == []
    config = told(*hosts)
    (found,) = problems(config)
    assert "user data of all hosts" in found.message
    assert revised(config, (Touched("hosts", "vm-6", None, config.hosts[6]),))


def test_the_well_known_address_is_taken() -> None:
    config = told(host(metadata=FULL))
    lan = config.interfaces[-1].model_copy(update={"addresses": ("169.254.169.254/30",)})
    found = problems(config.model_copy(update={"interfaces": (*config.interfaces[:-1], lan)}))
    assert ("config.interfaces[lan].addresses", "where guests ask") in [(p.path, p.message[19:35]) for p in found]


# --- the State --------------------------------------------------------------------------------------------------------


def test_nothing_without_metadata() -> None:
    plain = state_of(told(host(), networks=NETWORKS))
    assert not [f for f in plain.files if "metadata" in f.path]
    assert "metadata" not in [u.name for u in plain.units]
    assert state_of(told(host(metadata=None), networks=[{**n, "metadata": False} for n in NETWORKS])) == plain


def test_a_file_of_its_own_for_the_services_account_alone() -> None:
    config = told(host(metadata=FULL), host("vm-2", address="10.1.1.11", mac="02:01:00:00:00:02", name="b"))
    (file,) = files_of(config).values()
    assert (file.path, file.mode, file.group) == ("/run/narthex/metadata/10.1.1.10", 0o640, "www-data")
    assert (file.secret, file.owner) == (True, "vm-1")
    state = state_of(config)
    assert Address("eth3", "169.254.169.254/32") in state.addresses
    (unit,) = (u for u in state.units if u.name == "metadata")
    assert not set(unit.restart_on) & {file.path}, "a guest's file is read for each request"
    assert set(unit.restart_on) <= {f.path for f in state.files}
    assert Check("tcp", "10.1.1.1", "80", here="10.1.1.1") in state.checks


@pytest.mark.parametrize(
    ("by", "to", "port", "fate"),
    [
        ("web", "10.1.1.1", 80, "local"), ("web", "10.1.1.1", 8080, "local"), ("web", "169.254.169.254", 80, "local"),
        ("web", "169.254.169.254", 8080, "dropped"), ("web", "10.1.1.1", 81, "dropped"),
        ("db", "10.1.1.1", 80, "dropped"), ("db", "169.254.169.254", 80, "dropped"), ("db", "10.1.2.1", 80, "dropped"),
        ("isp-a", "169.254.169.254", 80, "dropped"), ("lan", "169.254.169.254", 80, "dropped"),
    ],
)  # fmt: skip
def test_the_doors(by: str, to: str, port: int, fate: str) -> None:
    source = {"web": "10.1.1.10", "db": "10.1.2.10", "isp-a": "192.0.2.7", "lan": "172.16.0.9"}[by]
    tracer = Tracer(state_of(told(host(metadata=FULL))))
    assert tracer.trace(Packet(by, source, to, "tcp", 40000, port)).outcome.verdict == fate


def test_no_secret_is_shown() -> None:
    before = state_of(told(host(metadata={**FULL, "password": None})))
    config = told(host(metadata=FULL))
    after = state_of(config)
    steps = plan(before, after)
    shown = f"{diff(before, after)} {steps!r} {digest(steps)} {config!r} {after!r}"
    assert [s.name for s in steps] == ["/run/narthex/metadata/10.1.1.10"]
    assert "Quiet-Harbour" not in shown
    assert FULL["user_data"] not in shown


def test_revise_is_compile() -> None:
    """Hosts come, go, move and change; after each change the State is what compile makes, and the others' files are
    the same objects."""
    chance = random.Random(3)
    networks = [{**n, "metadata": True} for n in NETWORKS]
    config = told(networks=networks)
    state, facts = state_of(config), facts_of(config)
    hosts: dict[str, Host] = {}
    for _ in range(150):
        changes = []
        for name in chance.sample([f"vm-{n}" for n in range(12)], chance.randint(1, 4)):
            before = hosts.pop(name, None)
            free = set(range(10, 30)) - {int(h.address.rpartition(".")[2]) for h in hosts.values()}
            after = None
            if chance.random() < 0.7:
                metadata = chance.choice((None, {}, FULL, {"values": {"a": name}}))
                place = chance.choice((("web", "10.1.1."), ("db.1", "10.1.2.")))
                tail = chance.choice(sorted(free))
                raw = host(
                    name, network=place[0], address=f"{place[1]}{tail}", mac=f"02:01:00:00:00:{tail:02x}", name=name,
                    metadata=metadata,
                )  # fmt: skip
                after = hosts[name] = validate(Host, raw)
            if before != after:
                changes.append(Touched("hosts", name, before, after))
        config = config.model_copy(update={"hosts": tuple(hosts.values())})
        revision = revise(state, config, tuple(changes), facts)
        assert revision == compile(config, facts)
        kept = {id(f) for f in state.files}
        touched = {h.address for t in changes for h in (t.before, t.after) if isinstance(h, Host)}
        for file in revision.files if revision else ():
            if file.path.startswith("/run/narthex/metadata/") and file.path.rpartition("/")[2] not in touched:
                assert id(file) in kept
        state = revision or state


# --- what a guest is told ---------------------------------------------------------------------------------------------


def guest(tmp_path: Path, **metadata: Any) -> Guest:
    """As the service reads it."""
    (file,) = files_of(told(host(metadata=metadata))).values()
    path = tmp_path / "guest"
    path.write_text(file.content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_guest(fd)
    finally:
        os.close(fd)


def test_the_file_says_where_user_data_is(tmp_path: Path) -> None:
    for size in range(5):
        found = guest(tmp_path, user_data=base64.b64encode(b"x" * size).decode())
        assert found.data[1] == size
        assert find(found, "/latest/user-data") is USER_DATA
        assert base64.b64decode((tmp_path / "guest").read_bytes()[found.data[0] :]) == b"x" * size
    assert find(guest(tmp_path), "/latest/user-data") is None


def test_values_may_take_the_place_of_what_the_router_knows(tmp_path: Path) -> None:
    found = guest(tmp_path, values={"instance-id": "i-2-30-VM"})
    assert find(found, "/latest/instance-id") == "i-2-30-VM"
    assert find(found, "/latest/local-hostname") == "vm-1"
    assert find(found, "/latest/meta-data/") == "instance-id\nlocal-hostname\nlocal-ipv4\nmac"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/latest/meta-data/placement", "availability-zone"), ("/1.0/placement/availability-zone", "zone 1"),
        ("/latest/public-keys", "\n".join(KEYS)), ("/latest/public-keys/", "0=key-0\n1=key-1"),
        ("/2009-04-04/meta-data/public-keys", "0=key-0\n1=key-1"), ("/latest/public-keys/1/openssh-key", KEYS[1]),
        ("/latest/public-keys/0/", "openssh-key"), ("/latest/public-keys/2", None), ("/latest/public-keys/0/x", None),
        ("/latest/public-keys/-1", None), ("/latest/public-keys/\u0661", None), ("/latest/public-keys/00001", None),
        ("/latest/placement/availability-zone/x", None), ("/later/instance-id", None), ("/latest/password", None),
        ("/latest/id", None), ("/latest/meta-data/meta-data", None), ("/latest/meta-data/values", None),
    ],
)  # fmt: skip
def test_paths(tmp_path: Path, path: str, text: str | None) -> None:
    assert find(guest(tmp_path, **FULL), path) == text


def test_given_once(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    one = guest(tmp_path, **FULL)
    given = Given(str(folder))
    assert given.ask(one, "send_my_password") == "Quiet-Harbour"
    assert given.ask(one, "") == "bad_request"
    assert given.ask(one, "saved_password") == "saved_password"
    assert (folder / "vm-1").read_text() == "p-1\n"
    for again in (given, Given(str(folder))):
        assert again.ask(one, "send_my_password") == "saved_password"
    other = guest(tmp_path, **{**FULL, "password": {"id": "p-2", "value": "Loud-Harbour"}})
    assert given.ask(other, "send_my_password") == "Loud-Harbour"
    assert given.ask(other, "saved_password") == "saved_password"
    assert (folder / "vm-1").read_text() == "p-2\n"


def test_an_acknowledgement_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    one, given = guest(tmp_path, **FULL), Given(str(folder))
    folder.rmdir()
    with pytest.raises(OSError, match="No such file"):
        given.ask(one, "saved_password")


def test_what_is_kept_of_who_is_gone_goes_when_that_lasts(tmp_path: Path) -> None:
    for name in ("vm-1", "vm-2", "vm-3"):
        (tmp_path / name).write_text("p\n")
    given = Given(str(tmp_path))
    absent = given.sweep({"vm-1"}, set())
    assert absent == {"vm-2", "vm-3"}
    absent = given.sweep({"vm-1", "vm-2"}, absent)  # a push was undone
    assert absent == set()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vm-1", "vm-2"]


def test_requests() -> None:
    headers = b"DomU_Request: one\r\nDOMU_REQUEST: two"
    assert parse(b"GET /a?b HTTP/1.0\r\n" + headers) == ("GET", "/a?b", {"domu_request": "one"})
    assert parse(b"GET http://10.1.1.1/x HTTP/1.1\nHost: y")[:2] == ("GET", "/x")
    unlike = (b"GET / HTTP/2", b"GET  / HTTP/1.1", b"GET x HTTP/1.1", b"GET /\x80 HTTP/1.1", b"GET / HTTP/1.1\nx")
    for wrong in (b"", b"GET", *unlike):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with it
            parse(wrong)


def test_a_guest_that_asks_too_much() -> None:
    buckets = Buckets()
    assert sum(buckets.take("10.1.1.10", 0.0) for _ in range(1000)) == 200
    assert buckets.take("10.1.1.11", 0.0)
    assert sum(buckets.take("10.1.1.10", 1.0) for _ in range(1000)) == 50
    buckets.forget(1.5)
    assert not sum(buckets.take("10.1.1.10", 1.5) for _ in range(26)) > 26
    buckets.forget(100.0)
    assert buckets.take("10.1.1.10", 100.0)


def test_json_of_a_guests_file() -> None:
    (file,) = files_of(told(host(metadata=FULL))).values()
    head, _, data = file.content.partition("\n")
    assert json.loads(head)["link"] == "eth3"
    assert data == FULL["user_data"]


@pytest.mark.parametrize("port", [80, 8080])
def test_a_balancer_on_its_ports(port: int) -> None:
    backend = {"id": "b", "address": "10.1.1.10", "port": 80}
    balancer = {"id": "inner", "protocol": "tcp", "address": "10.1.1.1", "port": port, "backends": [backend]}
    found = problems(made(networks=SERVED, balancers=[balancer]))
    assert [p.path for p in found] == ["config.balancers[inner].port"]
    assert problems(made(networks=NETWORKS, balancers=[balancer])) == []
