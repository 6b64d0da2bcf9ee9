"""The way in: port 3922 of the control address leads to the agent's socket, for one key, and to nothing else."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import time
from collections.abc import Iterator

import paramiko
import pytest

from mgmt.keys import make_key
from mgmt.push import Appliance, ApplianceConnection, LocalAppliance, PushError, Target
from tests.netns.cells import MANAGER, Field, field_of, until

MAC = "02:00:00:00:00:11"


@pytest.fixture(scope="module", name="field")
def field_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with field_of(tmp_path_factory.mktemp("push")) as found:
        found.cell("r1", MAC)
        yield found


def last_pid(field: Field) -> int:
    """The last pid that was given in the cell (proc(5), loadavg); asking for it takes the same number each time."""
    return int(field.driver.run("r1", ["cat", "/proc/loadavg"]).stdout.split()[4])


def test_a_warm_push_is_quick_and_starts_no_process(field: Field) -> None:
    with field.way("r1") as appliance:
        appliance.version()
        first, second = last_pid(field), last_pid(field)
        began = time.monotonic()
        for _ in range(50):
            assert appliance.version().status == 200
        assert (time.monotonic() - began) / 50 < 0.05
        assert last_pid(field) - second == second - first


def test_a_megabyte_in_under_a_second(field: Field) -> None:
    with field.way("r1") as appliance:
        appliance.version()
        document = json.dumps({"version": 1, "role": "router", "generation": 1, "x": "x" * (1 << 20)}).encode()
        answer = appliance.put(document)
        assert answer.status == 422
        assert answer.seconds < 1.0


def test_a_wrong_host_key_is_refused_and_said(field: Field) -> None:
    wrong = Appliance(field.target("r1", host_key=make_key().public))
    with pytest.raises(PushError, match="another host key"):
        wrong.health()


def test_a_strange_manager_is_refused(field: Field) -> None:
    with pytest.raises(PushError, match="doesn't take the manager's key"):
        Appliance(field.target("r1", manager=make_key())).health()


def test_no_agent_is_said(field: Field) -> None:
    target = field.target("r1")
    with pytest.raises(PushError, match="cannot be reached"):
        Appliance(Target(target.address, target.host_key, target.private_key, port=3923, dial=target.dial)).health()


@pytest.fixture(name="transport")
def transport_fixture(field: Field) -> Iterator[paramiko.Transport]:
    with ApplianceConnection(field.target("r1")) as connection:
        connection.open()
        yield connection.transport


def _reads(channel: paramiko.Channel, sent: bytes) -> bytes:
    channel.settimeout(5.0)
    channel.sendall(sent)
    channel.shutdown_write()
    return channel.makefile("rb").read()


@pytest.mark.parametrize("way", ["exec", "shell", "subsystem"])
def test_every_channel_is_the_agent(transport: paramiko.Transport, way: str) -> None:
    channel = transport.open_session()
    {
        "exec": lambda: channel.exec_command("touch /tmp/owned; id"),
        "shell": channel.invoke_shell,
        "subsystem": lambda: channel.invoke_subsystem("narthex"),
    }[way]()
    answer = _reads(channel, b"GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"uid=" not in answer


def test_no_file_transfer(transport: paramiko.Transport) -> None:
    channel = transport.open_session()
    with pytest.raises(paramiko.SSHException):
        channel.invoke_subsystem("sftp")


def test_nothing_was_run(field: Field) -> None:
    assert field.driver.run("r1", ["ls", "/tmp/owned"], check=False).returncode


def test_no_terminal(transport: paramiko.Transport) -> None:
    channel = transport.open_session()
    with pytest.raises(paramiko.SSHException):
        channel.get_pty()


@pytest.mark.parametrize("destination", [("127.0.0.1", 3922), ("127.0.0.1", 22)])
def test_no_forwarding(transport: paramiko.Transport, destination: tuple[str, int]) -> None:
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", destination, ("127.0.0.1", 1))


def test_no_forwarding_back(transport: paramiko.Transport) -> None:
    with pytest.raises(paramiko.SSHException):
        transport.request_port_forward("", 0)


def test_no_forwarding_to_the_socket(transport: paramiko.Transport) -> None:
    """direct-streamlocal@openssh.com would reach the supervisor's."""
    message = paramiko.Message()
    message.add_byte(b"\x5a")
    message.add_string("direct-streamlocal@openssh.com")
    for number in (77, 1 << 21, 1 << 15):
        message.add_int(number)
    message.add_string("/run/narthex/supervisor.sock")
    message.add_string("")
    message.add_int(0)
    channel = paramiko.Channel(77)
    transport._channels.put(77, channel)  # type: ignore[attr-defined]
    transport.channels_seen[77] = True  # type: ignore[attr-defined]
    channel._set_transport(transport)
    channel._set_window(1 << 21, 1 << 15)
    transport._send_user_message(message)  # type: ignore[attr-defined]
    time.sleep(0.2)
    assert not channel.active


