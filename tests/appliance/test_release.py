"""Releases beside each other: whatever is given and whenever it is cut, what runs is whole, and a trial ends."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance import release as release_module
from appliance.bundle import ReleaseError
from appliance.release import Releases, main
from tests.appliance.bundles import agent, bundle, described, identity, library, packed, wheel

OLD, NEW, THIRD = agent("old"), agent("new"), agent("third")
LIB = library()
OLD_ID, NEW_ID, THIRD_ID = (identity(one, LIB) for one in (OLD, NEW, THIRD))


class Appliance:
    """A root with the image's release in it, and a systemd that only remembers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[tuple[str, ...]] = []
        self.status = 0
        self.boot = "boot-1"
        self.environment: dict[str, str] = {}
        self.releases = self.anew()

    def anew(self) -> Releases:
        """As another process sees it."""
        return Releases(self.root, self.run, lambda: self.boot, self.environment)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        self.ran.append(tuple(argv))
        return self.status, "no bus" if self.status else ""

    def armed(self) -> list[tuple[str, ...]]:
        return [argv for argv in self.ran if argv[0] == "systemd-run"]

    def is_whole(self, release: str) -> bool:
        """Its three files, and every wheel that its path names, with their content."""
        folder = self.root / "releases" / release
        told = json.loads((folder / "release.json").read_text())
        wheels = [Path(p) for p in self.releases.path(release).split(":")]
        text = {OLD_ID: "old", NEW_ID: "new", THIRD_ID: "third"}[release]
        return (
            told["id"] == release
            and (folder / "join.py").read_text() == "print('join')\n"
            and (wheels[0] / "appliance/__init__.py").read_text() == text
            and (wheels[1] / "library.py").exists()
        )

    def on_trial(self, seconds: int = 60) -> None:
        self.releases.install(bundle(NEW, LIB))
        self.releases.start_trial(NEW_ID, seconds)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls this machine's plug."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(name="house")
def _house(tmp_path: Path) -> Appliance:
    house = Appliance(tmp_path / "opt")
    assert house.releases.offer(bundle(OLD, LIB)) == OLD_ID
    return house


def names(house: Appliance) -> set[str]:
    return {p.name for p in (house.root / "releases").iterdir()}


# --- what is given


def test_a_release_is_installed_beside_the_old_one(house: Appliance) -> None:
    assert house.releases.install(bundle(NEW, LIB)) == NEW_ID
    assert (house.releases.current, house.releases.installed) == (OLD_ID, sorted((OLD_ID, NEW_ID)))
    assert house.is_whole(OLD_ID)
    assert house.is_whole(NEW_ID)
    assert len(list((house.root / "wheels").iterdir())) == 3, "the library is shared"


def test_what_is_here_may_be_left_out(house: Appliance) -> None:
    assert house.releases.install(bundle(NEW, LIB, without=[LIB[0]])) == NEW_ID
    assert house.is_whole(NEW_ID)
    other = library("another")
    with pytest.raises(ReleaseError, match=r"neither in the bundle nor installed here: library-1.0-py3-none-any.whl; "):
        house.releases.install(bundle(NEW, other, without=[other[0]]))


