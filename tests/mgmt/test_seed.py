"""A seed from its YAML: what cloud-init and the early reader get, and what is refused, by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.seedtext import read_seed
from mgmt.draft import from_yaml
from mgmt.hosts.driver import Seed
from mgmt.keys import KeyPair, make_key, public_part
from mgmt.seed import (
    BUNDLE,
    RESERVED,
    TEMPLATES,
    SeedError,
    SeedFile,
    config_drive,
    no_cloud,
    of_driver,
    read_seed_file,
    schema,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "seed.txt"
MAC = "52:54:00:12:34:56"  # PyYAML reads it as a number where it isn't quoted
HASH = "$6$abcdefghijklmnop$" + "x" * 86


@pytest.fixture(name="key", scope="module")
def key_fixture() -> KeyPair:
    return make_key()


@pytest.fixture(name="told")
def told_fixture(key: KeyPair) -> dict[str, Any]:
    return {
        "name": "r-17", "role": "router", "control": {"mac": MAC, "address": "169.254.2.10/24"},
        "manager_key": key.public, "host_key": key.private,
    }  # fmt: skip


FULL: dict[str, Any] = {
    "control": {
        "mac": MAC, "address": "169.254.2.10/24", "gateway": "169.254.2.1", "mtu": 1400,
        "routes": [{"to": "10.0.0.0/8", "via": "169.254.2.2"}],
    },
    "time_servers": ["ntp1.example.net", "192.0.2.123"], "heal": "report", "watch_seconds": 2.5,
    "console": {"password_hash": HASH},
    "user_data": {
        "write_files": [{"path": "/etc/motd", "content": "Hello\n\n  there: #x 'q' \"d\"\n", "permissions": "0600"}],
        "runcmd": [["logger", "seeded"], "echo 'a: b' > /run/x"], "packages": ["jq"],
    },
}  # fmt: skip


def test_both_kinds_say_the_same_to_the_early_reader(told: dict[str, Any], key: KeyPair) -> None:
    seed = read_seed_file(told | FULL)
    births = [
        read_seed("nocloud", "cd", no_cloud(seed)),
        read_seed("configdrive", "cd", config_drive(seed)),
    ]
    assert vars(births[0]) == vars(births[1])
    found = births[0]
    assert (found.settings.name, found.settings.runner, found.settings.heal) == ("r-17", "systemd", "report")
    assert found.settings.watch_seconds == 2.5
    assert (found.mtu, found.routes) == (1400, [("0.0.0.0/0", "169.254.2.1"), ("10.0.0.0/8", "169.254.2.2")])
    assert found.files["host_key"] == key.private
    assert found.files["authorized_keys"] == f"restrict {key.public}\n"


def test_an_ipv6_control_address(told: dict[str, Any]) -> None:
    told["control"] = {"mac": MAC, "address": "2001:db8::10/64", "gateway": "2001:db8::1"}
    seed = read_seed_file(told)
    for kind, files in (("nocloud", no_cloud(seed)), ("configdrive", config_drive(seed))):
        assert read_seed(kind, "cd", files).routes == [("::/0", "2001:db8::1")]


def test_what_cloud_init_gets(told: dict[str, Any]) -> None:
    files = no_cloud(read_seed_file(told | FULL), b"a bundle")
    user = yaml.safe_load(files["user-data"])
    assert user["ntp"]["servers"] == ["ntp1.example.net", "192.0.2.123"]
    assert user["chpasswd"] == {"expire": False, "users": [{"name": "root", "type": "hash", "password": HASH}]}
    assert user["write_files"][3] == FULL["user_data"]["write_files"][0]
    assert user["runcmd"] == FULL["user_data"]["runcmd"]
    assert {one["permissions"] for one in user["write_files"]} == {"0600"}
    assert yaml.safe_load(files["network-config"])["ethernets"]["control"]["match"] == {"macaddress": MAC}
    assert files[BUNDLE] == b"a bundle"


def test_who_asks_for_no_password_gets_none(told: dict[str, Any]) -> None:
    user = yaml.safe_load(no_cloud(read_seed_file(told))["user-data"])
    assert user.keys() == {"hostname", "users", "write_files"}
    assert user["users"] == []


def test_a_drivers_seed_goes_the_same_way(told: dict[str, Any], key: KeyPair) -> None:
    seed = Seed("r-17", "router", "169.254.2.10/24", key.public, key.public, key.private, ("192.0.2.1",), "report", 5.0)
    by_hand = told | {"time_servers": ["192.0.2.1"], "heal": "report", "watch_seconds": 5}
    assert no_cloud(of_driver(seed, MAC)) == no_cloud(read_seed_file(by_hand))


def test_a_changed_seed_is_another_instance(told: dict[str, Any]) -> None:
    def instance(**changed: Any) -> str:
        return str(yaml.safe_load(no_cloud(read_seed_file(told | changed), b"x")["meta-data"])["instance-id"])

    assert instance() == instance(bundle="other.bundle")
    assert len({instance(), instance(heal="report"), instance(host_key=make_key().private)}) == 3
    assert instance(instance="mine") == instance(instance="mine", heal="report") == "mine"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "R17"}, "name", "pattern"),
    ({"name": "r\nx: y"}, "name", "pattern"),
    ({"rolle": "router"}, "rolle", "remove it or correct it"),
    ({"role": "firewall"}, "role", "router"),
    ({"control": {"address": "169.254.2.10/24"}}, "control.mac", "add it"),
    ({"control": {"mac": "03:00:00:00:00:01", "address": "169.254.2.10/24"}}, "control.mac", "group"),
    ({"control": {"mac": MAC, "address": "169.254.2.10"}}, "control.address", "write it as"),
    ({"control": {"mac": MAC, "address": "10.0.0.1/24", "gateway": "10.0.1.1"}}, "control", "not on the network"),
    ({"control": {"mac": MAC, "address": "10.0.0.1/24", "mtu": 100}}, "control.mtu", "576"),
    (
        {"control": {"mac": MAC, "address": "10.0.0.1/24", "routes": [{"to": "::/0", "via": "10.0.0.2"}]}},
        "control", "one is IPv4",
    ),
    ({"manager_key": "ssh-rsa AAAA"}, "manager_key", "ssh-keygen -t ed25519"),
    ({"manager_key": "PRIVATE"}, "manager_key", "ssh-keygen"),
    ({"host_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"}, "host_key", "leave it out"),
    ({"time_servers": ["a b"]}, "time_servers.0", ""),
    ({"watch_seconds": 0}, "watch_seconds", "1"),
    ({"console": {"password_hash": "hunter2"}}, "console.password_hash", "pattern"),
    ({"console": {"password_hash": '$6$a"\nx: y' + "z" * 40}}, "console.password_hash", "pattern"),
    ({"user_data": {"users": ["me"]}}, "user_data.users", "remove it"),
    ({"user_data": {"ssh_authorized_keys": ["x"]}}, "user_data.ssh_authorized_keys", "remove it"),
    ({"user_data": {"write_files": [{"path": "etc/x"}]}}, "user_data.write_files.0.path", "absolute"),
    ({"user_data": {"write_files": [{"path": "/etc/x/../ssh//x"}]}}, "user_data.write_files.0.path", "way in"),
    ({"user_data": {"write_files": [{"path": "/x", "content": "\u0007"}]}}, "user_data.write_files.0.content", ""),
    ({"user_data": {"runcmd": [["rm", "/etc/narthex/host_key"]]}}, "user_data.runcmd.0", "way in"),
    ({"user_data": {"runcmd": ["echo x >> ~/.ssh/authorized_keys"]}}, "user_data.runcmd.0", "way in"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "path", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(told: dict[str, Any], changed: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(SeedError) as refused:
        read_seed_file(told | changed)
    found = [(place, said) for place, said in refused.value.problems if place.startswith(path)]
    assert found, refused.value.problems
    assert any(words in said for _, said in found), found
    assert "hunter2" not in str(refused.value.problems)


@pytest.mark.parametrize("path", RESERVED)
def test_the_users_own_part_keeps_off_the_way_in(told: dict[str, Any], path: str) -> None:
    for target in (path, f"{path}/x"):
        with pytest.raises(SeedError):
            read_seed_file(told | {"user_data": {"write_files": [{"path": target}]}})
    read_seed_file(told | {"user_data": {"write_files": [{"path": f"{path}x"}]}})


def test_a_key_is_ed25519_and_whole(key: KeyPair) -> None:
    assert public_part(key.private) == key.public
    for text in ("", "x", key.private[:200]):
        with pytest.raises(ValueError, match="not a whole OpenSSH private key"):
            public_part(text)


def test_both_keys_are_needed(told: dict[str, Any]) -> None:
    del told["host_key"]
    with pytest.raises(SeedError, match="host_key"):
        no_cloud(read_seed_file(told))


def test_the_schema_is_the_models() -> None:
    kept = (TEMPLATES / "seed.schema.json").read_text()
    assert kept == schema(), "write it anew: ./narthex seed --schema > cloud-init/seed.schema.json"
    assert json.loads(kept)["additionalProperties"] is False


def test_the_example_is_one() -> None:
    found = read_seed_file(from_yaml((TEMPLATES / "example.yaml").read_text(), "example.yaml"))
    assert isinstance(found, SeedFile)
    assert found.control.address == "169.254.2.10/24"


def test_as_a_person_reads_it(told: dict[str, Any], key: KeyPair) -> None:
    """The golden file, for reading: keys are words there."""
    seed = read_seed_file(told | FULL | {"instance": "r-17-golden"})
    parts = []
    for files in (no_cloud(seed), config_drive(seed)):
        parts += [f"--- {path}\n{content.decode()}" for path, content in files.items() if "user_data" not in path]
    text = "".join(parts).replace(key.public, "ssh-ed25519 MANAGER")
    text = text.replace(key.private.strip().replace("\n", "\n" + " " * 6), "PRIVATE")
    assert text == GOLDEN.read_text()
