"""The systemd runner: the text of a service, and what systemctl(1) is asked. A real systemd is in vm/."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.state import Sandbox, Unit
from appliance.systemd import SystemdRunner, service_text
from appliance.units import UnitError, UnitStatus, definition
from router.dhcp import compile_dhcp
from router.dns import compile_dns
from tests.lint.files import ROOT
from tests.router.samples import NETWORKS, facts_of, made

UNIT = Unit(
    "dns-net",
    ("dnsmasq", "--keep-in-foreground", "--conf-file=/etc/narthex/dns/net.conf"),
    reload="HUP",
    sandbox=Sandbox(("NET_BIND_SERVICE", "SETUID"), ("INET",), ("/var/lib/narthex/x",)),
)
SERVICE = "narthex-dns-net.service"
RUNNING = "ActiveState=active\nSubState=running\nInvocationID=abc\nNeedDaemonReload=no\n"

# By systemd-analyze security (systemd 257): what none of ours may be without. The image's check `sandbox` scores them.
EVERYWHERE = {
    "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=disconnected", "PrivateDevices=yes",
    "ProtectClock=yes", "ProtectControlGroups=yes", "ProtectHostname=yes", "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes",
    "LockPersonality=yes", "MemoryDenyWriteExecute=yes", "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service", "SystemCallFilter=~@privileged @resources @keyring",
}  # fmt: skip
MORE = {"ProtectKernelTunables=yes", "ProtectProc=invisible", "UMask=0077"}


class Systemctl:
    """Remembers what it was asked; `answers` by verb, `show` with a running unit where nothing else is said."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answers: dict[str, tuple[int, str]] = {"show": (0, RUNNING)}

    def __call__(self, argv: tuple[str, ...]) -> tuple[int, str]:
        self.asked.append(argv[1:])
        return self.answers.get(argv[1] if argv[0] == "systemctl" else argv[0], (0, ""))

    def deeds(self) -> list[tuple[str, ...]]:
        """What was asked since, without the questions."""
        found = [words for words in self.asked if words[0] != "show" and not words[0].startswith("-")]
        self.asked.clear()
        return found


@pytest.fixture(name="systemctl")
def systemctl_fixture() -> Systemctl:
    return Systemctl()


@pytest.fixture(name="runner")
def runner_fixture(systemctl: Systemctl, tmp_path: Path) -> SystemdRunner:
    return SystemdRunner(systemctl, tmp_path / "system", tmp_path / "groups", lambda seconds: None)


# --- the text


def test_a_service() -> None:
    lines = service_text(UNIT).splitlines()
    assert f"X-Narthex-Definition={definition(UNIT)}" in lines
    assert "ExecStart=dnsmasq --keep-in-foreground --conf-file=/etc/narthex/dns/net.conf" in lines
    assert "Restart=always" in lines


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("a b", '"a b"'),
        ("$HOME", '"$$HOME"'),
        ("%n", '"%%n"'),
        ('"', '"\\""'),
        ("a\nb", '"a\\nb"'),
        ("", '""'),
        ("x;", '"x;"'),
    ],
)
def test_words_are_quoted(word: str, quoted: str) -> None:
    assert f"ExecStart=x {quoted}\n" in service_text(Unit("u", ("x", word)))


def test_a_unit_may_what_it_says_and_no_more() -> None:
    lines = set(service_text(UNIT).splitlines())
    assert lines >= EVERYWHERE | MORE
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_SETUID" in lines
    assert "RestrictAddressFamilies=AF_INET AF_UNIX" in lines
    assert "ReadWritePaths=/var/lib/narthex/x" in lines
    assert "SystemCallFilter=@setuid capset" in lines, "it becomes another user"
    plain = set(service_text(Unit("u", ("x",))).splitlines())
    assert {"CapabilityBoundingSet=", "RestrictAddressFamilies=AF_UNIX"} <= plain
    assert not [line for line in plain if line.startswith("ReadWritePaths=") or "setuid" in line]


