"""A case on disk: OME-Zarr 0.5 that viewers open, and beside it what training needs.

Volumes are (x, y, z), x fastest; Zarr arrays are (z, y, x), so that `.T` is a free view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.numpy import load_file

from liverseg_core.arrays import Positions, Spacing
from liverseg_core.artifacts.artifact import Facts, load, verify
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.geometry import Grid

IMAGE = "image.ome.zarr"
POSITIONS = "positions.safetensors"
NATIVE_LABEL = "label.nii.gz"
"""The source's own label, byte for byte: evaluation needs no source."""
CHUNK = 64
LABEL_NAME = "anatomy"
SMALL_FILE = 1 << 20
"""Files up to this size are checked whole when a case is opened: all that carry no checksum of their own."""


@dataclass(frozen=True)
class Case:
    """A stored case, opened; voxels are read on demand.

    Args:
        name: The case's name in its dataset.
        image: HU, indexed (z, y, x).
        label: Classes on the same grid, or None for an unlabelled case.
        grid: Canonical grid of the (x, y, z) volume.
        positions: Class → voxel indices for patch sampling; empty for an absent class.
        fingerprint: Intensity and size facts (see fingerprint.py).
        spacing_override_mm: Along the stored axes of the source's files, where their headers are wrong.
        axes_override: Where those axes point, such as LPS, where their headers are wrong.
        facts: All that ingest stored of it.
    """

    name: str
    image: zarr.Array[Any]
    label: zarr.Array[Any] | None
    grid: Grid
    positions: Mapping[int, Positions]
    fingerprint: Mapping[str, Any]
    spacing_override_mm: Spacing | None = None
    axes_override: str | None = None
    facts: Facts = field(default_factory=dict)


def open_case(folder: Path) -> Case:
    """Open a stored case, whose small files are checked now and whose chunks are when they are read.

    Raises:
        LiversegError: LS501, LS502 or LS504 when a part of it is missing, changed or unreadable.
    """
    # Zarr reads a missing or empty chunk file as zeros and knows no checksum of metadata; the manifest does.
    if artifact := load(folder):
        verify(artifact, read_up_to=SMALL_FILE)
    try:
        group = zarr.open_group(folder / IMAGE, mode="r")
        facts: Any = group.attrs["liverseg"]
        image = group["0"]
        label = group.get(f"labels/{LABEL_NAME}/0")
        positions = {int(c): found for c, found in load_file(folder / POSITIONS).items()}
        z, y, x = image.shape
        grid = Grid((x, y, z), np.array(facts["affine"], np.float64))
        overrides = facts.get("spacing_override_mm"), facts.get("axes_override")
        return Case(facts["case"], image, label, grid, positions, facts["fingerprint"], *overrides, facts)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise _damaged(folder, error) from None


def read_volume(array: zarr.Array[Any]) -> Shaped[np.ndarray, "x y z"]:
    """Read a whole image or label, x fastest.

    Raises:
        LiversegError: LS504 when a chunk fails its checksum.
    """
    try:
        return np.asarray(array[...]).T
    except (ValueError, RuntimeError) as error:
        raise _damaged(Path(str(array.store_path)), error) from None


def _damaged(place: Path, error: Exception) -> LiversegError:
    return LiversegError(
        "LS504",
        f"{place} cannot be read ({error})",
        "the files that ingest wrote",
        "Delete the case's folder and run the same command again",
    )
