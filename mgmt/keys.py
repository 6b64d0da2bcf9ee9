"""ed25519 keys in OpenSSH's own form: the manager's, and the host key that goes into an appliance's seed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`private` is a PEM text (openssh-key-v1), `public` one line as in authorized_keys: "ssh-ed25519 AAAA..."."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def make_key() -> KeyPair:
    """A new ed25519 key pair."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private, public)


def kept_key(path: Path) -> KeyPair:
    """The key pair whose private half is in `path`, made at the first call. For the commands of one machine."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(make_key().private)
        with suppress(FileExistsError):  # somebody was faster: theirs is the key
            os.link(new, path)
        new.unlink()
    private = path.read_text()
    return KeyPair(private, public_part(private))


def public_part(private: str) -> str:
    """The public line of an ed25519 private key in OpenSSH's form, without passphrase. Raises ValueError."""
    try:
        key = load_ssh_private_key(private.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        raise ValueError("not a whole OpenSSH private key without a passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an ed25519 key")
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
