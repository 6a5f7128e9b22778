"""Dice on a few whole cases while training goes on; a training signal, at the network's own spacing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from liverseg_core.cases.store import open_case, read_volume
from liverseg_core.inference.inference import predict_probabilities
from liverseg_core.models.model import Model
from liverseg_core.training.patch_dataset import label_of

GROUPS = {"liver": 1, "tumour": 2}
"""Lowest class of each."""


def validate(model: Model, cases: Sequence[Path], stopped: Sequence[int]) -> torch.Tensor:
    """Add up the Dice of these cases by sliding windows.

    Args:
        model: Its network is in evaluation mode.
        cases: Folders of labelled cases.
        stopped: As soon as something is in it, the rest is left out.

    Returns:
        Sum of Dice and number of cases with a Dice, for each of `GROUPS`; adds up over processes.
    """
    sums = torch.zeros(len(GROUPS), 2, dtype=torch.float64)
    for folder in cases:
        if stopped:
            break
        case = open_case(folder)
        predicted = predict_probabilities(model, read_volume(case.image)).argmax(0)
        actual = read_volume(label_of(case))
        for i, lowest in enumerate(GROUPS.values()):
            found, there = predicted >= lowest, actual >= lowest
            if size := int(np.count_nonzero(found)) + int(np.count_nonzero(there)):
                sums[i, 0] += 2 * int(np.count_nonzero(found & there)) / size
                sums[i, 1] += 1
    return sums


def scores(sums: torch.Tensor) -> dict[str, float]:
    """Mean Dice over cases of each group that some case has, by the name it is logged under."""
    return {
        f"validation_dice_{name}": total / number
        for name, (total, number) in zip(GROUPS, sums.tolist(), strict=True)
        if number
    }
