"""waitress on a Unix socket. sshd's forced command on port 3922 joins a channel to it (join.py).

Every request carries the connection that it came by, taken from the socket's peer (unix(7), SO_PEERCRED): the sshd
process of that one SSH connection, so that a confirmation can be told from the push it confirms.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import UnixWSGIServer, create_server
from waitress.task import WSGITask

from appliance.document import MAX_BYTES

OVERFLOW_BYTES = 1 << 20
_sockets = itertools.count()


class _Task(WSGITask):
    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ["narthex.connection"] = getattr(self.channel, "connection", "")
        return environ


class _Channel(HTTPChannel):
    task_class = _Task

    def __init__(self, server: Any, sock: socket.socket, *rest: Any, **options: Any) -> None:
        self.connection = connection_of(sock)
        super().__init__(server, sock, *rest, **options)


def connection_of(sock: socket.socket) -> str:
    """Who is at the other end: "sshd 123 at 4567" for all channels of one SSH connection; who is on the machine itself
    counts by socket. Never empty."""
    size = struct.calcsize("3i")
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    here = _process(pid)
    for _ in range(4):  # join <- sh? <- sshd of the connection
        if here is None:
            break
        if here[0].startswith("sshd"):
            return f"sshd {here[1]} at {here[3]}"
        here = _process(here[2])
    return f"process {pid} socket {next(_sockets)}"


def _process(pid: int) -> tuple[str, int, int, int] | None:
    """(name, pid, parent, start time in ticks) of a process (proc(5), stat), None where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, pid, int(fields[1]), int(fields[19])


def serve(app: Any, path: Path, turned: Callable[[], None] = lambda: None) -> UnixWSGIServer:
    """A server bound to `path`, readable by its owner alone; call `run()` on it. `turned` is called by its loop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    old = os.umask(0o177)
    try:
        server = create_server(
            app,
            unix_socket=str(path),
            unix_socket_perms="600",
            threads=3,
            channel_timeout=24 * 3600,  # the manager keeps its channel open; sshd ends the dead ones
            # More than a document or a release may have is still read, so that its sender gets to hear why it is
            # refused. What is large goes to a file: a bundle is unpacked from there, and never is in our memory.
            max_request_body_size=8 * MAX_BYTES,
            inbuf_overflow=OVERFLOW_BYTES,
            clear_untrusted_proxy_headers=True,
            ident="narthex",
        )
    finally:
        os.umask(old)
    if not isinstance(server, UnixWSGIServer):
        raise TypeError("waitress gave no server of a Unix socket")
    server.channel_class = _Channel
    readable = server.readable

    def turning() -> bool:  # asked of the listening socket at every turn of the loop, once a second or more often
        turned()
        return bool(readable())

    server.readable = turning  # type: ignore[method-assign]
    return server
