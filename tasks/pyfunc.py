"""The registered model's code: MLflow stores this file with the model and runs it to load one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from liverseg_core.arrays import Label
from liverseg_core.errors import LiversegError
from liverseg_core.inference.predict import segment
from liverseg_core.models.model import WEIGHTS, Model, load_model
from liverseg_core.volumes.nifti import Volume, decode, read_nifti
from tasks.tracking import PythonModel, set_model


class SegmentationModel(PythonModel):  # type: ignore[misc]
    """Labels one scan a call: a NIfTI `path`, or an `image` in HU with its 4 × 4 `affine`."""

    model: Model

    # MLflow insists on these two signatures, names included.
    def load_context(self, context: Any) -> None:
        """Load the model that was stored with this code."""
        self.model = load_model(Path(context.artifacts[WEIGHTS]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Label:  # noqa: ARG002
        """Label a scan on its own grid.

        Args:
            context: MLflow's; not used.
            model_input: One row with the columns of the signature.
            params: None are known.

        Raises:
            LiversegError: LS292 unless there is exactly one scan, as a path or as image and affine.
        """
        return segment(self.model, _volume(model_input.to_dict("records")))


def _volume(rows: list[Mapping[str, Any]]) -> Volume:
    given = [{name: value for name, value in row.items() if value is not None} for row in rows]
    match given:
        case [{"path": str(path), **rest}] if not rest:
            return read_nifti(Path(path))
        case [{"image": image, "affine": affine, **rest}] if not rest:
            voxels = np.asarray(image)
            # JSON knows neither int16 nor float32; NIfTI readers know no 64-bit integers.
            voxels = voxels.astype(np.int32 if voxels.dtype.kind in "iu" else np.float32)
            # Through the same gate as a file: nothing that reaches the model has gone round it.
            return decode(nib.Nifti1Image(voxels, np.array(affine, np.float64)).to_bytes(), "image")
    raise LiversegError(
        "LS292",
        f"{len(rows)} rows with {sorted({name for row in given for name in row})}",
        "one row, with a path, or with an image and its 4 × 4 affine",
        "Send one scan at a time",
    )


set_model(SegmentationModel())
