"""The registered model's code: MLflow stores this file with the model and runs it to load one."""

import base64
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from jaxtyping import Shaped
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.pyfunc import PythonModel
from nibabel.spatialimages import HeaderDataError

from liverseg_core.arrays import Affine, Label
from liverseg_core.errors import ExitCode, LiversegError, as_coded
from liverseg_core.inference.predict import prepare, segment_scan
from liverseg_core.models.model import WEIGHTS, Model, load_model
from liverseg_core.volumes.nifti import Scan, open_nifti, open_scan, write_label
from liverseg_core.words import counted

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
            MlflowException: With the text of LS292 unless there is exactly one scan, as a path or as image
                and affine in numbers, whole or not; of LS293 for a form of labels that there is not; of what
                `segment` raises. To any other exception MLflow's server would add a traceback and its own
                paths.
        """
        try:
            return self._labelled(model_input, params)
        except Exception as error:
            coded = as_coded("the scan", error)
            asked = coded is error and coded.exit_code in (ExitCode.USAGE, ExitCode.BAD_INPUT)
            raise MlflowException(str(coded), BAD_REQUEST if asked else INTERNAL_ERROR) from error

    def _labelled(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None
    ) -> Label | dict[str, Any]:
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
    given = [{name: value for name, value in row.items() if not _is_missing(value)} for row in rows]
    match given:
        case [{"path": str(path), **rest}] if not rest:
            return open_nifti(Path(path))
        case [{"image": image, "affine": affine, **rest}] if not rest:
            voxels, matrix = _numbers("image", image), _numbers("affine", affine).astype(np.float64)
            if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
                raise _not_one_scan("an affine that is not 4 × 4 with 0, 0, 0, 1 as its last row")
            # Through the same gate as a file: nothing that reaches the model has gone round it.
            data = _as_file(voxels, matrix)
            return open_scan([data], len(data), "image")
    kinds = sorted({f"{name}: {type(value).__name__}" for row in given for name, value in row.items()})
    raise _not_one_scan(f"{counted(len(rows), 'row')} with {', '.join(kinds) or 'nothing'}")


def _is_missing(value: Any) -> bool:
    """Whether a column has nothing in this row; a table fills gaps with NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _numbers(name: str, value: Any) -> Shaped[np.ndarray, "..."]:
    """Nested lists of whole or other numbers as an array."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise _not_one_scan(f"an {name} whose lists differ in length") from None
    if array.dtype.kind not in "iuf":
        raise _not_one_scan(f"an {name} that is not of numbers alone, or of numbers too large")
    return array


def _as_file(voxels: Shaped[np.ndarray, "x y z"], affine: Affine) -> bytes:
    """A NIfTI file of them: JSON knows neither int16 nor float32, NIfTI readers know no 64-bit integers."""
    low, high = voxels.min(initial=0), voxels.max(initial=0)
    whole = voxels.dtype.kind in "iu" and -(1 << 31) <= low <= high < 1 << 31
    try:
        file: bytes = nib.Nifti1Image(voxels.astype(np.int32 if whole else np.float32), affine).to_bytes()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        raise _not_one_scan(f"an image of shape {voxels.shape}, or an affine, that no scan has") from None
    return file


def _not_one_scan(what: str) -> LiversegError:
    return LiversegError(
        "LS292",
        what,
        "one row, with a path, or with an image of three dimensions and its 4 × 4 affine",
        "Send one scan at a time",
    )


set_model(SegmentationModel())
