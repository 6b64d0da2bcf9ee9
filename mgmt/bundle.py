"""A bundle: a release of the agent as one file, for a seed or for a running appliance.

An uncompressed tar: release.json first, then the wheels. A thin one leaves out the third-party wheels, which an image
made from the same lock has already. The same tree gives the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from appliance.version import VERSION
from mgmt.image import wheels
from mgmt.image.wheels import PYTHON, Wheel

FORMAT = 1
EPOCH = int(wheels.EPOCH)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A release: its id, what release.json says, all its wheels, and the bytes of the agent's own."""

    id: str
    told: dict[str, Any]
    third_party: tuple[Wheel, ...]
    agent: Wheel
    content: bytes

    def pack(self, thin: bool = False) -> bytes:
        """The bundle as a file."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, "release.json", json.dumps(self.told, indent=1).encode())
            _add(tar, f"wheels/{self.agent.path.name}", self.content)
            for wheel in () if thin else self.third_party:
                _add(tar, f"wheels/{wheel.path.name}", wheel.path.read_bytes())
        return out.getvalue()


def make_bundle() -> Bundle:
    """The release of this tree. Raises ImageError where its wheels cannot be had."""
    third_party = tuple(wheels.third_party())
    agent, content = wheels.agent()
    told = describe([agent, *third_party])
    return Bundle(told["id"], told, third_party, agent, content)


def describe(found: Sequence[Wheel], version: str = VERSION, python: str = PYTHON) -> dict[str, Any]:
    """What release.json says of these wheels; its id is a digest of the rest (appliance/release.py checks it)."""
    plain: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "python": python,
        "wheels": [{"file": wheel.path.name, "sha256": wheel.sha256} for wheel in found],
    }
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {"id": f"{version}-{sha256(canonical.encode()).hexdigest()[:12]}", **plain}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), EPOCH, 0o644
    tar.addfile(info, io.BytesIO(content))
