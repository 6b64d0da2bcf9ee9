"""The agent's heart, with a clock that is set by hand: when it beats, when it must not, and what is said of that."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance import notify
from appliance.log import Log
from appliance.notify import LOCK_S, LOOP_S, Heart

WATCHED = {"WATCHDOG_USEC": "10000000", "NOTIFY_SOCKET": "/nowhere"}


class Ended(Exception):
    """The loop has slept as often as the test wants it to."""


class Body:
    """A heart over an engine of which only the lock is there."""

    def __init__(self, environment: dict[str, str] = WATCHED) -> None:
        self.now = 1000.0
        self.lock = threading.RLock()
        self.log = io.StringIO()
        engine = cast(Any, SimpleNamespace(lock=self.lock))
        self.heart = Heart(engine, Log(self.log), environment, lambda: self.now)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Another thread has the engine."""
        taken, done = threading.Event(), threading.Event()

        def hold() -> None:
            with self.lock:
                taken.set()
                done.wait()

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        assert taken.wait(5), "nobody else gets the lock"
        try:
            yield
        finally:
            done.set()
            holder.join()


@pytest.fixture(name="body")
def _body() -> Body:
    body = Body()
    body.heart.interval = 0.01  # how long a taken lock is waited for
    return body


def run(body: Body, monkeypatch: pytest.MonkeyPatch, *steps: float) -> list[str]:
    """What systemd is told while the clock goes on by `steps` between the beats."""
    told: list[str] = []
    todo = list(steps)

    def sleep(seconds: float) -> None:
        told.append(f"slept {seconds:g}")
        if not todo:
            raise Ended
        body.now += todo.pop(0)

    monkeypatch.setattr(notify, "notify", lambda words, environment: told.append(words))
    monkeypatch.setattr(notify, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Ended):
        body.heart.run()
    return told


def test_it_beats_four_times_in_the_watchdogs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body()
    assert body.heart.interval == 2.5
    assert run(body, monkeypatch, 2.5) == ["WATCHDOG=1", "slept 2.5"] * 2


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "0"}])
def test_where_nobody_watches_it_ends_at_once(environment: dict[str, str]) -> None:
    Body(environment).heart.run()


def test_a_loop_that_stands_still(body: Body) -> None:
    body.now += LOOP_S
    assert body.heart.trouble() == "", "it may take so long"
    body.now += 1
    assert body.heart.trouble() == "the server's loop has not turned for 61 s"
    body.heart.turned()
    assert body.heart.trouble() == ""


def test_an_engine_that_is_busy(body: Body) -> None:
    with body.busy():
        body.now += LOCK_S
        body.heart.turned()
        assert body.heart.trouble() == "", "a push may take so long"
        body.now += 1
        body.heart.turned()
        assert body.heart.trouble() == "the engine has been busy for 121 s"
    assert body.heart.trouble() == ""
    body.now += 1
    assert body.heart.trouble() == "", "it counts anew from when the lock was free"


def test_it_gives_the_lock_back(body: Body) -> None:
    assert body.heart.trouble() == ""
    with body.busy():  # which needs it
        pass


def test_silence_is_said_once(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run(body, monkeypatch, LOOP_S + 1, 1.0, 1.0)
    assert told.count("WATCHDOG=1") == 1, "before the loop stood still"
    assert body.log.getvalue().count("the server's loop has not turned") == 1


def test_it_goes_on_when_the_trouble_is_over(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    body.now += LOOP_S + 1
    assert run(body, monkeypatch) == ["slept 0.01"]
    body.heart.turned()
    assert run(body, monkeypatch) == ["WATCHDOG=1", "slept 0.01"]
    body.now += LOOP_S + 1
    assert run(body, monkeypatch) == ["slept 0.01"]
    assert body.log.getvalue().count("the server's loop has not turned") == 2, "another trouble is said again"


def test_nothing_is_sent_where_nobody_listens() -> None:
    notify.notify("READY=1", {})  # a socket would be refused by this tier's guard
