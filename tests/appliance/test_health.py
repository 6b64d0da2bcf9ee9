"""Health: what is asked, what is remembered of it, and what a person and Prometheus are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.health import NAMED, SAMPLE
from appliance.state import Check, Entry, File, NftSet, Ruleset, State, Unit
from appliance.vitals import Trouble
from tests.appliance.rig import BASE, Rig, document
from tests.appliance.test_certificate import SHORT, SHORT_ENDS

GATEWAY = Check("gateway", "203.0.113.1", owner="outside")
KEY = "ipv4_addr . inet_proto . inet_service"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    rig.settle(BASE)
    return rig


def stand(rig: Rig, **parts: Any) -> State:
    """The engine's State with these parts, as if a role had made it so."""
    state = replace(rig.engine.current.state, **parts)
    rig.engine.current = replace(rig.engine.current, state=state)
    return state


def looked(rig: Rig) -> dict[tuple[str, str], dict[str, Any]]:
    rig.health.look()
    return {(c["kind"], c["object"] or c["target"]): c for c in rig.health.told()["checks"]}


def forwards(count: int) -> Ruleset:
    elements = {f"203.0.113.10 . tcp . {1000 + n}": f"10.1.1.{n % 200 + 1} . {n + 1}" for n in range(count)}
    owners = {key: f"fwd-{n}" for n, key in enumerate(elements)}
    elements["203.0.113.10 . udp . 53"] = "10.1.1.9 . 53"  # nobody can ask whether that is answered
    return Ruleset(
        {"m_forward": NftSet("m_forward", KEY, "ipv4_addr . inet_service", elements=elements, owners=owners)}
    )


def test_every_state_has_its_machine_and_units_asked_and_nothing_else(rig: Rig) -> None:
    found = looked(rig)
    assert all(c["ok"] for c in found.values())
    assert {kind for kind, _ in found} == {"disk", "memory", "clock", "machine", "unit"}
    assert ("unit", "toyd") in found


def test_what_failed_since_when_and_what_to_do(rig: Rig) -> None:
    stand(rig, checks=(GATEWAY,))
    assert looked(rig)["gateway", "outside"]["ok"]
    rig.host.clock += 60
    rig.host.answers["gateway 203.0.113.1"] = (False, "no answer")
    began = rig.host.now()
    for _ in range(3):
        found = looked(rig)["gateway", "outside"]
        assert (found["ok"], found["why"], found["since"], found["last"]) == (False, "no answer", began, rig.host.now())
        assert "POST /v1/diagnostics" in found["remedy"]
        rig.host.clock += 60
    assert rig.health.told()["failing"] == 1
    assert rig.log.getvalue().count('"no answer"') == 1  # told once, not every minute
    rig.host.answers.clear()
    found = looked(rig)["gateway", "outside"]
    assert (found["ok"], found["since"], "remedy" in found) == (True, rig.host.now(), False)


def test_what_there_was_no_time_for_stays_as_it_was(rig: Rig) -> None:
    stand(rig, checks=(GATEWAY,))
    asked = looked(rig)["gateway", "outside"]
    rig.host.clock += 60
    rig.host.answers["gateway 203.0.113.1"] = None
    assert looked(rig)["gateway", "outside"] == asked


def test_what_is_not_in_the_state_any_more_is_not_told(rig: Rig) -> None:
    stand(rig, checks=(GATEWAY,))
    rig.host.answers["gateway 203.0.113.1"] = (False, "no answer")
    looked(rig)
    assert 'object="outside"' in rig.metrics.text()
    stand(rig, checks=())
    assert ("gateway", "outside") not in looked(rig)
    assert 'object="outside"' not in rig.metrics.text()
    assert "narthex_checks_failing 0" in rig.metrics.text()


def test_a_unit_that_does_not_run(rig: Rig) -> None:
    rig.host.machine = replace(rig.host.machine, units=())
    found = looked(rig)["unit", "toyd"]
    assert (found["ok"], found["why"]) == (False, "it does not run")


def test_troubles_and_drift_are_told_in_their_kind(rig: Rig) -> None:
    rig.host.ill = (Trouble("disk /var/log", "nearly full"),)
    rig.engine.examine()
    found = looked(rig)
    assert (found["disk", "disk /var/log"]["ok"], found["memory", "memory"]["ok"]) == (False, True)


def test_days_of_a_certificate_that_a_daemon_was_told(rig: Rig) -> None:
    rig.host.clock = SHORT_ENDS - 20 * 86400
    told = json.dumps({"certs": [SHORT]})
    stand(rig, units=(Unit("vpnd", ("vpnd",)),), entries=(Entry("vpnd", "/run/x", "connection", "a", told, owner="a"),))
    found = looked(rig)["certificate", "a"]
    assert (found["ok"], found["why"]) == (False, "it ends in 20 days")


