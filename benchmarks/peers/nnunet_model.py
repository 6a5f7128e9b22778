"""A model folder of nnU-Net's with the weights of a model of ours, for its own predict command.

    python nnunet_model.py MODEL FOLDER

MODEL is a folder of ours with a network `resenc`. nnU-Net builds its own residual-encoder U-Net, and plans as
its planner writes them say the same spacing, window of HU and patch.
"""

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

RESAMPLING = {"order_z": 0, "force_separate_z": None}
IMPORTED = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
}
NAMES = (
    (r"^stem\.0\.", "encoder.stem.convs.0.conv."),
    (r"^stem\.1\.", "encoder.stem.convs.0.norm."),
    (r"^encoder\.(\d+)\.(\d+)\.", r"encoder.stages.\1.blocks.\2."),
    (r"\.first\.0\.", ".conv1.conv."),
    (r"\.first\.1\.", ".conv1.norm."),
    (r"\.second\.0\.", ".conv2.conv."),
    (r"\.second\.1\.", ".conv2.norm."),
    (r"\.beside\.1\.", ".skip.1.conv."),  # its projection follows a pooling wherever a level begins
    (r"\.beside\.2\.", ".skip.1.norm."),
)
"""Ours, and theirs, of the encoder; the decoder's levels are counted from the other end."""


def main(model: Path, folder: Path) -> None:
    """Write plans, dataset and checkpoint."""
    spec = json.loads((model / "model.json").read_text())
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    labels = {name: k for k, name in enumerate(spec["classes"])}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    network = architecture(spec["network"])
    (folder / "plans.json").write_text(json.dumps(plans(spec, network)))
    checkpoint = {
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "network_weights": weights(model, network, len(labels)),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def architecture(network: dict[str, Any]) -> dict[str, Any]:
    """Arguments of its network for a configuration of ours."""
    levels = len(network["channels"])
    assert network["name"] == "resenc"
    assert network["norm"] == "instance"
    return {
        "n_stages": levels, "features_per_stage": network["channels"],
        "kernel_sizes": [[3, 3, 3]] * levels, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
        "n_blocks_per_stage": network["blocks"], "n_conv_per_stage_decoder": [1] * (levels - 1),
        "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True}, **IMPORTED,
    }  # fmt: skip


def plans(spec: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """What its planner would have written."""
    low, high = spec["window_hu"]
    middle, half = (low + high) / 2, (high - low) / 2
    window = {"percentile_00_5": low, "percentile_99_5": high, "mean": middle, "std": half}
    resampling = {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
    }
    arguments = {
        f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", "order": order, **RESAMPLING}
        for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2, "batch_dice": True, "patch_size": spec["patch_size"][::-1],
        "spacing": spec["ingest"]["spacing_mm"][::-1], "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False], **resampling, **arguments,
        "architecture": {
            "network_class_name": f"{ResidualEncoderUNet.__module__}.ResidualEncoderUNet",
            "arch_kwargs": network, "_kw_requires_import": list(IMPORTED),
        },
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Liver", "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager", "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": window},
    }  # fmt: skip


def weights(model: Path, network: dict[str, Any], classes: int) -> dict[str, torch.Tensor]:
    """The state of its network with our weights, turned: its volumes are (z, y, x)."""
    levels = network["n_stages"] - 1
    state = safetensors.torch.load_file(model / "model.safetensors")
    found = {
        _renamed(name, levels): value.movedim((2, 3, 4), (4, 3, 2)) if value.ndim == 5 else value
        for name, value in state.items()
    }
    kinds: dict[str, Any] = {
        name: path and getattr(torch.nn, path.rpartition(".")[2]) for name, path in IMPORTED.items()
    }
    built = ResidualEncoderUNet(1, num_classes=classes, deep_supervision=False, **network | kinds)
    missing, unknown = built.load_state_dict(found, strict=False)
    # its modules bear several names, and its coarsest head is used in training alone
    parameters = {name for name, _ in built.named_parameters()} - {
        f"decoder.seg_layers.0.{kind}" for kind in ("weight", "bias")
    }
    if unknown or parameters & set(missing):
        raise SystemExit(f"unlike networks: {unknown}, {sorted(parameters & set(missing))}")
    return built.state_dict()


def _renamed(name: str, levels: int) -> str:
    part, level, rest = name.split(".", 2)
    if part in ("stem", "encoder"):
        return functools.reduce(lambda name, pair: re.sub(*pair, name), NAMES, name)
    upwards = f"{levels - 1 - int(level)}"
    if part == "decoder":
        kind = "conv" if rest.startswith("0.") else "norm"
        return f"decoder.stages.{upwards}.convs.0.{kind}.{rest[2:]}"
    return f"decoder.{'transpconvs' if part == 'up' else 'seg_layers'}.{upwards}.{rest}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
