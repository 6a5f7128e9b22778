"""Memory that a process keeps for its next arrays."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
_LARGE = 2**25
"""The most that glibc takes as the size from which an array is mapped by itself, and given back by itself."""
_ALL, _USUAL, _USUAL_MAPS = 2**31 - 1, 2 * _LARGE, 65536


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory until the end, where the C library is glibc; it is given back then.

    A training step or a batch of windows frees its activations and asks for as many again. glibc gives large
    ones back to the system at once, which must clear their pages anew each time: up to a third of the time
    of a step, or of a scan. Whatever threshold it is told, it maps each array above 32 MB by itself, unless
    it may map none. The price is memory: arrays that share one heap leave gaps which not all others fit.

    Of the main thread alone: other threads' heaps hold no more than 64 MB, and what is larger is mapped after
    all.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or threading.current_thread() is not threading.main_thread():
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _USUAL)
        libc.mallopt(_MMAP_MAX, _USUAL_MAPS)
        libc.malloc_trim(0)
