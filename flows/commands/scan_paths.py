"""Which scans files and folders are, and where their labels go: never to what they are made from."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flows.console import say
from liverseg_core.errors import LiversegError
from liverseg_core.inference.wanted import Wanted
from liverseg_core.volumes.nifti_names import PACKED, is_nifti, is_packed, stem
from liverseg_core.words import counted

CT_SLICE = re.compile(
    rb"(\x02\x00\x02\x00UI..|\x08\x00\x16\x00(UI..|....))1\.2\.840\.10008\.5\.1\.4\.1\.1\.2[\x00 ]", re.DOTALL
)
"""The class of a CT slice, in a DICOM file's own header or, where it has none, in its first elements."""
START_BYTES = 4096


def scans_of(images: Sequence[Path]) -> list[Path]:
    """The scans that these files and folders are.

    A folder with a CT slice in DICOM is a series, whatever lies beside; else it is the NIfTI files in it.
    """
    found: list[Path] = []
    for image in images:
        files = _files(image) if image.is_dir() else []
        scans = [path for path in files if is_nifti(path.name)]
        if scans and any(map(_is_ct_slice, (path for path in files if not is_nifti(path.name)))):
            say(f"{image} holds CT slices: its {counted(len(scans), 'NIfTI file')} left alone")
            scans = []
        found += scans or [image]
    return found


def label_paths(scans: Sequence[Path], out: Path, given: int) -> list[Path]:
    """Where each scan's label goes.

    Args:
        scans: From `scans_of`.
        out: A `.nii.gz` for one scan, else a folder.
        given: Of how many files and folders the scans are.

    Raises:
        LiversegError: LS208 where `out` is no folder, or two labels would have one name.
    """
    if len(scans) == given == 1 and is_packed(out.name):
        return [out.with_name(f"{stem(out.name)}{PACKED}")]
    # a series is named by its folder, which may be given as "." or ".."
    named = (scan.resolve() if scan.name in ("", "..") else scan for scan in scans)
    names = [f"{stem(scan.name)}{PACKED}" for scan in named]
    a_file = out.is_file() or is_nifti(out.name)
    if len(set(names)) < len(names) or a_file:
        trouble = f"--out {out} is no folder" if a_file else "two scans of one name would write one file"
        raise LiversegError(
            "LS208", trouble, "a .nii.gz for one scan, else a folder", "Correct --out, or rename the scans"
        )
    return [out / name for name in names]


def refuse_replacing(wanted: Sequence[Wanted], images: Iterable[Path], model: Path | None) -> None:
    """Refuse to write over what is read, or where it would be read the next time; nothing is written yet.

    Args:
        wanted: What will be written.
        images: The files and folders that were given.
        model: The model's folder, where it is one.

    Raises:
        LiversegError: LS208.
    """
    scans = {known: one.scan for one in wanted for known in _identities(one.scan)}
    folders = {image.resolve() for image in images if image.is_dir()}
    series = {one.scan.resolve() for one in wanted if one.scan.is_dir()}
    written: dict[Path, Path] = {}
    for one in wanted:
        for path in one.files():
            place = path.resolve()
            replaced = next((scans[known] for known in _identities(path) if known in scans), None)
            if replaced:
                raise _misplaced(f"{path} would replace the scan {replaced}")
            if place in written:
                raise _misplaced(f"{path} would be written twice")
            if within := series & {*place.parents}:
                raise _misplaced(f"{path} would lie in the series {within.pop()}")
            if place.parent in folders:
                raise _misplaced(f"{path} would lie among scans, and be taken for one the next time")
            if model and model.resolve() in place.parents:
                raise _misplaced(f"{path} would lie in the model's folder")
            written[place] = path


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."]
    except OSError as error:
        what = f"{folder}: {error.strerror}"
        raise LiversegError("LS301", what, "a folder that can be read", "Check the path") from None


def _is_ct_slice(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return CT_SLICE.search(file.read(START_BYTES)) is not None
    except OSError:
        return False


def _identities(path: Path) -> Iterator[object]:
    """What a file is known by: its path without links, and where it is stored, for hard links."""
    yield path.resolve()
    try:
        found = path.stat()
    except OSError:
        return
    yield found.st_dev, found.st_ino


def _misplaced(what: str) -> LiversegError:
    return LiversegError(
        "LS208", what, "a place apart from scans and models", "Choose another --out; nothing was written"
    )
