"""The guard of the unit tier bites, by whichever way a test tries to leave its process."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.guard import ForbiddenInUnitTestError, Guard

ESCAPES: dict[str, Callable[[], object]] = {
    "subprocess.run": lambda: subprocess.run(["true"], check=False),
    "subprocess.Popen of a shell": lambda: subprocess.Popen("true", shell=True),
    "os.system": lambda: os.system("true"),
    "os.popen": lambda: os.popen("true"),
    "os.fork": os.fork,
    "os.forkpty": os.forkpty,
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "multiprocessing by fork": lambda: multiprocessing.get_context("fork").Process(target=len).start(),
    "multiprocessing by spawn": lambda: multiprocessing.get_context("spawn").Process(target=len).start(),
    "an internet socket": lambda: socket.socket(socket.AF_INET),
    "a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "a pair of sockets": socket.socketpair,
    "a connection": lambda: socket.create_connection(("127.0.0.1", 9)),
    "a name look-up": lambda: socket.getaddrinfo("localhost", 9),
    "asyncio's own pair": lambda: asyncio.new_event_loop(),
}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_refuses(name: str, unit_guard: Guard) -> None:
    with pytest.raises(ForbiddenInUnitTestError):
        ESCAPES[name]()
    assert unit_guard.refused
    unit_guard.refused.clear()


def test_refuses_in_another_thread(unit_guard: Guard) -> None:
    errors: list[BaseException] = []

    def escape() -> None:
        try:
            os.system("true")
        except ForbiddenInUnitTestError as error:
            errors.append(error)

    thread = threading.Thread(target=escape)
    thread.start()
    thread.join()
    assert len(errors) == 1
    unit_guard.refused.clear()


def test_remembers_what_was_swallowed(unit_guard: Guard) -> None:
    with contextlib.suppress(Exception):  # as careless code would
        socket.socket()
    assert unit_guard.refused == ["socket.__new__"]
    unit_guard.refused.clear()
