"""The plug pulled at random moments of a push: the old generation or the new one comes back, never a mixture.

What a cut loses is what the guest has not given to its disk; the disk here keeps what it was given, in order.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mgmt.push import PushError
from tests.bed import CELL
from tests.netns.calls import PATIENCE_S, heard, tcp
from tests.netns.stage import DESK, L10, L20, MAIL, WEB, Stage, allow, config, exception, forward, office, static
from tests.netns.truth import compiled, differences
from tests.trials import trials
from tests.vm.machine import BOOT_SECONDS

pytestmark = pytest.mark.soak("image")
Json = dict[str, Any]
Record = Callable[[str, float, str], None]
SHARED = (allow("in", L10), forward("kept", L10, 80, WEB), office(dhcp={"enabled": True}, dns=True))
OLD = (*SHARED, forward("a", L10, 81, WEB, 80), static("a", L20, MAIL))
NEW = (*SHARED, *(forward(f"b-{n}", L10, 1000 + n, DESK, 80) for n in range(40)), exception("b", "office", "tcp", 25))


def test_the_plug_is_pulled_during_a_push(stage: Stage, record_figure: Record) -> None:
    bed = stage.bed
    documents: dict[int, Json] = {}

    def document(objects: tuple[Json, ...]) -> Json:
        made = bed.document(config(*objects))
        documents[made["generation"]] = made
        return made

    def push() -> float:
        """Push OLD, confirmed; the seconds it took."""
        started = time.monotonic()
        made = document(OLD)
        answer = bed.settled(bed.appliance.put(json.dumps(made).encode()))
        assert answer.good, answer.body
        return time.monotonic() - started

    seconds = push()
    kept_new = 0
    count = trials(30)
    seed = random.randrange(1 << 30)
    print(f"random seed {seed}")
    rng = random.Random(seed)
    for number in range(count):
        new = document(NEW)
        body = json.dumps(new).encode()

        def pushing(body: bytes = body) -> None:
            with suppress(PushError, OSError, EOFError):
                bed.appliance.put(body)

        thread = threading.Thread(target=pushing)
        thread.start()
        time.sleep(rng.uniform(0.0, 1.3 * seconds))
        bed.driver.power_cut(CELL)
        thread.join()
        bed.appliance.close()
        bed.driver.start(CELL)
        try:
            bed.appliance.wait(BOOT_SECONDS)
        except PushError as error:
            said = "\n".join(list(bed.driver.logs(CELL))[-40:])
            raise AssertionError(f"trial {number}: {error}; its console:\n{said}") from error
        state = bed.appliance.state().body
        assert state["converged"], f"trial {number}: {state['broken']}"
        now = state["generation"]
        assert now in (new["generation"] - 1, new["generation"]), f"trial {number}: generation {now}"
        bed.driver.wait_agent(CELL, BOOT_SECONDS)
        assert differences(bed, compiled(bed, documents[now])) == [], f"trial {number}, generation {now}"
        stage.meets("web", tcp(stage.world, L10, 80))
        if now == new["generation"]:
            kept_new += 1
            stage.meets("desk", tcp(stage.world, L10, 1039))
        else:
            (reply,) = heard(stage.services, [tcp(stage.world, L10, 1039)], PATIENCE_S)
            assert reply is not None
            assert reply.name == "refused", f"trial {number}: {reply}"
        complaints = bed.run("sh", "-c", "dmesg --level=emerg,alert,crit,err | grep -i ext4 || true")
        assert complaints == "", f"trial {number}"
        bed.generation = new["generation"]  # the number is used up, whatever became of it
        seconds = push()
    record_figure("image: plug pulled during a push", count, "times")
    record_figure("image: of these, the new generation was there after the boot", kept_new, "times")
    assert_clean(bed, Path(bed.folder))


def assert_clean(bed: Any, scratch: Path) -> None:
    """After an orderly end, e2fsck finds nothing to put right on either file system."""
    bed.appliance.close()
    bed.driver.stop(CELL)
    raw = scratch / "after.raw"
    disk = bed.driver.disk.folder(CELL) / "root.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw)], check=True)
    told = json.loads(subprocess.run(["sfdisk", "--json", str(raw)], capture_output=True, check=True).stdout)
    for partition in told["partitiontable"]["partitions"]:
        if partition.get("name") in ("root", "log"):
            at = f"{raw}?offset={partition['start'] * 512}"
            done = subprocess.run(["e2fsck", "-f", "-n", at], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
