"""What a seed says: of any bytes either a whole birth, or where they are wrong."""

from __future__ import annotations

import base64
import json

import pytest

from appliance.seeddisk import SeedError
from appliance.seedtext import is_public_key, read_seed
from tests.appliance import seeds
from tests.appliance.seeds import MAC, entries_with, user_data


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_a_seed_cut_anywhere_is_refused(cut: int) -> None:
    texts = seeds.seed()
    assert cut < len(texts["user-data"])
    with pytest.raises(SeedError, match="^cd: user-data: "):
        read_seed("nocloud", "cd", texts | {"user-data": texts["user-data"][:cut]})


def test_openstack_wrong() -> None:
    texts = {"openstack/latest/user_data": user_data(), "openstack/latest/meta_data.json": b'{"uuid": "i-1"}'}
    for network, words in [
        ({}, "links: none has"),
        ({"links": 1}, "links: not a list"),
        ({"links": [{"id": 1, "ethernet_mac_address": MAC}]}, "networks: none gives 169.254.2.10"),
        ({"links": [{"id": 1, "ethernet_mac_address": MAC, "mtu": "a"}]}, "links[0].mtu: 'a'"),
    ]:
        with pytest.raises(SeedError) as refused:
            read_seed("configdrive", "cd", texts | {"openstack/latest/network_data.json": json.dumps(network).encode()})
        assert f"cd: openstack/latest/network_data.json: {words}" in str(refused.value)
    with pytest.raises(SeedError, match="meta_data.json: uuid: None"):
        read_seed("configdrive", "cd", texts | {"openstack/latest/meta_data.json": b"{}"})


def test_base64() -> None:
    content = base64.b64encode(json.dumps(seeds.SETTINGS).encode()).decode()
    texts = seeds.seed(user_data=entries_with("settings.json", encoding="base64", content=content))
    assert read_seed("nocloud", "cd", texts).settings.name == "r-1"


def test_the_last_entry_of_a_file_holds() -> None:
    """As cloud-init writes them: one after the other."""
    first, second = seeds.write_files({"name": "first"}), seeds.write_files({"name": "second"})
    texts = seeds.seed(user_data=user_data([*first.values(), *second.values()]))
    assert read_seed("nocloud", "cd", texts).settings.name == "second"


def test_public_keys() -> None:
    assert is_public_key(seeds.AUTHORIZED.split()[2])
    assert not is_public_key("AAAA")
    assert not is_public_key("\x80")
