"""nnU-Net: extract_fingerprint, plan for 1 mm, preprocess 3d_fullres; one process each."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meter import meter

LABELS = {"background": 0, "liver": 1, "tumour": 2}
ROOTS = {
    name: str(Path(sys.argv[1]) / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
}
os.environ.update(ROOTS)

# They read their folders from the environment as they are imported.
from nnunetv2.experiment_planning import plan_and_preprocess_api as api  # noqa: E402

DECATHLON_CASES = 131


class Extractor(api.DatasetFingerprintExtractor):  # type: ignore[misc]
    """Draws as many voxels of the case as it would of each in the Decathlon's set, not a whole set's."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.num_foreground_voxels_for_intensitystats /= DECATHLON_CASES


def work(files: list[Path], folder: Path) -> Iterator[str]:
    """A dataset of one case, whose files are linked and not copied."""
    raw, preprocessed = (
        Path(ROOTS[name]) / "Dataset001_Liver" for name in ("nnUNet_raw", "nnUNet_preprocessed")
    )
    for path in (raw, preprocessed):
        shutil.rmtree(path, ignore_errors=True)
    for file, name in zip(files, ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz"), strict=True):
        (raw / name).parent.mkdir(parents=True)
        (raw / name).symlink_to(file)
    listing = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(listing))
    with contextlib.redirect_stdout(sys.stderr):
        api.extract_fingerprint_dataset(1, Extractor, num_processes=1, verbose=False)
        yield "fingerprint"
        _, plans = api.plan_experiment_dataset(1, overwrite_target_spacing=(1.0, 1.0, 1.0))
        api.preprocess_dataset(1, plans, ("3d_fullres",), (1,))
        yield "preprocess"
    preprocessed.rename(folder / "written")


if __name__ == "__main__":
    meter(work)
