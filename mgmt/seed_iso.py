"""A seed's files as an ISO 9660 image with Joliet and Rock Ridge: the same bytes for the same files, wherever made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace

import pycdlib
from pycdlib import dates, headervd
from pycdlib import pycdlib as writer

EPOCH = 1577836800.0  # of every date in the image: 2020-01-01, UTC
_clock = threading.Lock()


def make_iso(files: Mapping[str, bytes], volume_id: str) -> bytes:
    """The image. Files are by path, "openstack/latest/user_data"; folders follow from them."""
    iso, image = pycdlib.PyCdlib(), BytesIO()
    with _stopped_clock():
        iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=volume_id, sys_ident="LINUX")
        short: dict[str, str] = {"": ""}  # path -> what ISO 9660 itself calls it
        for number, path in enumerate(sorted(files), 1):
            _make_folders(iso, path, short)
            folder, _, name = path.rpartition("/")
            iso.add_fp(
                BytesIO(files[path]), len(files[path]), f"{short[folder]}/F{number}.;1", rr_name=name,
                joliet_path=f"/{path}", file_mode=0o100400,
            )  # fmt: skip
        iso.write_fp(image)
    iso.close()
    return image.getvalue()


def _make_folders(iso: pycdlib.PyCdlib, path: str, short: dict[str, str]) -> None:
    parts = path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        folder = "/".join(parts[:depth])
        if folder not in short:
            above = short["/".join(parts[: depth - 1])]
            short[folder] = f"{above}/D{len(short)}"
            iso.add_directory(short[folder], rr_name=parts[depth - 1], joliet_path=f"/{folder}", file_mode=0o040500)


@contextmanager
def _stopped_clock() -> Iterator[None]:
    """pycdlib dates everything by the clock and the time zone, and has no way to be told otherwise."""
    stopped = SimpleNamespace(time=lambda: EPOCH, localtime=time.gmtime, strftime=time.strftime)
    with _clock:
        writer.time = dates.time = headervd.time = stopped  # type: ignore[attr-defined, assignment]
        try:
            yield
        finally:
            writer.time = dates.time = headervd.time = time  # type: ignore[attr-defined]
