"""A small scan and the labels that a model gave it when it was registered, kept with the model.

The weights that were registered may still predict otherwise, under other libraries or other code: before a
version becomes champion it labels its scan again.
"""

from pathlib import Path

import numpy as np

from liverseg_core.arrays import Affine, Image, Label
from liverseg_core.errors import LiversegError

ARCHIVED = "prediction.npz"
SHAPE, SPACING_MM = (16, 16, 16), 3.0
DIFFERING = 0.005
"""Share of voxels that may differ: another processor rounds otherwise, and a voxel on a border tips over."""


def example_scan() -> tuple[Image, Affine]:
    """A ball of liver with a darker lesion in fat, with noise: nothing that a model may call air."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    hu = np.where(x**2 + y**2 + z**2 < 36, 110, -80)
    hu = np.where((x - 2) ** 2 + y**2 + z**2 < 6, 60, hu)
    noisy = hu + np.random.default_rng(0).integers(-20, 21, SHAPE)
    return noisy.astype(np.int16), np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])


def archive_prediction(folder: Path) -> None:
    """Label the example scan with the model in this folder, and keep both beside it."""
    image, affine = example_scan()
    np.savez_compressed(folder / ARCHIVED, image=image, affine=affine, labels=_predict(folder, image, affine))


def check_prediction(folder: Path, name: str) -> int | None:
    """Label the archived scan again, and compare.

    Args:
        folder: A registered model's files.
        name: What to call it.

    Returns:
        How many voxels are labelled otherwise; None where nothing was archived.

    Raises:
        LiversegError: LS525 when they are more than rounding explains; what `load_model` and `segment` raise.
    """
    if not (folder / ARCHIVED).exists():
        return None
    with np.load(folder / ARCHIVED, allow_pickle=False) as archived:
        labels = _predict(folder, archived["image"], archived["affine"])
        differing = int(np.count_nonzero(labels != archived["labels"]))
    if differing > DIFFERING * labels.size:
        raise LiversegError(
            "LS525",
            f"{name} labels {differing} of {labels.size} voxels otherwise than when it was registered",
            f"at most {DIFFERING:.1%}",
            "Use it with the libraries that it names (`liverseg models show`), or register the model again",
        )
    return differing


def _predict(folder: Path, image: Image, affine: Affine) -> Label:
    # torch takes a second to import: who only lists versions does not pay for it
    import nibabel as nib

    from liverseg_core.inference.predict import segment
    from liverseg_core.models.model import load_model
    from liverseg_core.volumes.nifti import decode

    # A CPU rounds more alike from machine to machine than GPUs do.
    return segment(load_model(folder, "cpu"), decode(nib.Nifti1Image(image, affine).to_bytes(), "example"))
