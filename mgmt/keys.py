"""ed25519 keys in OpenSSH's own form: the manager's, and the host key that goes into an appliance's seed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


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
    """The manager's own key pair in `path` and `path`.pub; made there where it is missing. Raises OSError."""
    public = path.with_name(path.name + ".pub")
    if not public.exists():  # written last: both are there
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = make_key()
        _write(path, made.private, 0o600)
        _write(public, made.public + "\n", 0o644)
    return KeyPair(path.read_text(), public.read_text().strip())


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(fd, "w") as file:
        file.write(text)
    new.replace(path)
