"""The metadata service: tells each guest what its document says of it, by HTTP, and nobody else.

    python3 -I -S FOLDER CONF

A program of its own, which the agent runs as a unit: metadata.py makes CONF and the guests' files, and puts this very
text into FOLDER, with metadata_guest.py and metadata_given.py. Standard library only; nobody imports it but its tests.

**Who asks?** Whoever is at the other end of the connection, and nothing that the request says: no header, no name, no
path. Its address names the file that is read, as the kernel wrote it; and the kernel's neighbour table must have that
address on the guest's link and at the guest's MAC, or the answer is 403.

**What is asked for?** On port 80 paths of EC2 and of CloudStack; on port 8080 CloudStack's password protocol, by the
header DomU_Request: a password is given until it is acknowledged (`saved_password`), and never again
(metadata_given.py): that is on the disk before the acknowledgement is answered.

A guest's file (metadata_guest.py) is read for each request, so that what the document says holds from the next one on
and nothing of a guest outlives its file; user data is decoded as it is sent.

One thread, no waiting: a connection that says nothing for 10 s, or is not through after 60, is closed; a guest has at
most 16 connections (its oldest goes first) and 200 requests at once, 50 a second after that.
"""

from __future__ import annotations

import binascii
import json
import os
import pwd
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

from router.metadata_given import Given
from router.metadata_guest import Guest, find, read_guest

PASSWORD = "password"  # what a listener is for, or "meta"
HEAD_BYTES, CHUNK = 8192, 48 << 10  # of a request; of user data, divisible by 3
SILENT_S, WHOLE_S, DRAIN_S = 10.0, 60.0, 1.0
MOST, MOST_EACH = 256, 16  # connections
BURST, RATE = 200.0, 50.0  # requests of one guest
SWEEP_S = 600.0
NEVER = float("inf")
FREE_BIND = 15  # IP_FREEBIND, ip(7): a router of two has its addresses only while it is the active one

# --- who asks ---------------------------------------------------------------------------------------------------------

_RTM_GETNEIGH, _RTM_NEWNEIGH, _NLM_F_REQUEST, _NDA_DST, _NDA_LLADDR = 30, 28, 1, 1, 2


def neighbour(address: str, link: str) -> str:
    """The MAC at which the kernel has an IPv4 address on a link, "" for none (rtnetlink(7)). Raises OSError."""
    index = socket.if_nametoindex(link)
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, 0, 0, 0) + struct.pack("=HH", 8, _NDA_DST)
    body += socket.inet_aton(address)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        sock.settimeout(1.0)
        sock.send(struct.pack("=IHHII", 16 + len(body), _RTM_GETNEIGH, _NLM_F_REQUEST, 1, 0) + body)
        answer = sock.recv(4096)
    if struct.unpack_from("=IH", answer)[1] != _RTM_NEWNEIGH:
        return ""
    at = 16 + 12
    while at + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, at)
        if kind == _NDA_LLADDR:
            return answer[at + 4 : at + size].hex(":")
        at += max(4, size + 3 & ~3)
    return ""


class Buckets:
    """How many requests each address has left. Those that are full again are forgotten."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, address: str, now: float) -> bool:
        left, since = self._left.get(address, (BURST, now))
        left = min(BURST, left + (now - since) * RATE) - 1.0
        self._left[address] = max(left, 0.0), now
        return left >= 0.0

    def forget(self, now: float) -> None:
        self._left = {a: (n, since) for a, (n, since) in self._left.items() if n + (now - since) * RATE < BURST}


# --- the protocol -----------------------------------------------------------------------------------------------------

_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    429: "Too Many Requests", 500: "Internal Server Error",
}  # fmt: skip


def head_of(status: int, size: int, kind: str = "text/plain") -> bytes:
    """The head of an answer; the connection ends with it."""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()


def parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    """(method, path, headers by lower-case name, the first of each) of a request's head. Raises ValueError."""
    first, *lines = head.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    method, target, protocol = first.split(" ")
    if not protocol.startswith("HTTP/1.") or any(c < "!" or c > "~" for c in method + target):
        raise ValueError(first)
    if target[:7].lower() == "http://":
        target = "/" + target[7:].partition("/")[2]
    if not target.startswith("/"):
        raise ValueError(first)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        headers.setdefault(name.strip().lower(), value.strip())
    return method, target, headers


