"""Memory kept small: one heap for all threads, and free pages given back after a push.

Reading a large document takes far more than keeping it; without this the most that was ever needed stays resident.
"""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # mallopt(3)


def keep_small() -> None:
    """To be called before the first thread is started. Nothing happens where the libc has no such call."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_ARENA_MAX, 1)
        _LIBC.mallopt(_TRIM_THRESHOLD, 1 << 17)
        _LIBC.mallopt(_MMAP_THRESHOLD, 1 << 16)


def give_back() -> None:
    """Collect what is dead and return free pages to the kernel (malloc_trim(3)), where the libc can."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
