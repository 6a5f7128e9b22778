"""Which device computes: by name, or the GPU where there is one."""

import functools
import logging
import os
from pathlib import Path

import torch

from liverseg_core.errors import LiversegError
from liverseg_core.out_of_memory import no_room_on_gpu, out_of_memory
from liverseg_core.words import counted

_logger = logging.getLogger(__name__)

GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""What a machine or a container has that was given a GPU."""
USABLE = "a GPU from Turing on, NVIDIA's driver 580 or newer, and a torch that is built for CUDA"


def device_name(device: torch.device, processes: int = 1) -> str:
    """What a person calls a device, or the one that each of several processes has."""
    if device.type == "cpu":
        name = f"CPU ({counted(torch.get_num_threads(), 'thread')})"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{processes} × {name}" if processes > 1 else name


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto` is the GPU where there is one.

    Raises:
        LiversegError: LS271 when there is no such device, or none that this torch can use; LS705 when it has
            no memory left.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and gpu_expected():
            _warn_of_cpu()
    try:
        chosen = torch.device(name)
        with out_of_memory(no_room_on_gpu):
            torch.zeros(1, device=chosen)  # filling it needs a kernel: a GPU that is too old has none
    except (RuntimeError, AssertionError) as error:
        raise unusable(name, str(error).splitlines()[0]) from None
    return chosen


def gpu_expected() -> bool:
    """Whether this machine or container was given a GPU that nobody hid again."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    given = os.environ.get("NVIDIA_VISIBLE_DEVICES", "void")
    return given not in ("", "void", "none") or any(Path(file).exists() for file in GPU_FILES)


def why_no_gpu() -> str:
    """What torch says of the GPU that it can't use."""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def unusable(name: str, said: str) -> LiversegError:
    """LS271, with the remedy that fits."""
    count = torch.cuda.device_count()
    if not name.startswith("cuda"):
        allowed, remedy = "auto, cpu, cuda or cuda:N with a GPU N", "Correct compute.device"
    elif name.removeprefix("cuda:").isdigit() and 0 < count <= int(name[5:]):
        allowed = f"cuda:0 to cuda:{count - 1}"
        remedy = "Choose one of them, and no more compute.processes than there are GPUs"
    else:
        allowed, remedy = USABLE, "Give this machine that, or set compute.device to cpu to do without a GPU"
    return LiversegError("LS271", f"compute.device {name!r} is not usable here ({said})", allowed, remedy)


@functools.lru_cache(maxsize=1)
def _warn_of_cpu() -> None:
    """Once in a process: the device is asked for many times."""
    _logger.warning(
        "compute.device auto is the CPU, though there is a GPU here (%s); set compute.device=cuda to stop "
        "where it can't be used",
        why_no_gpu(),
    )
