"""The agent's releases in an appliance: installed beside each other, one of them current, a new one on trial.

    /opt/narthex/wheels/NAME-HASH/       an unpacked wheel
    /opt/narthex/releases/ID/            release.json, path (its PYTHONPATH), join.py
    /opt/narthex/current                 a link to one of them, switched by rename(2)
    /opt/narthex/trial.json              while a release runs that nobody has confirmed
    /opt/narthex/returned.json           the last one that was taken back, and why

This file belongs to the image and not to a release, so that it works whatever a new release does: it stands in
/usr/lib/narthex too, imports only the standard library and `installer`, and is run by systemd and by the seed.

    python3 -P -s -m appliance.release install [--current] [--compile] BUNDLE | return [WHY] | boot | ended
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

ROOT = Path("/opt/narthex")
FORMAT = 1
BUNDLE_BYTES = 64 << 20
WHEEL_BYTES = 64 << 20  # unpacked
FAILURES = 2  # of a release on trial, until it is taken back
DONE, REFUSED = 0, 1
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_ID = re.compile(r"[0-9A-Za-z.+]{1,40}-[0-9a-f]{12}", re.ASCII)
_WHEEL = re.compile(r"[A-Za-z0-9_.+-]{1,200}\.whl", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)

Run = Callable[[Sequence[str]], tuple[int, str]]  # argv -> (exit status, output)
Json = dict[str, Any]


class ReleaseError(Exception):
    """A release that cannot be installed or switched to; nothing was changed."""


def _run(argv: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def release_id(release: Mapping[str, Any]) -> str:
    """The id that belongs to what a release.json says: its version, and a digest of all but the id."""
    plain = {key: value for key, value in release.items() if key != "id"}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return f"{release['version']}-{sha256(canonical.encode()).hexdigest()[:12]}"


def wheel_folder(wheel: Mapping[str, str]) -> str:
    """The name of the folder that a wheel is unpacked in."""
    return f"{wheel['file'].removesuffix('.whl')}-{wheel['sha256'][:12]}"


class Releases:
    """The releases below `root`. Every change is a rename: cut at any moment, the old ones are whole."""

    def __init__(self, root: Path = ROOT, run: Run = _run) -> None:
        self.root, self.run = root, run

    # --- what there is

    @property
    def current(self) -> str:
        """The current release's id, "" where there is none."""
        try:
            return os.readlink(self.root / "current").rpartition("/")[2]
        except OSError:
            return ""

    @property
    def installed(self) -> list[str]:
        """The ids of all that are whole."""
        return sorted(p.name for p in (self.root / "releases").glob("*") if _ID.fullmatch(p.name))

    @property
    def trial(self) -> Json | None:
        """{"release", "previous", "since", "seconds", "failures"} of the release on trial. `seconds` is 0 where the
        agent confirms itself, as soon as it is ready: the seed's."""
        return _read(self.root / "trial.json")

    @property
    def returned(self) -> Json | None:
        """{"release", "why", "at"} of the last one that was taken back."""
        return _read(self.root / "returned.json")

    def path(self, release: str) -> str:
        """A release's PYTHONPATH."""
        return (self.root / "releases" / release / "path").read_text().strip()

    # --- installing

    def install(self, bundle: IO[bytes], compile: bool = False) -> str:
        """Unpack a bundle beside what is there; its id. Raises ReleaseError with everything as it was."""
        self._clean()
        scratch = self.root / f".new-{os.getpid()}"
        scratch.mkdir(parents=True)
        try:
            release = self._unpacked(bundle, scratch)
            for wheel in release["wheels"]:
                self._install_wheel(wheel, scratch, compile)
            self._install_release(release, scratch)
        except OSError as error:
            raise ReleaseError(f"{error.filename or self.root}: {error.strerror}; make room, then try again") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return str(release["id"])

    def _clean(self) -> None:
        """What a cut installation has left."""
        for left in (
            *self.root.glob(".new-*"),
            *(self.root / "wheels").glob(".*"),
            *(self.root / "releases").glob(".*"),
        ):
            shutil.rmtree(left, ignore_errors=True)

    def _unpacked(self, bundle: IO[bytes], scratch: Path) -> Json:
        """The wheels of the bundle, checked, in `scratch`; what its release.json says."""
        release: Json | None = None
        sums: dict[str, str] = {}
        try:
            with tarfile.open(fileobj=bundle, mode="r|") as tar:
                for member in tar:
                    if not member.isfile() or member.size > BUNDLE_BYTES:
                        raise ReleaseError(f"{member.name[:80]!r}: not a plain file of a bundle; make it anew")
                    file = tar.extractfile(member)
                    assert file is not None
                    if release is None:
                        release = _checked(member, file)
                        sums = {wheel["file"]: wheel["sha256"] for wheel in release["wheels"]}
                        continue
                    name = member.name.removeprefix("wheels/")
                    if f"wheels/{name}" != member.name or name not in sums:
                        raise ReleaseError(
                            f"{member.name[:80]!r}: release.json names no such wheel; make the bundle anew"
                        )
                    _copy(file, scratch / name, sums[name])
        except tarfile.TarError as error:
            raise ReleaseError(f"not a bundle: {error}; make it with ./narthex appliance bundle") from None
        if release is None:
            raise ReleaseError("not a bundle: it is empty; make it with ./narthex appliance bundle")
        missing = [
            w["file"] for w in release["wheels"]
            if not (scratch / w["file"]).exists() and not (self.root / "wheels" / wheel_folder(w)).is_dir()
        ]  # fmt: skip
        if missing:
            words = f"neither in the bundle nor installed here: {', '.join(missing)}"
            raise ReleaseError(f"{words}; give a full bundle (./narthex appliance bundle)")
        return release

    def _install_wheel(self, wheel: Mapping[str, str], scratch: Path, compile: bool) -> None:
        folder = self.root / "wheels" / wheel_folder(wheel)
        if folder.is_dir():
            return
        new = folder.with_name(f".{folder.name}")
        new.mkdir(parents=True)
        _unpack(scratch / wheel["file"], new, compile)
        _sync_tree(new)
        new.rename(folder)
        _sync(folder.parent)

    def _install_release(self, release: Json, scratch: Path) -> None:
        folder = self.root / "releases" / release["id"]
        if folder.is_dir():
            return
        wheels = [self.root / "wheels" / wheel_folder(wheel) for wheel in release["wheels"]]
        new = folder.with_name(f".{folder.name}")
        new.mkdir(parents=True)
        _write(new / "release.json", json.dumps(release, indent=1))
        _write(new / "path", ":".join(map(str, wheels)) + "\n")
        join = next((found for w in wheels if (found := w / "appliance" / "join.py").exists()), None)
        if join is None:
            raise ReleaseError("no wheel of the bundle has the agent (appliance/join.py); make the bundle anew")
        _write(new / "join.py", join.read_text())
        new.rename(folder)
        _sync(folder.parent)

    # --- switching

    def switch(self, release: str) -> None:
        """Make an installed release current: the next start of the agent is that. Raises ReleaseError."""
        if release not in self.installed:
            raise ReleaseError(f"release {release} is not installed; there are {', '.join(self.installed) or 'none'}")
        new = self.root / ".current"
        with suppress(FileNotFoundError):
            new.unlink()
        new.symlink_to(f"releases/{release}")
        new.rename(self.root / "current")
        _sync(self.root)

    def start_trial(self, release: str, seconds: int) -> None:
        """Make it current, to be taken back if it is not confirmed within `seconds` (0: when it does not get ready)."""
        if self.trial:
            raise ReleaseError(f"release {self.trial['release']} is on trial; confirm or return it first")
        previous = self.current
        trial = {"release": release, "previous": previous, "since": time.time(), "seconds": seconds, "failures": 0}
        _write(self.root / "trial.json", json.dumps(trial))
        try:
            self.switch(release)
            if seconds:
                self._arm(seconds)
        except ReleaseError:
            if previous:
                self.switch(previous)
            self._remove("trial.json")
            raise

    def _arm(self, seconds: int) -> None:
        """A timer of systemd's, which needs nothing of the new release."""
        self.run(("systemctl", "stop", "narthex-return.timer"))
        here = str(Path(__file__).resolve().parents[1])
        status, words = self.run((
            "systemd-run", "--quiet", "--collect", "--unit=narthex-return", f"--on-active={seconds}s",
            "--timer-property=AccuracySec=100ms", f"--setenv=PYTHONPATH={here}",
            sys.executable, "-P", "-s", "-m", "appliance.release", "return", f"not confirmed within {seconds} s",
        ))  # fmt: skip
        if status:
            raise ReleaseError(f"systemd takes no timer for the return: {words}")

    def confirm(self) -> str:
        """End the trial: the release stays. Its id, "" where none was on trial."""
        trial = self.trial
        if trial is None:
            return ""
        self._remove("trial.json")
        if trial["seconds"]:
            self.run(("systemctl", "stop", "narthex-return.timer"))
        self._prune({trial["release"], trial["previous"]})
        return str(trial["release"])

    def take_back(self, why: str) -> str:
        """End the trial: the previous release is current again. The id that was taken back, "" where none was on trial.

        The agent is not restarted by this.
        """
        trial = self.trial
        if trial is None:
            return ""
        if trial["previous"]:
            self.switch(trial["previous"])
        _write(self.root / "returned.json", json.dumps({"release": trial["release"], "why": why, "at": time.time()}))
        self._remove("trial.json")
        return str(trial["release"])

    def at_boot(self) -> str:
        """A trial that a power cut has ended was not confirmed: it is taken back."""
        return self.take_back("the machine went down before it was confirmed")

    def ended(self, result: str) -> str:
        """The agent's process has ended with systemd's `result`. A trial that fails twice, or hangs, is taken back."""
        trial = self.trial
        if trial is None or result == "success":
            return ""
        failures = int(trial["failures"]) + 1
        if failures < FAILURES and result not in ("timeout", "watchdog"):
            _write(self.root / "trial.json", json.dumps({**trial, "failures": failures}))
            return ""
        return self.take_back(
            f"its agent ended {failures} times ({result})" if failures > 1 else f"its agent hung ({result})"
        )

    def _remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        _sync(self.root)

    def _prune(self, kept: set[str]) -> None:
        """Remove releases that are neither kept, nor current, nor the image's own, and the wheels of none of these."""
        own = _read(self.root / "image.json") or {}
        kept = kept | {self.current, str(own.get("release", ""))}
        wheels: set[str] = set()
        for release in self.installed:
            if release in kept:
                wheels |= {Path(folder).name for folder in self.path(release).split(":")}
            else:
                shutil.rmtree(self.root / "releases" / release, ignore_errors=True)
        for folder in (self.root / "wheels").glob("*"):
            if folder.name not in wheels:
                shutil.rmtree(folder, ignore_errors=True)

    def mark_as_images(self, release: str) -> None:
        """The release that came with the image is never removed: it is what a machine can always go back to."""
        _write(self.root / "image.json", json.dumps({"release": release}))


