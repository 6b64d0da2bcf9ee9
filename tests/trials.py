"""How often repeated trials (kills, cuts, floods, fuzz) are repeated: one setting for all of them."""

from __future__ import annotations

import os


def trials(full: int) -> int:
    """The count for a trial whose full count is `full`.

    NARTHEX_TRIALS=full gives all of them (`./narthex soak`); anything else a tenth, at least five
    (`./narthex test`).
    """
    if os.environ.get("NARTHEX_TRIALS") == "full":
        return full
    return max(5, full // 10)
