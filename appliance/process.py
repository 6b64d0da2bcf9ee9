"""One unit under the supervisor: its process, its log, and when it is to be started again.

What it is asked for comes as a definition, a dict as in supervisor.py, checked by `checked`. Time is the
monotonic clock's, in seconds. A unit that is wanted and has ended is started again: after 0.1 s, then twice
as long each time, 5 s at most; one that has lived for 1 s starts from 0.1 s anew.
"""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

NAME = re.compile(r"[a-z0-9][a-z0-9@_-]{0,63}", re.ASCII)
FIRST_DELAY_S, LONGEST_DELAY_S, LONG_LIFE_S = 0.1, 5.0, 1.0
PATIENCE_S = 5.0  # from SIGTERM to SIGKILL
STOPPED_S = 1.0  # from a stop (SIGSTOP) to SIGKILL: who stops a daemon for longer wants it dead
LOG_BYTES = 1 << 20  # of one log file; the one before it is kept as NAME.log.1
TAIL_BYTES = 4096  # of what a unit said last, for the answer to a failed start
NEVER = float("inf")

Definition = Mapping[str, object]


class UnitProblem(Exception):
    """What a unit cannot do; `output` is what its process said before it ended."""

    def __init__(self, message: str, output: str = "") -> None:
        self.output = output
        super().__init__(message)


def checked(raw: object) -> dict[str, object]:
    """`raw` as a definition with all its keys. Raises UnitProblem, naming what is wrong."""
    if not isinstance(raw, dict):
        raise UnitProblem("a unit is a JSON object")
    name, command, reload = raw.get("name"), raw.get("command"), raw.get("reload", "")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UnitProblem(f"no unit name: {name!r:.80}; it has a-z 0-9 @ _ - and at most 64 characters")
    if not isinstance(command, list) or not command or not all(_is_word(word) for word in command):
        raise UnitProblem(f"{name}: `command` is a list of words, the first one the program")
    if reload != "" and (not isinstance(reload, str) or not hasattr(signal.Signals, f"SIG{reload}")):
        raise UnitProblem(f"{name}: `reload` names a signal, such as HUP, or is empty")
    directories = raw.get("directories", [])
    if not isinstance(directories, list) or not all(_is_directory(d) for d in directories):
        raise UnitProblem(f"{name}: `directories` is a list of [absolute path, mode, user]")
    return {
        "name": name,
        "command": command,
        "reload": reload,
        "directories": directories,
        "digest": str(raw.get("digest", "")),
    }


def _is_word(word: object) -> bool:
    return isinstance(word, str) and "\0" not in word


