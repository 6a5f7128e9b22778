"""The linear loops of `compiled` in numpy, to the bit: for volumes too small to be worth importing numba."""

import numpy as np
from jaxtyping import Float32, Int16, Shaped, UInt32

Along = tuple[UInt32[np.ndarray, "2 n"], Float32[np.ndarray, " n"]]
"""The two voxels around each place along an axis, and the weight of the second."""
Plane = Float32[np.ndarray, "y x"]
Weight = np.float32 | Float32[np.ndarray, "..."]


def linear_2d(plane: Shaped[np.ndarray, "y x"], along_x: Along, along_y: Along) -> Plane:
    """A plane at other places along y, then along x."""
    (lower, upper), weight = along_y
    rows = blend(plane[lower].astype(np.float32), plane[upper].astype(np.float32), weight[:, None])
    (lower, upper), weight = along_x
    return blend(rows.take(lower, 1), rows.take(upper, 1), weight)


def blend(lower: Plane, upper: Plane, weight: Weight) -> Plane:
    """What lies between two planes, or lines, at a weight of the upper."""
    mixed: Plane = upper - lower
    mixed *= weight
    mixed += lower
    return mixed


def blend_to_int16(lower: Plane, upper: Plane, weight: Weight) -> Int16[np.ndarray, "y x"]:
    """`blend`, rounded."""
    mixed = blend(lower, upper, weight)
    mixed += np.float32(0.5)
    rounded: Int16[np.ndarray, "y x"] = np.floor(mixed, out=mixed).astype(np.int16)
    return rounded
