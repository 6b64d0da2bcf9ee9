"""A newer agent in the seed: installed once, by release.py. A broken one leaves the machine its own, and is told of."""

from __future__ import annotations

import json

import pytest

from appliance.seed import boot
from tests.appliance import seeds
from tests.appliance.seeds import Stage, stage_fixture, trouble

__all__ = ["stage_fixture"]


def bundle(release: str = "1.0-abc") -> bytes:
    member = json.dumps({"format": 1, "id": release}).encode()
    head = b"release.json".ljust(124, b"\0") + b"%011o\0" % len(member)
    return head.ljust(512, b"\0") + member.ljust(512, b"\0") + b"wheels"


def installs(stage: Stage) -> list[tuple[str, ...]]:
    return [argv for argv, _ in stage.ran if "appliance.release" in argv]


def test_a_bundle_is_installed_once_per_instance(stage: Stage) -> None:
    stage.insert(seeds.seed() | {"narthex.bundle": bundle()})
    assert boot(stage.machine) == 0
    (argv,) = installs(stage)
    assert argv[1:] == (
        "-P", "-s", "-m", "appliance.release", "install", "--current", f"{stage.root}/run/narthex/seed/narthex.bundle",
    )  # fmt: skip
    assert [argv[0] for argv, _ in stage.ran].index("umount") == 2, "while the disk is mounted"
    stage.restart()
    assert boot(stage.machine) == 0
    assert not installs(stage)
    stage.restart()
    stage.insert(seeds.seed() | {"narthex.bundle": bundle("1.1-def")})
    assert boot(stage.machine) == 0
    assert installs(stage)
    stage.restart()
    stage.insert(seeds.seed(meta_data=b"instance-id: i-2") | {"narthex.bundle": bundle("1.1-def")})
    assert boot(stage.machine) == 0
    assert installs(stage)


def refused(stage: Stage) -> str:
    """The machine comes up with the agent that it has; why the bundle was not taken, as the agent tells it."""
    assert boot(stage.machine) == 0
    assert (stage.root / "etc/narthex/settings.json").exists()
    assert (stage.root / "run/narthex/sshd.env").exists()
    assert not (stage.root / "run/narthex/trouble").exists()
    return (stage.root / "run/narthex/refused").read_text()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a tar", bundle()[:530], bundle().replace(b'"id"', b'"ix"'), bundle().replace(b"\x30" * 5, b"99999", 1)],
)
def test_no_bundle(stage: Stage, content: bytes) -> None:
    stage.insert(seeds.seed() | {"narthex.bundle": content})
    assert "/dev/sr0 (cidata): narthex.bundle: not a bundle; make it with ./narthex appliance bundle" in refused(stage)
    assert not installs(stage)


def test_a_bundle_that_cannot_be_installed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.insert(seeds.seed() | {"narthex.bundle": bundle()})
    monkeypatch.setattr("sys.executable", "python3")
    stage.answers["python3"] = (1, "x.whl: its sha256 is another")
    assert "narthex.bundle: x.whl: its sha256 is another; give another bundle" in refused(stage)
    assert any(argv[0] == "umount" for argv, *_ in stage.ran)
    stage.restart()
    assert boot(stage.machine) == 0
    assert installs(stage), "it is offered again at the next boot"


def test_a_bundle_that_is_too_large(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.seeddisk.BUNDLE_BYTES", 10)
    stage.insert(seeds.seed() | {"narthex.bundle": bundle()})
    assert "narthex.bundle: more than" in trouble(stage)
