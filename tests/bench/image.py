"""The image beside the bare Debian that it is made from: boot, size, memory. Both by the same emulator, in turns."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from mgmt.demo_stage import BRIDGES, EXAMPLE, ROUTER
from mgmt.hosts.driver import Nic, Seed
from mgmt.hosts.namespace import Bridge, Namespace
from mgmt.hosts.qemu import Hardware, QemuDriver
from mgmt.image import artifacts, catalogue
from mgmt.keys import make_key
from mgmt.push import Appliance, PushError, Target
from tests.bench.figures import Figure, figure
from tests.vm.machine import accelerator, wait_settled

ROUNDS = 3
MEMORY = 512  # MiB, for both
PATIENCE_S = 300.0


def run() -> list[Figure]:
    """All figures of the image."""
    image, _ = catalogue.built()
    bare = catalogue.bare()
    boots: list[float] = []
    ready: list[float] = []
    first: list[float] = []
    memory = 0.0
    for number in range(ROUNDS):
        boots.append(_twice(lambda: boot_bare(bare)))
        answered, converged, memory = boot_router(image.artifact(artifacts.QCOW2), MEMORY, settle=False)
        ready.append(answered)
        first.append(converged)
        print(
            f"round {number + 1}: bare {boots[-1]:.1f} s, agent {answered:.1f} s, converged {converged:.1f} s",
            flush=True,
        )
    _, _, memory = boot_router(image.artifact(artifacts.QCOW2), 256, settle=True)
    size = image.artifact(artifacts.QCOW2).stat().st_size / 2**20
    floor = median(boots)
    return [
        figure("image, qcow2, compressed", round(size, 1), "MiB", most=300),
        figure("packages", image.packages, ""),
        figure("power-on to the agent's first answer", round(median(ready), 1), "s", floor),
        figure("power-on to first document converged", round(median(first), 1), "s", floor, ratio_most=1.25),
        figure("memory in use as a router, of 256 MiB", round(memory, 1), "MiB"),
    ]


def _twice(boot: Callable[[], float]) -> float:
    """An emulated kernel panics in its first seconds once in some dozens of boots; it is asked once more."""
    try:
        return boot()
    except RuntimeError as error:
        if "Kernel panic" not in str(error):
            raise
        print("the emulated kernel panicked; once more", flush=True)
        return boot()


def boot_bare(disk: Path) -> float:
    """Seconds from power-on of the bare Debian until its sshd greets."""
    with tempfile.TemporaryDirectory(prefix="narthex-bench-") as scratch, socket.socket() as free:
        overlay = Path(scratch, "disk.qcow2")
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", "qcow2", str(overlay)], check=True
        )
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        accel = accelerator()
        started = time.monotonic()
        with subprocess.Popen([
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc",
            "-accel", "tcg,thread=multi" if accel == "tcg" else accel, "-cpu", "max" if accel == "tcg" else "host",
            "-m", str(MEMORY), "-smp", "2",
            "-drive", f"file={overlay},format=qcow2,if=none,id=root,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=root,bootindex=1", "-device", "virtio-rng-pci",
            "-serial", f"file:{scratch}/console.log",
            "-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device", "virtio-net-pci,netdev=n,romfile=",
        ], stdin=subprocess.DEVNULL) as process:  # fmt: skip
            try:
                while not _greets(port):
                    if time.monotonic() - started > PATIENCE_S:
                        raise RuntimeError(f"the bare Debian does not come up: {_console(scratch)[-500:]}")
                    if "Kernel panic" in _console(scratch):
                        raise RuntimeError("Kernel panic")
                    time.sleep(0.05)
                return time.monotonic() - started
            finally:
                process.kill()


def _console(scratch: str) -> str:
    path = Path(scratch, "console.log")
    return path.read_text(errors="replace") if path.exists() else ""


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as sock:
            sock.settimeout(2.0)
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


def boot_router(disk: Path, memory_mib: int, settle: bool) -> tuple[float, float, float]:
    """Seconds from power-on to the agent's first answer, and to the demo's document converged; MiB in use then.

    `settle`: memory is read when cloud-init is through, too.
    """
    document = json.loads(EXAMPLE.read_text())
    control, *others = document["config"]["interfaces"]
    manager, host = make_key(), make_key()
    folder = Path(tempfile.mkdtemp(prefix="narthex-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ground = stack.enter_context(Namespace(f"bench{os.getpid()}"))
        for bridge in BRIDGES.values():
            stack.enter_context(Bridge(bridge, ground))
        hardware = Hardware(accelerator=accelerator(), memory_mib=memory_mib)
        driver = QemuDriver(disk, ground, folder / "state", folder / "run", hardware)
        seed = Seed(ROUTER, "router", control["addresses"][0], manager.public, host.public, host.private)
        stack.callback(driver.destroy, ROUTER)
        driver.create(seed, [Nic(i["mac"], BRIDGES[i["use"]]) for i in others])
        started = time.monotonic()
        driver.start(ROUTER)
        address = seed.control_address.partition("/")[0]
        appliance = stack.enter_context(Appliance(Target(address, host.public, manager.private, dial=ground.connect)))
        _wait(appliance, started)
        answered = time.monotonic() - started
        answer = appliance.put(json.dumps(document).encode())
        if answer.status == 202:
            answer = appliance.confirm(document["generation"])
        if answer.status != 200:
            raise RuntimeError(f"the document was answered {answer.status}: {answer.body}")
        converged = time.monotonic() - started
        if settle:
            wait_settled(driver, ROUTER)
        return answered, converged, _memory(driver)


def _wait(appliance: Appliance, started: float) -> None:
    while True:
        try:
            appliance.health()
            return
        except PushError:
            if time.monotonic() - started > PATIENCE_S:
                raise
            time.sleep(0.1)


def _memory(driver: QemuDriver) -> float:
    driver.wait_agent(ROUTER, PATIENCE_S)
    told = driver.run(ROUTER, ["cat", "/proc/meminfo"]).stdout
    found = {line.split(":")[0]: int(line.split()[1]) for line in told.splitlines()}
    return (found["MemTotal"] - found["MemAvailable"]) / 1024
