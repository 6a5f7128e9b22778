"""Out of memory where torch is called, told apart from other errors: a GPU's, or the machine's."""

import contextlib
import traceback
from collections.abc import Callable, Iterator

import torch

from liverseg_core.errors import LiversegError, described

_MACHINE = "DefaultCPUAllocator"
_TEXTS = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", _MACHINE)
"""In RuntimeErrors of CUDA, cuBLAS, cuDNN and of torch before it had a class for this."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was wanting."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextlib.contextmanager
def out_of_memory(coded: Callable[[str, bool], Exception]) -> Iterator[None]:
    """Raise something else where memory is wanting, and let go of what the failed work held.

    An error keeps the frames that it came through, and they their tensors: whoever collects errors would
    have no memory for what comes next.

    Args:
        coded: What to raise, given what torch said, and whether it was the machine's memory, not a GPU's.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise coded(described(error), isinstance(error, MemoryError) or _MACHINE in str(error)) from None


def no_room_on_gpu(said: str, machine: bool) -> Exception:
    """LS705 where a GPU can't hold a model and what it predicts; a MemoryError where the machine can't."""
    if machine:
        return MemoryError(said)
    return LiversegError(
        "LS705",
        f"the GPU has too little memory to predict ({said})",
        "a GPU with room for the model, a row of sums, and one window at a time",
        "End what else uses this GPU, other workers too, or predict on a larger one, or on the device cpu",
    )
