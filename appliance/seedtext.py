"""What a seed says: its texts, NoCloud's or ConfigDrive's, as a Birth, or all that is wrong with them. Pure.

Narthex's part of the user-data is three `write_files` entries, so cloud-init understands the seed as well; the rest of
it is cloud-init's own, and not looked at. Imported where there is a seed that was not read before: PyYAML and the
settings cost more than all the rest of the early boot.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import yaml

from appliance.seeddisk import SeedError
from appliance.settings import Settings, SettingsError, parse

ETC = "/etc/narthex"
SETTINGS, HOST_KEY, AUTHORIZED = "settings.json", "host_key", "authorized_keys"
ANEW = "make the seed anew with ./narthex seed"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)
_ED25519 = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"  # an OpenSSH public key, less its last 32 bytes


class Birth:
    """What an appliance is born with. `files` by name in /etc/narthex; `mtu` and `routes` (to, via) are the control
    interface's, 0 for the driver's own."""

    def __init__(
        self, instance: str, settings: Settings, files: dict[str, str], mtu: int, routes: list[tuple[str, str]]
    ) -> None:
        self.instance, self.settings, self.files, self.mtu, self.routes = instance, settings, files, mtu, routes


def read_seed(kind: str, origin: str, texts: Mapping[str, bytes]) -> Birth:
    """The texts of a seed (seeddisk.FILES), checked whole. Raises SeedError with all that is wrong, a line each."""
    user, meta, network = (
        ("user-data", "meta-data", "network-config")
        if kind == "nocloud"
        else tuple(f"openstack/latest/{name}" for name in ("user_data", "meta_data.json", "network_data.json"))
    )
    wrong: list[str] = []

    def checked(name: str, reader: Any, *arguments: Any) -> Any:
        try:
            if name not in texts:
                raise ValueError(f"missing; {ANEW}")
            return reader(_loaded(texts[name], name == user), *arguments)
        except ValueError as error:
            wrong.extend(f"{origin}: {name}: {line}" for line in str(error).splitlines())
            return None

    instance = checked(meta, _instance, "instance-id" if kind == "nocloud" else "uuid")
    born = checked(user, _files)
    if born is None:
        raise SeedError("\n".join(wrong))
    files, settings = born
    link: tuple[int, list[tuple[str, str]]] = (0, [])
    if network in texts:
        link = checked(network, _netplan if kind == "nocloud" else _openstack, settings)
    if wrong:
        raise SeedError("\n".join(wrong))
    return Birth(instance, settings, files, *link)


def _loaded(raw: bytes, is_user_data: bool) -> Mapping[str, Any]:
    """A mapping from YAML or JSON. Errors don't quote the text: there are keys in it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start}: not UTF-8 text; give it plain, neither packed nor encoded") from None
    if is_user_data and not re.match(r"#cloud-config\s", text):
        raise ValueError("line 1: not #cloud-config; a script or a multipart message is not read here")
    try:
        told = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context or 'not YAML'}; {ANEW}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"not YAML; {ANEW}") from None
    if not isinstance(told, dict):
        raise ValueError(f"not a mapping of keys to values; {ANEW}")
    return told


def _instance(told: Mapping[str, Any], key: str) -> str:
    found = told.get(key)
    if not isinstance(found, str) or not _INSTANCE.fullmatch(found):
        raise ValueError(f"{key}: {found!r:.80} is not a word of letters, digits and ._:-; correct it")
    return found


def _files(told: Mapping[str, Any]) -> tuple[dict[str, str], Settings]:
    """Narthex's own three files from `write_files`, and the settings in them."""
    entries = told.get("write_files", [])
    if not isinstance(entries, list):
        raise ValueError(f"write_files: not a list; {ANEW}")
    wanted = {f"{ETC}/{name}": name for name in (SETTINGS, HOST_KEY, AUTHORIZED)}
    wrong, found = [], {}
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("path") in wanted:
            try:
                found[wanted[entry["path"]]] = _content(entry)
            except ValueError as error:
                wrong.append(f"write_files[{number}]: {entry['path']}: {error}")
    settings = None
    for path, name in wanted.items():
        if name not in found:
            if not any(path in line for line in wrong):
                wrong.append(f"write_files: {path}: missing; {ANEW}")
            continue
        try:
            if name == SETTINGS:
                settings = _settings(found[name], path)
            else:
                (_check_host_key if name == HOST_KEY else _check_authorized)(found[name], path)
        except ValueError as error:
            wrong += str(error).splitlines()
    if wrong or settings is None:
        raise ValueError("\n".join(wrong))
    return found, settings


def _content(entry: Mapping[str, Any]) -> str:
    content, encoding = entry.get("content", ""), entry.get("encoding", "text/plain")
    if not isinstance(content, str | bytes):
        raise ValueError("content: not a text; quote it")
    if entry.get("append") or entry.get("source"):
        raise ValueError("neither append nor source is possible here; give the content itself")
    if encoding in ("b64", "base64"):
        try:
            return binascii.a2b_base64(content).decode()
        except ValueError:
            raise ValueError(f"content: not base64 of a text; {ANEW}") from None
    if encoding != "text/plain":
        raise ValueError(f"encoding: {encoding!r:.40} is not read here; give text/plain or base64")
    return content if isinstance(content, str) else content.decode()


def _settings(text: str, path: str) -> Settings:
    try:
        settings = parse(json.loads(text), path)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}; {ANEW}") from None
    if settings.runner != "systemd":
        raise ValueError(f'{path}: runner: {settings.runner!r} is a cell\'s; write "systemd"')
    return settings


