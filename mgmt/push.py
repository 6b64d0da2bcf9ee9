"""The push: HTTP/1.1 through an SSH channel to an appliance's agent, by Fabric.

One TCP connection and one channel per appliance are kept open; the far side's forced command joins the channel to the
agent's socket, so that a push on a warm channel starts no process there. Two traps of the libraries are met here: paramiko
does not set TCP_NODELAY (80 ms a request), so the socket is made by us; and the host's key is pinned from the seed, so
that there is no trust on first use.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import paramiko
from fabric import Config, Connection

PORT = 3922
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0


class PushError(Exception):
    """The appliance could not be reached, or is not the one that it should be. Nothing is known of what it did."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent answered: the HTTP status, the JSON (or text), and the seconds it took from here."""

    status: int
    body: Any
    seconds: float

    @property
    def good(self) -> bool:
        return self.status < 300


@dataclass(frozen=True, slots=True)
class Target:
    """Where an appliance's way in is, the key it must show ("ssh-ed25519 AAAA...") and the manager's own private key.

    `dial` opens the TCP socket where that isn't done from this process' own network namespace.
    """

    address: str
    host_key: str
    private_key: str
    port: int = PORT
    dial: Callable[[str, int, float], socket.socket] | None = None


class ApplianceConnection(Connection):  # type: ignore[misc]
    """A Fabric connection to port 3922: own socket, one key each way, nothing read from the user's ssh settings."""

    def __init__(self, target: Target) -> None:
        config = Config(overrides={"load_ssh_configs": False}, lazy=True)
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(target.private_key))
        super().__init__(
            target.address,
            user="root",
            port=target.port,
            config=config,
            connect_timeout=CONNECT_SECONDS,
            connect_kwargs={
                "pkey": key, "look_for_keys": False, "allow_agent": False, "banner_timeout": 10, "auth_timeout": 10,
            },
        )  # fmt: skip
        self._narthex_target = target
        self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        pinned = paramiko.HostKeys()
        kind, data = target.host_key.split()[:2]
        name = target.address if target.port == 22 else f"[{target.address}]:{target.port}"
        pinned.add(name, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(data)))
        self.client.get_host_keys().update(pinned)

    def open(self) -> Any:
        """Connect. Raises PushError that says what is wrong and where to look."""
        if self.is_connected:
            return None
        t = self._narthex_target
        where = f"{t.address} port {t.port}"
        try:
            sock = (t.dial or _dial)(t.address, t.port, CONNECT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.connect_kwargs["sock"] = sock
            result = super().open()
            self.transport.set_keepalive(30)
            return result
        except paramiko.BadHostKeyException as error:
            words = f"{where} shows another host key than its seed has: it is not this appliance, or was made anew"
            raise PushError(words) from error
        except paramiko.AuthenticationException as error:
            raise PushError(
                f"{where} doesn't take the manager's key: was the seed made for another manager?"
            ) from error
        except paramiko.SSHException as error:
            raise PushError(f"{where}: {error}") from error
        except (OSError, EOFError) as error:
            raise PushError(f"{where} cannot be reached: {error}") from error


def _dial(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


class _Over(http.client.HTTPConnection):
    """HTTP over something that is already joined to the agent's socket."""

    def __init__(self, sock: Any) -> None:
        super().__init__("narthex", timeout=ANSWER_SECONDS)
        self.sock = sock
        self.auto_open = 0


class Appliance:
    """An appliance's agent through SSH. Thread-safe: one request at a time.

    Every method gives an Answer, whatever its status, and raises PushError where there was none.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._connection: ApplianceConnection | None = None
        self._http: _Over | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._drop()

    # --- the agent's API

    def put(self, document: bytes) -> Answer:
        return self.request("PUT", "/v1/config", document)

    def patch(self, change: bytes) -> Answer:
        return self.request("PATCH", "/v1/config", change)

    def plan(self, document: bytes) -> Answer:
        return self.request("POST", "/v1/plan", document)

    def confirm(self, generation: int) -> Answer:
        """Confirm over a NEW connection: that it can be made is what is confirmed."""
        with type(self)(self.target) as other:
            return other.request("POST", f"/v1/config/{generation}/confirm")

    def rollback(self, generation: int) -> Answer:
        return self.request("POST", f"/v1/rollback/{generation}")

    def config(self) -> Answer:
        return self.request("GET", "/v1/config")

    def state(self, view: str = "") -> Answer:
        return self.request("GET", "/v1/state" + (f"?view={view}" if view else ""))

    def generations(self, number: int | None = None, against: int | None = None) -> Answer:
        path = "/v1/generations" + (f"/{number}" if number is not None else "")
        return self.request("GET", path + (f"?against={against}" if against is not None else ""))

    def trace(self, query: Mapping[str, str]) -> Answer:
        return self.request("GET", "/v1/trace?" + urlencode(query))

    def health(self) -> Answer:
        return self.request("GET", "/v1/health")

    def usage(self) -> Answer:
        return self.request("GET", "/v1/usage")

    def version(self) -> Answer:
        return self.request("GET", "/v1/version")

    def metrics(self) -> Answer:
        return self.request("GET", "/metrics")

    def diagnostics(self, question: Mapping[str, Any]) -> Answer:
        return self.request("POST", "/v1/diagnostics", json.dumps(question).encode())

    # --- carriage

    def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request. A kept channel that died before it answered is made anew, once: every request may be repeated,
        because a document carries its generation."""
        with self._lock:
            started = time.monotonic()
            warm = self._http is not None
            try:
                return self._ask(method, path, body, started)
            except (http.client.HTTPException, OSError, EOFError) as error:
                self._drop()
                if not warm or isinstance(error, TimeoutError):
                    raise PushError(f"{self.target.address}: the agent did not answer: {_words(error)}") from error
            try:
                return self._ask(method, path, body, started)
            except (http.client.HTTPException, OSError, EOFError) as error:
                self._drop()
                raise PushError(f"{self.target.address}: the agent did not answer: {_words(error)}") from error

    def _ask(self, method: str, path: str, body: bytes | None, started: float) -> Answer:
        if self._http is None:
            self._http = self._joined()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        raw = response.read()
        kind = response.headers.get_content_type()
        told = json.loads(raw) if kind == "application/json" else raw.decode()
        if response.will_close:
            self._drop()
        return Answer(response.status, told, time.monotonic() - started)

    def _joined(self) -> _Over:
        self._connection = ApplianceConnection(self.target)
        self._connection.open()
        try:
            channel = self._connection.transport.open_session(timeout=CONNECT_SECONDS)
            channel.settimeout(ANSWER_SECONDS)
            channel.exec_command("narthex")  # what is asked for doesn't matter: the key's forced command runs
        except (paramiko.SSHException, EOFError) as error:
            self._drop()
            raise PushError(f"{self.target.address}: no channel to the agent: {error}") from error
        return _Over(channel)

    def _drop(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class LocalAppliance(Appliance):
    """The same agent through its Unix socket, for who is on the machine itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(Target(str(path), "", ""))
        self.path = path

    def confirm(self, generation: int) -> Answer:
        with LocalAppliance(self.path) as other:
            return other.request("POST", f"/v1/config/{generation}/confirm")

    def _joined(self) -> _Over:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(str(self.path))
        except OSError as error:
            sock.close()
            raise PushError(f"{self.path}: no agent answers there: {error.strerror}") from error
        return _Over(sock)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
