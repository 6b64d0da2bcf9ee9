"""The channel against a kernel that refuses, is overtaken, loses an answer, or dies. No socket is opened."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

import pytest

from appliance import wire
from appliance.wire import Channel, KernelError

DONE, ERROR = 3, 2
INTERRUPTED, TLVS = 0x10, 0x200


def message(kind: int, sequence: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) & 3)


def number(value: int) -> bytes:
    return struct.pack("=i", value)


class Kernel:
    """In a socket's place: answers each request by the next of the scripts, which get the request's sequence."""

    def __init__(self, *scripts: Iterable[object]) -> None:
        self.scripts = list(scripts)
        self.waiting: list[object] = []
        self.opened = 0
        self.asked: list[bytes] = []

    def send(self, request: bytes) -> None:
        self.asked.append(request)
        (sequence,) = struct.unpack_from("=I", request, 8)
        self.waiting = [step(sequence) if callable(step) else step for step in self.scripts.pop(0)]

    def recv(self, size: int) -> bytes:
        answer = self.waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    def close(self) -> None:
        self.waiting = []


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    monkeypatch.setattr(wire, "_PAUSE", 0)
    monkeypatch.setattr(Channel, "_open", lambda self: None)
    return Channel(wire.ROUTE)


def kernel(channel: Channel, monkeypatch: pytest.MonkeyPatch, *scripts: Iterable[object]) -> Kernel:
    made = Kernel(*scripts)

    def opened(self: Channel) -> Kernel:
        made.opened += 1
        return made

    monkeypatch.setattr(Channel, "_open", opened)
    channel._socket = made  # type: ignore[assignment]
    return made


def test_answers_come_before_the_acknowledgement(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(
        channel, monkeypatch, [lambda s: message(20, s, b"one!"), lambda s: message(ERROR, s, number(0) + bytes(16))]
    )
    assert channel.ask(22, b"") == [(20, b"one!")]


def test_a_refusal_has_the_kernels_own_words(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    said = wire.attribute(1, b"Nexthop has invalid gateway\0")
    refusal = number(-errno.EINVAL) + bytes(16) + said
    kernel(channel, monkeypatch, [lambda s: message(ERROR, s, refusal, TLVS)])
    with pytest.raises(KernelError) as raised:
        channel.ask(24, b"")
    assert raised.value.errno == errno.EINVAL
    assert raised.value.words == "EINVAL: Nexthop has invalid gateway"


def test_a_late_answer_to_an_earlier_question_is_not_ours(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(
        channel,
        monkeypatch,
        [lambda s: message(20, s - 1, b"late") + message(20, s, b"mine"), lambda s: message(DONE, s, number(0))],
    )
    assert channel.dump(22, b"") == [(20, b"mine")]


def test_a_dump_that_was_overtaken_is_asked_again(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(
        channel,
        monkeypatch,
        [lambda s: message(20, s, b"torn", INTERRUPTED) + message(DONE, s, number(0), INTERRUPTED)],
        [lambda s: message(20, s, b"torn"), lambda s: message(DONE, s, number(0), INTERRUPTED)],
        [lambda s: message(20, s, b"good") + message(DONE, s, number(0))],
    )
    assert channel.dump(22, b"") == [(20, b"good")]


def test_a_dump_that_never_stands_still_says_so(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = [[lambda s: message(DONE, s, number(0), INTERRUPTED)] for _ in range(20)]
    kernel(channel, monkeypatch, *torn)
    with pytest.raises(KernelError, match="EINTR: it changed each time"):
        channel.dump(22, b"")


@pytest.mark.parametrize("loss", [OSError(errno.ENOBUFS, "No buffer space"), TimeoutError(), OSError(errno.EBADF, "")])
def test_a_lost_answer_is_asked_for_on_a_new_socket(
    channel: Channel, monkeypatch: pytest.MonkeyPatch, loss: Exception
) -> None:
    made = kernel(channel, monkeypatch, [loss], [lambda s: message(ERROR, s, number(0) + bytes(16))])
    assert channel.ask(22, b"body") == []
    assert made.opened == 1
    assert [request[16:] for request in made.asked] == [b"body", b"body"]


def test_a_kernel_that_stays_silent_is_an_error(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(channel, monkeypatch, [TimeoutError()], [TimeoutError()])
    with pytest.raises(TimeoutError):
        channel.ask(22, b"")


def test_many_requests_get_each_its_own_answer(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(first: int) -> bytes:
        return b"".join(message(ERROR, first + i, number(-(i % 3)) + bytes(16)) for i in range(5))

    kernel(channel, monkeypatch, [answers])
    assert channel.tell([(1, b"")] * 5) == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("torn", [b"", b"\1", b"\0" * 16, b"\3\0\0\0" + b"\0" * 12])
def test_what_is_no_message_ends_the_reading(torn: bytes) -> None:
    assert list(wire.messages(torn)) == []
    assert wire.attributes(torn[:4]) == {}
