"""The seed of an appliance in a machine of its own: what a person writes in a small YAML, as cloud-init's files. Pure.

NoCloud (volume id `cidata`) and ConfigDrive (`config-2`, XenServer's) say the same. Two read them: the image's own
early reader (appliance/seed.py) takes the three files in /etc/narthex and the control interface, cloud-init the rest.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from appliance.document import Model
from appliance.values import Address, Cidr, HostCidr, Hostname, Mac, Mtu, contains, is_v6
from mgmt.hosts.driver import Seed
from mgmt.keys import public_part

TEMPLATES = Path(__file__).parents[1] / "cloud-init"
NOCLOUD, CONFIG_DRIVE = "cidata", "config-2"  # volume ids
BUNDLE = "narthex.bundle"
Files = dict[str, bytes]  # by path on the disk

HOME = "/root"  # in the appliance
# What belongs to the way in. The user's own part of a seed may not write there: a slip would lock the manager out.
RESERVED = (
    *("/etc/narthex", "/usr/lib/narthex", "/opt/narthex", "/var/lib/narthex", "/run/narthex"),
    *("/etc/ssh", f"{HOME}/.ssh", "/etc/network", "/etc/netplan", "/etc/systemd/network", "/etc/cloud"),
)


class SeedError(Exception):
    """A seed that cannot be made. `problems` are (path in the YAML, what is wrong and what to do)."""

    def __init__(self, message: str, problems: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


def _public_key(text: str) -> str:
    words = text.split()
    if (
        len(words) < 2
        or words[0] != "ssh-ed25519"
        or not re.fullmatch(r"AAAAC3NzaC1lZDI1NTE5AAAAI[\w+/]{43}", words[1])
    ):
        raise ValueError('not an ed25519 public key; it looks like "ssh-ed25519 AAAAC3Nza..." (ssh-keygen -t ed25519)')
    return f"{words[0]} {words[1]}"


def _host_key(text: str) -> str:
    try:
        public_part(text)
    except ValueError as error:
        raise ValueError(f"{error}; leave it out, and one is made") from None
    return text.strip() + "\n"


def _file_path(text: str) -> str:
    path = posixpath.normpath("/" + text.lstrip("/"))
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path; write /{text}")
    for reserved in RESERVED:
        if path == reserved or path.startswith(f"{reserved}/"):
            raise ValueError(f"{path}: {reserved} belongs to the way in; leave it to the rest of the seed")
    return path


def _words(text: str) -> str:
    for reserved in (*RESERVED, "authorized_keys"):
        if reserved in text:
            raise ValueError(f"{reserved} belongs to the way in; leave it to the rest of the seed")
    return text


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
PublicKey = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_public_key)]
PrivateKey = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_host_key)]
Printable = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]*$")
]
Command = Annotated[Printable, StringConstraints(min_length=1), AfterValidator(_words)]
PasswordHash = Annotated[str, StringConstraints(pattern=r"^\$(y|gy|6|5|2b|7)\$[A-Za-z0-9./$=,]{20,200}$")]
Instance = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]


class Route(Model):
    """A network that is reached by a gateway on the control network."""

    to: Cidr
    via: Address


class Control(Model):
    """The interface that the manager comes in by. `gateway` is the way to managers elsewhere."""

    mac: Mac
    address: HostCidr
    gateway: Address | None = None
    routes: tuple[Route, ...] = ()
    mtu: Mtu | None = None

    @model_validator(mode="after")
    def _reaches_its_gateways(self) -> Control:
        for via in (*([self.gateway] if self.gateway else []), *(route.via for route in self.routes)):
            if not contains(self.address, via):
                raise ValueError(f"gateway {via} is not on the network of {self.address}; correct one of them")
        for route in self.routes:
            if is_v6(route.to) != is_v6(route.via):
                raise ValueError(f"route to {route.to} via {route.via}: one is IPv4, the other IPv6; correct one")
        return self

    def all_routes(self) -> tuple[Route, ...]:
        if not self.gateway:
            return self.routes
        return (Route(to="::/0" if is_v6(self.gateway) else "0.0.0.0/0", via=self.gateway), *self.routes)


class Console(Model):
    """A login for root on the serial console; `password_hash` is crypt's: `openssl passwd -6`, `mkpasswd`."""

    password_hash: PasswordHash


class WriteFile(Model):
    """A file, as cloud-init's write_files has it."""

    path: Annotated[Printable, AfterValidator(_file_path)]
    content: Printable = ""
    owner: Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?$")] = (
        "root:root"
    )
    permissions: Annotated[str, StringConstraints(pattern=r"^0[0-7]{3,4}$")] = "0644"
    encoding: Literal["text/plain", "b64", "gz+b64"] = "text/plain"
    append: bool = False


class UserData(Model):
    """What else cloud-init is to do, when the agent is ready: the part of its language that the image runs."""

    write_files: tuple[WriteFile, ...] = ()
    runcmd: tuple[Command | tuple[Command, ...], ...] = ()
    packages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{1,100}$")], ...] = ()
    package_update: bool = False
    package_upgrade: bool = False


