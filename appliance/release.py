"""The agent's releases in an appliance: installed beside each other, one of them current, a new one on trial.

    /opt/narthex/wheels/NAME-HASH/       an unpacked wheel
    /opt/narthex/releases/ID/            release.json, path (its PYTHONPATH), join.py
    /opt/narthex/current                 a link to one of them, switched by rename(2)
    /opt/narthex/previous                a link to the one before it
    /opt/narthex/image.json              the one that came with the image
    /opt/narthex/trial.json              while a release runs that nobody has confirmed
    /opt/narthex/returned.json           the last one that was taken back, and why

This file belongs to the image and not to a release, so that it works whatever a new release does: it stands in
/usr/lib/narthex too, needs only the standard library, bundle.py and durable.py, and is run by systemd and by the seed.
Its own files are read by releases that know them otherwise: what a file says may grow, and nothing of it may change.

    python3 -P -s -m appliance.release install [--current] BUNDLE
                                       return [--release ID] [WHY] | boot | ended
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from appliance.bundle import ID, Json, ReleaseError, read_bundle, unpack_wheel, wheel_folder
from appliance.durable import read_json, sync, sync_tree, write

ROOT = Path("/opt/narthex")
FIXED = Path("/usr/lib/narthex")  # where the image has this file
UNIT = "narthex-agent.service"
RETURN = "narthex-return"
FAILURES = 2  # of a release on trial, until it is taken back
DONE, REFUSED = 0, 1

Run = Callable[[Sequence[str]], tuple[int, str]]  # argv -> (exit status, output)


def _run(argv: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def _boot() -> str:
    """What tells this boot from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Releases:
    """The releases below `root`. Every change is a rename: cut at any moment, the old ones are whole.

    One process at a time changes anything; the others wait. `run` runs systemd's programs.
    """

    def __init__(
        self, root: Path = ROOT, run: Run = _run, boot: Callable[[], str] = _boot,
        environment: Mapping[str, str] = os.environ,
    ) -> None:  # fmt: skip
        self.root, self.run, self.boot, self.environment = root, run, boot, environment
        self._depth = 0

    # --- what there is

    @property
    def current(self) -> str:
        """The current release's id, "" where there is none."""
        return self._linked("current")

    @property
    def previous(self) -> str:
        """The id of the release before it, "" where that is not known or not there any more."""
        found = self._linked("previous")
        return found if found in self.installed else ""

    @property
    def running(self) -> str:
        """The id of the release that this very process runs, as the launcher has told it; "" elsewhere."""
        return self.environment.get("NARTHEX_RELEASE", "")

    @property
    def images(self) -> str:
        """The id of the release that came with the image."""
        return str((read_json(self.root / "image.json") or {}).get("release", ""))

    @property
    def installed(self) -> list[str]:
        """The ids of all that are whole."""
        return sorted(p.name for p in (self.root / "releases").glob("*") if ID.fullmatch(p.name))

    @property
    def trial(self) -> Json | None:
        """{"release", "previous", "since", "seconds", "failures", "boot", "invocation", "connection"} of the release on
        trial. `seconds` is 0 where the agent confirms itself, as soon as it is ready: the seed's. `invocation` is
        systemd's name for the run of the agent that began it, `connection` the one that the release was pushed by."""
        return read_json(self.root / "trial.json")

    @property
    def returned(self) -> Json | None:
        """{"release", "why", "at"} of the last one that was taken back."""
        return read_json(self.root / "returned.json")

    def path(self, release: str) -> str:
        """A release's PYTHONPATH."""
        return (self.root / "releases" / release / "path").read_text().strip()

    def _linked(self, name: str) -> str:
        try:
            return os.readlink(self.root / name).rpartition("/")[2]
        except OSError:
            return ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among processes. One thread at a time, which its callers see to, and it may ask again."""
        if self._depth:
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._depth += 1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            self._depth -= 1
            os.close(fd)

    # --- installing

    def install(self, bundle: IO[bytes]) -> str:
        """Unpack a bundle beside what is there; its id. Raises ReleaseError with everything as it was."""
        with self._locked():
            try:
                self._clean()
                scratch = self.root / f".new-{os.getpid()}"
                scratch.mkdir()
                try:
                    release = read_bundle(bundle, scratch, lambda w: (self.root / "wheels" / wheel_folder(w)).is_dir())
                    for wheel in release["wheels"]:
                        self._install_wheel(wheel, scratch)
                    self._install_release(release)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
            except OSError as error:
                where = f"{error.filename or self.root}: {error.strerror}"
                raise ReleaseError(f"{where}; see that the disk has room and is whole, then try again") from error
            return str(release["id"])

    def _clean(self) -> None:
        """What a cut installation has left, and what nobody can go back to any more."""
        self._prune()
        folders = (self.root, self.root / "wheels", self.root / "releases")
        for left in (entry for folder in folders for entry in folder.glob(".*")):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def _install_wheel(self, wheel: Mapping[str, str], scratch: Path) -> None:
        folder = self.root / "wheels" / wheel_folder(wheel)
        if folder.is_dir():
            return
        new = folder.with_name(f".{folder.name}")
        new.mkdir(parents=True)
        unpack_wheel(scratch / wheel["file"], new)
        sync_tree(new)
        new.rename(folder)
        sync(folder.parent)

    def _install_release(self, release: Json) -> None:
        folder = self.root / "releases" / release["id"]
        if folder.is_dir():
            return
        wheels = [self.root / "wheels" / wheel_folder(wheel) for wheel in release["wheels"]]
        join = next((found for w in wheels if (found := w / "appliance" / "join.py").exists()), None)
        if join is None:
            raise ReleaseError("no wheel of the bundle has the agent (appliance/join.py); make the bundle anew")
        new = folder.with_name(f".{folder.name}")
        new.mkdir(parents=True)
        write(new / "release.json", json.dumps(release, indent=1))
        write(new / "path", ":".join(map(str, wheels)) + "\n")
        write(new / "join.py", join.read_text())
        new.rename(folder)
        sync(folder.parent)

    # --- switching

    def switch(self, release: str) -> None:
        """Make an installed release current: the next start of the agent is that. Raises ReleaseError."""
        with self._locked():
            self._link("current", self._there(release))

    def _there(self, release: str) -> str:
        if release not in self.installed:
            raise ReleaseError(f"release {release} is not installed; there are {', '.join(self.installed) or 'none'}")
        return release

    def _link(self, name: str, release: str) -> None:
        new = self.root / f".{name}"
        new.unlink(missing_ok=True)
        new.symlink_to(f"releases/{release}")
        new.rename(self.root / name)
        sync(self.root)

    def start_trial(self, release: str, seconds: int, connection: str = "") -> None:
        """Make it current, to be taken back if it is not confirmed within `seconds` (0: when it does not get ready).

        Raises ReleaseError with everything as it was. The agent is not restarted by this.
        """
        with self._locked():
            if trial := self.trial:
                raise ReleaseError(f"release {trial['release']} is on trial; confirm it or return it first")
            previous = self.current
            trial = {
                "release": self._there(release), "previous": previous, "since": time.time(), "seconds": seconds,
                "failures": 0, "boot": self.boot(), "invocation": self.environment.get("INVOCATION_ID", ""),
                "connection": connection,
            }  # fmt: skip
            # The way back stands before the switch: whoever cuts us between any two of these, the old one comes back.
            try:
                write(self.root / "trial.json", json.dumps(trial))
                if seconds:
                    self._arm(release, seconds)
                self._link("current", release)
            except (ReleaseError, OSError) as error:
                with suppress(OSError):
                    if previous and self.current != previous:
                        self._link("current", previous)
                    self._remove("trial.json")
                raise ReleaseError(f"release {release} cannot be tried: {error}") from error

    def _arm(self, release: str, seconds: int) -> None:
        """A timer of systemd's, which needs nothing of the new release."""
        home = FIXED if (FIXED / "appliance" / "release.py").exists() else Path(__file__).resolve().parents[1]
        self.run(("systemctl", "stop", f"{RETURN}.timer", f"{RETURN}.service"))
        status, words = self.run((
            "systemd-run", "--quiet", "--collect", f"--unit={RETURN}", f"--on-active={seconds}s",
            "--timer-property=AccuracySec=100ms", f"--setenv=PYTHONPATH={home}",
            sys.executable, "-P", "-s", "-m", "appliance.release", f"--root={self.root}", "return",
            f"--release={release}", f"it was not confirmed within {seconds} s",
        ))  # fmt: skip
        if status:
            raise ReleaseError(f"systemd takes no timer for its return: {words}")

    def restart(self) -> None:
        """Ask systemd for another start of the agent: of what is current."""
        self.run(("systemctl", "restart", "--no-block", UNIT))

    def confirm(self, release: str) -> bool:
        """End the trial of `release`: it stays. False where that is not on trial, or was just taken back."""
        with self._locked():
            trial = self.trial
            if trial is None or trial["release"] != release or self.current != release:
                return False
            with suppress(OSError):  # a full disk: then it is only not known
                if trial["previous"]:
                    self._link("previous", trial["previous"])
            self._remove("trial.json")
            if trial["seconds"]:
                self.run(("systemctl", "stop", f"{RETURN}.timer"))
            with suppress(OSError):
                self._prune()
            return True

    def take_back(self, why: str, release: str = "") -> str:
        """End the trial (of `release` alone, where one is named): the previous release is current again. The id of
        what was taken back, "" where nothing was. The agent is not restarted by this. Raises ReleaseError."""
        with self._locked():
            trial = self.trial
            if trial is None or release not in ("", trial["release"]):
                return ""
            there = self.installed
            before = next((one for one in (trial["previous"], self.images) if one in there), "")
            if not before:
                raise ReleaseError(f"release {trial['release']} failed, and there is no other: {why}")
            if self.current != before:
                self._link("current", before)
            with suppress(OSError):  # a full disk: it is back all the same
                said = {"release": trial["release"], "why": why, "at": time.time()}
                write(self.root / "returned.json", json.dumps(said))
            self._remove("trial.json")
            return str(trial["release"])

    def at_boot(self) -> str:
        """Before the agent's start: a trial that began before this boot was cut by it. What was taken back."""
        with self._locked():
            trial = self.trial
            if trial is None or trial.get("boot") == self.boot():
                return ""
            if self.current != trial["release"]:  # cut before the switch: it never was
                self._remove("trial.json")
                return ""
            if trial["seconds"]:
                return self.take_back("the machine went down before it was confirmed")
            return self._failed({**trial, "boot": self.boot()}, "the machine went down before it was ready")

    def ended(self, result: str) -> str:
        """The agent's process has ended, with systemd's `result` (systemd.exec(5), SERVICE_RESULT). Takes back, and
        returns, a release on trial that failed twice, or hung. How the one that began the trial ends is no matter."""
        with self._locked():
            trial = self.trial
            if trial is None or result == "success" or self._began(trial):
                return ""
            if result in ("timeout", "watchdog"):
                return self.take_back(f"its agent hung ({result})")
            return self._failed(trial, f"its agent failed ({result})")

    def _began(self, trial: Json) -> bool:
        return bool(trial.get("invocation")) and trial["invocation"] == self.environment.get("INVOCATION_ID")

    def _failed(self, trial: Json, why: str) -> str:
        """Count one more failure. A disk that takes no number takes no second failure either."""
        failures = int(trial["failures"]) + 1
        if failures < FAILURES:
            with suppress(OSError):
                write(self.root / "trial.json", json.dumps({**trial, "failures": failures}))
                return ""
        return self.take_back(f"{why}, {failures} times" if failures > 1 else why)

    def _remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        sync(self.root)

    def _prune(self) -> None:
        """Remove releases that nobody can go back to, and the wheels of none of the others."""
        trial = self.trial or {}
        asked = {self.current, self.previous, self.running, self.images, trial.get("release"), trial.get("previous")}
        kept = {release: self.path(release).split(":") for release in self.installed if release in asked}
        wheels = {Path(folder).name for folders in kept.values() for folder in folders}
        if not kept:
            return
        for place, names in (("releases", set(kept)), ("wheels", wheels)):
            for folder in (self.root / place).glob("[!.]*"):
                if folder.name not in names:
                    gone = folder.with_name(f".{folder.name}")  # what is half removed must not look whole
                    folder.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)

    # --- from the image and from the seed

    def offer(self, bundle: IO[bytes]) -> str:
        """Install a bundle and make it current: the image's first as it is, the seed's on trial until its agent is
        ready. Raises ReleaseError, for one that was taken back before, too."""
        with self._locked():
            self.at_boot()
            release = self.install(bundle)
            if not self.current:
                write(self.root / "image.json", json.dumps({"release": release}))
                self.switch(release)
            elif self.current != release:
                returned = self.returned
                if returned and returned["release"] == release:
                    raise ReleaseError(f"release {release} was tried and taken back: {returned['why']}")
                self.start_trial(release, 0)
            return release


# --- as a program -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str], run: Run = _run) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="appliance.release")
    parser.add_argument("--root", type=Path, default=ROOT)
    verbs = parser.add_subparsers(dest="verb", required=True)
    install = verbs.add_parser("install")
    install.add_argument("--current", action="store_true")
    install.add_argument("bundle", type=Path)
    back = verbs.add_parser("return")
    back.add_argument("--release", default="")
    back.add_argument("why", nargs="?", default="it was returned by hand")
    verbs.add_parser("boot")
    verbs.add_parser("ended")
    given = parser.parse_args(argv)
    try:
        _do(Releases(given.root, run), given)
    except (ReleaseError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return DONE


def _do(releases: Releases, given: Any) -> None:
    if given.verb == "install":
        with given.bundle.open("rb") as bundle:
            install = releases.offer if given.current else releases.install
            print(install(bundle))
        return
    if given.verb == "return":
        gone = releases.take_back(given.why, given.release)
    elif given.verb == "boot":
        gone = releases.at_boot()
    else:
        gone = releases.ended(releases.environment.get("SERVICE_RESULT", "success"))
    if gone:
        print(f"release {gone} was taken back: {(releases.returned or {}).get('why', '')}")
        if given.verb == "return":
            releases.restart()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
