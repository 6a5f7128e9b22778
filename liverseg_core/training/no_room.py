"""What a training does that memory is wanting for."""

from collections.abc import Iterator

from liverseg_core.errors import LiversegError
from liverseg_core.training.distributed_training import World
from liverseg_core.training.train_job import TrainJob


def no_room(job: TrainJob, world: World, said: str, machine: bool) -> LiversegError:
    """LS704, with what would need less.

    Args:
        job: The training.
        world: Its device, and how many processes share a batch.
        said: What torch says.
        machine: Whether it is the machine's memory that is wanting, not a GPU's.
    """
    config, gpu = job.config, world.device.type != "cpu"
    if machine and gpu:
        ways = ["lower compute.loader_workers or compute.resident_mb"]
    else:
        ways = [*_smaller_steps(job, world.size, gpu)]
    whose = "the machine" if machine else "the GPU"
    size = " × ".join(map(str, config.patch_size))
    share = config.batch_size // config.accumulate // world.size
    return LiversegError(
        "LS704",
        f"{whose} has too little memory to train {config.network.name} on {share} × {size} at once ({said})",
        "a training step that fits",
        f"End what else uses it and run again to go on from the last checkpoint; or {', or '.join(ways)}",
    )


def _smaller_steps(job: TrainJob, processes: int, gpu: bool) -> Iterator[str]:
    """Settings that lower what a step needs. They change the model, so that its training begins anew."""
    config = job.config
    for parts in range(config.accumulate + 1, config.batch_size // processes + 1):
        if config.batch_size % (parts * processes) == 0:
            yield f"set train.accumulate to {parts}"
            break
    if gpu and config.precision == "fp32":
        yield "set train.precision to bf16"
    if config.batch_size > config.accumulate * processes:
        yield "lower train.batch_size"
    yield "lower train.patch_size"
