"""Metadata in a VM: the service under its sandbox and account tells guests what it tells them in a cell."""

from __future__ import annotations

import re

from tests.bed import wait_for
from tests.netns.stage import DMZ, LAN, WEB, Stage, put, remove
from tests.netns.test_metadata import ALL, BINARY, SCRIPT, get, host, password, text, told


def test_in_the_machine(stage: Stage) -> None:
    stage.push(*ALL)
    wait_for(lambda: get(stage.web, "/")[0] == 200, 60)
    assert (
        text(stage.web, "/latest/instance-id") == text(stage.web, "/latest/instance-id", "169.254.169.254") == "vm-web"
    )
    assert text(stage.db, "/latest/instance-id", DMZ) == "vm-db"
    assert get(stage.web, "/latest/user-data") == (200, SCRIPT)
    assert get(stage.mail, "/latest/user-data", LAN, "-m", "20") == (200, BINARY)
    assert get(stage.desk, "/latest/user-data") == (404, b"nothing is known of this address")
    assert password(stage.web, "send_my_password") == "wOrd-of-web"
    assert password(stage.web, "saved_password") == "saved_password"
    stage.run("systemctl restart narthex-metadata.service")
    wait_for(lambda: get(stage.web, "/")[0] == 200, 60)
    assert password(stage.web, "send_my_password") == "saved_password"
    stage.bed.patch(put(host("web", told("web", password="p-2"))))
    assert password(stage.web, "send_my_password") == "wOrd-of-web"


def test_it_is_confined_and_the_files_are_its_own(stage: Stage) -> None:
    pid = stage.run("systemctl show --property=MainPID --value narthex-metadata.service").strip()
    assert stage.run(f"ps -o user= -p {pid}").strip() == "www-data"
    score = stage.run("systemd-analyze security --no-pager narthex-metadata.service").splitlines()[-1]
    assert float(re.findall(r"\d+\.\d", score)[0]) <= 4.0, score
    assert stage.run(f"stat -c %a:%U:%G /run/narthex/metadata/{WEB}").strip() == "640:root:www-data"
    assert stage.run("stat -c %a:%U:%G /var/lib/narthex/metadata").strip() == "770:root:www-data"
    memory = stage.run(f"grep VmRSS /proc/{pid}/status").split()
    assert int(memory[1]) <= 20 << 10
    stage.bed.patch(remove(host("web")))
    assert get(stage.web, "/latest/user-data")[0] == 404
    assert WEB not in stage.run("ls /run/narthex/metadata").split()
