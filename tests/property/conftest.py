"""The four judges of packets, made once for all tests of this tier that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.property.agreement import Judges


@pytest.fixture(scope="session")
def judges() -> Iterator[Judges]:
    made = Judges()
    yield made
    made.close()
