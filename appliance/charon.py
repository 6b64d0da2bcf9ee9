"""What charon, strongSwan's daemon of IKE, is told over its socket (vici), and what of it stands there now.

A connection, a secret, a key or a pool is told alone, so that no other is disturbed; what goes takes its own sessions
along. Nothing here waits for a peer: a session is asked for (`initiate`) and its end is sent, and whether the other
side answers is charon's own affair.

What is observed: charon names all that it was told, and lists the connections in its words. Ours are known by a mark
beside its socket, made when it was told: a digest of what we said, and of what it then listed. Another process of the
same name was told nothing, whatever the marks say: they carry its pid and when it was started.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from struct import unpack
from typing import Any

from appliance.state import Entry
from appliance.store import write_durably

ANSWER_S = 10.0
COME_UP_S = 20.0  # until the socket of a daemon that was just started is there
GLANCE_S = 0.05  # for the answer to what is only asked for
RELEASE_S = 2.0  # until those who were sent away have given back a pool's addresses


class CharonError(Exception):
    """charon did not take what it was told, or is not there."""


@dataclass(slots=True)
class _Marks:
    """What one process was told: (digest of what we said, of what it lists) by kind and name."""

    process: str = ""
    parts: dict[str, tuple[str, str]] = field(default_factory=dict)


class Charon:
    """Tells, withdraws and observes. `folder` keeps the marks, a file for each unit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._marks: dict[str, _Marks] = {}

    # --- deeds

    def tell(self, part: Entry) -> None:
        """Make it so. Raises CharonError."""
        with _session(part.socket, COME_UP_S) as (vici, process):
            marks = self._of(part.unit, process)
            was = marks.parts.pop(_key(part), None)
            self._keep(part.unit, marks)  # a tell that is cut off is no tell
            content = json.loads(part.content)
            if part.kind == "connection":
                if part.name in _names(vici, "connection"):
                    _forget_connection(vici, part.name)
                vici.load_conn({part.name: content["config"]})
                _ask(part.socket, part.name, content["initiate"])
            elif part.kind == "secret":
                vici.load_shared({"id": part.name, **{k: content[k] for k in ("type", "data", "owners")}})
                if was and content["ends"]:
                    _end_sessions(vici, *content["ends"])
            elif part.kind == "pool":
                vici.load_pool({part.name: content})
            found = vici.load_key(content)["id"].decode() if part.kind == "key" else _listed(vici, part)
            if part.kind == "key" and was and was[1] != found:
                _unload_key(vici, was[1], marks)
            marks.parts[_key(part)] = _digest(part.content), found
            self._keep(part.unit, marks)

    def withdraw(self, part: Entry) -> None:
        """Take it back. What is not there is no error. Raises CharonError."""
        try:
            with _session(part.socket) as (vici, process):
                marks = self._of(part.unit, process)
                mark = marks.parts.pop(_key(part), None)
                if part.kind == "key":
                    if mark:
                        _unload_key(vici, mark[1], marks)
                elif part.name in _names(vici, part.kind):
                    _WITHDRAW[part.kind](vici, part.name)
                    if part.kind == "secret" and part.content and (ends := json.loads(part.content)["ends"]):
                        _end_sessions(vici, *ends)
                self._keep(part.unit, marks)
        except _NotThere:
            return

    # --- observing

    def observe(self, unit: str, path: str, wished: Iterable[Entry]) -> tuple[Entry, ...]:
        """What stands in a unit: the wished entry itself where it stands as it was told. Raises CharonError."""
        return tuple(self._there(unit, path, {_key(entry): entry for entry in wished if entry.unit == unit}))

    def _there(self, unit: str, path: str, wished: Mapping[str, Entry]) -> Iterator[Entry]:
        try:
            with _session(path) as (vici, process):
                marks = self._of(unit, process)
                there = {f"{kind} {name}" for kind in _NAMES for name in _names(vici, kind)}
                keys = {ident.decode() for ident in vici.get_keys().get("keys", ())}
                there |= {key for key, (_, found) in marks.parts.items() if key.startswith("key ") and found in keys}
                listed = {f"connection {name}": _fingerprint(told) for name, told in _connections(vici)}
        except _NotThere:
            return
        for key in there:
            kind, _, name = key.partition(" ")
            part = wished.get(key) or Entry(unit, path, kind, name, "")  # type: ignore[arg-type]
            mark = marks.parts.get(key, ("", ""))
            is_right = mark[0] == _digest(part.content) and listed.get(key, mark[1]) == mark[1]
            yield part if is_right else replace(part, content="")

    def forgetful(self, running: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """The units whose process is another than the one that was told. Asks no daemon."""
        found = {}
        for unit, marks in self._marks.items():
            pids = running.get(unit, ())
            if marks.parts and pids and marks.process not in map(_process, pids):
                found[unit] = "it was started anew and has been told nothing"
        return found

    # --- marks

    def _of(self, unit: str, process: str) -> _Marks:
        """The marks of a unit, empty where its process is another one."""
        marks = self._marks.get(unit) or self._read(unit)
        if marks.process != process:
            marks = _Marks(process)
        self._marks[unit] = marks
        return marks

    def _read(self, unit: str) -> _Marks:
        try:
            raw = json.loads((self.folder / f"{unit}.json").read_text())
            return _Marks(raw["process"], {key: (said, found) for key, (said, found) in raw["parts"].items()})
        except (OSError, ValueError, KeyError):
            return _Marks()

    def _keep(self, unit: str, marks: _Marks) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"process": marks.process, "parts": marks.parts})
        write_durably(self.folder / f"{unit}.json", text.encode(), 0o600)


