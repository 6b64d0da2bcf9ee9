"""Wheels and bundles in memory, right and wrong ones."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from appliance.bundle import PYTHON, release_id

JOIN = "print('join')\n"
Files = Mapping[str, str | bytes]


def wheel(name: str, files: Files, version: str = "1.0", edit: Any = None) -> tuple[str, bytes]:
    """(file name, bytes) of a wheel with these files. `edit(archive)` adds what no tool would."""
    info = f"{name}-{version}.dist-info"
    told: dict[str, str | bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*told, f"{info}/RECORD"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, content in {**told, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), content)
        if edit:
            edit(archive)
    return f"{name}-{version}-py3-none-any.whl", out.getvalue()


def agent(text: str = "", **more: str) -> tuple[str, bytes]:
    """A wheel that has what a release must have; `text` makes it another one."""
    return wheel("narthex_agent", {"appliance/__init__.py": text, "appliance/join.py": JOIN, **more})


def library(text: str = "") -> tuple[str, bytes]:
    return wheel("library", {"library.py": text})


def described(wheels: Sequence[tuple[str, bytes]], **changes: Any) -> dict[str, Any]:
    """What release.json says of these wheels, its id made to fit what is changed in it."""
    told: dict[str, Any] = {
        "format": 1, "version": "0.1.0", "python": PYTHON,
        "wheels": [{"file": name, "sha256": sha256(content).hexdigest()} for name, content in wheels], **changes,
    }  # fmt: skip
    return {"id": release_id(told), **told}


def packed(members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return io.BytesIO(out.getvalue())


def bundle(*wheels: tuple[str, bytes], without: Sequence[str] = (), **changes: Any) -> io.BytesIO:
    """A bundle of these wheels; those that `without` names are only told of."""
    told = described(wheels, **changes)
    inside = [(f"wheels/{name}", content) for name, content in wheels if name not in without]
    return packed([("release.json", json.dumps(told).encode()), *inside])


def identity(*wheels: tuple[str, bytes]) -> str:
    return str(described(wheels)["id"])
