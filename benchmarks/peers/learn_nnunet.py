"""Train nnU-Net for a CPU budget and predict held-out scans on the way; started by ../learning.py.

    python learn_nnunet.py REQUEST

REQUEST is a JSON file: `images` and `labels` by case name, `held_out` names, `budget_s`, `points` on the
curve, `out`, and `smaller`: null for its own plans, or a patch size, features and target spacing to plan with
instead. Prints what learn_liverseg.py does. Fingerprint, planning and preprocessing are not in the budget.
"""

import contextlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from step_meter import cpu_s

LABELS = {"background": 0, "liver": 1, "tumour": 2}
PROBE = 3


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Plan, find out what a step costs, train as many as the budget holds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out = Path(request["out"])
    trainer = prepare(request, out)
    trainer.on_train_start()
    began = cpu_s()
    for _ in range(PROBE):
        trainer.train_step(next(trainer.dataloader_train))
    steps = request["budget_s"] / ((cpu_s() - began) / PROBE)
    every = math.ceil(steps / request["points"])
    whole = every * request["points"]
    points: list[dict[str, Any]] = []
    trained_s = 0.0
    for point in range(request["points"]):
        trainer.set_deep_supervision_enabled(True)
        trainer.network.train()
        began = cpu_s()
        for step in range(point * every, (point + 1) * every):
            for group in trainer.optimizer.param_groups:  # its own schedule, by step and not by epoch
                group["lr"] = trainer.initial_lr * (1 - step / whole) ** 0.9
            trainer.train_step(next(trainer.dataloader_train))
        trained_s += cpu_s() - began
        axes = trainer.inference_allowed_mirroring_axes
        # Its mirrored predictions are eight times the work: at the end alone, and not of its largest network.
        if point < request["points"] - 1 or not request["smaller"]:
            trainer.inference_allowed_mirroring_axes = None
        trainer.perform_actual_validation()
        trainer.inference_allowed_mirroring_axes = axes
        folder = out / str(point)
        shutil.copytree(Path(trainer.output_folder) / "validation", folder, ignore=_others)
        points.append({"folder": str(folder), "cpu_s": round(trained_s, 1), "steps": (point + 1) * every})
    return points


def prepare(request: dict[str, Any], out: Path) -> Any:
    """Raw data, plans and preprocessed cases; the trainer of them."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(out / name)
    os.environ |= {"nnUNet_n_proc_DA": "1"}
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    raw, preprocessed = (out / name / "Dataset001_Liver" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    for kind, suffix, folder in (("images", "_0000", "imagesTr"), ("labels", "", "labelsTr")):
        (raw / folder).mkdir(parents=True)
        for case, path in request[kind].items():
            (raw / folder / f"{case}{suffix}.nii.gz").symlink_to(path)
    listing = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(listing | {"numTraining": len(request["images"])}))
    smaller = request["smaller"]
    api.extract_fingerprint_dataset(1, num_processes=1, verbose=False)
    spacing = tuple(smaller["spacing_mm"]) if smaller else None
    plans, name = api.plan_experiment_dataset(1, overwrite_target_spacing=spacing)
    if smaller:
        configuration = plans["configurations"]["3d_fullres"]
        architecture = configuration["architecture"]["arch_kwargs"]
        levels = len(smaller["features"])
        configuration |= {"patch_size": smaller["patch_size"], "batch_size": smaller["batch_size"]}
        architecture |= {
            "n_stages": levels, "features_per_stage": smaller["features"],
            "kernel_sizes": [[3, 3, 3]] * levels, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
            "n_conv_per_stage": [2] * levels, "n_conv_per_stage_decoder": [2] * (levels - 1),
        }  # fmt: skip
        (preprocessed / f"{name}.json").write_text(json.dumps(plans))
    api.preprocess_dataset(1, name, ("3d_fullres",), (1,))
    training = [case for case in request["images"] if case not in request["held_out"]]
    split = {"train": training, "val": request["held_out"]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    plans = json.loads((preprocessed / f"{name}.json").read_text()) | {"continue_training": False}
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # this process alone, so that its CPU time is all
    return nnUNetTrainer(plans, "3d_fullres", 0, listing, torch.device("cpu"))


def _others(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".nii.gz")]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = main(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(found))
