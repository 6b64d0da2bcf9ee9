"""The support bundle: what somebody far away needs to see, in one tar.gz, without a secret in it.

Secrets are kept out twice. Where they have a place (a document's fields of type Secret, files that are marked so) they
are not written down; and every text is searched for the secrets of the document as it goes in, so that one that a
daemon repeated in its log is covered too. All is bounded: each part in bytes, each tool and all of them in seconds.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from appliance.engine import Engine
from appliance.health import Health
from appliance.metrics import Metrics
from appliance.plan import lines
from appliance.values import Secret
from appliance.version import VERSION

PART_BYTES = 512 << 10  # of one part; of a log its end
TOOL_S, ALL_S = 5.0, 20.0
SHORTEST = 4  # characters of a secret that is searched for: a shorter one would cover half of every text
GENERATIONS = 50
HIDDEN = "***"

_TOOLS: tuple[tuple[str, ...], ...] = (
    ("nft", "list", "table", "inet", "narthex"),
    ("ip", "-s", "link"), ("ip", "address"), ("ip", "rule"), ("ip", "-6", "rule"),
    ("ip", "route", "show", "table", "all"), ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "neighbour"), ("ip", "-6", "neighbour"),
    ("conntrack", "-S"), ("conntrack", "-C"), ("ss", "-tulpn"), ("ps", "-eo", "pid,ppid,rss,etime,stat,comm"),
    ("df", "-h"), ("free", "-m"), ("uname", "-a"),
    ("vtysh", "-c", "show bgp summary"), ("vtysh", "-c", "show ip route summary"),
)  # fmt: skip
_LOGS = Path("/var/log/narthex")  # where a cell's supervisor writes


def bundle(engine: Engine, health: Health, metrics: Metrics) -> bytes:
    """The bundle. What could not be had is named in it, with the reason."""
    with engine.lock:
        current, drifts, awaiting = engine.current, engine.drifts[-20:], engine.awaiting
        records = [engine.store.records[n] for n in sorted(engine.store.records)][-GENERATIONS:]
    configs = [g.config for g in (current, awaiting.previous if awaiting else None) if g is not None]
    secrets = sorted({s for c in configs for s in found(c) if len(s) >= SHORTEST}, key=len, reverse=True)
    secrets += [line for s in secrets if "\n" in s for line in s.splitlines() if len(line) > 8 and "-----" not in line]
    told = {
        "name": engine.settings.name, "role": engine.settings.role, "narthex": VERSION, "at": engine.host.now(),
        "generation": current.number, "broken": engine.broken, "legacy": engine.legacy,
        "troubles": [str(t) for t in engine.troubles],
        "drift": [{"at": d.at, "reason": d.reason, "healed": d.healed, "by": d.by, "steps": d.steps} for d in drifts],
    }  # fmt: skip
    parts: list[tuple[str, Callable[[], str]]] = [
        ("about.json", lambda: _json(told)),
        ("document.json", lambda: _json(shown(current.config))),
        ("machine.txt", lambda: "\n".join(lines(current.state))),
        ("generations.json", lambda: _json([_record(r) for r in records])),
        ("health.json", lambda: _json(health.told())),
        ("metrics.txt", metrics.text),
        *((f"files{f.path}", lambda f=f: f.content) for f in current.state.files if not f.secret),
        *((f"tools/{'_'.join(argv).replace('/', '.')}.txt", _asker(engine, argv)) for argv in _TOOLS),
        *_logs(engine, [u.name for u in current.state.units]),
    ]
    return _packed(engine.settings.name, parts, secrets, engine.host.now())


def _packed(name: str, parts: Iterable[tuple[str, Callable[[], str]]], secrets: list[str], at: float) -> bytes:
    end = time.monotonic() + ALL_S
    whole = io.BytesIO()
    missing = []
    with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=6) as tar:
        for path, make in parts:
            try:
                text = make() if time.monotonic() < end else ""
            except Exception as error:  # one part less is no reason to have none
                missing.append(f"{path}: {type(error).__name__}: {covered(str(error), secrets)}")
                continue
            if not text and time.monotonic() >= end:
                missing.append(f"{path}: there was no time left")
                continue
            _add(tar, f"{name}/{path}", _end(covered(text, secrets)), at)
        _add(tar, f"{name}/missing.txt", "\n".join(missing), at)
    return whole.getvalue()


def _end(text: str) -> str:
    """A part's end, from the start of a line on: what a cut leaves of a secret is not to be seen."""
    return text if len(text) <= PART_BYTES else text[-PART_BYTES:].partition("\n")[2]


def _add(tar: tarfile.TarFile, path: str, text: str, at: float) -> None:
    data = text.encode(errors="replace")
    info = tarfile.TarInfo(path)
    info.size, info.mtime, info.mode = len(data), int(at), 0o600
    tar.addfile(info, io.BytesIO(data))


# --- secrets


def found(value: Any) -> Iterator[str]:
    """All secrets in a config, however deep."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from found(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from found(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from found(item)


def shown(value: Any) -> Any:
    """A config as JSON with its secrets hidden."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, BaseModel):
        return {name: shown(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [shown(item) for item in value]
    return {key: shown(item) for key, item in value.items()} if isinstance(value, dict) else value


def covered(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret in it hidden, as it stands or as JSON writes it."""
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1]}:
            text = text.replace(form, HIDDEN)
    return text


# --- parts


def _record(record: Any) -> dict[str, Any]:
    """A generation without its document and its operations."""
    names = ("generation", "at", "kind", "status", "why", "digest", "base", "timings", "plan")
    return {name: getattr(record, name) for name in names}


def _asker(engine: Engine, argv: tuple[str, ...]) -> Callable[[], str]:
    def ask() -> str:
        status, out, err = engine.host.run(argv, b"", TOOL_S)
        return f"$ {' '.join(argv)}\n{(out + err).decode(errors='replace')}" + (f"[{status}]\n" if status else "")

    return ask


def _logs(engine: Engine, units: list[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    for name in ("agent", "sshd", *units):
        if engine.settings.runner == "systemd":
            words = ("journalctl", "--quiet", "--no-pager", "--lines=1000", f"--unit=narthex-{name}")
            yield f"logs/{name}.log", _asker(engine, words)
        else:
            yield f"logs/{name}.log", lambda name=name: _tail(_LOGS / f"{name}.log")  # type: ignore[misc]


def _tail(path: Path) -> str:
    at = max(0, path.stat().st_size - PART_BYTES)
    with path.open("rb") as file:
        file.seek(at)
        text = file.read().decode(errors="replace")
    return text.partition("\n")[2] if at else text


def _json(told: Any) -> str:
    return json.dumps(told, indent=1, default=str) + "\n"
