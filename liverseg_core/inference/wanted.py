"""What is wanted of a scan, and where it goes; known before anything slow is imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from liverseg_core.volumes.nifti_names import PACKED, stem


@dataclass(frozen=True)
class Wanted:
    """A scan to segment, and what is wanted of it.

    Args:
        scan: A NIfTI file, or the folder of a DICOM series, which gets a DICOM SEG too.
        label: The `.nii.gz` where its label goes; what else is wanted goes beside it.
        probabilities: Whether the class probabilities are wanted.
        uncertainty: Whether their entropy is.
    """

    scan: Path
    label: Path
    probabilities: bool = False
    uncertainty: bool = False

    @property
    def case(self) -> str:
        """What errors call it."""
        return self.scan.name

    def beside(self, what: str) -> Path:
        """The file of something else that is wanted."""
        end = ".dcm" if what == "seg" else PACKED
        return self.label.with_name(f"{stem(self.label.name)}_{what}{end}")

    def files(self) -> Iterator[Path]:
        """Every file that will be written."""
        yield self.label
        if self.scan.is_dir():
            yield self.beside("seg")
        yield from (self.beside(what) for what in ("probabilities", "uncertainty") if getattr(self, what))