# --- bundles and wheels -----------------------------------------------------------------------------------------------


def _checked(member: tarfile.TarInfo, file: IO[bytes]) -> Json:
    """release.json, the first member of a bundle. Raises ReleaseError."""
    if member.name != "release.json" or member.size > 1 << 20:
        raise ReleaseError("not a bundle: release.json is not its first file; make it with ./narthex appliance bundle")
    try:
        release = json.loads(file.read())
        wheels = release["wheels"]
        well = (
            release["format"] == FORMAT
            and _ID.fullmatch(release["id"])
            and all(_WHEEL.fullmatch(w["file"]) and _HASH.fullmatch(w["sha256"]) for w in wheels)
            and len({w["file"] for w in wheels}) == len(wheels)
        )
        python, expected = release["python"], release_id(release)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"release.json: {type(error).__name__}: {error}; make the bundle anew") from None
    if not well:
        raise ReleaseError("release.json: not of this format; make the bundle with the manager of this release")
    if release["id"] != expected:
        raise ReleaseError(
            f"release.json: its id is {release['id']}, what it says makes {expected}; make the bundle anew"
        )
    if python != PYTHON:
        raise ReleaseError(f"release.json: made for Python {python}, here is {PYTHON}; make a bundle for this image")
    return dict(release)


def _copy(file: IO[bytes], path: Path, digest: str) -> None:
    found = sha256()
    with path.open("wb") as out:
        while some := file.read(1 << 20):
            found.update(some)
            out.write(some)
    if found.hexdigest() != digest:
        raise ReleaseError(
            f"{path.name}: its sha256 is {found.hexdigest()}, not {digest}: damaged, or not the one meant"
        )