def sessions(path: str) -> dict[str, str]:
    """What each connection that has a session is about, in words that begin with "up" where it stands. Raises
    CharonError."""
    found: dict[str, str] = {}
    with _session(path) as (vici, _):
        for told in vici.list_sas({"noblock": "yes"}):
            for name, sa in told.items():
                children = [c for c in sa["child-sas"].values() if c["state"] == b"INSTALLED"]
                peer, state = sa["remote-host"].decode(), sa["state"].decode()
                if state == "ESTABLISHED" and children:
                    found[name] = f"up with {peer}, {len(children)} child SAs"
                elif not found.get(name, "").startswith("up"):
                    what = "no child SA: the networks or ESP's ciphers differ" if state == "ESTABLISHED" else state
                    found[name] = f"with {peer}: {what.lower() if what == state else what}"
    return found


# --- the socket -------------------------------------------------------------------------------------------------------


class _NotThere(CharonError):
    """Nobody listens."""


@contextmanager
def _session(path: str, patience: float = 0.0) -> Iterator[tuple[Any, str]]:
    """A session, and which process it is with. Raises CharonError, _NotThere where nobody listens in time."""
    from vici import Session  # a router without IPsec needs none of it
    from vici.exception import CommandException, SessionException

    with socket.socket(socket.AF_UNIX) as sock:
        _connect(sock, path, patience)
        pid = unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        try:
            yield Session(sock), _process(pid)
        except (CommandException, SessionException) as error:
            raise CharonError(f"charon says: {error}") from None
        except OSError as error:
            raise CharonError(f"charon does not answer on {path}: {error}") from None


def _connect(sock: socket.socket, path: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    sock.settimeout(ANSWER_S)
    while True:
        try:
            sock.connect(path)
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise _NotThere(f"charon does not listen on {path}: {error.strerror or error}") from None
        time.sleep(0.02)


def _process(pid: int) -> str:
    """A process by its pid and when it was started (proc(5), stat, field 22)."""
    try:
        return f"{pid}-{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{pid}-"


def _ask(path: str, connection: str, children: Iterable[str]) -> None:
    """Ask for sessions without waiting for them, nor for the names that must be looked up first."""
    from vici.protocol import Message, Packet, Transport

    for child in children:
        asked = Message.serialize({"ike": connection, "child": child, "timeout": "-1"})
        with socket.socket(socket.AF_UNIX) as sock:
            _connect(sock, path, ANSWER_S)
            transport = Transport(sock)
            transport.send(Packet.request("initiate", asked))
            sock.settimeout(GLANCE_S)
            try:
                transport.receive()
            except OSError:
                continue  # it is at it


# --- charon's words ---------------------------------------------------------------------------------------------------


def _names(vici: Any, kind: str) -> set[str]:
    return {name.decode() if isinstance(name, bytes) else name for name in _NAMES[kind](vici)}


_NAMES: Mapping[str, Callable[[Any], Iterable[Any]]] = {
    "connection": lambda vici: vici.get_conns().get("conns", ()),
    "secret": lambda vici: vici.get_shared().get("keys", ()),
    "pool": lambda vici: vici.get_pools(),
}


def _connections(vici: Any, **filters: str) -> Iterator[tuple[str, Any]]:
    for told in vici.list_conns(filters or None):
        yield from told.items()


def _listed(vici: Any, part: Entry) -> str:
    """The fingerprint of what charon lists of a connection, "" for what it names only."""
    if part.kind != "connection":
        return ""
    return next((_fingerprint(told) for name, told in _connections(vici, ike=part.name) if name == part.name), "")


def _forget_connection(vici: Any, name: str) -> None:
    vici.unload_conn({"name": name})
    _end_sessions(vici, name)


def _end_sessions(vici: Any, connection: str, login: str = "") -> None:
    """Send away who is there by this connection, with a `login` only who logged in so, and go on.

    charon takes a login in small and large letters alike.
    """
    from vici.exception import CommandException

    ended: list[dict[str, str]] = []
    for told in vici.list_sas({"ike": connection, "noblock": "yes"}):
        for sa in told.values():
            if not login or sa.get("remote-eap-id", b"").decode(errors="replace").lower() == login.lower():
                asked = {"ike-id": sa["uniqueid"].decode(), "force": "yes", "timeout": "-1"}
                ended.append(asked)
    for asked in ended:
        with suppress(CommandException):  # it has gone by itself
            list(vici.terminate(asked))  # sent as its answer is read


def _unload_key(vici: Any, ident: str, marks: _Marks) -> None:
    """charon knows a key by what it is, not by whose: two objects may have one."""
    if not any(key.startswith("key ") and found == ident for key, (_, found) in marks.parts.items()):
        vici.unload_key({"id": ident})


def _unload_pool(vici: Any, name: str) -> None:
    """Unload a pool; who was sent away just now may still hold an address of it."""
    deadline = time.monotonic() + RELEASE_S
    while time.monotonic() < deadline:
        if vici.get_pools({"name": name}).get(name, {}).get("online", b"0") == b"0":
            break
        time.sleep(0.05)
    vici.unload_pool({"name": name})


_WITHDRAW: Mapping[str, Callable[[Any, str], Any]] = {
    "connection": _forget_connection,
    "secret": lambda vici, name: vici.unload_shared({"id": name}),
    "pool": _unload_pool,
}


def _key(part: Entry) -> str:
    return f"{part.kind} {part.name}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _fingerprint(told: Any) -> str:
    return _digest(json.dumps(told, sort_keys=True, default=lambda b: b.decode(errors="replace")))
