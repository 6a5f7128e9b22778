"""torchio: ToCanonical, Resample(1), saved as .nii.gz, at its defaults: linear, and nearest for the label."""

from collections.abc import Iterator
from pathlib import Path

import torchio as tio
from meter import meter


def work(files: list[Path], folder: Path) -> Iterator[str]:
    """Read, resample and write a case."""
    kinds = zip(("image", "label"), (tio.ScalarImage, tio.LabelMap), files, strict=False)
    subject = tio.Subject({name: kind(file) for name, kind, file in kinds})
    subject.load()
    yield "read"
    done = tio.Compose([tio.ToCanonical(), tio.Resample(1)])(subject)
    yield "resample"
    for name in done:
        done[name].save(folder / f"{name}.nii.gz")
    yield "write"


if __name__ == "__main__":
    meter(work)
