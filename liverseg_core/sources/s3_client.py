"""The S3 client that s3fs configures, one a process, and what its failures are called.

Credentials, profile and endpoint come from where AWS's tools look (`AWS_…`, `~/.aws`), from fsspec's
configuration, or from the settings; a Dask worker looks on its own machine.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import s3fs
from botocore import exceptions

from liverseg_core.config import S3Config

NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.ProfileNotFound,
)
UNREACHED = (exceptions.HTTPClientError, exceptions.ConnectionError, aiohttp.ClientError, OSError)
CUT = (aiohttp.ClientPayloadError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError)
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired", "TokenRefreshRequired"}
"""Refusals that come with status 400."""


def file_system(options: S3Config) -> Any:
    """This process's s3fs file system for these options; its `loop` runs what its client is asked."""
    return _file_system(os.getpid(), options)


def is_refused(status: int, code: str) -> bool:
    """Whether a server's error is for want of the right credentials."""
    return status in (401, 403) or code in EXPIRED


def is_passing(status: int, code: str) -> bool:
    """Whether a server's error may not happen again."""
    return status >= 500 or status in (408, 425, 429) or code in ("SlowDown", "RequestTimeout")


def every_page(ask: Callable[[dict[str, str]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pages of a listing, which `ask` gets by what goes into a request for the next one."""
    token: dict[str, str] = {}
    while True:
        page = ask(token)
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


@functools.lru_cache(8)
def _file_system(process: int, options: S3Config) -> Any:  # noqa: ARG001  # a forked child needs its own
    """fsspec's own cache keeps one a thread, and each costs a third of a second."""
    endpoint = options.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config: dict[str, Any] = {
        "connect_timeout": options.timeout_s,
        "read_timeout": options.timeout_s,
        "retries": {"total_max_attempts": 1},  # we try again ourselves, alike for every kind of source
        # Other servers than AWS's know no trailing checksums, and a range has none.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    if endpoint:
        config["s3"] = {"addressing_style": "path"}
    chosen = {"endpoint_url": endpoint, "client_kwargs": options.region and {"region_name": options.region}}
    given = {name: value for name, value in chosen.items() if value}
    return s3fs.S3FileSystem(anon=options.anonymous, config_kwargs=config, skip_instance_cache=True, **given)
