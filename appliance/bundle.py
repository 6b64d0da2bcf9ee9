"""A bundle, as an appliance reads it: release.json first, then wheels, in an uncompressed tar that nobody need trust.

This file belongs to the image, beside release.py: only the standard library and `installer`, which unpacks the wheels.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

FORMAT = 1
BUNDLE_BYTES = 64 << 20
WHEEL_BYTES = 64 << 20  # unpacked
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ID = re.compile(r"[0-9A-Za-z.+]{1,40}-[0-9a-f]{12}", re.ASCII)
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{1,200}\.whl", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAKE = "make it with ./narthex appliance bundle"

Json = dict[str, Any]


class ReleaseError(Exception):
    """A release that cannot be installed, switched to or left; the message names place and remedy."""


def release_id(release: Mapping[str, Any]) -> str:
    """The id that belongs to what a release.json says: its version, and a digest of all but the id."""
    plain = {key: value for key, value in release.items() if key != "id"}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return f"{release['version']}-{sha256(canonical.encode()).hexdigest()[:12]}"


def wheel_folder(wheel: Mapping[str, str]) -> str:
    """The name of the folder that a wheel is unpacked in."""
    return f"{wheel['file'].removesuffix('.whl')}-{wheel['sha256'][:12]}"


def read_bundle(bundle: IO[bytes], scratch: Path, is_here: Callable[[Mapping[str, str]], bool]) -> Json:
    """The bundle's wheels, their hashes checked, in `scratch`; returns release.json. `is_here` tells of a wheel whether
    the appliance has it already: it may be left out. Raises ReleaseError, or OSError of `scratch`."""
    import tarfile  # only here, as zipfile below: every start of the agent would wait for them

    release: Json | None = None
    sums: dict[str, str] = {}
    room = BUNDLE_BYTES
    try:
        with tarfile.open(fileobj=bundle, mode="r|") as tar:
            for member in tar:
                room -= member.size
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size < 0:
                    raise ReleaseError(f"{member.name[:80]!r}: not a plain file, and a bundle has no other; {_MAKE}")
                if room < 0:
                    raise ReleaseError(f"{member.name[:80]!r}: the bundle is larger than {BUNDLE_BYTES >> 20} MiB")
                file = tar.extractfile(member)
                assert file is not None
                if release is None:
                    release = checked(member.name, file.read(1 << 20))
                    sums = {wheel["file"]: wheel["sha256"] for wheel in release["wheels"]}
                    continue
                folder, _, name = member.name.rpartition("/")
                if folder != "wheels" or name not in sums:
                    raise ReleaseError(f"{member.name[:80]!r}: release.json names no such wheel; {_MAKE}")
                _copy(file, scratch / name, sums[name])
    except (tarfile.TarError, EOFError) as error:
        raise ReleaseError(f"not a bundle, or torn: {error}; {_MAKE}") from None
    if release is None:
        raise ReleaseError(f"not a bundle: it is empty; {_MAKE}")
    missing = [w["file"] for w in release["wheels"] if not (scratch / w["file"]).exists() and not is_here(w)]
    if missing:
        words = f"neither in the bundle nor installed here: {', '.join(missing)}"
        raise ReleaseError(f"{words}; give a full bundle (./narthex appliance bundle)")
    return release


def checked(name: str, raw: bytes) -> Json:
    """release.json, the first member of a bundle. Raises ReleaseError."""
    if name != "release.json":
        raise ReleaseError(f"not a bundle: its first file is {name[:80]!r}, not release.json; {_MAKE}")
    try:
        release = json.loads(raw)
        wheels = release["wheels"]
        well = (
            release["format"] == FORMAT
            and ID.fullmatch(release["id"])
            and all(_WHEEL.fullmatch(w["file"]) and _HASH.fullmatch(w["sha256"]) for w in wheels)
            and len({w["file"] for w in wheels}) == len(wheels)
        )
        python, expected = release["python"], release_id(release)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReleaseError(f"release.json: {type(error).__name__}: {error!s:.200}; {_MAKE}") from None
    if not well:
        raise ReleaseError("release.json: not of this format; make the bundle with the manager of this release")
    if release["id"] != expected:
        raise ReleaseError(f"release.json: its id is {release['id']}, what it says makes {expected}; {_MAKE}")
    if python != PYTHON:
        raise ReleaseError(f"release.json: made for Python {python!s:.20}, here is {PYTHON}; make one for this image")
    return dict(release)


def _copy(file: IO[bytes], path: Path, digest: str) -> None:
    found = sha256()
    with path.open("wb") as out:
        while some := file.read(1 << 20):
            found.update(some)
            out.write(some)
    if found.hexdigest() != digest:
        raise ReleaseError(f"{path.name}: its sha256 is not the one of release.json; {_MAKE}")


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into `folder`, as pip would. Raises ReleaseError, or OSError."""
    import zipfile

    from installer import install  # nothing else of release.py needs Debian's package
    from installer.destinations import SchemeDictionaryDestination
    from installer.sources import WheelFile

    schemes = {name: str(folder) for name in ("purelib", "platlib")}
    schemes |= {name: str(folder / f".{name}") for name in ("headers", "scripts", "data")}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            strange = [m.filename for m in members if m.filename.startswith("/") or ".." in m.filename.split("/")]
            if strange:
                raise ReleaseError(f"{wheel.name}: {strange[0][:80]!r}: a path that leaves the wheel; {_MAKE}")
            if sum(m.file_size for m in members) > WHEEL_BYTES:
                raise ReleaseError(f"{wheel.name}: larger than {WHEEL_BYTES >> 20} MiB when unpacked")
            target = SchemeDictionaryDestination(schemes, sys.executable, "posix")
            install(source=WheelFile(archive), destination=target, additional_metadata={"INSTALLER": b"narthex"})
    except (ReleaseError, OSError):
        raise
    except Exception as error:  # the library's own, zipfile's, and whatever a torn file makes of them
        raise ReleaseError(f"{wheel.name}: cannot be unpacked: {type(error).__name__}: {error!s:.200}") from None