def _is_directory(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    path, mode, user = entry
    return _is_word(path) and path.startswith("/") and isinstance(mode, int) and _is_word(user)


class Process:
    """A unit: its definition, and its process while it has one (`pid`, otherwise 0)."""

    def __init__(self, name: str, log: str) -> None:
        self.name = name
        self.log = log
        self.boot = False
        self.wanted = False
        self.definition: Definition = {}
        self.pid = 0
        self.began = self.began_wall = 0.0
        self.restarts = 0
        self.last_exit = ""
        self.tail = b""
        self.output, self._input = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._input, True)
        self._log_file = -1
        self._delay = FIRST_DELAY_S
        self._again_at = self._kill_at = self._settled_at = self._stopped_at = NEVER
        self._on_end: list[Callable[[], None]] = []
        self._on_settled: list[Callable[[str, str], None]] = []

    # --- its life

    def wish(self, definition: Definition) -> None:
        """It shall run as `definition` says, from its next start on."""
        self.definition = definition
        self.wanted = True
        self._delay = FIRST_DELAY_S
        self.restarts = 0

    def spawn(self) -> None:
        """Start the process, in a session of its own. Raises UnitProblem where exec fails, with the reason."""
        self._again_at = NEVER
        self.tail = b""
        command = self.definition["command"]
        assert isinstance(command, list)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self._input, 1),
            (os.POSIX_SPAWN_DUP2, self._input, 2),
        ]
        try:
            self._make_directories()
            self.pid = os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=(
                    signal.SIGPIPE,
                    signal.SIGXFSZ,
                ),  # Python ignores them, and exec would hand that on
            )
        except (OSError, LookupError) as error:
            self._try_later()
            reason = error.strerror if isinstance(error, OSError) else error.args[0]
            raise UnitProblem(f"{self.name}: {command[0]} cannot be started: {reason}") from None
        self.began, self.began_wall = time.monotonic(), time.time()

    def _make_directories(self) -> None:
        directories = self.definition["directories"]
        assert isinstance(directories, list)
        for path, mode, owner in directories:
            user, _, group = owner.partition(":")
            os.makedirs(path, exist_ok=True)
            account = pwd.getpwnam(user or "root")
            os.chown(path, account.pw_uid, pwd.getpwnam(group).pw_gid if group else account.pw_gid)
            os.chmod(path, mode)

    def ended(self, code: int) -> None:
        """Its process was reaped; `code` is negative for a signal."""
        age = time.monotonic() - self.began
        self.last_exit = f"{_words(code)} after {age:.1f} s"
        self.pid = 0
        self._kill_at = self._settled_at = self._stopped_at = NEVER
        if age >= LONG_LIFE_S:
            self._delay = FIRST_DELAY_S
        settled, self._on_settled = self._on_settled, []
        was_stopped = not self.wanted
        if settled and not self.boot:
            self.wanted = False  # who asked for it hears of it, and decides
        if self.wanted:
            self._try_later()
        words = self.tail.decode(errors="replace").strip()
        for told in settled:
            told(f"{self.name}: {'was stopped' if was_stopped else 'ended at once'}: {_words(code)}", words)
        waiting, self._on_end = self._on_end, []
        for go_on in waiting:
            go_on()

    def _try_later(self) -> None:
        self._again_at = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, LONGEST_DELAY_S)

    def stopped(self, stopped: bool) -> None:
        """Somebody stopped its process, or let it go on. A stopped daemon answers nobody, so it is ended soon."""
        self._stopped_at = time.monotonic() + STOPPED_S if stopped else NEVER

    def terminate(self) -> None:
        """SIGTERM to the whole group, and SIGKILL 5 s later; a second call changes nothing."""
        if self._kill_at == NEVER:
            self._kill_at = time.monotonic() + PATIENCE_S
            self.end_group(signal.SIGTERM)
            self.end_group(signal.SIGCONT)  # one that is stopped hears of it only now

    def end_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reload(self) -> None:
        """Send the reload signal. Raises UnitProblem where the unit has none."""
        number = getattr(signal.Signals, f"SIG{self.definition['reload']}", None)
        if number is None:
            raise UnitProblem(f"{self.name}: has no reload signal; restart it")
        os.kill(self.pid, number)

    def wait_ended(self, go_on: Callable[[], None]) -> None:
        self._on_end.append(go_on)

    def wait_settled(self, seconds: float, told: Callable[[str, str], None]) -> None:
        """Call `told(error, output)`: "" once it has lived for `seconds`, its words where it ends before."""
        self._settled_at = time.monotonic() + seconds
        self._on_settled.append(told)

    @property
    def idle(self) -> bool:
        """Nothing runs, nothing is due, nobody waits."""
        return not (self.wanted or self.pid or self._on_end or self._on_settled)

    # --- the clock

    def due(self) -> float:
        """When `tick` has something to do."""
        return min(self._again_at if self.wanted else NEVER, self._kill_at, self._settled_at, self._stopped_at)

    def tick(self, now: float) -> None:
        """Do what is due. Raises UnitProblem where a new start failed (the next is then arranged for)."""
        if now >= self._settled_at:
            self._settled_at = NEVER
            settled, self._on_settled = self._on_settled, []
            for told in settled:
                told("", "")
        if now >= self._stopped_at and self.pid:
            self._stopped_at = NEVER
            self.end_group(signal.SIGKILL)
        if now >= self._kill_at and self.pid:
            self._kill_at = now + PATIENCE_S
            self.end_group(signal.SIGKILL)
        if self.wanted and not self.pid and now >= self._again_at:
            self.restarts += 1
            self.spawn()

    # --- its log

    def log_some(self) -> bool:
        """Move what the process said to its log file. False when there is no more for now."""
        try:
            some = os.read(self.output, 65536)
        except BlockingIOError:
            return False
        self.tail = (self.tail + some)[-TAIL_BYTES:]
        try:
            if self._log_file < 0:
                self._log_file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._log_file).st_size + len(some) > LOG_BYTES:
                os.replace(self.log, self.log + ".1")
                os.close(self._log_file)
                self._log_file = self._open_log()
            os.write(self._log_file, some)
        except OSError:
            pass  # a full disk costs the log, never the unit
        return True

    def _open_log(self) -> int:
        return os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        for fd in (self.output, self._input, self._log_file):
            if fd >= 0:
                os.close(fd)

    def status(self) -> dict[str, object]:
        """For the control socket: what it is, in JSON."""
        return {
            "active": self.pid != 0 and self._kill_at == NEVER,
            "pid": self.pid,
            "since": self.began,
            "since_wall": self.began_wall,
            "restarts": self.restarts,
            "digest": self.definition.get("digest", ""),
            "last_exit": self.last_exit,
            "boot": self.boot,
        }


def _words(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