def test_days_of_a_certificate(rig: Rig) -> None:
    rig.host.clock = SHORT_ENDS - 30.5 * 86400
    stand(rig, files=(File("/etc/x.pem", SHORT, secret=True, owner="shop"),))
    assert looked(rig)["certificate", "shop"]["ok"]
    assert 'narthex_certificate_days{kind="certificate",object="shop",target="/etc/x.pem"} 30.5' in rig.metrics.text()
    rig.host.clock = SHORT_ENDS - 20 * 86400
    found = looked(rig)["certificate", "shop"]
    assert (found["ok"], found["why"]) == (False, "it ends in 20 days")
    rig.host.clock = SHORT_ENDS + 5 * 86400
    assert looked(rig)["certificate", "shop"]["why"] == "it ended 5 days ago"


def test_forwards_are_asked_in_turn(rig: Rig) -> None:
    count = 3 * SAMPLE
    stand(rig, checks=(Check("forwards"),), ruleset=forwards(count))
    for _ in range(4):  # the one by UDP takes a place
        looked(rig)
    asked = [check for some in rig.host.asked for check in some]
    assert all(len(some) <= SAMPLE for some in rig.host.asked)
    assert len({check.owner for check in asked}) == count
    assert not [check for check in asked if (check.target, check.name) == ("10.1.1.9", "53")]
    assert looked(rig)["forward", ""]["why"] == f"the {count} that were asked, of {count + 1}, take connections"


def test_a_forward_whose_target_is_silent_is_named_until_it_is_asked_again(rig: Rig) -> None:
    stand(rig, checks=(Check("forwards"),), ruleset=forwards(3))
    rig.host.answers["tcp 10.1.1.2"] = (False, "refuses")
    found = looked(rig)
    assert [key for key, c in found.items() if not c["ok"]] == [("forward", "fwd-1")]
    assert ("forward", "") not in found
    stand(rig, ruleset=forwards(1))
    assert ("forward", "fwd-1") not in looked(rig)


def test_ten_thousand_forwards_are_as_many_questions_as_a_few(rig: Rig) -> None:
    stand(rig, checks=(Check("forwards"),), ruleset=forwards(10_000))
    rig.host.answers = {f"tcp 10.1.1.{n}": (False, "silent") for n in range(256)}
    for _ in range(8):
        rig.health.look()
    assert all(len(some) <= SAMPLE for some in rig.host.asked)
    assert sum(c["kind"] == "forward" for c in rig.health.told()["checks"]) == NAMED


def test_no_forward_no_word_of_forwards(rig: Rig) -> None:
    stand(rig, checks=(Check("forwards"),), ruleset=forwards(0))
    assert not [key for key in looked(rig) if key[0] == "forward"]


def test_forwards_that_are_not_to_be_asked_any_more_are_forgotten(rig: Rig) -> None:
    stand(rig, checks=(Check("forwards"),), ruleset=forwards(3))
    assert ("forward", "") in looked(rig)
    stand(rig, checks=())
    assert not [key for key in looked(rig) if key[0] == "forward"]


def test_a_dead_asker_loses_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.machine import HostError

    stand(rig, checks=(GATEWAY,))
    looked(rig)

    def dies(checks: Any) -> Any:
        raise HostError("it was ended")

    monkeypatch.setattr(rig.host, "ask", dies)
    assert looked(rig)["gateway", "outside"]["ok"]
    assert "it was ended" in rig.log.getvalue()


def test_the_api_tells_and_asks_at_once(rig: Rig) -> None:
    stand(rig, checks=(GATEWAY,))
    client = rig.app().test_client()
    assert client.get("/v1/health").get_json()["checks"] == []
    rig.host.answers["gateway 203.0.113.1"] = (False, "no answer")
    answer = client.get("/v1/health?now=1")
    assert (answer.status_code, answer.get_json()["failing"]) == (200, 1)  # the appliance itself is well
    assert answer.get_json()["checks"][0]["object"] == "outside"
    text = client.get("/metrics").get_data(as_text=True)
    assert 'narthex_check_ok{kind="gateway",object="outside",target="203.0.113.1"} 0' in text


def test_checks_are_no_part_of_the_machine(rig: Rig) -> None:
    """Another set of checks is no step of a plan, and no push waits for an answer."""
    stand(rig, checks=(GATEWAY,))
    assert rig.engine.heal("timer") is None
    assert rig.engine.put(document(BASE, 2)).status == 200
    assert rig.host.asked == []
