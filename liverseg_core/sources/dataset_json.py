"""dataset.json, which names a dataset's scans: found, read, and refused where it can't be used."""

import json
import posixpath
import re
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from liverseg_core.errors import LiversegError
from liverseg_core.sources.archive import LISTING, Extents, content_of
from liverseg_core.sources.files import File

LISTING_LIMIT = 1 << 26
"""dataset.json of 100,000 cases is 10 MB."""
TUMOURS = r"(cancer|tumou?r|lesion|met|mass|nodule|hcc|icc|carcinoma|neoplasm)(e?s)?|metastas[ie]s"
MORE = r"liver|hepatic|hepatocellular|focal|malignant|primary|secondary|or|and|e?s"
"""What class 2 may be called: at least one of the former words, and none but these."""


class Pair(BaseModel):
    image: str
    label: str


class Listing(BaseModel):
    """What we use of dataset.json."""

    name: str = "unnamed"
    labels: dict[str, str]
    training: list[Pair]
    test: list[str] = []


def read_listing(path: File, extents: Extents) -> tuple[str, Listing]:
    """The folder that dataset.json lies in, and what it says.

    Raises:
        LiversegError: LS305 when there is none, LS306 when it can't be used.
    """
    found = sorted((name for name in extents if posixpath.basename(name) == LISTING), key=len)
    if not found:
        what = f"{path} has no dataset.json"
        raise LiversegError(
            "LS305", what, "the Decathlon layout", "Add dataset.json, or check for truncation"
        )
    lies = extents[found[0]]
    try:
        if lies.size > LISTING_LIMIT:
            raise ValueError(f"it has {lies.size} bytes")  # noqa: TRY301
        listing = Listing.model_validate(json.loads(content_of(lies, found[0])))
    except (ValueError, RecursionError) as error:
        trouble = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        what = f"{path}: {found[0]} cannot be used: {trouble}"
        raise LiversegError("LS306", what, "name, labels, training, test", "Correct dataset.json") from None
    odd = _odd_label(listing.labels)
    if odd:
        raise LiversegError(
            "LS306",
            f"{path}: {found[0]} says {odd}",
            "labels 0 background, 1 liver, 2 cancer (or tumour, lesion)",
            "Use a liver dataset, or map its labels",
        )
    return posixpath.dirname(found[0]), listing


def _odd_label(labels: Mapping[str, str]) -> str | None:
    """The first of the labels that would be read as what it is not."""
    if labels.get("1", "").strip().lower() != "liver":
        return f'labels."1" is {labels.get("1")!r}'
    for value, name in labels.items():
        if value not in {"0", "1", "2"}:
            return f'labels."{value}" is {name!r}'
    words = re.findall(r"[^\W_]+", labels.get("2", "cancer").lower())
    tumours = [re.fullmatch(TUMOURS, word) is not None for word in words]
    known = all(tumour or re.fullmatch(MORE, word) for tumour, word in zip(tumours, words, strict=True))
    return None if known and any(tumours) else f'labels."2" is {labels["2"]!r}'
