"""Join an SSH channel to the agent: stdin and stdout to the Unix socket in argv[1], both ways, unbuffered.

sshd's forced command on port 3922; started with every channel, so it is stdlib only and started as `python -I
-S join.py SOCKET`: 9 ms, where `python -m appliance.join` takes 35. It ends when the agent has closed the
connection, or when both sides have ended theirs. At boot it waits for the socket to appear.

Exit: 0, or 69 (EX_UNAVAILABLE of sysexits.h) with a line on stderr where the agent does not answer.
"""

# _socket, because `import socket` brings enum and selectors along: 5 ms.
import _socket
import os
import select
import sys
import time

WAIT_S = 5.0
POLL_S = 0.02
CHUNK = 1 << 16
AHEAD = 1 << 18  # bytes that may be under way in one direction
UNAVAILABLE = 69


def connect(path: str, deadline: float) -> _socket.socket:
    """A connection to the agent. Raises OSError when `deadline` (monotonic) passes without one."""
    while True:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            sock.close()
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)


class Way:
    """One direction: what was read from `source` and is still to be written to `sink`."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.pending = b""
        self.ended = False  # nothing more will be read
        self.closed = False  # and the sink has been told so

    def read(self) -> None:
        try:
            some = os.read(self.source, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        self.pending += some
        self.ended = not some

    def write(self) -> None:
        try:
            self.pending = self.pending[os.write(self.sink, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self.pending, self.ended = b"", True  # the reader is gone: so is what was meant for it

    def finish(self) -> None:
        """Pass the end on, once, when all has been written."""
        if not self.ended or self.pending or self.closed:
            return
        self.closed = True
        try:
            # A duplicate: the number itself must stay ours until the process ends.
            with_end = _socket.socket(fileno=os.dup(self.sink))
            with_end.shutdown(_socket.SHUT_WR)
            with_end.close()
        except OSError:  # a pipe, not a socket
            os.close(self.sink)


def join(agent: _socket.socket) -> None:
    """Move bytes until it is over."""
    fd = agent.fileno()
    up, down = Way(0, fd), Way(fd, 1)
    for number in (0, 1, fd):
        os.set_blocking(number, False)
    while not (down.closed and (up.closed or gone(fd))):
        poll = select.poll()
        for way in (up, down):
            if not way.ended and len(way.pending) < AHEAD:
                poll.register(way.source, select.POLLIN)
        wanted = {w.sink: select.POLLOUT for w in (up, down) if w.pending}
        for number, event in wanted.items():
            also = select.POLLIN if number == down.source and not down.ended and len(down.pending) < AHEAD else 0
            poll.register(number, event | also)
        events = dict(poll.poll())
        for way in (up, down):
            if not way.ended and events.get(way.source, 0) & ~select.POLLOUT:
                way.read()
            if way.pending:
                way.write()
            way.finish()


def gone(fd: int) -> bool:
    """The agent has closed its socket altogether, not only its writing half."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def main() -> int:
    path = sys.argv[1]
    try:
        agent = connect(path, time.monotonic() + WAIT_S)
    except OSError as error:
        os.write(2, f"narthex: the agent does not answer on {path} ({error.strerror}); see its log\n".encode())
        return UNAVAILABLE
    join(agent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