def _unpack(wheel: Path, folder: Path, compile: bool) -> None:
    """A wheel into a folder, by the library that pip's makers keep for it. Raises ReleaseError."""
    from installer import install
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile

    schemes = {name: str(folder) for name in ("purelib", "platlib")}
    schemes |= {name: str(folder / f".{name}") for name in ("headers", "scripts", "data")}
    levels = (0,) if compile else ()
    try:
        with WheelFile.open(wheel) as source:
            names = source._zipfile.infolist()
            bad = [n.filename for n in names if n.filename.startswith("/") or ".." in n.filename.split("/")]
            if bad or sum(n.file_size for n in names) > WHEEL_BYTES:
                raise ReleaseError(f"{wheel.name}: {bad[0][:80] if bad else 'too large'}: not what a wheel may hold")
            target = SchemeDictionaryDestination(schemes, sys.executable, "posix", bytecode_optimization_levels=levels)
            install(source=source, destination=target, additional_metadata={"INSTALLER": b"narthex"})
    except ReleaseError:
        raise
    except Exception as error:  # the library's own, zipfile's, and whatever a torn file makes of them
        raise ReleaseError(f"{wheel.name}: cannot be unpacked: {type(error).__name__}: {error}") from None


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Json | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and on the disk."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync(folder)


