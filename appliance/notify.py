"""What systemd is told of the agent: that it is ready, and, as long as that is so, that it is alive (sd_notify(3)).

Nothing is told where there is no NOTIFY_SOCKET: in a cell. Alive means: the server's loop turns, and nobody has held
the engine's lock for longer than any push may take. A process that was stopped, or hangs, falls silent, and systemd
kills it and starts another.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from appliance.engine import Engine
from appliance.log import Log

LOOP_S = 60.0  # the loop turns once a second, but a large document on a slow machine may keep it waiting
LOCK_S = 120.0  # longer than any push


def notify(words: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send a line such as "READY=1" to whoever started this process and listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(words.encode())


class Heart(threading.Thread):
    """Beats while the agent lives. `turned` is to be called by the server's loop."""

    def __init__(
        self, engine: Engine, log: Log, environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__(name="heart", daemon=True)
        self.engine, self.log, self.environment, self.clock = engine, log, environment, clock
        micros = environment.get("WATCHDOG_USEC", "")
        self.interval = int(micros) / 4e6 if micros.isdigit() else 0.0
        self._turned = self._free = clock()
        self._silent = ""

    def turned(self) -> None:
        """The server's loop has turned."""
        self._turned = self.clock()

    def trouble(self) -> str:
        """Why it must not beat, "" where all is well."""
        if self.engine.lock.acquire(timeout=min(1.0, self.interval or 1.0)):
            self.engine.lock.release()
            self._free = self.clock()
        now = self.clock()
        if now - self._turned > LOOP_S:
            return f"the server's loop has not turned for {now - self._turned:.0f} s"
        if now - self._free > LOCK_S:
            return f"the engine has been busy for {now - self._free:.0f} s"
        return ""

    def run(self) -> None:
        while self.interval:
            if trouble := self.trouble():
                if not self._silent:
                    self.log.error("heart", error=trouble)
                self._silent = trouble
            else:
                self._silent = ""
                notify("WATCHDOG=1", self.environment)
            time.sleep(self.interval)
