"""What a guest may learn about itself from the router: the models of metadata."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from appliance.document import Model
from appliance.values import Identifier, Secret, Text

MOST_USER_DATA = 1 << 20  # bytes, as CloudStack's
KEYS, USER_DATA = "public-keys", "user-data"  # names that are served and are no values

# A path below meta-data/: placement/availability-zone.
Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,3}$", max_length=128)
]
SshKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
        r" [A-Za-z0-9+/]{16,}={0,2}( [A-Za-z0-9 !&()*+,./:;<=>?@^_|~-]*)?$",
        max_length=16384,
    ),
]
Base64 = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9+/]*={0,2}$",  # `sound` counts: a pattern that does takes five times as long
        max_length=(MOST_USER_DATA + 2) // 3 * 4,
    ),
]


class Password(Model):
    """A password that the guest fetches and acknowledges, once. `id` is the manager's name for it: a password with
    another id is another password, and is given again."""

    id: Identifier
    value: Secret


class Metadata(Model):
    """What one guest is told: `user_data`, any bytes in base64; ssh keys; a password; and `values` below meta-data/,
    beside or in place of what the router knows itself (instance-id, local-hostname, local-ipv4, mac)."""

    user_data: Annotated[Base64 | None, Field(repr=False)] = None
    ssh_keys: Annotated[tuple[SshKey, ...], Field(max_length=64)] = ()
    password: Password | None = None
    values: Annotated[dict[Name, Text], Field(max_length=256)] = {}

    @model_validator(mode="after")
    def sound(self) -> Metadata:
        coded = self.user_data or ""
        if len(coded) % 4:
            raise ValueError("user_data is cut: base64 comes in fours; encode it anew, with its padding")
        if len(coded) // 4 * 3 - coded[-2:].count("=") > MOST_USER_DATA:
            raise ValueError(f"user_data is longer than {MOST_USER_DATA} bytes; shorten it")
        for name in self.values:
            if name.partition("/")[0] in (KEYS, USER_DATA):
                raise ValueError(f"values: {name}: ssh_keys and user_data have places of their own; write it there")
            if any(other.startswith(f"{name}/") for other in self.values):
                raise ValueError(f"values: {name} is a value and a folder of others; rename one of them")
        return self
