"""nnU-Net's loader with its augmentation: what one patch costs; started by ../patches.py.

    python patches_nnunet.py FOLDER SIZE SET PATCHES WORKERS

FOLDER holds cases as .npz with `image` (z, y, x) in HU and `label`; they are stored beside it as nnU-Net's
preprocessing does. SET is `affine` (rotation and scaling of every patch, nothing else) or `all` (the
trainer's own list with its probabilities). Rotations and scales have our default ranges in both, and the box
that is read is as large as those need; labels are interpolated by nnU-Net's own way, a vote.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

TURN, SCALES = (-np.pi / 18, np.pi / 18), (0.9, 1.1)
BATCH = 2


def prepare(folder: Path, size: tuple[int, ...]) -> Path:
    """Store the cases for this patch size; once."""
    done = folder / f"nnunet{size[0]}"
    if not done.exists():
        done.mkdir()
        for file in folder.glob("*.npz"):
            case = np.load(file)
            data = ((np.clip(case["image"][None], -200, 300) - 50) / 100).astype(np.float32)
            seg = case["label"][None].astype(np.int16)
            places = DefaultPreprocessor._sample_foreground_locations(seg, [1, 2])
            (blocks, chunks), (blocks_seg, chunks_seg) = (
                comp_blosc2_params(part.shape, size, part.itemsize) for part in (data, seg)
            )
            nnUNetDatasetBlosc2.save_case(
                data,
                seg,
                {"class_locations": places},
                str(done / file.stem),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=chunks_seg,
                blocks_seg=blocks_seg,
            )
    return done


def transforms(size: tuple[int, ...], which: str) -> Any:
    """The trainer's own, or its affine alone."""
    chosen = nnUNetTrainer.get_training_transforms(
        size, TURN, None, (0, 1, 2), False, use_mask_for_norm=[False]
    )
    spatial = chosen.transforms[0]
    assert isinstance(spatial, SpatialTransform)
    spatial.scaling = SCALES
    if which == "affine":
        spatial.p_rotation = spatial.p_scaling = 1
        spatial.p_synchronize_scaling_across_axes = 0
        chosen.transforms = [spatial, chosen.transforms[-1]]  # the last takes away the label of the outside
    return chosen


def main() -> None:
    """Print patches, CPU and wall seconds as JSON."""
    folder, which = Path(sys.argv[1]), sys.argv[3]
    size = (int(sys.argv[2]),) * 3
    patches, workers = int(sys.argv[4]), int(sys.argv[5])
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    labels = LabelManager({"background": 0, "liver": 1, "tumour": 2}, None)
    dataset = nnUNetDatasetBlosc2(str(prepare(folder, size)))
    read = get_patch_size(size, TURN, TURN, TURN, SCALES)
    loader = nnUNetDataLoader(dataset, BATCH, read, size, labels, 0.33, transforms=transforms(size, which))
    batches: Any = SingleThreadedAugmenter(loader, None)
    if workers:
        batches = NonDetMultiThreadedAugmenter(loader, None, workers, max(6, workers // 2), seeds=None)
    for _ in range(max(3, 8 * workers)):  # what they had made before the clock started
        next(batches)
    usage, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(patches // BATCH):
        next(batches)
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime
    if workers:
        batches._finish()
    print(json.dumps({"patches": patches, "cpu_s": cpu, "wall_s": wall, "read": [int(n) for n in read]}))


if __name__ == "__main__":
    main()
