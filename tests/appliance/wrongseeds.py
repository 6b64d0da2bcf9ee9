"""Every kind of wrong seed: (what is changed in a right one, what is said of it)."""

from __future__ import annotations

from tests.appliance import seeds
from tests.appliance.seeds import MAC, entries_with, host_key, network_with, settings_with, user_data

WRONG: list[tuple[dict[str, bytes | None], str]] = [
    ({"user_data": None}, "user-data: missing; make the seed anew"),
    ({"user_data": b""}, "user-data: line 1: not #cloud-config"),
    ({"user_data": b"#!/bin/sh\n"}, "user-data: line 1: not #cloud-config"),
    ({"user_data": b"\x1f\x8b\x08\x00"}, "user-data: byte 1: not UTF-8 text; give it plain"),
    ({"user_data": b"#cloud-config\na: [\n"}, "user-data: line 3:"),
    ({"user_data": b"#cloud-config\n- a\n"}, "user-data: not a mapping"),
    ({"user_data": b"#cloud-config\nwrite_files: 2\n"}, "user-data: write_files: not a list"),
    ({"user_data": b"#cloud-config\nd: 2001-99-99\n"}, "user-data: not YAML"),
    ({"user_data": b"#cloud-config\n" + b"[" * 5000}, "user-data: "),
    ({"user_data": b"#cloud-config\n#" + b"x" * (1 << 20)}, "user-data: more than 1048576 bytes"),
    ({"user_data": user_data([])}, "write_files: /etc/narthex/host_key: missing"),
    ({"user_data": user_data([None, 1, {"path": 2}])}, "write_files: /etc/narthex/settings.json: missing"),
    ({"user_data": entries_with("settings.json", content="{")}, "/etc/narthex/settings.json: not JSON"),
    ({"user_data": entries_with("settings.json", content=5)}, "write_files[0]: /etc/narthex/settings.json: content"),
    ({"user_data": entries_with("settings.json", encoding="gzip")}, "encoding: 'gzip' is not read here"),
    ({"user_data": entries_with("settings.json", encoding="b64", content="/w==")}, "content: not base64 of a text"),
    ({"user_data": entries_with("host_key", append=True)}, "neither append nor source"),
    ({"user_data": settings_with(role="Router!")}, "settings.json: role: 'Router!' is not a role"),
    ({"user_data": settings_with(extra=1)}, "settings.json: extra: unknown key"),
    ({"user_data": settings_with(runner="supervisor")}, "settings.json: runner: 'supervisor' is a cell's"),
    ({"user_data": entries_with("host_key", content="")}, "host_key: not an OpenSSH private key"),
    ({"user_data": entries_with("host_key", content=host_key().replace("b", "", 1))}, "host_key: "),
    ({"user_data": entries_with("host_key", content=host_key(b"aes256-ctr"))}, "host_key: it has a passphrase"),
    ({"user_data": entries_with("host_key", content=host_key(public=b"rsa"))}, "host_key: not a whole ed25519 key"),
    ({"user_data": entries_with("authorized_keys", content="# none\n")}, "authorized_keys: no key"),
    (
        {"user_data": entries_with("authorized_keys", content=seeds.AUTHORIZED.removeprefix("restrict "))},
        "authorized_keys: key 1: does not begin with `restrict`",
    ),
    (
        {"user_data": entries_with("authorized_keys", content=seeds.AUTHORIZED + "restrict ssh-ed25519 AAAA\n")},
        "authorized_keys: key 2: not `restrict ssh-ed25519 AAAA...`",
    ),
    ({"meta_data": None}, "meta-data: missing"),
    ({"meta_data": b"a: b"}, "meta-data: instance-id: None is not a word"),
    ({"meta_data": b'instance-id: "../x"'}, "meta-data: instance-id: '../x' is not a word"),
    ({"meta_data": b"#" + b"x" * (1 << 16)}, "meta-data: more than 65536 bytes"),
    ({"network_config": b"version: 1\n"}, "network-config: version: not 2"),
    ({"network_config": b"network: []\n"}, "network-config: version: not 2"),
    ({"network_config": b"version: 2\n"}, f"network-config: ethernets: none matches the macaddress {MAC}"),
    ({"network_config": b"version: 2\nethernets: [a]\n"}, "ethernets: none matches"),
    ({"network_config": network_with(f'"{MAC}"', "52:54:00:12:34:56")}, "macaddress: a number; put it in quotes"),
    ({"network_config": network_with("2.10/24", "2.11/24")}, "ethernets.control.addresses: lacks 169.254.2.10/24"),
    ({"network_config": network_with("[169.254.2.10/24]", "5")}, "ethernets.control.addresses: not a list"),
    ({"network_config": network_with("1400", "1")}, "ethernets.control.mtu: 1 is not a number of bytes"),
    ({"network_config": network_with("default", "10.0.0.1/8")}, "routes[0]: '10.0.0.1/8' via '169.254.2.1' is no"),
    ({"network_config": network_with("default", '"::/0"')}, "one is IPv4, the other IPv6"),
    ({"network_config": network_with("via: 169.254.2.1", "via: []")}, "is no route"),
    ({"network_config": network_with("[{to", "[a, {to")}, "ethernets.control.routes: not a list of mappings"),
]
