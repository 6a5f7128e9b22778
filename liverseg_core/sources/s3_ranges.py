"""What is asked of S3: a range of an object's bytes, and which objects there are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

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
    insist,
    refused,
    whole_size,
)
from liverseg_core.sources.s3_client import (
    CUT,
    NO_CREDENTIALS,
    UNREACHED,
    every_page,
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


def list_objects(url: str, options: RemoteConfig) -> Iterator[tuple[str, int, str]]:
    """Ask for every object below a prefix, a thousand at a time: its name after the prefix, size and ETag.

    Raises:
        LiversegError: As `fetch`, when failures do not pass.
    """
    system = file_system(options)

    def ask(token: dict[str, str]) -> dict[str, Any]:
        return insist(lambda: fsspec.asyn.sync(system.loop, _list, system, url, token), options)

    for page in every_page(ask):
        for entry in page.get("Contents", ()):
            yield entry["Key"].removeprefix(_place(url)["Key"]), entry["Size"], entry["ETag"]


async def _list(system: Any, url: str, token: dict[str, str]) -> dict[str, Any]:
    place = _place(url)
    async with _asking(system, url) as client:
        page: dict[str, Any] = await client.list_objects_v2(
            Bucket=place["Bucket"], Prefix=place["Key"], **token
        )
        return page


async def _fetch(system: Any, url: str, offset: int, size: int) -> Reply:
    wanted = f"bytes={offset}-{offset + size - 1}"
    async with _asking(system, url) as client:
        try:
            response = await client.get_object(**_place(url), Range=wanted)
        except exceptions.ClientError as error:
            return _empty(error)
        async with response["Body"] as body:
            return await _judge(response, body, url, offset, size)


def _place(url: str) -> dict[str, str]:
    bucket, _, key = url.partition("://")[2].partition("/")
    return {"Bucket": bucket, "Key": key}


@contextlib.asynccontextmanager
async def _asking(system: Any, url: str) -> AsyncIterator[Any]:
    """The client; what goes wrong between it and the server becomes ours to tell."""
    try:
        async with asyncio.timeout(10 * system.config_kwargs["read_timeout"]):
            yield await system.set_session()
    except exceptions.ClientError as error:
        raise _explained(error.response, url) from None
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


def _empty(error: Any) -> Reply:
    """The reply to a range that begins at or after the end of the object; other errors are raised again."""
    metadata = error.response.get("ResponseMetadata", {})
    if metadata.get("HTTPStatusCode") != 416:
        raise error
    headers = metadata.get("HTTPHeaders", {})
    told = error.response.get("Error", {}).get("ActualObjectSize")
    return Reply(b"", whole_size(headers.get("content-range")) or int(told or 0), headers.get("etag", ""))


def _explained(response: dict[str, Any], url: str) -> Exception:
    """What to raise for an error that the server sent."""
    code = response.get("Error", {}).get("Code", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 404:
        return absent(url)
    if is_refused(status, code):
        return refused(url, f"{code or 'status'} {status}")
    trouble = failing(url, f"status {status} {code}".strip())
    return Passing(trouble) if is_passing(status, code) else trouble
