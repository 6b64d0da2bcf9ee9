"""The fixtures of the vm tier: the image, the tree's own agent as a bundle, and a stage whose router is in a VM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgmt.bundle import make_bundle
from mgmt.image.catalogue import for_tests
from tests.bed import Bed, standing_in
from tests.netns.stage import Stage
from tests.vm.machine import Vm


@pytest.fixture(scope="session", name="image")
def image_fixture() -> Path:
    """The qcow2 that fits this tree's system; built where it isn't in the cache."""
    return for_tests()


@pytest.fixture(scope="session", name="bundle")
def bundle_fixture() -> bytes:
    """This tree's agent, without the wheels that the image has."""
    return make_bundle().pack(thin=True)


@pytest.fixture(scope="session", name="machines")
def machines_fixture(image: Path, bundle: bytes, tmp_path_factory: pytest.TempPathFactory) -> Vm:
    """Where the routers of this tier run."""
    return Vm(tmp_path_factory.mktemp("vm"), image, bundle)


@pytest.fixture(scope="module", autouse=True)
def _in_a_vm(machines: Vm) -> Iterator[None]:
    with standing_in(machines):
        yield


@pytest.fixture(scope="module", name="stage")
def stage_fixture(_in_a_vm: None) -> Iterator[Stage]:
    """A stage of the module's own; its router stands at the moment before its first document."""
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module", name="vm")
def vm_fixture(stage: Stage) -> Bed:
    """The stage's bed: `.run(*argv)` as root inside, `.appliance`, `.driver`."""
    return stage.bed
