"""Keep freed memory during training on a CPU, instead of asking the system for fresh pages at every layer."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_LARGEST, _DEFAULT_MAPS, _DEFAULT_TRIM = 2**31 - 1, 65536, 2**26


@contextmanager
def kept_memory(enabled: bool = True) -> Iterator[bool]:
    """Within the context freed tensors stay with this process; afterwards they go back to the system.

    Large tensors are otherwise mapped anew, page by page, for every operation: a third of a training step.
    Yields whether it is in effect: only with the GNU C library, and only for the allocator's own defaults.
    """
    if not (enabled and platform.libc_ver()[0] == "glibc"):
        yield False
        return
    library = ctypes.CDLL(None)
    done = bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _LARGEST))
    try:
        yield done
    finally:
        library.mallopt(_MMAP_MAX, _DEFAULT_MAPS)
        library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        library.malloc_trim(0)
