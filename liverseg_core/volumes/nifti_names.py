"""Names of NIfTI files, whose endings may be in any case: `scan.nii.gz`, `SCAN.NII.GZ`, `Scan.Nii`."""

PACKED = ".nii.gz"
"""What we write ends so."""
ENDINGS = (PACKED, ".nii")


def is_nifti(name: str) -> bool:
    """Whether a name ends as those of NIfTI files do."""
    return name.lower().endswith(ENDINGS)


def is_packed(name: str) -> bool:
    """Whether a name ends as those of gzipped NIfTI files do."""
    return name.lower().endswith(PACKED)


def stem(name: str) -> str:
    """What a file is called, without folders and without what says that it is NIfTI.

    Example:
        >>> stem("imagesTr/CASE1.NII.GZ")
        'CASE1'
    """
    last = name.rpartition("/")[2]
    ending = next((end for end in ENDINGS if last.lower().endswith(end)), "")
    return last[: len(last) - len(ending)]
