"""A reader of ISO 9660 of its own, by ECMA-119 and Joliet: what another system finds in an image."""

from __future__ import annotations

SECTOR = 2048


def volume_id(image: bytes) -> str:
    """Of the primary volume descriptor."""
    descriptor = image[16 * SECTOR : 17 * SECTOR]
    assert descriptor[:7] == b"\x01CD001\x01"
    return descriptor[40:72].decode().rstrip()


def files_by_joliet(image: bytes) -> dict[str, bytes]:
    """path -> content."""
    root = next(
        image[at + 156 : at + 190]
        for at in range(16 * SECTOR, len(image), SECTOR)
        if image[at] == 2 and image[at + 88 : at + 91] in (b"%/@", b"%/C", b"%/E")
    )
    return dict(_walk(image, root, "", lambda raw, _: raw.decode("utf-16-be").removesuffix(";1")))


def files_by_rock_ridge(image: bytes) -> dict[str, bytes]:
    """path -> content. Every name must stand in its record whole."""
    return dict(_walk(image, image[16 * SECTOR + 156 : 16 * SECTOR + 190], "", _rock_ridge))


def _walk(image, record, above, name_of):  # type: ignore[no-untyped-def]
    extent, size = int.from_bytes(record[2:6], "little"), int.from_bytes(record[10:14], "little")
    data, at = image[extent * SECTOR : extent * SECTOR + size], 0
    assert len(data) == size, "the extent ends behind the image"
    while at < size:
        length = data[at]
        if not length:  # a record never crosses a sector
            at = (at // SECTOR + 1) * SECTOR
            continue
        one = data[at : at + length]
        at += length
        raw = one[33 : 33 + one[32]]
        if raw in (b"\0", b"\1"):
            continue
        path = f"{above}{name_of(raw, one[33 + one[32] + (1 - one[32] % 2) :])}"
        if one[25] & 2:
            yield from _walk(image, one, f"{path}/", name_of)
        else:
            start, count = int.from_bytes(one[2:6], "little"), int.from_bytes(one[10:14], "little")
            content = image[start * SECTOR : start * SECTOR + count]
            assert len(content) == count, "the extent ends behind the image"
            yield path, content


def _rock_ridge(raw: bytes, system_use: bytes) -> str:
    at = 0
    while at + 4 <= len(system_use):
        signature, length = system_use[at : at + 2], system_use[at + 2]
        if signature == b"NM":
            return system_use[at + 5 : at + length].decode()
        at += length or len(system_use)
    raise AssertionError(f"{raw!r} has no Rock Ridge name")
