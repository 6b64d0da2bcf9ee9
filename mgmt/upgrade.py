"""Another release of the agent into a running appliance: pushed, waited for, looked at, confirmed.

Whatever goes wrong on the way, the appliance goes back by itself; what runs there at the end is asked and said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mgmt.bundle import Bundle
from mgmt.push import Answer, Appliance, PushError

POLL_S = 0.25
GRACE_S = 60.0  # beyond the time to confirm: for the way back, and the agent that comes up then
_MISSING = "neither in the bundle nor installed here"

Say = Callable[[str], None]


class UpgradeError(Exception):
    """An upgrade that did not come about; the words say why and what runs. `answer` is the refusal, if it was one."""

    def __init__(self, words: str, answer: Answer | None = None) -> None:
        self.answer = answer
        super().__init__(words)


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The release that runs now and the one before it; seconds from the push on, and those without an agent."""

    release: str
    previous: str
    changed: bool
    seconds: float = 0.0
    away: float = 0.0


def upgrade(
    appliance: Appliance,
    bundle: Bundle | bytes,
    allow_change: bool = False,
    seconds: int = 0,
    say: Say = lambda _: None,
) -> Upgraded:
    """Give it this release; of a Bundle, only what it lacks is sent. Raises UpgradeError; PushError before the push."""
    version, was_healthy = asked(appliance.version()), appliance.health().status == 200
    say(f"it runs {version['release'] or version['narthex']}, a {version['role']}")
    if isinstance(bundle, Bundle):
        if bundle.id == version["release"]:
            return Upgraded(bundle.id, version["previous"], False)
        thin = bundle.pack(thin=True)
        say(f"sending {bundle.id}, {len(thin) / 2**20:.1f} MiB: without the wheels that an image has")
        started, answer = time.monotonic(), _sent(appliance, thin, allow_change, seconds)
        if answer.status == 422 and _MISSING in str(answer.body):
            whole = bundle.pack()
            say(f"it lacks some; sending all, {len(whole) / 2**20:.1f} MiB")
            answer = _sent(appliance, whole, allow_change, seconds)
    else:
        say(f"sending {len(bundle) / 2**20:.1f} MiB")
        started, answer = time.monotonic(), _sent(appliance, bundle, allow_change, seconds)
    return _followed(appliance, answer, was_healthy, started, say)


def _sent(appliance: Appliance, bundle: bytes, allow_change: bool, seconds: int) -> Answer:
    try:
        return appliance.put_release(bundle, allow_change, seconds)
    except PushError as error:
        words = f"the push was not answered: {error}{_now(appliance)}; what is on trial goes back by itself"
        raise UpgradeError(words) from None


def give_back(appliance: Appliance, say: Say = lambda _: None) -> Upgraded:
    """Back to the release before. Raises as `upgrade`."""
    was_healthy = appliance.health().status == 200
    started, answer = time.monotonic(), appliance.return_release()
    told = asked(answer)
    if told["seconds"]:
        return _followed(appliance, answer, was_healthy, started, say)
    found = _wait(appliance, told["release"], 0, say)
    return Upgraded(found["release"], found["previous"], True, time.monotonic() - started)


def asked(answer: Answer) -> Any:
    """What it answered. Raises UpgradeError where that is no."""
    if not answer.good:
        told = answer.body if isinstance(answer.body, dict) else {}
        raise UpgradeError(str(told.get("error", f"it answered {answer.status}")), answer)
    return answer.body


def _followed(appliance: Appliance, answer: Answer, was_healthy: bool, started: float, say: Say) -> Upgraded:
    told = asked(answer)
    release, previous = told["release"], told["previous"]
    if told.get("result") == "unchanged":
        return Upgraded(release, previous, False)
    say(f"{release} does what {previous} does; it is started, and has {told['seconds']} s to be confirmed")
    switched = time.monotonic()
    _wait(appliance, release, told["seconds"], say)
    away = time.monotonic() - switched
    try:
        health = appliance.health()
    except PushError as error:
        words = f"{release} ran, and does not tell its health: {error}"
        raise UpgradeError(f"{words}; it is not confirmed, and goes back by itself{_now(appliance)}") from None
    if health.status != 200 and was_healthy:
        say(f"it is not healthy: {health.body.get('broken') or health.body}")
        raise UpgradeError(f"{release} runs and is not healthy; it is not confirmed, and goes back by itself", health)
    say("it is as healthy as before; confirming over a new connection")
    try:
        asked(appliance.confirm_release(release))
    except UpgradeError as error:
        raise UpgradeError(f"{release} could not be confirmed: {error}{_now(appliance)}", error.answer) from None
    except PushError as error:
        raise UpgradeError(f"{release} could not be confirmed, and goes back by itself: {error}") from None
    return Upgraded(release, previous, True, time.monotonic() - started, away)


def _wait(appliance: Appliance, release: str, seconds: int, say: Say) -> dict[str, Any]:
    """Until that release answers. Raises UpgradeError when it was taken back, or nothing answers any more."""
    deadline = time.monotonic() + seconds + GRACE_S
    last = "nothing answered"
    while time.monotonic() < deadline:
        try:
            found: dict[str, Any] = asked(appliance.version())
        except (PushError, UpgradeError) as error:
            last = str(error)
        else:
            if found["release"] == release:
                return found
            if found["trial"] is None and (returned := found["returned"]) and returned["release"] == release:
                raise UpgradeError(f"{release} was taken back: {returned['why']}; {found['release']} runs")
            last = f"{found['release']} runs"
        time.sleep(POLL_S)
    raise UpgradeError(f"{release} does not answer: {last}; see its console")


def _now(appliance: Appliance) -> str:
    try:
        return f"; {asked(appliance.version())['release']} runs"
    except (PushError, UpgradeError):
        return ""
