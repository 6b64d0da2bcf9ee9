"""The agent's start in a machine: it loads while the seed is still read, which takes as long as that.

This file belongs to the image and not to a release (see release.py): whatever agent is current, it touches nothing
before the seed was read, the packet filter closed and the way in opened.

    python3 -P /usr/lib/narthex/appliance/boot.py       as the launcher does it, PYTHONPATH being the release's
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable

WAY_IN = "/run/narthex/sshd.env"  # seed.py writes it last
TROUBLE = "/run/narthex/trouble"  # or this
CURRENT = "/opt/narthex/current"
LAUNCHER = "/usr/lib/narthex/agent"
NO_SEED = 78  # EX_CONFIG of sysexits.h: the unit does not try again
POLL_S = 0.02


def is_seeded(root: str = "", sleep: Callable[[float], None] = time.sleep) -> bool:
    """Wait until the seed was read; False where it cannot be used. The unit bounds a start, not this."""
    while not os.path.exists(root + WAY_IN):
        if os.path.exists(root + TROUBLE):
            return False
        sleep(POLL_S)
    return True


def is_current(release: str, root: str = "") -> bool:
    """Is `release` the one to run? The seed may have brought another."""
    return os.path.basename(os.path.realpath(root + CURRENT)) == release


def main() -> int:
    agent = importlib.import_module("appliance.__main__")  # the release's
    if not is_seeded():
        print(f"the seed cannot be used: {TROUBLE} says why", file=sys.stderr, flush=True)
        return NO_SEED
    if not is_current(os.environ.get("NARTHEX_RELEASE", "")):
        os.execv(LAUNCHER, [LAUNCHER])
    status: int = agent.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
