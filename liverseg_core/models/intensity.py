"""What a network is shown: a CT window as numbers from −1 to 1, and air where there is no scan."""

import numpy as np
from jaxtyping import Float32

from liverseg_core.arrays import Image

AIR_HU = -1024


def normalise(image: Image, window_hu: tuple[float, float]) -> Float32[np.ndarray, "x y z"]:
    """Map a CT window linearly to (−1, 1), clipped outside."""
    low, high = window_hu
    scaled = (image.astype(np.float32) - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)
