"""Memory that a process keeps for its next arrays."""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_LARGE = 2**25
"""What is larger is mapped and given back each time: the most that glibc takes for this."""
_ALL, _USUAL = 2**31 - 1, 2 * _LARGE


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory until the end, where the C library is glibc; it is given back then.

    A training step frees its activations and asks for as many again. glibc gives large ones back to the
    system at once, which must clear their pages anew for each step: on one core of a virtual machine that was
    a tenth of the phantom recipe's step, and with slower pages more.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    libc.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _USUAL)
        libc.malloc_trim(0)
