"""One range of bytes of an S3 object."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import fsspec.asyn
from botocore import exceptions

from liverseg_core.config import RemoteConfig
from liverseg_core.errors import LiversegError
from liverseg_core.sources.ranges import (
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
from liverseg_core.sources.s3_client import (
    CUT,
    NO_CREDENTIALS,
    UNREACHED,
    file_system,
    is_passing,
    is_refused,
)


def fetch(url: str, offset: int, size: int, options: RemoteConfig) -> Reply:
    """Ask once for a range.

    Raises:
        Passing: For failures worth another try.
        LiversegError: LS204 for a location that can't be; LS301, LS405, LS406 or LS407.
    """
    system = file_system(options)
    reply: Reply = fsspec.asyn.sync(system.loop, _fetch, system, url, offset, size)
    return reply


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
    if is_refused(status, code):
        raise refused(url, f"{code or 'status'} {status}")
    if is_passing(status, code):
        raise Passing(failing(url, f"status {status} {code}".strip()))
    raise failing(url, f"status {status} {code}".strip())
