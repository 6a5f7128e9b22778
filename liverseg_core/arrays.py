"""Array types, named once. Volumes are indexed (x, y, z), canonical RAS+, x fastest in memory."""

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int32, UInt8

Image = Int16[np.ndarray, "x y z"]
"""CT intensities in HU."""

Label = UInt8[np.ndarray, "x y z"]
"""0 background, 1 liver, 2 tumour."""

Probabilities = Float32[np.ndarray, "c x y z"]
"""Softmax outputs, one channel per class."""

Affine = Float64[np.ndarray, "4 4"]
"""Voxel index → RAS+ millimetres, as nibabel has it."""

Positions = Int32[np.ndarray, "n 3"]
"""Voxel indices (x, y, z)."""

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
