"""An image's trial: boot it, push the demo's document, try its packets: the demo's own story, its router in a VM."""

from __future__ import annotations

from pathlib import Path

from mgmt.bundle import make_bundle
from mgmt.demo import Outcome, Teller, run_demo
from mgmt.demo_stage import Where
from mgmt.hosts.qemu import Hardware, QemuDriver
from mgmt.image import artifacts
from mgmt.image.build import accelerator
from mgmt.image.catalogue import Image

SLOWER = {"tcg": 12.0, "kvm": 2.0}  # than a cell; patience, not a figure


def smoke(
    image: Image, teller: Teller, accel: str = "", firmware: str = "bios", own_agent: bool = True
) -> list[Outcome]:
    """Every step of the demo against the image. `own_agent`: the one in the image, else this tree's by the seed."""
    chosen = accelerator(accel)
    hardware = Hardware(accelerator=chosen, firmware=firmware)  # type: ignore[arg-type]
    bundle = None if own_agent else make_bundle().pack(thin=True)
    disk = image.artifact(artifacts.QCOW2)

    def driver(ground: object, folder: Path) -> QemuDriver:
        return QemuDriver(disk, ground, folder / "state", folder / "run", hardware, bundle)  # type: ignore[arg-type]

    return run_demo(teller, keep=False, where=Where(f"a VM by {chosen}", driver, SLOWER[chosen]))
