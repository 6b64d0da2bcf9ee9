"""The files that a cell is born with: accounts, sshd's, the agent's boot facts, the supervisor's boot units. Pure.

The way in is closed but for one thing: on port 3922 of the control address, the manager's key joins a channel to the
agent's socket. No shell, no terminal, no forwarding, no file transfer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgmt.hosts.driver import PORT, Seed

RUN = "/run/narthex"
LOG = "/var/log/narthex"
ETC = "/etc/narthex"
BOOT = f"{ETC}/boot.json"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Files = list[tuple[str, int, str]]  # path, mode, content


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the code is, on the host and so in the cell.

    `python` sees the installed packages; `bare_python` is for what needs the standard library alone.
    """

    house: Path  # the folder with the packages appliance, router, ...
    python: Path
    bare_python: Path
    sshd: Path

    @property
    def supervisor(self) -> list[str]:
        return [str(self.bare_python), "-I", "-S", str(self.house / "appliance/supervisor.py"), BOOT]

    @property
    def join(self) -> str:
        """A shell's command line; `exec`, so that the program's parent is the connection's own sshd."""
        program = self.house / "appliance/join.py"
        return f"exec {_quoted(self.bare_python)} -I -S {_quoted(program)} {RUN}/agent.sock"


def environment(programs: Programs) -> dict[str, str]:
    """Of everything that runs in a cell."""
    return {
        "PATH": SEARCH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(programs.house),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the house is read-only there
    }


def files(seed: Seed, control_mac: str, programs: Programs, host_passwd: str) -> Files:
    """All files, by path, mode and content. `host_passwd` is the host's /etc/passwd: its daemons' accounts."""
    return [
        ("/etc/hostname", 0o644, f"{seed.name}\n"),
        ("/etc/hosts", 0o644, f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {seed.name}\n"),
        ("/etc/resolv.conf", 0o644, ""),
        ("/etc/hosts.allow", 0o644, ""),  # Debian's sshd asks libwrap
        ("/etc/hosts.deny", 0o644, ""),
        ("/etc/passwd", 0o644, _passwd(host_passwd)),
        ("/etc/shadow", 0o600, _shadow(host_passwd)),
        (f"{ETC}/settings.json", 0o600, _json(settings(seed, control_mac))),
        (f"{ETC}/host_key", 0o600, seed.host_private),
        (f"{ETC}/authorized_keys", 0o600, _authorized(seed, programs)),
        (f"{ETC}/sshd_config", 0o600, sshd_config(seed, programs)),
        (BOOT, 0o600, _json(boot(programs))),
    ]


def settings(seed: Seed, control_mac: str) -> dict[str, object]:
    """What appliance/settings.py reads."""
    return {
        "name": seed.name,
        "role": seed.role,
        "control_mac": control_mac,
        "control_address": seed.control_address,
        "runner": "supervisor",
        "run_dir": RUN,
        "heal": seed.heal,
        "watch_seconds": seed.watch_seconds,
    }


def boot(programs: Programs) -> dict[str, object]:
    """What appliance/supervisor.py reads."""
    sshd = [str(programs.sshd), "-D", "-e", "-f", f"{ETC}/sshd_config"]
    return {
        "run_dir": RUN,
        "log_dir": LOG,
        "units": [
            {"name": "agent", "command": [str(programs.python), "-m", "appliance"]},
            {"name": "sshd", "command": sshd, "directories": [["/run/sshd", 0o755, "root"]]},
        ],
    }


def sshd_config(seed: Seed, programs: Programs) -> str:
    """One port on one address, one account, one kind of key, one command."""
    options: Mapping[str, str] = {
        "Port": str(PORT),
        "ListenAddress": seed.control_address.partition("/")[0],
        "HostKey": f"{ETC}/host_key",
        "AuthorizedKeysFile": f"{ETC}/authorized_keys",
        "AllowUsers": "root",
        "PermitRootLogin": "forced-commands-only",
        "AuthenticationMethods": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "HostbasedAuthentication": "no",
        "UsePAM": "no",
        "HostKeyAlgorithms": "ssh-ed25519",
        "PubkeyAcceptedAlgorithms": "ssh-ed25519",
        "DisableForwarding": "yes",
        "PermitTTY": "no",
        "PermitTunnel": "no",
        "PermitUserEnvironment": "no",
        "PermitUserRC": "no",
        "Subsystem": f"narthex {programs.join}",
        "UseDNS": "no",
        "TCPKeepAlive": "yes",
        "ClientAliveInterval": "30",
        "ClientAliveCountMax": "4",
        "LoginGraceTime": "10",
        "MaxAuthTries": "3",
        "MaxSessions": "16",
        "MaxStartups": "32:30:64",
        "PrintMotd": "no",
        "PrintLastLog": "no",
        "Compression": "no",
        "PidFile": "none",
    }
    return "".join(f"{key} {value}\n" for key, value in options.items())


def _authorized(seed: Seed, programs: Programs) -> str:
    command = programs.join.replace('"', '\\"')
    return f'restrict,command="{command}" {seed.manager_key}\n'


def _passwd(host: str) -> str:
    """The host's accounts; root's shell is sh, which reads no start-up file (bash under sshd reads ~/.bashrc)."""
    lines = [line.split(":") for line in host.splitlines() if line.count(":") == 6]
    return "".join(":".join([*fields[:6], "/bin/sh" if fields[0] == "root" else fields[6]]) + "\n" for fields in lines)


def _shadow(host: str) -> str:
    """No password for anyone. `*`, since sshd without PAM takes `!` for a locked account, keys or not."""
    return "".join(f"{line.partition(':')[0]}:*:::::::\n" for line in host.splitlines() if line.count(":") == 6)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