def _check_host_key(text: str, path: str) -> None:
    """An OpenSSH private key (PROTOCOL.key of OpenSSH): ed25519, no passphrase."""
    lines = text.split()
    if lines[:4] != ["-----BEGIN", "OPENSSH", "PRIVATE", "KEY-----"] or lines[-2:] != ["PRIVATE", "KEY-----"]:
        raise ValueError(f"{path}: not an OpenSSH private key; {ANEW}")
    try:
        blob = binascii.a2b_base64("".join(lines[4:-4]))
    except ValueError:
        blob = b""
    if not blob.startswith(b"openssh-key-v1\0"):
        raise ValueError(f"{path}: cut or changed on the way; {ANEW}")
    if not blob.startswith(b"openssh-key-v1\0\0\0\0\x04none"):
        raise ValueError(f"{path}: it has a passphrase, and nobody is there to give it; {ANEW}")
    # The public part stands in the head and again in the private part: a key cut short has it once.
    if blob.count(_ED25519) != 2 or len(blob) < 200:
        raise ValueError(f"{path}: not a whole ed25519 key; {ANEW}")


def _check_authorized(text: str, path: str) -> None:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path}: no key; {ANEW}")
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words[0].split(",")[0] != "restrict":
            raise ValueError(f"{path}: key {number}: does not begin with `restrict`; {ANEW}")
        if len(words) < 3 or words[1] != "ssh-ed25519" or not is_public_key(words[2]):
            raise ValueError(f"{path}: key {number}: not `restrict ssh-ed25519 AAAA...`; {ANEW}")


def is_public_key(text: str) -> bool:
    """An ed25519 public key's base64."""
    try:
        blob = binascii.a2b_base64(text)
    except ValueError:
        return False
    return blob.startswith(_ED25519) and len(blob) == 51


def _netplan(told: Mapping[str, Any], settings: Settings) -> tuple[int, list[tuple[str, str]]]:
    """MTU and routes of the control interface, from network-config, version 2."""
    told = told.get("network", told)
    if not isinstance(told, dict) or told.get("version") != 2:
        raise ValueError(f"version: not 2, the only one that is read here; {ANEW}")
    links = told.get("ethernets") or {}
    for name, link in links.items() if isinstance(links, dict) else ():
        match = link.get("match") if isinstance(link, dict) else None
        mac = match.get("macaddress") if isinstance(match, dict) else None
        if isinstance(mac, int):  # YAML 1.1 reads 52:54:00:12:34:56 as a number to base 60
            raise ValueError(f"ethernets.{name}.match.macaddress: a number; put it in quotes")
        if isinstance(mac, str) and mac.lower() == settings.control_mac:
            place = f"ethernets.{name}"
            if settings.control_address not in _listed(link.get("addresses"), f"{place}.addresses"):
                raise ValueError(f"{place}.addresses: lacks {settings.control_address} of settings.json; correct one")
            routes = [
                _route(r.get("to"), r.get("via"), f"{place}.routes[{number}]")
                for number, r in enumerate(_listed(link.get("routes"), f"{place}.routes"))
            ]
            return _mtu(link.get("mtu"), place), routes
    raise ValueError(f"ethernets: none matches the macaddress {settings.control_mac} of settings.json; add it")


def _openstack(told: Mapping[str, Any], settings: Settings) -> tuple[int, list[tuple[str, str]]]:
    """The same from network_data.json."""
    for number, link in enumerate(_listed(told.get("links"), "links")):
        if str(link.get("ethernet_mac_address", "")).lower() != settings.control_mac:
            continue
        mtu = _mtu(link.get("mtu"), f"links[{number}]")
        ours, routes = False, []
        for place, network in enumerate(_listed(told.get("networks"), "networks")):
            if network.get("link") != link.get("id"):
                continue
            ours |= network.get("ip_address") == settings.control_address.partition("/")[0]
            for row, route in enumerate(_listed(network.get("routes"), f"networks[{place}].routes")):
                to = _with_length(route.get("network"), route.get("netmask"))
                routes.append(_route(to, route.get("gateway"), f"networks[{place}].routes[{row}]"))
        if not ours:
            raise ValueError(f"networks: none gives {settings.control_address} of settings.json to its link; add it")
        return mtu, routes
    raise ValueError(f"links: none has the ethernet_mac_address {settings.control_mac} of settings.json; add it")


def _listed(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict | str) for one in value):
        raise ValueError(f"{place}: not a list; {ANEW}")
    if place.endswith("addresses"):
        return value
    if not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{place}: not a list of mappings; {ANEW}")
    return value


def _mtu(value: Any, place: str) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 576 <= value <= 65535:
        raise ValueError(f"{place}.mtu: {value!r:.40} is not a number of bytes, 576 to 65535; correct it")
    return value


def _with_length(network: Any, netmask: Any) -> str:
    """OpenStack writes the masks of IPv6 out, which nobody else does: ip_network does not take them."""
    if isinstance(netmask, str) and ":" in netmask:
        try:
            return f"{network}/{int(ip_address(netmask)).bit_count()}"
        except ValueError:
            pass
    return f"{network}/{netmask}"


def _route(to: Any, via: Any, place: str) -> tuple[str, str]:
    """(network, gateway), canonical. `default` is the gateway's kind of 0.0.0.0/0."""
    try:
        gateway = ip_address(via)
        if to == "default":
            return ("0.0.0.0/0" if gateway.version == 4 else "::/0"), str(gateway)
        network = ip_network(to)
    except (ValueError, TypeError):
        raise ValueError(f"{place}: {to!r:.60} via {via!r:.60} is no route; write a network and a gateway") from None
    if network.version != gateway.version:
        raise ValueError(f"{place}: {network} via {gateway}: one is IPv4, the other IPv6; correct one")
    return str(network), str(gateway)
