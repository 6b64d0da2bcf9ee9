"""The push: HTTP/1.1 through an SSH channel to an appliance's agent, by Fabric.

One TCP connection and one channel per appliance are kept open; the far side's forced command joins the channel to
the agent's socket, so that a push on a warm channel starts no process there. paramiko does not set TCP_NODELAY (80 ms
a request), so the socket is made by us. The host's key is pinned from the seed: there is no trust on first use.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import paramiko
from fabric import Config, Connection  # type: ignore[import-untyped]

PORT = 3922
CONNECT_SECONDS = 5.0
HANDSHAKE_SECONDS = 30.0  # of ssh, once it has greeted: an appliance that boots is busy
ANSWER_SECONDS = 120.0


# Nothing came that could be read; and of that: not even the first byte.
_NO_ANSWER = (http.client.HTTPException, OSError, EOFError, ValueError)
_NOT_A_BYTE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, EOFError)


# paramiko's thread writes a traceback to stderr when a connection ends before its greeting; PushError says it in words.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


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
            connect_timeout=HANDSHAKE_SECONDS,
            connect_kwargs={
                "pkey": key, "look_for_keys": False, "allow_agent": False, "banner_timeout": CONNECT_SECONDS,
                "auth_timeout": HANDSHAKE_SECONDS,
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
        sock = None
        try:
            sock = (t.dial or _dial)(t.address, t.port, CONNECT_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.connect_kwargs["sock"] = sock
            result = super().open()
            self.transport.set_keepalive(30)
            sock = None  # it is paramiko's now
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
        finally:
            if sock is not None:  # paramiko leaves both open where the host's key is wrong
                self.client.close()
                sock.close()


def _dial(address: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((address, port), timeout=seconds)


class _Over(http.client.HTTPConnection):
    """HTTP over something that is already joined to the agent's socket."""

    def __init__(self, sock: Any) -> None:
        super().__init__("narthex", timeout=ANSWER_SECONDS)
        self.sock = self.far = sock  # http.client forgets `sock` when it finds it closed
        self.auto_open = 0

    @property
    def is_dead(self) -> bool:
        """The far side has closed a channel that was kept: known before anything is sent."""
        channel = self.far
        if not isinstance(channel, paramiko.Channel):
            return False
        return bool(channel.closed or channel.eof_received or not channel.get_transport().is_active())

    @property
    def last_words(self) -> str:
        """What the far side's program said on stderr: why there is no agent."""
        channel = self.far
        if not isinstance(channel, paramiko.Channel):
            return ""
        channel.settimeout(0.2)
        try:
            return channel.recv_stderr(1000).decode(errors="replace").strip()
        except TimeoutError:
            return ""


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
        with self.anew() as other:
            return other.request("POST", f"/v1/config/{generation}/confirm")

    def anew(self) -> Appliance:
        """The same appliance, by a connection of its own."""
        return Appliance(self.target)

    def put_release(self, bundle: bytes, allow_change: bool = False, seconds: int = 0) -> Answer:
        """A newer agent, to be confirmed within `seconds` (0: as the appliance has it)."""
        query = {"change": "allow"} if allow_change else {}
        more = {"seconds": str(seconds)} if seconds else {}
        return self.request("PUT", "/v1/release" + _query({**query, **more}), bundle)

    def confirm_release(self, release: str) -> Answer:
        """Keep the release on trial; over a new connection, as `confirm`."""
        with self.anew() as other:
            return other.request("POST", "/v1/release/confirm" + _query({"release": release}))

    def return_release(self) -> Answer:
        """Back to the release before."""
        return self.request("POST", "/v1/release/return")

    def rollback(self, generation: int) -> Answer:
        return self.request("POST", f"/v1/rollback/{generation}")

    def config(self) -> Answer:
        return self.request("GET", "/v1/config")

    def state(self, view: str = "") -> Answer:
        return self.request("GET", "/v1/state" + (f"?view={view}" if view else ""))

    def generations(self, number: int | None = None, against: int | None = None) -> Answer:
        path = "/v1/generations" + (f"/{number}" if number is not None else "")
        return self.request("GET", path + (f"?against={against}" if against is not None else ""))

    def flows(self, query: Mapping[str, str]) -> Answer:
        """Live flows, a page of them."""
        return self.request("GET", "/v1/flows" + _query(query))

    def trace(self, query: Mapping[str, str]) -> Answer:
        return self.request("GET", "/v1/trace?" + urlencode(query))

    def health(self, now: bool = False) -> Answer:
        """What it found last; `now`: what it finds now, which takes some seconds where somebody does not answer."""
        return self.request("GET", "/v1/health" + ("?now=1" if now else ""))

    def usage(self) -> Answer:
        return self.request("GET", "/v1/usage")

    def version(self) -> Answer:
        return self.request("GET", "/v1/version")

    def metrics(self) -> Answer:
        return self.request("GET", "/metrics")

    def diagnostics(self, question: Mapping[str, Any]) -> Answer:
        return self.request("POST", "/v1/diagnostics", json.dumps(question).encode())

    def support(self) -> Answer:
        """The support bundle: a tar.gz as bytes."""
        return self.request("GET", "/v1/support")

    # --- carriage

    def wait(self, seconds: float) -> Answer:
        """Ask for its health until it answers: what a starting appliance needs. Raises PushError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.health()
            except PushError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request. A kept channel that has died is made anew; one that dies before a byte of the answer came is
        so once, where asking twice is asking once: a whole document carries its generation."""
        with self._lock:
            started = time.monotonic()
            if self._http is not None and self._http.is_dead:
                self._drop()
            again = self._http is not None and method in ("GET", "PUT")
            try:
                return self._ask(method, path, body, started)
            except _NO_ANSWER as error:
                words = self._why(error)
                self._drop()
                if not again or not isinstance(error, _NOT_A_BYTE):
                    raise PushError(words) from error
            try:
                return self._ask(method, path, body, started)
            except _NO_ANSWER as error:
                words = self._why(error)
                self._drop()
                raise PushError(words) from error

    def _why(self, error: BaseException) -> str:
        words = self._http.last_words if self._http is not None else ""
        return f"{self.target.address}: the agent did not answer: {words or _words(error)}"

    def _ask(self, method: str, path: str, body: bytes | None, started: float) -> Answer:
        if self._http is None:
            self._http = self._joined()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._http.request(method, path, body, headers)
        response = self._http.getresponse()
        raw = response.read()
        kind = response.headers.get_content_type()
        told = json.loads(raw) if kind == "application/json" else raw if kind == "application/gzip" else raw.decode()
        if response.will_close:
            self._drop()
        return Answer(response.status, told, time.monotonic() - started)

    def _joined(self) -> _Over:
        self._drop()
        connection = ApplianceConnection(self.target)
        connection.open()
        self._connection = connection
        try:
            channel = connection.transport.open_session(timeout=CONNECT_SECONDS)
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

    def anew(self) -> Appliance:
        return LocalAppliance(self.path)

    def _joined(self) -> _Over:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(str(self.path))
        except OSError as error:
            sock.close()
            raise PushError(f"{self.path}: no agent answers there: {error.strerror}") from error
        return _Over(sock)


def _query(given: Mapping[str, str]) -> str:
    return f"?{urlencode(given)}" if given else ""


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
