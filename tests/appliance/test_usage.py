"""Sums that only grow, whatever their counters do; and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.usage import DAYS, NOTHING, Four, Reading, Usage, source_of


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def counted(*four: int, source: str = "meters guests_in 10.1.1.10", epoch: str = "1", ident: str = "vm") -> Reading:
    a, b, c, d = four
    return Reading("guests", ident, source, (a, b, c, d), epoch)


def sums(usage: Usage, ident: str = "vm") -> Four:
    told = usage.told()["guests"][ident]
    return told["received_bytes"], told["sent_bytes"], told["received_packets"], told["sent_packets"]


def test_a_counter_s_growth_is_added_once() -> None:
    usage = Usage(None, Clock())
    for reading in (counted(100, 0, 1, 0), counted(100, 0, 1, 0), counted(250, 0, 3, 0)):
        usage.add([reading])
    assert sums(usage) == (250, 0, 3, 0)


def test_counters_of_one_object_add_up() -> None:
    usage = Usage(None, Clock())
    usage.add([counted(100, 0, 1, 0), counted(0, 7, 0, 1, source="out"), counted(30, 0, 1, 0, source="v6")])
    assert sums(usage) == (130, 7, 2, 1)


@pytest.mark.parametrize("after", [counted(40, 0, 1, 0), counted(500, 0, 9, 0, epoch="2")])
def test_a_counter_that_began_again_is_added_whole(after: Reading) -> None:
    usage = Usage(None, Clock())
    usage.add([counted(100, 0, 2, 0)])
    usage.add([after])
    assert sums(usage)[0] == 100 + after.values[0]


def test_one_that_was_put_back_to_zero_by_us_and_has_overtaken_itself() -> None:
    usage = Usage(None, Clock())
    usage.add([counted(100, 0, 1, 0)])
    usage.forget(lambda source: source == source_of("guests_in", "10.1.1.10"))
    usage.add([counted(300, 0, 3, 0)])
    assert sums(usage) == (400, 0, 4, 0)


def test_a_counter_that_cannot_be_read_for_a_while_is_not_counted_twice() -> None:
    usage = Usage(None, Clock())
    for readings in ([counted(100, 0, 1, 0)], [], [counted(120, 0, 2, 0)]):
        usage.add(readings)
    assert sums(usage) == (120, 0, 2, 0)
    assert "gone_since" not in usage.told()["guests"]["vm"]


def test_a_sum_outlives_its_object_for_some_days_and_goes_on_when_it_comes_back() -> None:
    clock = Clock()
    usage = Usage(None, clock)
    usage.add([counted(100, 0, 1, 0)])
    usage.add([])
    assert usage.told()["guests"]["vm"]["gone_since"] == clock.at
    clock.at += (DAYS - 1) * 86400
    usage.add([counted(10, 0, 1, 0, epoch="2")])
    assert sums(usage) == (110, 0, 2, 0)
    usage.add([])
    clock.at += (DAYS + 1) * 86400
    usage.add([])
    assert "guests" not in usage.told()


def test_the_file_holds_sums_and_readings(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    usage = Usage(path, Clock())
    usage.add([counted(100, 0, 1, 0), counted(5, 5, 5, 5, source="other", ident="gone")])
    usage.add([counted(100, 0, 1, 0)])
    usage.save()
    again = Usage(path, Clock())
    assert again.told() == usage.told()
    again.add([counted(130, 0, 2, 0)])  # while no agent was there the counter counted on
    assert sums(again) == (130, 0, 2, 0)


def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    usage = Usage(path, Clock())
    usage.add([counted(100, 0, 1, 0)])
    usage.save()
    path.unlink()
    usage.add([counted(100, 0, 1, 0)])
    usage.save()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version":1,"since":1,"sums":[["a"]],"last":[]}', "\0" * 64])
def test_a_spoiled_file_is_said_and_begins_at_zero(tmp_path: Path, content: str) -> None:
    path = tmp_path / "usage.json"
    path.write_text(content)
    usage = Usage(path, Clock())
    assert "cannot be read" in usage.unreadable
    usage.add([counted(1, 2, 3, 4)])
    usage.save()
    assert sums(Usage(path, Clock())) == (1, 2, 3, 4)


def test_as_prometheus_reads_it() -> None:
    usage = Usage(None, Clock())
    assert usage.text() == ""
    usage.add([counted(2**60 + 1, 0, 1, 0)])
    line = 'narthex_usage_received_bytes_total{kind="guests",id="vm"} 1152921504606846977'  # whole: a float rounds it
    assert line in usage.text().splitlines()


_events = st.lists(
    st.one_of(st.integers(0, 1000), st.sampled_from(["read", "again", "restart", "lost", "told"])), max_size=40
)


@given(_events)
def test_never_less_and_never_more_than_there_was(
    tmp_path_factory: pytest.TempPathFactory, events: list[object]
) -> None:
    """Traffic, readings, counters that start again, agents that die: what is told grows, and never beyond the truth."""
    path = tmp_path_factory.mktemp("usage") / "usage.json"
    usage = Usage(path, Clock())
    raw, epoch, truth, told = 0, 0, 0, NOTHING
    for event in events:
        if isinstance(event, int):
            raw, truth = raw + event, truth + event
        elif event == "restart":
            raw, epoch = 0, epoch + 1
        elif event == "again":
            usage = Usage(path, Clock())
        elif event == "lost":
            usage.add([])
        else:
            usage.add([counted(raw, 0, 0, 0, epoch=str(epoch))])
            if event == "told":
                usage.save()
                now = sums(usage)
                assert now >= told
                assert now[0] <= truth
                told = now
    json.loads(path.read_text() if path.exists() else "{}")
