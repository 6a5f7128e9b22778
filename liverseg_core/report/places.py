"""Texts without places of the machine that a report was written on: it goes to others, and to MLflow."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

PLACE = re.compile(
    r"(?<![\w.:/\\~-])(?:file:/{0,2})?(?:~|[A-Za-z]:)?[/\\]+(?:[^\s/\\:;,'\"()<>|]+[/\\]+)*(?=[^\s/\\])"
)
"""An absolute path up to its last part. What follows a letter or a colon is of a relative one or of a URL."""
PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")


def placeless(text: str, folders: Iterable[str] = ()) -> str:
    """The text with files by their names alone, and URLs without user and password.

    Args:
        text: Of an error, say.
        folders: Known ones, which may have blanks in their names.

    Example:
        >>> placeless("/home/me/T.tar ends early (a/b.nii.gz): see https://me:secret@host/x/y")
        'T.tar ends early (a/b.nii.gz): see https://host/x/y'
    """
    for folder in sorted(filter(None, folders), key=len, reverse=True):
        text = text.replace(f"{folder.rstrip('/')}/", "")
    return PLACE.sub("", PASSWORD.sub("", text))


def placeless_values(values: Any) -> Any:
    """Plain JSON values with every text in them `placeless`."""
    if isinstance(values, str):
        return placeless(values)
    if isinstance(values, Mapping):
        return {name: placeless_values(value) for name, value in values.items()}
    return [placeless_values(value) for value in values] if isinstance(values, list | tuple) else values
