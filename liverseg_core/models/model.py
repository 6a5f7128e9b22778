"""Model folders: `model.safetensors` for the weights, `model.json` for all it takes to use them.

Nothing in a model folder is ever unpickled.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import PositiveInt, ValidationError
from safetensors import SafetensorError
from torch import nn

from liverseg_core.classes import CLASSES
from liverseg_core.config import EvaluateConfig, IngestConfig, NetworkConfig, Section, Triple
from liverseg_core.durable import write_atomically
from liverseg_core.errors import LiversegError
from liverseg_core.models.device import device_name, pick_device
from liverseg_core.models.known_data import KnownData, read_known
from liverseg_core.models.model_folder import INFERENCE, SPEC, WEIGHTS, check_model
from liverseg_core.models.networks import Ensemble, build_network
from liverseg_core.out_of_memory import no_room_on_gpu, out_of_memory

# fmt: off
__all__ = [
    "INFERENCE", "SPEC", "WEIGHTS", "Model", "ModelSpec",
    "device_name", "load_model", "load_weights", "pick_device", "save_model",
]
# fmt: on


class ModelSpec(Section):
    """All that inference needs besides the weights."""

    format: Literal[1] = 1
    network: NetworkConfig
    classes: tuple[str, ...] = CLASSES
    activation: Literal["softmax", "sigmoid"]
    patch_size: Triple
    window_hu: tuple[float, float]
    ingest: IngestConfig
    """How a scan is brought to the spacing that the network was trained at."""
    data_key: str
    """The data it was trained on."""
    members: PositiveInt = 1
    """Networks that it averages."""


@dataclass(frozen=True)
class Model:
    """A network ready for inference, and its spec."""

    network: nn.Module
    spec: ModelSpec
    device: torch.device
    inference: EvaluateConfig = field(default_factory=EvaluateConfig)
    known: KnownData = field(default_factory=KnownData)


def save_model(folder: Path, network: nn.Module, spec: ModelSpec) -> None:
    """Write a model folder; `model.json` comes last, so where it is the weights are whole."""
    # copies, since some networks hold one tensor under two names, which safetensors refuses
    weights = {name: value.cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(weights))
    write_atomically(folder / SPEC, json.dumps(spec.canonical(), indent=1, sort_keys=True).encode())


def load_model(folder: Path, device: str = "auto") -> Model:
    """Load a model folder for inference.

    Args:
        folder: What `save_model` wrote, under any name.
        device: A torch device, or `auto` for a GPU where there is one.

    Raises:
        LiversegError: LS501 or LS502 when the folder is an artifact and not as it was made; LS521 when a file
            is missing; LS522 when one is damaged or does not fit the other; LS271 for the device, LS705 when
            the model does not fit on it.
    """
    check_model(folder)
    try:
        spec = ModelSpec.model_validate_json((folder / SPEC).read_bytes())
        recorded = folder / INFERENCE
        text = recorded.read_bytes() if recorded.exists() else b"{}"
        inference = EvaluateConfig.model_validate_json(text)
        network = _network(spec)
        network.load_state_dict(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
    except FileNotFoundError as error:
        raise LiversegError(
            "LS521",
            f"{error.filename} is missing",
            f"a folder with {SPEC} and {WEIGHTS}",
            "Name the folder of a trained model, or train one with `liverseg train`",
        ) from None
    except (ValidationError, SafetensorError, RuntimeError) as error:
        raise LiversegError(
            "LS522",
            f"the model in {folder} is damaged ({str(error).splitlines()[0]})",
            f"{SPEC} and {WEIGHTS} as liverseg wrote them",
            "Fetch or copy the model again, or train it again",
        ) from None
    chosen = pick_device(device)
    with out_of_memory(no_room_on_gpu):
        network = network.to(chosen).eval()
    return Model(network, spec, chosen, inference, read_known(folder))


def _network(spec: ModelSpec) -> nn.Module:
    if spec.members == 1:
        return build_network(spec.network)
    return Ensemble([build_network(spec.network) for _ in range(spec.members)], spec.activation)


def load_weights(folder: Path, network: nn.Module, config: NetworkConfig) -> None:
    """Give a network the weights of a model folder, to go on training from there.

    Raises:
        LiversegError: LS274 when that model is another network; what `load_model` raises.
    """
    model = load_model(folder, "cpu")
    if model.spec.network != config or model.spec.members > 1:
        differing = [name for name, value in config if getattr(model.spec.network, name) != value] or [
            "members"
        ]
        raise LiversegError(
            "LS274",
            f"the model in {folder} is another network (its {', '.join(differing)})",
            f"a {config.name} of the same size as train.network says",
            f"Set train.network to {json.dumps(model.spec.network.canonical())}, or start without that model",
        )
    network.load_state_dict(model.network.state_dict())