class SeedFile(Model):
    """The YAML of a seed. `manager_key`, a public key: without it this host's manager. `host_key`, a private key that
    the appliance shows: without it a new one. `bundle`: a file with a newer agent, beside the YAML. `instance`: without
    it a digest of the seed, so that a changed seed is taken anew."""

    name: Name
    role: Literal["router", "ssvm", "consoleproxy"]
    control: Control
    manager_key: PublicKey | None = None
    host_key: PrivateKey | None = None
    time_servers: tuple[Address | Hostname, ...] = ()
    console: Console | None = None
    heal: Literal["heal", "report"] = "heal"
    watch_seconds: Annotated[float, Field(ge=1, le=86400, strict=False)] = 30.0  # the YAML's 2.5 is a text
    bundle: Annotated[Printable, StringConstraints(min_length=1)] | None = None
    user_data: UserData = UserData()
    instance: Instance | None = None


def read_seed_file(told: Mapping[str, Any]) -> SeedFile:
    """The YAML's content, checked. Raises SeedError with every problem and its path."""
    try:
        return SeedFile.model_validate_json(
            json.dumps(told)
        )  # JSON: lists may stand for tuples, and all else is strict
    except ValidationError as error:
        raise SeedError("this is no seed", tuple(_problems(error))) from None


def _problems(error: ValidationError) -> Iterator[tuple[str, str]]:
    """(path, words), once each: a union says the same of each of its members. No value is quoted: some are secret."""
    remedies = {"missing": "add it", "extra_forbidden": "nothing of that name may stand here; remove it or correct it"}
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(str(part) for part in one["loc"] if not str(part).startswith(("function-", "constrained-")))
        words = str(one["msg"]).removeprefix("Value error, ")
        remedy = remedies.get(one["type"], "" if one["type"] == "value_error" else "see cloud-init/seed.schema.json")
        yield path or "(all)", f"{words}; {remedy}" if remedy else words


def of_driver(seed: Seed, control_mac: str) -> SeedFile:
    """The same from a driver's Seed: what is made of it goes one way. Raises SeedError."""
    return read_seed_file(
        {
            "name": seed.name,
            "role": seed.role,
            "control": {"mac": control_mac, "address": seed.control_address},
            "manager_key": seed.manager_key,
            "host_key": seed.host_private,
            "time_servers": seed.time_servers,
            "heal": seed.heal,
            "watch_seconds": seed.watch_seconds,
        }
    )


def no_cloud(seed: SeedFile, bundle: bytes | None = None) -> Files:
    """The files of a NoCloud seed. Both keys must be there."""
    return _files(
        seed, {"user-data": "user-data", "meta-data": "meta-data", "network-config": "network-config"}, bundle
    )


def config_drive(seed: SeedFile, bundle: bytes | None = None) -> Files:
    """The files of a ConfigDrive seed. Both keys must be there."""
    names = {"user_data": "user-data", "meta_data.json": "meta_data.json", "network_data.json": "network_data.json"}
    return _files(seed, {f"openstack/latest/{name}": template for name, template in names.items()}, bundle)


def _files(seed: SeedFile, templates: Mapping[str, str], bundle: bytes | None) -> Files:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    values = _values(seed)
    files = {path: environment.get_template(f"{name}.j2").render(values).encode() for path, name in templates.items()}
    return files | ({BUNDLE: bundle} if bundle is not None else {})


def settings(seed: SeedFile) -> dict[str, object]:
    """What appliance/settings.py reads."""
    return {
        "name": seed.name,
        "role": seed.role,
        "control_mac": seed.control.mac,
        "control_address": seed.control.address,
        "runner": "systemd",
        "heal": seed.heal,
        "watch_seconds": seed.watch_seconds,
    }


def _values(seed: SeedFile) -> dict[str, Any]:
    """What the templates are filled with: texts, ready to stand where they stand."""
    if seed.manager_key is None or seed.host_key is None:
        raise SeedError("a seed needs manager_key and host_key; the caller completes them")
    own = seed.user_data.model_dump(mode="json", exclude_defaults=True)
    files = own.pop("write_files", [])
    control = ipaddress.ip_interface(seed.control.address)
    return {
        "name": seed.name,
        "role": seed.role,
        "instance": seed.instance or f"{seed.name}-{digest(seed)}",
        "settings": json.dumps(settings(seed), indent=1),
        "manager_key": seed.manager_key,
        "host_key": seed.host_key.strip(),
        "time_servers": seed.time_servers,
        "password_hash": seed.console.password_hash if seed.console else "",
        "files": _yaml(files),
        "rest": _yaml(own),
        "mac": seed.control.mac,
        "address": seed.control.address,
        "host": str(control.ip),
        "netmask": str(control.netmask),
        "family": f"ipv{control.version}",
        "mtu": seed.control.mtu,
        "routes": [_route(route) for route in seed.control.all_routes()],
    }


def _route(route: Route) -> dict[str, str]:
    network = ipaddress.ip_network(route.to)
    return {
        "to": route.to, "via": route.via, "network": str(network.network_address), "netmask": str(network.netmask),
    }  # fmt: skip


def _yaml(value: Any) -> str:
    """Block style; "" for nothing."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n") if value else ""


def digest(seed: SeedFile) -> str:
    """12 hex digits that are others when anything in the seed is, the bundle apart."""
    told = json.dumps(seed.model_dump(mode="json", exclude={"bundle", "instance"}), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def schema() -> str:
    """cloud-init/seed.schema.json."""
    told = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **SeedFile.model_json_schema(),
        "title": "The seed of a Narthex appliance",
    }
    return json.dumps(told, indent=2) + "\n"
