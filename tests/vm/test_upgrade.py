"""Another release into a running router: no live flow loses a packet, and one that is broken goes back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgmt.bundle import Bundle, describe, make_bundle
from mgmt.image.wheels import Wheel
from mgmt.push import PushError
from mgmt.upgrade import Upgraded, UpgradeError, give_back, upgrade
from tests.bed import CELL, Bed, wait_for
from tests.netns.calls import tcp, udp
from tests.netns.flows import Stream
from tests.netns.stage import L10, WEB, WORLD, Stage, allow, forward
from tests.releases import CRASH, HANG, in_the_agent, variant

pytestmark = [pytest.mark.timeout(900), pytest.mark.soak("image")]
Record = Callable[[str, float, str], None]
RATE = 100  # datagrams and segments a second: an emulated router forwards them all
PATIENCE_S = 240.0


@pytest.fixture(scope="module", name="made")
def _made() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="module", name="bed")
def _bed(stage: Stage) -> Bed:
    """With a document, and the seed's release confirmed by itself."""
    stage.push(forward("web", L10, 80, WEB), allow("in", L10))
    version = told(stage.bed)
    assert (version["trial"], version["refused"]) == (None, "")
    assert version["release"]
    return stage.bed


@pytest.fixture(name="streams")
def _streams(stage: Stage, bed: Bed) -> Iterator[list[Stream]]:
    """Live flows, in by the forward and out by source NAT. Each of them lost nothing."""
    calls = (tcp(stage.world, L10, 80), tcp(stage.web, WORLD, 80), udp(stage.web, WORLD, 5000))
    streams = [Stream(call, RATE) for call in calls]
    for stream in streams:
        go_on(stream)
    yield streams
    for stream in streams:
        go_on(stream)
    assert [stream.lost() for stream in streams] == [0, 0, 0]


def go_on(stream: Stream) -> None:
    """A second's worth of it comes through."""
    wanted = stream.got + RATE
    wait_for(lambda: stream.got >= wanted, PATIENCE_S, f"the stream {stream.flow.call} stands still")


def told(bed: Bed) -> dict[str, Any]:
    answer = bed.appliance.version()
    assert answer.status == 200
    return dict(answer.body)


def wait_for_release(bed: Bed, release: str) -> dict[str, Any]:
    """What it tells as soon as that release runs and nothing is on trial."""
    deadline = time.monotonic() + PATIENCE_S
    found: object = None
    while time.monotonic() < deadline:
        try:
            version = told(bed)
            if version["release"] == release and version["trial"] is None:
                return version
            found = version
        except PushError as error:
            found = error
        time.sleep(0.5)
    raise AssertionError(f"{release} does not run: {found}")


def another(made: Bundle, words: str) -> Bundle:
    """A release that does the same."""
    return variant(made, "appliance/version.py", f"# {words}")


def test_upgraded_and_returned(bed: Bed, made: Bundle, streams: list[Stream], record_figure: Record) -> None:
    before = told(bed)["release"]
    new = another(made, "another")
    done = upgrade(bed.appliance, new)
    assert (done.release, done.previous, done.changed) == (new.id, before, True)
    version = told(bed)
    assert (version["release"], version["previous"], version["trial"]) == (new.id, before, None)
    assert upgrade(bed.appliance, new) == Upgraded(new.id, before, False)
    assert give_back(bed.appliance).release == before
    version = wait_for_release(bed, before)
    assert version["previous"] == new.id
    assert bed.run("systemctl", "show", "--property=NRestarts", "--value", "narthex-agent.service").strip() == "0"
    record_figure("image: without an agent in an upgrade", round(done.away, 1), "s")


