"""Process 1 of a cell: keeps the units' processes alive, reaps orphans. Knows nothing of the agent.

    python -I -S supervisor.py /etc/narthex/boot.json

One thread, one loop. The boot file names the units that are there from the start (the agent, sshd) and the
environment of all; everything else is asked for over a Unix socket, one JSON object per line, one answer per
line:

    {"verb": "start" | "restart", "unit": {"name", "command", "reload", "directories", "digest"}}
    {"verb": "stop" | "reload", "name": NAME}
    {"verb": "status"}              ->  {"ok": true, "units": {NAME: {"active", "pid", "since", ...}}}
    whatever fails                  ->  {"ok": false, "error": TEXT, "output": TEXT}

The units are children of this process, not of the agent: the agent may be killed, they go on untouched, and
the next agent finds them here. Stdlib only, and few modules of it: this is started with every cell, and must
not take 50 ms.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

if __name__ == "__main__":  # `-I` keeps the working directory and PYTHONPATH out: a faster start
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from appliance.process import Definition, Process, UnitProblem, checked

LINE_BYTES = 1 << 20  # a longer request is refused
CLIENTS = 64
IDLE_S = 60.0  # a client that says nothing for so long is let go
SETTLE_S = 0.02  # `start` waits so long to see a process end at once, and then gives its last words
LAST_RESORT_S = 0.02  # what the loop sleeps after an error of its own

Answering = Callable[[str, str], None]  # (error or "", the unit's last words)


class Client:
    """One connection to the control socket: what it sent, and what it is still to get."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.unsent = b""
        self.busy = False  # a request is being worked on; its successors wait in `received`
        self.in_turn = False  # `received` is being gone through further up the stack
        self.heard = time.monotonic()


