"""Memory that a process keeps for its next arrays."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt."""
_NEVER = -1
_USUAL = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 65536}
_SMALL = 2**20
_waiting: list[ctypes.CDLL] = []
"""The C library, from the beginning of `memory_kept` to the end of its first step."""


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory until the end, where the C library is glibc; it is given back then.

    A training step or a batch of windows frees its activations and asks for as many again. glibc gives large
    ones back to the system at once, which must clear their pages anew each time: up to a third of the time
    of a step, or of a scan. Whatever threshold it is told, it maps each array above 32 MB by itself, unless
    it may map none.

    That begins with `first_step_done`. What a first step makes for good, an optimiser's state or compiled
    kernels, would otherwise lie among its arrays, and leave gaps that the next steps' do not fit: with a
    residual U-Net at 96³ the peak was 29 % higher. Up to there arrays above 1 MB are mapped each by itself.

    Of the main thread alone: other threads' heaps hold no more than 64 MB, and what is larger is mapped after
    all.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or threading.current_thread() is not threading.main_thread():
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _SMALL)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    _waiting.append(libc)
    try:
        yield
    finally:
        _waiting.clear()
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def first_step_done() -> None:
    """Say that what comes is like what was; to be called after every step, or batch of windows."""
    while _waiting:
        _waiting.pop().mallopt(_MMAP_MAX, 0)
