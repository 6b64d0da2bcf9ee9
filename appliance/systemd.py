"""Units under systemd: /run/systemd/system/narthex-NAME.service, gone with the next boot; and what confines them.

Measured with systemd 257: a `systemctl` takes 10 ms, a daemon-reload 200 ms, for it reads every unit of the machine
anew. So a unit whose file is new is started without one (systemd looks for the file itself), and one that is stopped
needs none either: `CollectMode=` lets systemd forget it. Should it remember all the same, it says so
(`NeedDaemonReload`), and is told.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.pulse import Stat, stat
from appliance.state import Sandbox, Unit
from appliance.units import BOOT_UNITS, UnitError, UnitStatus, definition

PREFIX = "narthex-"
SETTLE_S = 0.02  # as the supervisor's: a process that ends within it has failed to start
SHOWN = "--property=Id,ActiveState,SubState,MainPID,NRestarts"
STARTED = "--property=ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,InvocationID,NeedDaemonReload"

Run = Callable[[tuple[str, ...]], tuple[int, str]]  # argv -> (exit status, output)


def _run(argv: tuple[str, ...]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout + done.stderr


class SystemdRunner:
    """A UnitRunner. `directory` is where its unit files are, `groups` where the cgroups of its services are."""

    def __init__(
        self, run: Run = _run, directory: Path = Path("/run/systemd/system"),
        groups: Path = Path("/sys/fs/cgroup/system.slice"), sleep: Callable[[float], None] = time.sleep,
        read: Stat = stat,
    ) -> None:  # fmt: skip
        self.run, self.directory, self.groups, self.sleep, self.stat = run, directory, groups, sleep, read

    # --- observing

    def observe(self) -> dict[str, UnitStatus]:
        ours = self._ours()
        if not ours:
            return {}
        shown = self._systemctl("", "show", SHOWN, *map(_service, ours))
        states = [_properties(block) for block in shown.strip().split("\n\n")]
        by_id = {state.get("Id", ""): state for state in states}
        return {name: _status(name, by_id.get(_service(name), {}), ours[name]) for name in ours}

    def processes(self) -> dict[str, tuple[int, ...]]:
        found = {name: self._group(name) for name in self._ours()}
        for name in BOOT_UNITS:  # sshd's sessions live on without it
            found[name] = tuple(pid for pid in self._group(name) if self.stat(pid)[1] == 1)
        return {name: pids for name, pids in found.items() if pids}

    def _ours(self) -> dict[str, str]:
        """The definitions of the role's units by name: of those whose file we wrote, and no other of such a name."""
        found = {}
        for path in sorted(self.directory.glob(f"{PREFIX}*.service")):
            try:
                defined = re.search(r"^X-Narthex-Definition=(\w+)$", path.read_text(errors="replace"), re.MULTILINE)
            except FileNotFoundError:
                continue
            if defined:
                found[path.name.removeprefix(PREFIX).removesuffix(".service")] = defined[1]
        return found

    def _group(self, name: str) -> tuple[int, ...]:
        """The processes in a service's cgroup."""
        try:
            text = (self.groups / _service(name) / "cgroup.procs").read_text()
        except OSError:
            return ()
        return tuple(int(word) for word in text.split())

    # --- deeds

    def start(self, unit: Unit) -> None:
        was_there = self._define(unit)
        self._begin(unit, "restart" if was_there else "start")

    def restart(self, unit: Unit) -> None:
        self._define(unit)
        self._begin(unit, "restart")

    def stop(self, name: str) -> None:
        self._refuse_boot_unit(name)
        if (self.directory / _service(name)).exists():
            self._systemctl(name, "stop", _service(name))
            self._forget(name)

    def reload(self, unit: Unit) -> None:
        self._refuse_boot_unit(unit.name)
        if not unit.reload:
            raise UnitError(unit.name, "has no reload signal; restart it")
        self._systemctl(unit.name, "kill", "--kill-whom=main", f"--signal={unit.reload}", _service(unit.name))

    def renew(self, name: str) -> None:
        self._systemctl(name, "restart", _service(name))

    def _define(self, unit: Unit) -> bool:
        """Write its file. True where another was in its place, which systemd is told of."""
        self._refuse_boot_unit(unit.name)
        path, text = self.directory / _service(unit.name), service_text(unit)
        try:
            _make_directories(unit)
            before = path.read_text() if path.exists() else ""
            if before == text:
                return False
            self.directory.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            new.write_text(text)
            new.replace(path)
        except OSError as error:
            raise UnitError(unit.name, f"cannot write {error.filename or path}: {error.strerror}") from None
        if before:
            self._systemctl(unit.name, "daemon-reload")
        return before != ""

    def _begin(self, unit: Unit, verb: str) -> None:
        """Start it and see it live. One that ends at once is stopped and forgotten: who asked for it decides."""
        service = _service(unit.name)
        try:
            self._systemctl(unit.name, verb, service)
            state = self._settled(unit.name)
            if state.get("NeedDaemonReload") == "yes":  # it had not forgotten an earlier file of this name
                self._systemctl(unit.name, "daemon-reload")
                self._systemctl(unit.name, "restart", service)
                state = self._settled(unit.name)
        except UnitError as error:
            words = self._last_words(self._state(unit.name))
            self._give_up(unit.name)
            raise UnitError(unit.name, error.message, words or error.output) from None
        if not _runs(state):
            words = self._last_words(state)
            self._give_up(unit.name)
            raise UnitError(unit.name, f"ended at once: {_end(state)}", words)

    def _settled(self, name: str) -> dict[str, str]:
        self.sleep(SETTLE_S)
        return self._state(name)

    def _state(self, name: str) -> dict[str, str]:
        status, output = self.run(("systemctl", "show", STARTED, _service(name)))
        return {} if status else _properties(output)

    def _last_words(self, state: Mapping[str, str]) -> str:
        """What the last process of a unit said, by the journal, which is given the time to hear it."""
        if not (invocation := state.get("InvocationID")):
            return ""
        self.run(("journalctl", "--sync"))
        asked = ("journalctl", "--quiet", "--output=cat", "--lines=20", f"_SYSTEMD_INVOCATION_ID={invocation}")
        status, output = self.run(asked)
        return "" if status else output.strip()

    def _give_up(self, name: str) -> None:
        self.run(("systemctl", "stop", _service(name)))
        self._forget(name)

    def _forget(self, name: str) -> None:
        (self.directory / _service(name)).unlink(missing_ok=True)

    def _refuse_boot_unit(self, name: str) -> None:
        if name in BOOT_UNITS:
            raise UnitError(name, "is a boot unit, not a role's")

    def _systemctl(self, unit: str, *words: str) -> str:
        status, output = self.run(("systemctl", *words))
        if status:
            raise UnitError(unit, f"systemctl {words[0]} ended in {status}", output.strip())
        return output