def _link(name: str, to: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def _twice(*files: str) -> Any:
    """`edit` of a wheel: more files, by names that no tool would give them."""

    def edit(archive: zipfile.ZipFile) -> None:
        for name in files:
            archive.writestr(zipfile.ZipInfo(name), "bad")

    return edit


TOLD = json.dumps(described([NEW, LIB])).encode()
WRONG: dict[str, tuple[Callable[[], io.BytesIO], str]] = {
    "nothing": (io.BytesIO, "not a bundle"),
    "no tar": (lambda: io.BytesIO(b"x" * 2000), "not a bundle, or torn"),
    "torn": (lambda: io.BytesIO(bundle(NEW, LIB).getvalue()[:2500]), "torn|sha256"),
    "no release.json": (lambda: packed([("wheels/x.whl", b"")]), "its first file is 'wheels/x.whl'"),
    "bad hash": (lambda: packed([("release.json", TOLD), (f"wheels/{NEW[0]}", OLD[1])]), "its sha256 is not the one"),
    "no such wheel": (lambda: packed([("release.json", TOLD), ("wheels/other-1.whl", b"")]), "names no such wheel"),
    "a path out of it": (lambda: packed([("release.json", TOLD), (f"wheels/../../{NEW[0]}", b"")]), "no such wheel"),
    "an absolute path": (lambda: packed([("release.json", TOLD), (f"/wheels/{NEW[0]}", b"")]), "no such wheel"),
    "a link": (lambda: packed([("release.json", TOLD), (_link(f"wheels/{NEW[0]}", "/etc/passwd", tarfile.SYMTYPE),
                                                        b"")]), "not a plain file"),
    "a device": (lambda: packed([(_link("release.json", "", tarfile.CHRTYPE), b"")]), "not a plain file"),
    "a folder": (lambda: packed([("release.json", TOLD), (_link("wheels", "", tarfile.DIRTYPE), b"")]), "not a plain"),
    "no JSON": (lambda: packed([("release.json", b"{")]), r"release.json: JSONDecodeError"),
    "deep JSON": (lambda: packed([("release.json", b"[" * 100_000)]), r"release.json: RecursionError"),
    "another kind": (lambda: packed([("release.json", b"[]")]), "release.json: TypeError"),
    "another format": (lambda: bundle(NEW, LIB, format=2), "not of this format"),
    "another Python": (lambda: bundle(NEW, LIB, python="2.7"), "made for Python 2.7"),
    "another id": (lambda: packed([("release.json", TOLD.replace(NEW_ID.encode(), b"0.1.0-0123456789ab"))]),
                   "its id is 0.1.0-0123456789ab"),
    "an id that is a path": (lambda: bundle(NEW, version="../../x"), "not of this format"),
    "a wheel that is a path": (lambda: bundle(("../x.whl", b"")), "not of this format"),
    "a hidden wheel": (lambda: bundle((".x-1-py3-none-any.whl", b"")), "not of this format"),
    "a wheel twice": (lambda: bundle(NEW, NEW), "not of this format"),
    "no agent": (lambda: bundle(LIB), "no wheel of the bundle has the agent"),
    "no zip": (lambda: bundle((NEW[0], b"PK")), "narthex_agent-1.0-py3-none-any.whl: cannot be unpacked"),
    "a wheel's way out": (lambda: bundle(wheel("narthex_agent", {}, edit=_twice("../../../../evil.py"))),
                          "a path that leaves the wheel"),
    "a wheel's way to the root": (lambda: bundle(wheel("narthex_agent", {}, edit=_twice("/evil.py"))),
                                  "a path that leaves the wheel"),
    "too large a wheel": (lambda: bundle(wheel("narthex_agent", {"appliance/join.py": b"0" * 3000})), "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_changes_nothing(house: Appliance, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "too large a wheel":
        monkeypatch.setattr("appliance.bundle.WHEEL_BYTES", 2000)
    before = sorted(p for p in house.root.parent.rglob("*"))
    make, words = WRONG[kind]
    with pytest.raises(ReleaseError, match=words):
        house.releases.install(make())
    house.anew().install(bundle(OLD, LIB))  # whatever is left of it goes with the next
    assert sorted(p for p in house.root.parent.rglob("*")) == before
    assert house.is_whole(OLD_ID)


def test_a_bundle_that_is_too_large(house: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.bundle.BUNDLE_BYTES", 1000)
    with pytest.raises(ReleaseError, match="the bundle is larger than"):
        house.releases.install(bundle(NEW, LIB))


# --- cut between any two steps


class Cut(BaseException):
    """The plug was pulled."""


class Plug:
    """Counts what is done to the disk, and from the step `at` on does nothing more: it raises `error`."""

    STEPS = ("rename", "symlink", "mkdir", "unlink", "rmdir", "fsync")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.at, self.error, self.count = at, error, 0
        for name in self.STEPS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, deed: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.count >= self.at:
                self.count += 1
                raise self.error
            self.count += 1
            return deed(*args, **options)

        return counted


def _try(house: Appliance) -> None:
    house.releases.install(bundle(NEW, LIB))
    house.releases.start_trial(NEW_ID, 60)


def _confirm(house: Appliance) -> None:
    house.releases.confirm(NEW_ID)


def _take_back(house: Appliance) -> None:
    house.releases.take_back("tried")


def _offer(house: Appliance) -> None:
    house.releases.offer(bundle(NEW, LIB))


DEEDS: dict[str, tuple[Callable[[Appliance], None], bool]] = {  # the deed, and whether a trial goes before it
    "try": (_try, False), "offer": (_offer, False), "confirm": (_confirm, True), "take back": (_take_back, True),
}  # fmt: skip


@pytest.mark.parametrize("error", [Cut(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=["power", "disk"])
@pytest.mark.parametrize("deed", DEEDS)
def test_cut_anywhere_the_current_release_is_whole_and_the_trial_ends(
    tmp_path: Path, deed: str, error: BaseException
) -> None:
    act, is_tried = DEEDS[deed]
    at = 0
    while True:
        house = Appliance(tmp_path / f"{deed}-{at}")
        house.releases.offer(bundle(OLD, LIB))
        house.releases.install(bundle(THIRD, LIB))  # something to prune
        if is_tried:
            house.on_trial()
        with pytest.MonkeyPatch.context() as patched:
            plug = Plug(patched, at, error)
            with suppress(Cut, ReleaseError, OSError):
                act(house)
            was_cut = plug.count > at
        again = house.anew()
        assert again.current in (OLD_ID, NEW_ID), at
        assert house.is_whole(again.current), at
        assert again.current == OLD_ID or again.trial or deed == "confirm", f"{at}: the new one, and no way back"
        house.boot = "boot-2"
        tried = again.trial
        again.at_boot()
        again.at_boot()
        if tried and tried["seconds"]:
            assert (again.current, again.trial) == (OLD_ID, None), at
        assert house.is_whole(again.current), at
        if again.trial:  # the seed's, cut once: it may try a second time
            assert again.confirm(again.current)
        again.install(bundle(NEW, LIB))
        assert house.is_whole(NEW_ID), at
        assert house.is_whole(again.current), at
        assert not [p for p in house.root.rglob("*") if p.name.startswith(".")], at
        if not was_cut:
            break
        at += 1
    assert at > 3, "there was nothing to cut"


# --- trials


def test_a_trial_and_its_confirmation(house: Appliance) -> None:
    house.on_trial(90)
    trial = house.anew().trial
    assert trial is not None
    assert (trial["release"], trial["previous"], trial["seconds"]) == (NEW_ID, OLD_ID, 90)
    assert house.releases.current == NEW_ID
    (timer,) = house.armed()
    assert "--on-active=90s" in timer
    assert timer[-3:] == ("return", f"--release={NEW_ID}", "it was not confirmed within 90 s")
    with pytest.raises(ReleaseError, match=f"release {NEW_ID} is on trial"):
        house.releases.start_trial(OLD_ID, 60)
    assert not house.releases.confirm(OLD_ID)
    assert house.releases.confirm(NEW_ID)
    assert (house.releases.current, house.releases.previous, house.releases.trial) == (NEW_ID, OLD_ID, None)
    assert house.ran[-1] == ("systemctl", "stop", "narthex-return.timer")
    assert not house.releases.confirm(NEW_ID)


def test_no_timer_no_trial(house: Appliance) -> None:
    house.releases.install(bundle(NEW, LIB))
    house.status = 1
    with pytest.raises(ReleaseError, match="systemd takes no timer for its return: no bus"):
        house.releases.start_trial(NEW_ID, 60)
    assert (house.releases.current, house.releases.trial) == (OLD_ID, None)


def test_the_way_back_is_armed_before_the_switch(house: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(house.releases, "run", lambda argv: (seen.append(house.releases.current), (0, ""))[1])
    house.on_trial()
    assert set(seen) == {OLD_ID}


def test_the_timer_takes_back_only_the_release_that_it_was_armed_for(house: Appliance) -> None:
    house.on_trial()
    root = f"--root={house.root}"
    assert main([root, "return", f"--release={THIRD_ID}", "late"], house.run) == 0
    assert house.releases.current == NEW_ID
    assert main([root, "return", f"--release={NEW_ID}", "it was not confirmed within 60 s"], house.run) == 0
    assert (house.releases.current, house.releases.trial) == (OLD_ID, None)
    assert house.releases.returned is not None
    assert house.releases.returned["why"] == "it was not confirmed within 60 s"
    assert house.ran[-1] == ("systemctl", "restart", "--no-block", "narthex-agent.service")


def test_a_release_on_trial_may_fail_once(house: Appliance) -> None:
    house.on_trial()
    assert house.anew().ended("exit-code") == ""
    assert house.releases.current == NEW_ID
    assert house.anew().ended("signal") == NEW_ID
    assert (house.releases.current, house.releases.trial) == (OLD_ID, None)
    assert house.releases.returned is not None
    assert house.releases.returned["why"] == "its agent failed (signal), 2 times"
    assert house.anew().ended("signal") == "", "the old one may fail as often as it likes"


@pytest.mark.parametrize("result", ["timeout", "watchdog"])
def test_one_that_hangs_may_not(house: Appliance, result: str) -> None:
    house.on_trial()
    assert house.releases.ended(result) == NEW_ID
    assert house.releases.current == OLD_ID


def test_how_the_old_agent_ends_is_no_matter(house: Appliance) -> None:
    house.environment["INVOCATION_ID"] = "the-old-one"
    house.on_trial()
    for _ in range(3):
        assert house.releases.ended("timeout") == ""
    house.environment["INVOCATION_ID"] = "the-new-one"
    assert house.releases.ended("success") == ""
    assert house.releases.ended("timeout") == NEW_ID


def test_a_full_disk_keeps_nobody_on_trial(house: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    house.on_trial()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(release_module, "write", full)
    assert house.releases.ended("exit-code") == NEW_ID, "a failure that cannot be counted is the last"
    assert (house.releases.current, house.releases.trial) == (OLD_ID, None)


def test_a_power_cut_ends_a_pushed_trial_at_once_and_the_seeds_at_the_second(house: Appliance) -> None:
    house.on_trial()
    assert house.anew().at_boot() == "", "the agent restarts in the same boot"
    house.boot = "boot-2"
    assert house.anew().at_boot() == NEW_ID
    assert house.releases.current == OLD_ID
    house.releases.start_trial(NEW_ID, 0)
    assert not house.armed()[1:], "the seed's needs no timer"
    house.boot = "boot-3"
    assert house.anew().at_boot() == ""
    assert house.anew().at_boot() == ""
    house.boot = "boot-4"
    assert house.anew().at_boot() == NEW_ID


def test_where_the_previous_one_is_gone_it_is_back_to_the_images(house: Appliance) -> None:
    house.on_trial()
    house.releases.confirm(NEW_ID)
    house.releases.install(bundle(THIRD, LIB))
    house.releases.start_trial(THIRD_ID, 60)
    (house.root / "releases" / NEW_ID).rename(house.root / "elsewhere")
    assert house.releases.take_back("tried") == THIRD_ID
    assert house.releases.current == OLD_ID


def test_only_what_one_can_go_back_to_is_kept(house: Appliance) -> None:
    ids = []
    for text in ("a", "b", "c"):
        one = agent(text)
        ids.append(house.releases.install(bundle(one, LIB)))
        house.releases.start_trial(ids[-1], 60)
        assert house.releases.confirm(ids[-1])
    assert names(house) == {OLD_ID, ids[1], ids[2]}, "the image's own, the one before, the one that runs"
    assert len(list((house.root / "wheels").iterdir())) == 4
    assert house.is_whole(OLD_ID)
    house.environment["NARTHEX_RELEASE"] = ids[1]
    house.releases.switch(OLD_ID)
    house.releases.install(bundle(THIRD, LIB))
    assert ids[1] in names(house), "it runs, whatever is current"
    house.releases.install(bundle(NEW, LIB))
    assert THIRD_ID not in names(house), "it was never tried"


# --- the seed's


def test_the_seeds_release_is_on_trial_until_it_is_ready(house: Appliance) -> None:
    assert house.releases.offer(bundle(NEW, LIB)) == NEW_ID
    assert (house.releases.current, house.armed()) == (NEW_ID, [])
    assert house.releases.offer(bundle(NEW, LIB)) == NEW_ID, "it is current"
    house.releases.ended("exit-code")
    house.releases.ended("exit-code")
    assert house.releases.current == OLD_ID
    with pytest.raises(ReleaseError, match="was tried and taken back: its agent failed"):
        house.releases.offer(bundle(NEW, LIB))
    assert house.releases.current == OLD_ID


def test_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, given = f"--root={tmp_path / 'opt'}", tmp_path / "a.bundle"
    given.write_bytes(bundle(OLD, LIB).getvalue())
    assert main([root, "install", "--current", str(given)]) == 0
    assert capsys.readouterr().out == f"{OLD_ID}\n"
    assert Releases(tmp_path / "opt").images == OLD_ID
    assert main([root, "boot"]) == 0
    assert main([root, "ended"]) == 0
    given.write_bytes(b"")
    assert main([root, "install", "--current", str(given)]) == 1
    assert "not a bundle" in capsys.readouterr().err
    assert main([root, "install", str(tmp_path / "none")]) == 1
