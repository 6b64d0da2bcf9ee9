"""Live flows: connections that stay open while something is done to the router, and streams that count what is lost."""

from __future__ import annotations

import socket
import sys
import threading
import time

from tests.netns.calls import LINE, PATIENCE_S, Call, greeting, idents, opened


class Flow:
    """A TCP connection, or a UDP exchange, that stays open: `name` and `seen` are of its greeting."""

    def __init__(self, call: Call) -> None:
        self.call = call
        kind = socket.SOCK_STREAM if call.protocol == "tcp" else socket.SOCK_DGRAM
        self.socket = opened(call, kind)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((call.to, call.port))
        if kind == socket.SOCK_DGRAM:
            self.socket.send(b"?%d" % next(idents))
        else:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reply = greeting(self.socket.recv(LINE))
        assert reply, f"{call}: no greeting"
        self.name, self.seen = reply.name, reply.seen

    def goes_on(self, seconds: float = PATIENCE_S) -> bool:
        """Whether what is sent comes back. An ended flow is reset, or gives nothing."""
        said = b"%d\n" % next(idents)
        self.socket.settimeout(seconds)
        try:
            self.socket.send(said)
            found = b""
            while len(found) < len(said):
                some = self.socket.recv(LINE)
                if not some:
                    return False
                found += some
        except (TimeoutError, OSError):
            return False
        return found == said

    def close(self) -> None:
        self.socket.close()


class Stream:
    """A live flow that sends `rate` times a second, on a thread. `lost()` ends it and tells what did not come back."""

    def __init__(self, call: Call, rate: int = 1000) -> None:
        self.flow = Flow(call)
        self.is_tcp = call.protocol == "tcp"
        self.sent = self._bytes = 0
        # TCP: full segments. Smaller ones are merged when they are sent again, and then not counted one by one.
        self._size = self.flow.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) if self.is_tcp else 8
        self._pause = 1.0 / rate
        self._ends = threading.Event()
        self.flow.socket.settimeout(0.05)
        self.flow.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE: nothing is lost for want of room
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._sender.start()
        self._reader.start()

    def _send(self) -> None:
        due = time.monotonic()
        rest = b""
        while not self._ends.is_set():
            rest = rest or b"%07d\n" % self.sent + bytes(self._size - 8)
            try:
                rest = rest[self.flow.socket.send(rest) :]
            except TimeoutError:
                continue  # too much is under way: on a busy machine an emulated router stands still at times
            if rest:
                continue
            self.sent += 1
            due += self._pause
            time.sleep(max(0.0, due - time.monotonic()))

    def _read(self) -> None:
        quiet_since = time.monotonic()
        while not (self._ends.is_set() and (self._is_done() or time.monotonic() - quiet_since > PATIENCE_S / 2)):
            try:
                self._bytes += len(self.flow.socket.recv(65536))
                quiet_since = time.monotonic()
            except TimeoutError:
                continue

    @property
    def got(self) -> int:
        return self._bytes // self._size

    def _is_done(self) -> bool:
        return not self._sender.is_alive() and self.got >= self.sent

    def wait(self, more: int) -> None:
        """Until so many more have come back."""
        wanted, deadline = self.got + more, time.monotonic() + PATIENCE_S
        while self.got < wanted:
            assert time.monotonic() < deadline, f"the stream {self.flow.call} stands still"
            time.sleep(0.005)

    def lost(self) -> int:
        """End it. UDP: datagrams that did not come back. TCP: segments that had to be sent again, and were needed."""
        self._ends.set()
        self._sender.join()
        self._reader.join()
        resent = self._resent() if self.is_tcp else 0
        self.flow.close()
        return self.sent - self.got + resent

    def _resent(self) -> int:
        """Segments that were sent again, and were needed: one that was not comes back as a DSACK, and that may be on
        its way still when the last byte is here. Nothing is lost by a router that only stood still."""
        deadline = time.monotonic() + PATIENCE_S / 2
        while True:
            # struct tcp_info of linux/tcp.h: tcpi_total_retrans, tcpi_dsack_dups
            info = self.flow.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            needed = max(0, _number(info, 100) - _number(info, 216))
            if not needed or time.monotonic() > deadline:
                return needed
            time.sleep(0.02)


def _number(info: bytes, place: int) -> int:
    return int.from_bytes(info[place : place + 4], sys.byteorder)