def test_every_daemon_of_the_router_is_confined() -> None:
    """The two rooms of dnsmasq: what each may is said in its unit, and is no more than it was seen to need."""
    served = [{**network, "dhcp": {"enabled": True}, "dns": True} for network in NETWORKS]
    config = made(networks=served)
    units = compile_dhcp(config, facts_of(config)).units + compile_dns(config, facts_of(config)).units
    texts = {unit.name: service_text(unit) for unit in units}
    assert {name.split("-")[0] for name in texts} == {"dhcp", "dns"}
    for name, text in texts.items():
        assert set(text.splitlines()) >= EVERYWHERE | MORE
        found = re.search(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
        assert found
        assert ("CAP_NET_ADMIN" in found[1]) == name.startswith("dhcp")
        assert not re.search("SYS_ADMIN|SYS_MODULE|SYS_PTRACE|DAC_|SYS_RAWIO", found[1])


@pytest.mark.parametrize("unit", ["agent", "sshd"])
def test_the_boot_units_are_confined(unit: str) -> None:
    text = (ROOT / f"images/tree/usr/lib/systemd/system/narthex-{unit}.service").read_text()
    # sshd goes to root's home before it runs the one command; it writes nothing there.
    home = text.replace("ProtectHome=read-only", "ProtectHome=yes") if unit == "sshd" else text
    assert EVERYWHERE - set(home.splitlines()) == set()
    assert not re.search("SYS_ADMIN|SYS_MODULE|SYS_PTRACE|DAC_|SYS_RAWIO", text)


# --- what systemctl is asked


def test_start_writes_and_needs_no_reload(runner: SystemdRunner, systemctl: Systemctl) -> None:
    runner.start(UNIT)
    assert systemctl.deeds() == [("start", SERVICE)], "systemd finds a new file by itself"
    assert (runner.directory / SERVICE).read_text() == service_text(UNIT)
    runner.start(UNIT)
    assert systemctl.deeds() == [("start", SERVICE)]
    runner.restart(replace(UNIT, command=("dnsmasq",)))
    assert systemctl.deeds() == [("daemon-reload",), ("restart", SERVICE)]
    runner.start(UNIT)
    assert systemctl.deeds() == [("daemon-reload",), ("restart", SERVICE)], "what runs otherwise is replaced"


def test_systemd_remembers_an_earlier_file(runner: SystemdRunner, systemctl: Systemctl) -> None:
    systemctl.answers["show"] = (0, RUNNING.replace("Reload=no", "Reload=yes"))
    runner.start(UNIT)
    assert systemctl.deeds() == [("start", SERVICE), ("daemon-reload",), ("restart", SERVICE)]


def test_directories_are_made(runner: SystemdRunner, tmp_path: Path) -> None:
    me = Path("~").expanduser().owner()
    runner.start(replace(UNIT, directories=((str(tmp_path / "a/b"), 0o750, me),)))
    assert (tmp_path / "a/b").stat().st_mode & 0o7777 == 0o750
    with pytest.raises(UnitError, match="nobody-here"):
        runner.start(replace(UNIT, directories=((str(tmp_path / "c"), 0o750, "nobody-here"),)))


def test_what_ends_at_once_says_why(runner: SystemdRunner, systemctl: Systemctl) -> None:
    again = "ActiveState=activating\nSubState=auto-restart\nExecMainCode=1\nExecMainStatus=4\nInvocationID=abc\n"
    systemctl.answers["show"] = (0, again)
    systemctl.answers["journalctl"] = (0, "line 7: bad word\n")
    with pytest.raises(UnitError, match="ended at once: exit 4") as refused:
        runner.start(UNIT)
    assert refused.value.output == "line 7: bad word"
    assert "_SYSTEMD_INVOCATION_ID=abc" in systemctl.asked[-2], "of this start, no other's words"
    assert systemctl.deeds() == [("start", SERVICE), ("stop", SERVICE)]
    assert list(runner.directory.iterdir()) == [], "who asked for it hears of it, and decides"


def test_systemctl_fails(runner: SystemdRunner, systemctl: Systemctl) -> None:
    systemctl.answers |= {"start": (1, "Job failed."), "show": (1, "")}
    with pytest.raises(UnitError, match="systemctl start ended in 1") as refused:
        runner.start(UNIT)
    assert refused.value.output == "Job failed."


def test_stop_forgets(runner: SystemdRunner, systemctl: Systemctl) -> None:
    runner.start(UNIT)
    systemctl.deeds()
    runner.stop("dns-net")
    runner.stop("dns-net")
    assert systemctl.deeds() == [("stop", SERVICE)]
    assert list(runner.directory.iterdir()) == []


def test_reload_is_a_signal(runner: SystemdRunner, systemctl: Systemctl) -> None:
    runner.reload(UNIT)
    assert systemctl.asked[-1] == ("kill", "--kill-whom=main", "--signal=HUP", SERVICE)
    with pytest.raises(UnitError, match="no reload signal"):
        runner.reload(replace(UNIT, reload=""))


@pytest.mark.parametrize(
    ("state", "active"),
    [
        ("ActiveState=active\nSubState=running", True),
        ("ActiveState=activating\nSubState=auto-restart", False),
        ("ActiveState=activating\nSubState=start", False),
        ("ActiveState=deactivating\nSubState=stop-sigterm", False),
        ("ActiveState=failed\nSubState=failed", False),
    ],
)
def test_observe(runner: SystemdRunner, systemctl: Systemctl, state: str, active: bool) -> None:
    assert runner.observe() == {}
    assert systemctl.asked == [], "nothing is ours, nobody is asked"
    runner.start(UNIT)
    (runner.directory / "narthex-agent.service").write_text("")
    (runner.directory / "narthex-return.service").write_text("[Service]\n")
    systemctl.answers["show"] = (0, f"Id={SERVICE}\n{state}\nMainPID=12\nNRestarts=3\n")
    systemctl.asked.clear()
    assert runner.observe() == {"dns-net": UnitStatus("dns-net", active, 12, definition(UNIT), 3)}
    assert len(systemctl.asked) == 1


@pytest.mark.parametrize("name", ["agent", "sshd"])
def test_boot_units_are_not_ours(runner: SystemdRunner, systemctl: Systemctl, name: str) -> None:
    for deed in (runner.start, runner.restart, runner.reload):
        with pytest.raises(UnitError, match="boot unit"):
            deed(Unit(name, ("x",), reload="HUP"))
    with pytest.raises(UnitError, match="boot unit"):
        runner.stop(name)
    assert systemctl.asked == []
    runner.renew(name)
    assert systemctl.asked == [("restart", f"narthex-{name}.service")]


def test_processes_are_read_and_nobody_is_asked(systemctl: Systemctl, tmp_path: Path) -> None:
    """Of sshd the one that listens: a session's parent is that one, or whoever took it in."""
    parents = {20: 1, 21: 20, 30: 1, 31: 30}
    groups = tmp_path / "groups"
    runner = SystemdRunner(systemctl, tmp_path, groups, lambda seconds: None, lambda pid: ("S", parents[pid]))
    runner.start(UNIT)
    systemctl.asked.clear()
    for name, pids in (("dns-net", "20\n21\n"), ("sshd", "30\n31\n"), ("return", "40\n")):
        folder = groups / f"narthex-{name}.service"
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(pids)
    assert runner.processes() == {"dns-net": (20, 21), "sshd": (30,)}
    assert systemctl.asked == []
