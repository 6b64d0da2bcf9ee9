"""IPv6 for guests in a VM: the very test functions of tests/netns, with the daemon in systemd's confinement."""

from collections.abc import Callable

from tests.netns.dual import V6, DualStage, office6
from tests.netns.test_advertise import *  # noqa: F403


def test_it_is_confined(stage: DualStage, record_figure: Callable[[str, float, str], None]) -> None:
    stage.push(*V6, office6(advertise={"addresses": "slaac"}))
    told = stage.run("systemd-analyze security --no-pager narthex-advertise-lan.service").splitlines()[-1]
    score = float(told.rpartition(":")[2].split()[0])
    record_figure("exposure of narthex-advertise by systemd-analyze", score, "of 10")
    assert score <= 4.0, told