class Supervisor:
    """The units, in the order in which they were first started, and the loop that serves them."""

    def __init__(self, run_dir: str, log_dir: str) -> None:
        self.units_dir = os.path.join(run_dir, "units")
        self.log_dir = log_dir
        self.processes: dict[str, Process] = {}
        self.clients: dict[int, Client] = {}
        self.ending = False
        os.makedirs(self.units_dir, exist_ok=True)
        os.makedirs(log_dir, exist_ok=True)
        self.poll = select.epoll()
        self.wake = _wake_pipe()
        self.poll.register(self.wake, select.EPOLLIN)
        self.listener = _listen(os.path.join(run_dir, "supervisor.sock"))
        self.poll.register(self.listener.fileno(), select.EPOLLIN)

    # --- starting and ending as a whole

    def boot(self, units: list[object]) -> None:
        """Start the boot units, then those whose definitions an earlier life of this process left."""
        for raw in units:
            self._boot_unit(raw, boot=True)
        for name in sorted(os.listdir(self.units_dir)):
            try:
                with open(os.path.join(self.units_dir, name), "rb") as file:
                    self._boot_unit(json.load(file), boot=False)
            except (OSError, ValueError) as error:
                say(f"{name}: {error}")

    def _boot_unit(self, raw: object, boot: bool) -> None:
        try:
            definition = checked(raw)
            process = self._process(str(definition["name"]))
            process.boot = boot
            process.wish(definition)
            process.spawn()
        except UnitProblem as error:
            say(str(error))  # spawn() has arranged for the next try

    def run(self) -> None:
        """Serve until a SIGTERM has ended all units."""
        while not (self.ending and not self._end_next()):
            try:
                self._turn()
            except Exception as error:  # process 1 must not end by a mistake of its own
                say(f"{type(error).__name__}: {error}")
                time.sleep(LAST_RESORT_S)

    def _end_next(self) -> bool:
        """Stop the last unit that still runs: reverse order, one after the other. False when none is left."""
        for process in reversed(list(self.processes.values())):
            process.wanted = False
            if process.pid:
                process.terminate()
                return True
        return False

    def _turn(self) -> None:
        for fd, event in self.poll.poll(self._patience()):
            if fd == self.wake:
                self._signalled()
            elif fd == self.listener.fileno():
                self._accept()
            elif fd in self.clients:
                self._serve(self.clients[fd], event)
            else:
                self._log(fd)
        now = time.monotonic()
        for process in list(self.processes.values()):
            try:
                process.tick(now)
            except UnitProblem as error:
                say(str(error))
            self._forget(process)
        for client in list(self.clients.values()):
            if not client.busy and now - client.heard > IDLE_S:
                self._drop(client)

    def _patience(self) -> float:
        """Seconds until something is due by the clock; -1 for nothing."""
        due = [p.due() for p in self.processes.values()]
        due += [c.heard + IDLE_S + 0.1 for c in self.clients.values() if not c.busy]
        return max(0.0, min(due) - time.monotonic()) if due and min(due) != float("inf") else -1

    def _signalled(self) -> None:
        for number in os.read(self.wake, 4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self.ending = True
        self._look_for_stopped()
        self._reap()

    def _look_for_stopped(self) -> None:
        """Every child of ours that was stopped, or goes on: the kernel tells of it as of its end."""
        by_pid = {p.pid: p for p in self.processes.values() if p.pid}
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG):
                if process := by_pid.get(found.si_pid):
                    stopped = found.si_code == os.CLD_STOPPED
                    say(f"{process.name}: {'was stopped' if stopped else 'goes on'}")
                    process.stopped(stopped)

    def _reap(self) -> None:
        """Every child that has ended, ours or an orphan that fell to process 1."""
        by_pid = {p.pid: p for p in self.processes.values() if p.pid}
        while True:
            try:
                # Left unreaped for a moment, so that its pid, and its group's, cannot be somebody else's.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            process = by_pid.get(found.si_pid)
            if process is not None:
                process.end_group(signal.SIGKILL)
                self._drain(process)
            _, status = os.waitpid(found.si_pid, 0)
            if process is not None:
                process.ended(os.waitstatus_to_exitcode(status))
                say(f"{process.name}: {process.last_exit}")

    # --- units

    def _process(self, name: str) -> Process:
        if name not in self.processes:
            process = Process(name, os.path.join(self.log_dir, f"{name}.log"))
            self.poll.register(process.output, select.EPOLLIN)
            self.processes[name] = process
        return self.processes[name]

    def _forget(self, process: Process) -> None:
        """Drop a unit that is not wanted, has ended, and whose end nobody waits for."""
        if not process.idle or self.ending:
            return
        self._drain(process)
        self._unstore(process.name)
        self.poll.unregister(process.output)
        process.close()
        del self.processes[process.name]

    def _log(self, fd: int) -> None:
        for process in self.processes.values():
            if process.output == fd:
                process.log_some()
                return
        self.poll.unregister(fd)

    def _drain(self, process: Process) -> None:
        while process.log_some():
            pass

    def _store(self, definition: Definition) -> None:
        path = os.path.join(self.units_dir, f"{definition['name']}.json")
        try:
            with open(path + "~", "w") as file:
                json.dump(definition, file)
            os.replace(path + "~", path)
        except OSError as error:
            raise UnitProblem(f"{definition['name']}: cannot be kept in {self.units_dir}: {error.strerror}") from None

    def _unstore(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.units_dir, f"{name}.json"))

    # --- the control socket

    def _accept(self) -> None:
        sock = _accepted(self.listener)
        if sock is None:
            return
        if len(self.clients) >= CLIENTS:
            sock.close()
            return
        self.clients[sock.fileno()] = Client(sock)
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, client: Client) -> None:
        fd = client.sock.fileno()
        if fd in self.clients:
            self.poll.unregister(fd)
            del self.clients[fd]
            client.sock.close()

    def _serve(self, client: Client, event: int) -> None:
        if event & select.EPOLLOUT:
            self._send(client)
        if not event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            some = client.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            some = b""
        if not some:
            self._drop(client)
            return
        client.heard = time.monotonic()
        client.received += some
        self._next_request(client)

    def _next_request(self, client: Client) -> None:
        client.in_turn = True
        while not client.busy and client.sock.fileno() in self.clients:
            line, newline, rest = client.received.partition(b"\n")
            if not newline:
                break
            client.received = rest
            client.busy = True
            self._handle(client, line)
        if len(client.received) > LINE_BYTES:
            self._answer(client, {"ok": False, "error": f"a request has at most {LINE_BYTES} bytes"})
            self._drop(client)
        client.in_turn = False

    def _handle(self, client: Client, line: bytes) -> None:
        def answer(error: str, output: str) -> None:
            self._answer(client, {"ok": False, "error": error, "output": output} if error else {"ok": True})

        self._attempt(lambda: self._obey(client, json.loads(line), answer), answer)

    def _attempt(self, deed: Callable[[], None], answer: Answering) -> None:
        """Do it, and answer with whatever stands in the way."""
        try:
            deed()
        except UnitProblem as error:
            answer(str(error), error.output)
        except (ValueError, RecursionError) as error:
            answer(f"not JSON: {error}", "")
        except Exception as error:  # the fault is ours; the client shall hear of it all the same
            say(f"{type(error).__name__}: {error}")
            answer(f"{type(error).__name__}: {error}", "")

    def _obey(self, client: Client, request: object, answer: Answering) -> None:
        if not isinstance(request, dict):
            raise UnitProblem("a request is a JSON object")
        verb = request.get("verb")
        if verb == "status":
            units = {p.name: p.status() for p in self.processes.values()}
            self._answer(client, {"ok": True, "units": units})
        elif verb in ("start", "restart"):
            self._start(checked(request.get("unit")), verb == "restart", answer)
        elif verb == "stop":
            self._stop(str(request.get("name")), answer)
        elif verb == "reload":
            self._reload(str(request.get("name")), answer)
        else:
            raise UnitProblem(f"unknown verb {verb!r:.40}; there are start, stop, restart, reload and status")

    def _start(self, definition: Definition, again: bool, answer: Answering) -> None:
        """Start, or replace what runs otherwise. What runs as defined is left alone, unless `again`."""
        if self.ending:
            raise UnitProblem("the cell is being stopped")
        process = self._process(str(definition["name"]))
        if process.boot:
            if not again:
                raise UnitProblem(f"{process.name} is a boot unit: it runs already and cannot be defined anew")
            definition = process.definition
        if not process.pid:
            self._launch(process, definition)
            process.wait_settled(SETTLE_S, answer)
        elif process.wanted and not again and definition == process.definition:
            answer("", "")
        else:
            process.wanted = False
            process.terminate()
            # By then somebody else may have started it: then it is looked at again.
            process.wait_ended(lambda: self._attempt(lambda: self._start(definition, process.boot, answer), answer))

    def _launch(self, process: Process, definition: Definition) -> None:
        process.wish(definition)
        try:
            if not process.boot:
                self._store(definition)
            process.spawn()
        except Exception:
            process.wanted = process.boot
            raise

    def _stop(self, name: str, answer: Answering) -> None:
        process = self.processes.get(name)
        if process is not None and process.boot:
            raise UnitProblem(f"{name} is a boot unit: it ends with the cell; `restart` renews it")
        if process is None:
            answer("", "")
            return
        self._unstore(name)
        process.wanted = False
        if not process.pid:
            answer("", "")
            return
        process.terminate()
        process.wait_ended(lambda: answer("", ""))

    def _reload(self, name: str, answer: Answering) -> None:
        process = self.processes.get(name)
        if process is None or not process.pid:
            raise UnitProblem(f"{name} is not running; start it")
        process.reload()
        answer("", "")

    def _answer(self, client: Client, told: dict[str, object]) -> None:
        client.busy = False
        client.unsent += json.dumps(told).encode() + b"\n"
        self._send(client)
        if len(client.unsent) > LINE_BYTES:
            self._drop(client)  # it asks and does not listen
        elif client.received and not client.in_turn:
            self._next_request(client)

    def _send(self, client: Client) -> None:
        fd = client.sock.fileno()
        if fd not in self.clients:
            return  # it left before its answer came
        try:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self.poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0))


def say(text: str) -> None:
    """A line for people on the cell's console."""
    with suppress(OSError):
        os.write(2, f"{time.strftime('%H:%M:%S')} supervisor: {text}\n".encode())


def _listen(path: str) -> _socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)
    # _socket, because `import socket` brings enum and selectors along: 6 ms of a start of 20.
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    listener.setblocking(False)
    old = os.umask(0o177)
    try:
        listener.bind(f"{path}.new")
    finally:
        os.umask(old)
    listener.listen(CLIENTS)
    os.rename(f"{path}.new", path)  # who finds the socket is answered: between bind and listen it would be refused
    return listener


def _accepted(listener: _socket.socket) -> _socket.socket | None:
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # unknown to typeshed
    except OSError:
        return None
    sock = _socket.socket(listener.family, listener.type, listener.proto, fileno=fd)
    sock.setblocking(False)
    return sock


def _wake_pipe() -> int:
    """A descriptor that gives one byte, its number, for every signal that we handle."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading


def main() -> int:
    with open(sys.argv[1], "rb") as file:
        boot = json.load(file)
    supervisor = Supervisor(boot["run_dir"], boot["log_dir"])
    supervisor.boot(boot["units"])
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