@pytest.mark.parametrize("kind", ["bad hash", "missing wheel", "does not import", "another machine"])
def test_a_broken_bundle_changes_nothing(bed: Bed, made: Bundle, streams: list[Stream], kind: str) -> None:
    before = told(bed)
    pid = bed.run("systemctl", "show", "--property=MainPID", "--value", "narthex-agent.service")
    given: Bundle | bytes
    if kind == "bad hash":
        given, words = another(made, kind).pack(thin=True).replace(b"PK\x03\x04", b"PK\x03\x05", 1), "its sha256 is not"
    elif kind == "missing wheel":
        nowhere = Wheel(Path("nowhere-1.0-py3-none-any.whl"), "nowhere", "1.0", "0" * 64)
        lacking = describe([made.agent, *made.third_party, nowhere])
        given, words = replace(made, id=lacking["id"], told=lacking).pack(thin=True), "nowhere-1.0-py3-none-any.whl"
    elif kind == "does not import":
        given, words = variant(made, "appliance/engine.py", CRASH), "broken on purpose"
    else:
        text = "_compile = compile\ndef compile(config, facts):\n    from dataclasses import replace\n"
        text += "    from appliance.state import Sysctl\n    state = _compile(config, facts)\n"
        text += "    return replace(state, sysctls=(*state.sysctls, Sysctl('net.ipv4.ip_default_ttl', '65')))"
        given, words = variant(made, "router/role.py", text), "+sysctl net.ipv4.ip_default_ttl = 65"
    with pytest.raises(UpgradeError) as caught:
        upgrade(bed.appliance, given)
    assert caught.value.answer is not None
    assert words in str(caught.value.answer.body)
    assert told(bed) == before
    assert bed.run("systemctl", "show", "--property=MainPID", "--value", "narthex-agent.service") == pid


@pytest.mark.parametrize(
    ("text", "seconds", "why"),
    [
        (in_the_agent(CRASH), 200, "its agent failed (exit-code), 2 times"),
        (in_the_agent(HANG), 20, "it was not confirmed within 20 s"),
    ],
    ids=["crashes at start", "hangs at start"],
)
def test_one_that_does_not_start_goes_back_by_itself(
    bed: Bed, made: Bundle, streams: list[Stream], text: str, seconds: int, why: str
) -> None:
    before = told(bed)["release"]
    broken = variant(made, "appliance/engine.py", text)
    with pytest.raises(UpgradeError, match="was taken back"):
        upgrade(bed.appliance, broken, seconds=seconds)
    version = wait_for_release(bed, before)
    assert (version["returned"]["release"], version["returned"]["why"]) == (broken.id, why)
    assert bed.appliance.health().status == 200


def test_one_that_nobody_confirms_goes_back_by_itself(bed: Bed, made: Bundle, streams: list[Stream]) -> None:
    before = told(bed)["release"]
    new = another(made, "unconfirmed")
    answer = bed.appliance.put_release(new.pack(thin=True), seconds=30)
    assert (answer.status, answer.body["release"]) == (202, new.id)
    version = wait_for_release(bed, before)
    assert version["returned"] == {**version["returned"], "release": new.id, "why": "it was not confirmed within 30 s"}
    late = bed.appliance.confirm_release(new.id)
    assert late.status == 409
    assert f"{new.id} was taken back" in late.body["error"]


def test_a_power_cut_during_a_trial_goes_back(stage: Stage, bed: Bed, made: Bundle) -> None:
    before = told(bed)["release"]
    new = another(made, "cut")
    assert bed.appliance.put_release(new.pack(thin=True), seconds=600).status == 202
    deadline = time.monotonic() + PATIENCE_S
    while not _runs(bed, new.id):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert told(bed)["trial"]["release"] == new.id
    bed.driver.power_cut(CELL)
    bed.driver.start(CELL)
    version = wait_for_release(bed, before)
    assert version["returned"]["why"] == "the machine went down before it was confirmed"
    assert bed.appliance.health().body["generation"] == bed.generation
    stage.meets("web", tcp(stage.world, L10, 80))


def _runs(bed: Bed, release: str) -> bool:
    try:
        return bool(told(bed)["release"] == release)
    except PushError:
        return False
