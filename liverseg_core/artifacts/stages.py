"""Every stage's word, folder and version. Raise a version when the same inputs would give other bytes."""

from liverseg_core.artifacts.artifact import Stage

NETWORK_LIBRARIES = ("torch", "torchio")
MONAI = (("monai", "1.6.1"),)
"""Ours are its UNet and AHNet to the bit, and keys name it as when they were its own: what was trained then
stays found."""

INGEST = Stage("ingest", "cases", version=6, libraries=("numcodecs", "zarr"))
SPLIT = Stage("split", "datasets", version=1)
TRAIN = Stage("train", "models", version=2, libraries=NETWORK_LIBRARIES, equals=MONAI, resumable=True)
EVALUATE = Stage(
    "evaluate", "evaluations", version=5, libraries=NETWORK_LIBRARIES, equals=MONAI, resumable=True
)
REGISTER = Stage("register", "registrations", version=3)
REPORT = Stage("report", "reports", version=1)

UNITE = Stage("unite", TRAIN.folder, version=1)
POOL = Stage("pool", EVALUATE.folder, version=4)
"""The folds' models as one model, and their evaluations as one, where single ones lie."""

STAGES = (INGEST, SPLIT, TRAIN, EVALUATE, REGISTER, REPORT)
