"""The systemd runner: the text of a service, and what systemctl(1) is asked. The supervisor's is in netns/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.process import UnitProblem, checked
from appliance.state import Unit
from appliance.units import SystemdRunner, UnitError, UnitStatus, definition, service_text

UNIT = Unit(
    "dns-net",
    ("dnsmasq", "--keep-in-foreground", "--conf-file=/etc/narthex/dns/net.conf"),
    reload="HUP",
    directories=(("/run/dns", 0o750, "dnsmasq"),),
)


class Systemctl:
    """Remembers what it was asked; `answers` by verb."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answers: dict[str, tuple[int, str]] = {}

    def __call__(self, argv: tuple[str, ...]) -> tuple[int, str]:
        self.asked.append(argv[1:])
        return self.answers.get(argv[1], (0, ""))


@pytest.fixture(name="systemctl")
def systemctl_fixture() -> Systemctl:
    return Systemctl()


@pytest.fixture(name="runner")
def runner_fixture(systemctl: Systemctl, tmp_path: Path) -> SystemdRunner:
    return SystemdRunner(systemctl, tmp_path)


def test_a_service() -> None:
    text = service_text(UNIT)
    lines = text.splitlines()
    assert f"X-Narthex-Definition={definition(UNIT)}" in lines
    assert "ExecStart=dnsmasq --keep-in-foreground --conf-file=/etc/narthex/dns/net.conf" in lines
    assert "ExecStartPre=+/usr/bin/install -d -m 750 -o dnsmasq /run/dns" in lines
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


def test_start_writes_and_reloads_once(runner: SystemdRunner, systemctl: Systemctl, tmp_path: Path) -> None:
    runner.start(UNIT)
    runner.start(UNIT)
    service = "narthex-dns-net.service"
    assert systemctl.asked == [("daemon-reload",), ("start", service), ("start", service)]
    assert (tmp_path / service).read_text() == service_text(UNIT)
    systemctl.asked.clear()
    runner.restart(replace(UNIT, command=("dnsmasq",)))
    assert systemctl.asked == [("daemon-reload",), ("restart", service)]


def test_stop_forgets(runner: SystemdRunner, systemctl: Systemctl, tmp_path: Path) -> None:
    runner.start(UNIT)
    systemctl.asked.clear()
    runner.stop("dns-net")
    runner.stop("dns-net")
    assert systemctl.asked == [("stop", "narthex-dns-net.service"), ("daemon-reload",)]
    assert list(tmp_path.iterdir()) == []


def test_reload_is_a_signal(runner: SystemdRunner, systemctl: Systemctl) -> None:
    runner.reload(UNIT)
    assert systemctl.asked[-1][0] == "kill"
    assert any(word.endswith("HUP") for word in systemctl.asked[-1])
    with pytest.raises(UnitError, match="no reload signal"):
        runner.reload(replace(UNIT, reload=""))


def test_observe(runner: SystemdRunner, systemctl: Systemctl, tmp_path: Path) -> None:
    assert runner.observe() == {}
    runner.start(UNIT)
    (tmp_path / "narthex-agent.service").write_text("")
    (tmp_path / "other.service").write_text("")
    systemctl.answers["show"] = (0, "Id=narthex-dns-net.service\nActiveState=active\nMainPID=12\nNRestarts=3\n")
    assert runner.observe() == {"dns-net": UnitStatus("dns-net", True, 12, definition(UNIT), 3)}
    systemctl.answers["show"] = (0, "Id=narthex-dns-net.service\nActiveState=activating\nMainPID=0\nNRestarts=3\n")
    assert not runner.observe()["dns-net"].active


def test_systemctl_fails(runner: SystemdRunner, systemctl: Systemctl) -> None:
    systemctl.answers["start"] = (1, "Job failed.")
    with pytest.raises(UnitError, match="systemctl start ended in 1") as refused:
        runner.start(UNIT)
    assert refused.value.output == "Job failed."


@pytest.mark.parametrize("name", ["agent", "sshd"])
def test_boot_units_are_not_ours(runner: SystemdRunner, systemctl: Systemctl, name: str) -> None:
    for deed in (runner.start, runner.restart, runner.reload):
        with pytest.raises(UnitError, match="boot unit"):
            deed(Unit(name, ("x",), reload="HUP"))
    with pytest.raises(UnitError, match="boot unit"):
        runner.stop(name)
    assert systemctl.asked == []


def test_a_definition_is_what_the_process_is_started_from() -> None:
    assert definition(UNIT) == definition(replace(UNIT, reload_on=("/a",), check=("x",), owner="net"))
    others = [replace(UNIT, command=("x",)), replace(UNIT, name="x"), replace(UNIT, directories=())]
    assert definition(UNIT) not in {definition(other) for other in others}


def test_a_definition_is_checked_before_it_is_taken() -> None:
    assert checked({"name": "a", "command": ["true"]})["reload"] == ""
    for bad in ({"name": "a/b", "command": ["true"]}, {"name": "a", "command": [1]}, [], {"command": ["true"]}):
        with pytest.raises(UnitProblem):
            checked(bad)
