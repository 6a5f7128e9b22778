"""The registered model's code: MLflow stores this file with the model and runs it to load one."""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from liverseg_core.arrays import Label
from liverseg_core.errors import LiversegError
from liverseg_core.inference.predict import prepare, segment_scan
from liverseg_core.models.model import WEIGHTS, Model, load_model
from liverseg_core.volumes.nifti import Scan, open_nifti, open_scan, write_label

FORMS = ("array", "nifti", "none")


class SegmentationModel(PythonModel):  # type: ignore[misc]
    """Labels one scan a call: a NIfTI `path`, or an `image` in HU with its 4 × 4 `affine`."""

    model: Model

    # MLflow insists on these two signatures, names included.
    def load_context(self, context: Any) -> None:
        """Load the model that was stored with this code."""
        self.model = load_model(Path(context.artifacts[WEIGHTS]).parent)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> Label | dict[str, Any]:
        """Label a scan on its own grid.

        Args:
            context: MLflow's; not used.
            model_input: One row with the columns of the signature.
            params: `volumes`: whether volumes and lesions are wanted too. `labels`: in which form labels are
                wanted; `array`, `nifti` for a gzipped file in base64, a hundredth of the size, or `none`.

        Returns:
            The label array; with either of the two asked for, a dictionary of `labels` and `volumes`, and
            with them of `flags` and `remarks`: what there is to doubt, by name and in words.

        Raises:
            LiversegError: LS292 unless there is exactly one scan, as a path or as image and affine; LS293 for
                a form of labels that there is not; what `segment` raises.
        """
        wanted = {"volumes": False, "labels": "array", **(params or {})}
        form = wanted["labels"]
        if form not in FORMS:
            raise LiversegError(
                "LS293",
                f"labels = {form!r}",
                ", ".join(FORMS),
                "Correct params of the request, or leave it out",
            )
        scan = _scan(model_input.to_dict("records"))
        segmented = segment_scan(self.model, prepare(self.model, scan))
        label = segmented.stored()
        if form == "array" and not wanted["volumes"]:
            return label
        found: dict[str, Any] = {"flags": [*segmented.doubts], "remarks": segmented.remarks()}
        if form != "none":
            found["labels"] = label if form == "array" else _as_nifti(label, scan)
        if wanted["volumes"]:
            found["volumes"] = segmented.findings
        return found


def _as_nifti(label: Label, like: Scan) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        write_label(path, label, like.header)
        return base64.b64encode(path.read_bytes()).decode()


def _scan(rows: list[Mapping[str, Any]]) -> Scan:
    given = [{name: value for name, value in row.items() if value is not None} for row in rows]
    match given:
        case [{"path": str(path), **rest}] if not rest:
            return open_nifti(Path(path))
        case [{"image": image, "affine": affine, **rest}] if not rest:
            voxels = np.asarray(image)
            # JSON knows neither int16 nor float32; NIfTI readers know no 64-bit integers.
            voxels = voxels.astype(np.int32 if voxels.dtype.kind in "iu" else np.float32)
            # Through the same gate as a file: nothing that reaches the model has gone round it.
            data = nib.Nifti1Image(voxels, np.array(affine, np.float64)).to_bytes()
            return open_scan([data], len(data), "image")
    raise LiversegError(
        "LS292",
        f"{len(rows)} rows with {sorted({name for row in given for name in row})}",
        "one row, with a path, or with an image and its 4 × 4 affine",
        "Send one scan at a time",
    )


set_model(SegmentationModel())
