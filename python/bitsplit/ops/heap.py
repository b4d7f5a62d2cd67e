"""Keep memory that is freed, for a while, instead of giving it back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MOST = 2**31 - 1
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """While active, a loop takes the memory of its tensors from the system once, not in every round.

    A fresh page costs more than computing what fills it.  Afterwards what is free goes back, and the C
    library's limits are those that it would itself reach in time.  Without glibc nothing changes.

    It holds for glibc's main arena, from which a process's first thread takes its memory as long as no
    allocation has failed there.  Other arenas still give back what fills 64 MiB of them.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
