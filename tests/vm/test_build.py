"""The build itself: the same inputs give the same files. Two builds take minutes, so only in the soak."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mgmt.image import artifacts, catalogue
from mgmt.image.base import IMAGES
from mgmt.image.tools import CACHE


@pytest.mark.soak("image")
@pytest.mark.skipif(os.environ.get("NARTHEX_TRIALS") != "full", reason="a second build: ./narthex soak image")
def test_two_builds_of_the_same_inputs_differ_in_what_is_listed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_figure: Callable[[str, float, str], None]
) -> None:
    one, _ = catalogue.built(fresh=True)
    before = one.artifact(artifacts.FILES).read_text().splitlines()
    monkeypatch.setenv(CACHE, str(tmp_path))
    other, made = catalogue.built()
    assert made
    assert (other.system, other.agent) == (one.system, one.agent)
    after = other.artifact(artifacts.FILES).read_text().splitlines()
    lines = (line.split() for line in (IMAGES / "differs.txt").read_text().splitlines())
    allowed = [words[0] for words in lines if words and words[0].startswith("/")]
    assert artifacts.differences(before, after, allowed) == []
    assert artifacts.check_sums(other.folder) == []
    record_figure("image: files that two builds have alike", len(after), "files")


def test_the_artifacts_are_as_they_were_built() -> None:
    """Of the image that these tests run, where it is one of the cache."""
    image = next((i for i in catalogue.images() if i.artifact(artifacts.QCOW2) == catalogue.for_tests()), None)
    if image is None:
        pytest.skip("NARTHEX_IMAGE names a disk that is not in the cache")
    assert artifacts.check_sums(image.folder) == []
    assert image.sizes[artifacts.QCOW2] <= 300 << 20
    text = image.artifact(artifacts.SBOM).read_text()
    assert "pkg:pypi/narthex-agent@" in text
    assert "pkg:deb/debian/nftables@" in text