# --- as a program -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="appliance.release")
    parser.add_argument("--root", type=Path, default=ROOT)
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install")
    install.add_argument("--current", action="store_true")
    install.add_argument("--compile", action="store_true")
    install.add_argument("bundle", type=Path)
    verbs.add_parser("return").add_argument("why", nargs="?", default="by hand")
    verbs.add_parser("boot")
    verbs.add_parser("ended")
    given = parser.parse_args(argv)
    releases = Releases(given.root)
    try:
        return _do(releases, given)
    except (ReleaseError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED


def _do(releases: Releases, given: argparse.Namespace) -> int:
    if given.verb == "install":
        with given.bundle.open("rb") as bundle:
            release = releases.install(bundle, given.compile)
        if given.current:
            _make_current(releases, release)
        print(release)
    elif given.verb == "return":
        if releases.take_back(given.why):
            print(f"taken back: {given.why}")
            releases.run(("systemctl", "restart", "--no-block", "narthex-agent.service"))
    elif given.verb == "boot":
        if gone := releases.at_boot():
            print(f"taken back: {gone}")
    elif gone := releases.ended(os.environ.get("SERVICE_RESULT", "success")):
        print(f"taken back: {gone}")
    return DONE


def _make_current(releases: Releases, release: str) -> None:
    """The image's first release as it is; the seed's on trial, until its agent is ready."""
    if not releases.current:
        releases.switch(release)
        releases.mark_as_images(release)
    elif (returned := releases.returned) and returned["release"] == release:
        raise ReleaseError(f"release {release} was tried and taken back: {returned['why']}")
    elif releases.current != release:
        releases.start_trial(release, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
