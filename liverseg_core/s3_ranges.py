"""One range of bytes of an S3 object, over the client that s3fs configures.

Credentials, profile and endpoint come from where AWS's tools look (`AWS_…`, `~/.aws`), from fsspec's
configuration, or from the settings; a Dask worker looks on its own machine.
"""

import asyncio
import functools
import os
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec.asyn
import s3fs
from botocore import exceptions

from liverseg_core.config import RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.ranges import (
    Passing,
    Reply,
    absent,
    cut_short,
    dishonest,
    expected_length,
    failing,
    refused,
    whole_size,
)

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


def fetch(url: str, offset: int, size: int, options: RemoteConfig) -> Reply:
    """Ask once for a range.

    Raises:
        Passing: For failures worth another try.
        LiversegError: LS204 for a location that can't be; LS301, LS405, LS406 or LS407.
    """
    system = _system(os.getpid(), options)
    reply: Reply = fsspec.asyn.sync(system.loop, _fetch, system, url, offset, size)
    return reply


@functools.lru_cache(8)
def _system(process: int, options: RemoteConfig) -> Any:  # noqa: ARG001  # a forked child needs its own
    """One client a process: fsspec's own cache keeps one a thread, and each costs a third of a second."""
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


async def _fetch(system: Any, url: str, offset: int, size: int) -> Reply:
    parts = urlsplit(url, allow_fragments=False)
    request = {"Bucket": parts.netloc, "Key": url.partition("://")[2].partition("/")[2]}
    try:
        async with asyncio.timeout(10 * system.config_kwargs["read_timeout"]):
            client = await system.set_session()
            response = await client.get_object(**request, Range=f"bytes={offset}-{offset + size - 1}")
            async with response["Body"] as body:
                return await _judge(response, body, url, offset, size)
    except exceptions.ClientError as error:
        return _explain(error.response, url)
    except NO_CREDENTIALS as error:
        raise refused(url, str(error)) from None
    except exceptions.ParamValidationError:
        what = f"cannot read {url}"
        raise LiversegError("LS204", what, "s3://bucket/key", "Correct the address") from None
    except TimeoutError:
        raise Passing(failing(url, "too slow")) from None
    except UNREACHED as error:
        raise Passing(failing(url, str(error) or type(error).__name__)) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        raise failing(url, str(error)) from None


async def _judge(response: dict[str, Any], body: Any, url: str, offset: int, size: int) -> Reply:
    if response["ResponseMetadata"]["HTTPStatusCode"] != 206:
        raise dishonest(url, "sends the whole file where a range was asked for")
    length, total = expected_length(response.get("ContentRange"), offset, size, url)
    data = bytearray()
    try:
        while piece := await body.read(length + 1 - len(data)):
            data += piece
    except CUT:
        raise cut_short(url, offset, length, len(data)) from None
    if len(data) < length:
        raise cut_short(url, offset, length, len(data))
    if len(data) > length:
        raise dishonest(url, "sends more than the range")
    return Reply(bytes(data), total, response.get("ETag") or str(response.get("LastModified", "")))


def _explain(response: dict[str, Any], url: str) -> Reply:
    """An error that the server sent: an empty range, or what to raise."""
    described = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status, code = metadata.get("HTTPStatusCode", 0), described.get("Code", "")
    if status == 416:
        headers = metadata.get("HTTPHeaders", {})
        size = whole_size(headers.get("content-range")) or int(described.get("ActualObjectSize") or 0)
        return Reply(b"", size, headers.get("etag", ""))
    if status == 404:
        raise absent(url)
    if status in (401, 403) or code in EXPIRED:
        raise refused(url, f"{code or 'status'} {status}")
    if status >= 500 or status in (408, 425, 429) or code in ("SlowDown", "RequestTimeout"):
        raise Passing(failing(url, f"status {status} {code}".strip()))
    raise failing(url, f"status {status} {code}".strip())
