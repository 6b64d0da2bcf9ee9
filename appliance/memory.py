"""Memory given back after a push: reading a large document takes far more than keeping it."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Collect what is dead and return free pages to the kernel (malloc_trim(3)), where the libc can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