# What no daemon of ours needs (systemd.exec(5)). `Sandbox` says what one needs beyond it.
CONFINED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=disconnected",  # "yes" would make it wait for systemd-tmpfiles at boot
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "UMask=0077",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources @keyring",
    # What only the agent and sshd read: keys, and documents with their secrets.
    "InaccessiblePaths=-/etc/narthex/host_key -/etc/narthex/authorized_keys -/etc/narthex/settings.json",
    "InaccessiblePaths=-/var/lib/narthex/store -/run/narthex/agent.sock",
)
_BECOMES = frozenset({"SETUID", "SETGID", "SETPCAP"})  # starts as root and drops that


def service_text(unit: Unit) -> str:
    """The unit as a systemd service: restarted as the supervisor does it, ended as a group after 5 s, confined."""
    lines = [
        "# Written by the Narthex agent; changes are lost.",
        "[Unit]",
        f"Description=Narthex: {unit.name}",
        f"X-Narthex-Definition={definition(unit)}",
        # It runs when the agent says so: at boot that is long before basic.target.
        "DefaultDependencies=no",
        "Conflicts=shutdown.target",
        "Before=shutdown.target",
        "StartLimitIntervalSec=0",
        "CollectMode=inactive-or-failed",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(map(_word, unit.command))}",
        *([f"ExecReload=+/bin/kill -{unit.reload} $MAINPID"] if unit.reload else []),
        "Restart=always",
        "RestartSec=100ms",
        "KillMode=control-group",
        "TimeoutStopSec=5",
        "SyslogIdentifier=" + PREFIX + unit.name,
        *CONFINED,
        *_allowed(unit.sandbox),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _make_directories(unit: Unit) -> None:
    """What a unit wants to find. Not by ExecStartPre=+: that too is held to ReadWritePaths, which must be there."""
    for path, mode, owner in unit.directories:
        user, _, group = owner.partition(":")
        try:
            account = pwd.getpwnam(user or "root")
            gid = pwd.getpwnam(group).pw_gid if group else account.pw_gid
        except KeyError:
            raise UnitError(unit.name, f"{path} is to belong to {owner}, and there is no such account") from None
        os.makedirs(path, exist_ok=True)
        os.chown(path, account.pw_uid, gid)
        os.chmod(path, mode)


def _allowed(sandbox: Sandbox) -> list[str]:
    families = sorted({"UNIX", *sandbox.families})
    lines = [
        f"CapabilityBoundingSet={' '.join(f'CAP_{name}' for name in sandbox.capabilities)}",
        f"RestrictAddressFamilies={' '.join(f'AF_{name}' for name in families)}",
    ]
    if _BECOMES.intersection(sandbox.capabilities):
        lines.append("SystemCallFilter=@setuid capset")
    if sandbox.descriptors:
        lines.append(f"LimitNOFILE={sandbox.descriptors}")
    if sandbox.makes_code:
        lines.append("MemoryDenyWriteExecute=no")
    lines += [f"ReadWritePaths={_word(path)}" for path in sandbox.writable]
    return lines


def _service(name: str) -> str:
    return f"{PREFIX}{name}.service"


def _runs(state: Mapping[str, str]) -> bool:
    return state.get("ActiveState") in ("active", "reloading") and state.get("SubState") in ("running", "reload")


def _status(name: str, state: Mapping[str, str], defined: str) -> UnitStatus:
    return UnitStatus(name, _runs(state), int(state.get("MainPID") or 0), defined, int(state.get("NRestarts") or 0))


def _end(state: Mapping[str, str]) -> str:
    """How the last process of a unit ended, as `show` has it: a code of waitid(2) and a status."""
    by = {"1": "exit", "2": "ended by signal", "3": "ended by signal"}.get(state.get("ExecMainCode", ""))
    return f"{by} {state.get('ExecMainStatus', '')}" if by else state.get("Result") or "no words"


def _word(word: str) -> str:
    """One word of a command line, quoted as in systemd.service(5): specifiers and variables too."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if text != word or not word or re.search(r"[\s;'{}]", word) else word


def _properties(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
