"""Releases made from this tree's own, with something added to one of its files: to crash, to hang, to differ."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from hashlib import sha256

from mgmt.bundle import Bundle, describe

CRASH = "raise RuntimeError('broken on purpose')"
HANG = "import time\ntime.sleep(3600)"
# For code that is to do it in the agent alone: the child that tries a release first is another program.
IN_THE_AGENT = "import sys\nif sys.argv[0].endswith(('appliance/__main__.py', 'appliance/boot.py')):\n"


def variant(made: Bundle, path: str, text: str, python: str = "") -> Bundle:
    """`made`, with `text` at the end of its agent's file `path` ("appliance/engine.py")."""
    content = edited(made.content, path, text)
    agent = replace(made.agent, sha256=sha256(content).hexdigest())
    told = describe([agent, *made.third_party], python=python or str(made.told["python"]))
    return Bundle(told["id"], told, made.third_party, agent, content)


def edited(wheel: bytes, path: str, text: str) -> bytes:
    """A wheel with `text` at the end of one of its files; nobody holds its RECORD against it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel)) as before, zipfile.ZipFile(out, "w") as after:
        assert path in before.namelist(), path
        for member in before.infolist():
            content = before.read(member)
            after.writestr(member, content + f"\n{text}\n".encode() if member.filename == path else content)
    return out.getvalue()


def in_the_agent(text: str) -> str:
    """`text`, done where the file is imported by the agent, and not by the child that tries its release."""
    return IN_THE_AGENT + "".join(f"    {line}\n" for line in text.splitlines())