class Connection:
    """One client: what it has said, and what it is still to be sent. `data` is a guest's file, from where to where."""

    def __init__(self, sock: socket.socket, address: str, use: str, now: float) -> None:
        self.sock, self.address, self.use = sock, address, use
        self.received, self.unsent = b"", b""
        self.answered = False
        self.file, self.at, self.end = -1, 0, 0
        self.silent_at, self.whole_at = now + SILENT_S, now + WHOLE_S

    def close(self) -> None:
        self.sock.close()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def send(self) -> bool:
        """Send some; True when there is more. Raises OSError."""
        while True:
            if not self.unsent and self.at < self.end:
                coded = os.pread(self.file, min(CHUNK // 3 * 4, self.end - self.at), self.at)
                self.at += len(coded)
                self.unsent = binascii.a2b_base64(coded)
            if not self.unsent:
                return False
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                return True


class Service:
    """All listeners and connections, in one thread."""

    def __init__(self, conf: dict[str, object]) -> None:
        self.guests, self.given = str(conf["guests"]), Given(str(conf["given"]))
        self.poll = select.epoll()
        self.listeners: dict[int, tuple[socket.socket, str]] = {}
        self.connections: dict[int, Connection] = {}
        self.buckets = Buckets()
        self.ends_at = NEVER
        self._absent: set[str] = set()
        self._sweep_at = time.monotonic() + SWEEP_S
        self._told: dict[str, float] = {}

    def listen(self, address: str, port: int, use: str) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, FREE_BIND, 1)
        sock.bind((address, port))
        sock.listen(128)
        sock.setblocking(False)
        self.listeners[sock.fileno()] = sock, use
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def run(self, wake: int) -> None:
        """Serve until a signal comes by `wake`, and then until those who have asked are answered, for a second."""
        self.poll.register(wake, select.EPOLLIN)
        swept = 0.0
        while self.ends_at == NEVER or (self.connections and time.monotonic() < self.ends_at):
            for fd, _ in self.poll.poll(min(1.0, max(0.0, self.ends_at - time.monotonic()))):
                if fd == wake:
                    os.read(wake, 64)
                    self._stop_listening()
                elif fd in self.listeners:
                    self._accept(*self.listeners[fd])
                elif fd in self.connections:
                    self._serve(fd, self.connections[fd])
            if time.monotonic() >= swept + 1.0:
                swept = time.monotonic()
                self._clear(swept)

    def _stop_listening(self) -> None:
        for fd, (sock, _) in self.listeners.items():
            self.poll.unregister(fd)
            sock.close()
        self.listeners = {}
        self.ends_at = time.monotonic() + DRAIN_S

    def _clear(self, now: float) -> None:
        for fd, c in list(self.connections.items()):
            if now >= min(c.silent_at, c.whole_at):
                self._end(fd)
        self.buckets.forget(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._absent = self.given.sweep(self._known(), self._absent)

    def _known(self) -> set[str]:
        found = set()
        for name in os.listdir(self.guests):
            try:
                fd = os.open(f"{self.guests}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                found.add(read_guest(fd).text("id"))
            except ValueError:
                continue
            finally:
                os.close(fd)
        return found

    # --- connections

    def _accept(self, listener: socket.socket, use: str) -> None:
        for _ in range(64):
            try:
                sock, (address, _port) = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # too many files open
                if self.connections:
                    self._end(next(iter(self.connections)))
                return
            sock.setblocking(False)
            now = time.monotonic()
            if not self.buckets.take(address, now):
                self._refuse(sock)
                continue
            own = [fd for fd, c in self.connections.items() if c.address == address]
            if len(own) >= MOST_EACH:
                self._end(own[0])
            elif len(self.connections) >= MOST:
                self._end(next(iter(self.connections)))
            self.connections[sock.fileno()] = Connection(sock, address, use, now)
            self.poll.register(sock.fileno(), select.EPOLLIN)

    def _refuse(self, sock: socket.socket) -> None:
        with suppress(OSError):
            sock.send(head_of(429, 0))
        sock.close()

    def _end(self, fd: int) -> None:
        self.poll.unregister(fd)
        self.connections.pop(fd).close()

    def _serve(self, fd: int, c: Connection) -> None:
        try:
            if not c.answered and not self._read(c):
                return
            if c.send():
                c.silent_at = time.monotonic() + SILENT_S
                self.poll.modify(fd, select.EPOLLOUT)
                return
        except OSError:
            pass
        self._end(fd)

    def _read(self, c: Connection) -> bool:
        """Take what it says; True when it has asked, and `c` has the answer. Raises OSError where it left."""
        try:
            some = c.sock.recv(HEAD_BYTES)
        except BlockingIOError:
            return False
        if not some:
            raise ConnectionResetError
        c.received += some
        ended = [at for mark in (b"\r\n\r\n", b"\n\n") if (at := c.received.find(mark)) >= 0]
        if not ended:
            if len(c.received) < HEAD_BYTES:
                return False
            c.received = b""
        c.answered = True
        self._answer(c, c.received[: min(ended, default=0)])
        return True

    # --- answers

    def _answer(self, c: Connection, head: bytes) -> None:
        try:
            method, path, headers = parse(head)
        except ValueError:
            return self._say(c, 400, "this is no request")
        if method not in ("GET", "HEAD"):
            return self._say(c, 405, "GET is what is answered here", method)
        try:
            c.file = os.open(f"{self.guests}/{c.address}", os.O_RDONLY | os.O_CLOEXEC)
            guest = read_guest(c.file)
        except FileNotFoundError:
            return self._say(c, 404, "nothing is known of this address", method)
        except (OSError, ValueError) as error:
            self._log(c, f"cannot read its file: {type(error).__name__}")
            return self._say(c, 500, "the router cannot read it", method)
        try:
            seen = neighbour(c.address, guest.text("link"))
        except OSError as error:
            seen = error.strerror or "nothing"
        if seen != guest.text("mac"):
            self._log(c, f"refused: it is at {seen or 'no MAC'}, and the document has it at {guest.text('mac')}")
            return self._say(c, 403, "this address is another's", method)
        if c.use == PASSWORD:
            return self._password(c, guest, headers.get("domu_request", ""), method)
        return self._say_found(c, guest, find(guest, path), method)

    def _password(self, c: Connection, guest: Guest, request: str, method: str) -> None:
        try:
            text = self.given.ask(guest, request if method == "GET" else "")
        except OSError as error:
            self._log(c, f"its acknowledgement cannot be kept: {error.strerror}")
            return self._say(c, 500, "the router cannot keep this", method)
        if request == "saved_password":
            self._log(c, "acknowledged its password", 0.0)
        return self._say(c, 200, text, method)

    def _say_found(self, c: Connection, guest: Guest, found: str | object | None, method: str) -> None:
        if found is None:
            return self._say(c, 404, "there is nothing of this name", method)
        if isinstance(found, str):
            return self._say(c, 200, found, method)
        start, size = guest.data
        c.unsent = head_of(200, size, "application/octet-stream")
        if method == "GET":
            c.at, c.end = start, os.fstat(c.file).st_size
        return None

    def _say(self, c: Connection, status: int, text: str, method: str = "GET") -> None:
        body = text.encode()
        c.unsent = head_of(status, len(body)) + (body if method != "HEAD" else b"")

    def _log(self, c: Connection, words: str, every_s: float = 10.0) -> None:
        """One line; of one guest not the next for a while."""
        now = time.monotonic()
        if now >= self._told.get(c.address, 0.0):
            if len(self._told) > MOST:
                self._told = {}
            self._told[c.address] = now + every_s
            say(f"{c.address}: {words}")


# --- the program ------------------------------------------------------------------------------------------------------


def say(words: str) -> None:
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())


def become(account: str) -> None:
    """Give up root for good."""
    found = pwd.getpwnam(account)
    os.setgroups([])
    os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)


def main(argv: list[str]) -> int:
    with open(argv[1], encoding="utf-8") as file:
        conf = json.load(file)
    service = Service(conf)
    waiting, waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waking)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    for address, port, use in conf["listen"]:
        service.listen(address, port, use)
    become(conf["account"])
    say(f"serving on {', '.join(f'{a}:{p}' for a, p, _ in conf['listen'])}")
    service.run(waiting)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
