"""A store by its location: a folder's path or a bucket's URL."""

from pathlib import Path

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import Store
from liverseg_core.config import StorageConfig


def in_bucket(location: str | Path) -> bool:
    """Whether a store's location is a bucket, not a folder."""
    return str(location).startswith("s3://")


def open_store(location: str, options: StorageConfig) -> Store:
    """The store at a folder's path or an `s3://` URL."""
    if in_bucket(location):
        from liverseg_core.artifacts.s3_store import S3Store  # botocore takes a second to import

        return S3Store(location.rstrip("/"), options)
    return LocalStore(Path(location).absolute())