def test_no_password(field: Field) -> None:
    target = field.target("r1")
    assert target.dial
    transport = paramiko.Transport(target.dial(target.address, target.port, 5.0))
    try:
        transport.start_client(timeout=5.0)
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_password("root", "root")
        assert refused.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.SSHException):
            transport.auth_publickey("nobody", paramiko.Ed25519Key.from_private_key(io.StringIO(MANAGER.private)))
    finally:
        transport.close()


def test_only_the_control_address_listens(field: Field) -> None:
    listening = field.driver.run("r1", ["ss", "-Hltun"]).stdout.split("\n")
    address = field.driver.list()[0].control_address.partition("/")[0]
    assert [line.split()[4] for line in listening if line] == [f"{address}:3922"]


def test_a_channel_whose_agent_was_restarted_is_made_anew(field: Field) -> None:
    with field.way("r1") as appliance:
        assert appliance.version().status == 200
        agent = field.driver.run("r1", ["pgrep", "-f", "appliance$"]).stdout
        field.driver.run("r1", ["kill", "-9", *agent.split()])
        assert appliance.version().status == 200, "join waits for the new agent's socket"


def test_a_confirmation_comes_by_another_connection(field: Field) -> None:
    """Two channels of one connection have one sshd; join is its direct child, whatever the shell."""
    with field.way("r1") as appliance:
        appliance.version()
        joins = field.driver.run("r1", ["pgrep", "-f", "join.py /run"]).stdout.split()
        parents = field.driver.run("r1", ["ps", "-o", "ppid=", "-p", ",".join(joins)]).stdout.split()
        names = field.driver.run("r1", ["ps", "-o", "comm=", "-p", ",".join(parents)]).stdout.split()
        assert len(names) == len(joins) > 0
        assert all(name.startswith("sshd") for name in names)
        assert appliance.confirm(1).status in (404, 409)


def test_the_socket_itself(field: Field) -> None:
    pid = field.driver.list()[0].pid
    with LocalAppliance(field.driver.disk.running.parent / "nowhere.sock") as nobody, pytest.raises(PushError):
        nobody.health()
    from pathlib import Path

    with LocalAppliance(Path(f"/proc/{pid}/root/run/narthex/agent.sock")) as appliance:
        assert appliance.health().status == 200


def test_a_silent_host_costs_five_seconds_at_most() -> None:
    """A port that accepts and says nothing: the banner's time-out."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        key = make_key()
        began = time.monotonic()
        with pytest.raises(PushError):
            Appliance(Target("127.0.0.1", key.public, key.private, port=server.getsockname()[1])).health()
        assert time.monotonic() - began < 12.0


def test_join_half_closes_and_waits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """EOF of the one side reaches the other, which may still answer."""
    folder = tmp_path_factory.mktemp("join")
    path = folder / "s"
    join = subprocess.Popen(
        ["python3", "-I", "-S", "appliance/join.py", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with join, socket.socket(socket.AF_UNIX) as server:
        assert join.stdin
        assert join.stdout
        time.sleep(0.1)
        server.bind(str(path))
        server.listen()
        agent, _ = server.accept()
        with agent:
            join.stdin.write(b"question")
            join.stdin.close()
            got = b""
            while some := agent.recv(100):
                got += some
            agent.sendall(b"answer")
        assert got == b"question"
        assert join.stdout.read() == b"answer"
        assert join.wait(5.0) == 0
    until(lambda: join.poll() == 0)


def test_join_says_that_nobody_is_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("join") / "nobody"
    began = time.monotonic()
    join = subprocess.run(
        ["python3", "-I", "-S", "appliance/join.py", str(path)], capture_output=True, text=True, check=False
    )
    assert join.returncode == 69
    assert "the agent does not answer" in join.stderr
    assert 4.0 < time.monotonic() - began < 8.0
