"""Traffic between namespaces: new flows at a steady rate, and connections as fast as they come."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Self

from mgmt.hosts.guest import Guest

RATE = 500  # new flows a second
PATIENCE = 1.0  # seconds after which an answer counts as lost

_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", {port}))
print("ready", flush=True)
while True:
    data, who = s.recvfrom(64)
    s.sendto(data, who)
"""

_ACCEPT = """
import socket
s = socket.create_server(("0.0.0.0", {port}), backlog=1024)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    try:
        c.recv(1)
    except ConnectionResetError:
        pass
    c.close()
"""

_CONNECT = """
import socket, struct, time
n, end = 0, time.perf_counter() + {seconds}
started = time.perf_counter()
while time.perf_counter() < end:
    c = socket.socket()
    c.settimeout(2)
    c.connect(("{address}", {port}))
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()
    n += 1
print(n / (time.perf_counter() - started))
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a Prober saw since it was asked last: flows `sent` and `lost`, and the longest time between two answers."""

    sent: int
    lost: int
    gap_ms: float


class Prober:
    """New UDP flows from `outside` to address:port, which leads to an echo on `server`. A context manager."""

    def __init__(self, outside: Guest, server: Guest, address: str, port: int) -> None:
        self.outside, self.server = outside, server
        self.goal = (address, port)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._lock = threading.Lock()
        self._sent = self._lost = 0
        self._gap, self._last = 0.0, time.perf_counter()

    def __enter__(self) -> Self:
        program = _ECHO.format(port=self.goal[1])
        self._echo = self.server.popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert self._echo.stdout is not None
        self._echo.stdout.readline()
        self._thread.start()
        time.sleep(0.5)
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._echo.kill()
        self._echo.wait()

    def take(self) -> Seen:
        """What was seen since the last time; waits for answers that may still come."""
        time.sleep(PATIENCE + 0.2)
        with self._lock:
            seen = Seen(self._sent, self._lost, self._gap * 1000)
            self._sent = self._lost = 0
            self._gap, self._last = 0.0, time.perf_counter()
        return seen

    def _run(self) -> None:
        waiting: dict[int, tuple[socket.socket, float]] = {}
        poll = select.epoll()
        following = time.perf_counter()
        with self.outside.entered():
            while not self._end.is_set():
                now = time.perf_counter()
                if now >= following:
                    following += 1 / RATE
                    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    s.connect(self.goal)
                    s.send(b"?")
                    waiting[s.fileno()] = (s, now)
                    poll.register(s.fileno(), select.EPOLLIN)
                    with self._lock:
                        self._sent += 1
                for fd, _ in poll.poll(max(0.0, following - time.perf_counter())):
                    with self._lock:
                        at = time.perf_counter()
                        self._gap, self._last = max(self._gap, at - self._last), at
                    poll.unregister(fd)
                    waiting.pop(fd)[0].close()
                for fd, (s, at) in list(waiting.items())[:8]:
                    if now - at > PATIENCE:
                        with self._lock:
                            self._lost += 1
                        poll.unregister(fd)
                        waiting.pop(fd)
                        s.close()
            for s, _ in waiting.values():
                s.close()
        poll.close()


def connections_per_second(
    outside: Guest, server: Guest, address: str, port: int, server_port: int, seconds: float
) -> float:
    """TCP connections made one after the other, each ended by a reset, so that none lingers."""
    accepting = server.popen([sys.executable, "-c", _ACCEPT.format(port=server_port)], stdout=subprocess.PIPE)
    try:
        assert accepting.stdout is not None
        accepting.stdout.readline()
        program = _CONNECT.format(seconds=seconds, address=address, port=port)
        return float(outside.run([sys.executable, "-c", program], timeout_s=seconds + 20).stdout)
    finally:
        accepting.kill()
        accepting.wait()
