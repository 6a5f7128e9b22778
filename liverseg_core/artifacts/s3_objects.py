"""Whole objects of a bucket: put, get, list, delete; asked for again when a failure may pass."""

import asyncio
import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import fsspec.asyn
from botocore import exceptions

from liverseg_core.config import S3Config
from liverseg_core.errors import LiversegError
from liverseg_core.sources.ranges import Passing, insist
from liverseg_core.sources.s3_client import (
    CUT,
    NO_CREDENTIALS,
    UNREACHED,
    every_page,
    file_system,
    is_passing,
    is_refused,
)


@dataclass(frozen=True)
class Bucket:
    """Where objects are, and how to ask for them."""

    name: str
    options: S3Config


@dataclass(frozen=True)
class Listed:
    """An object, or with a delimiter what several keys begin with: size and time are then 0."""

    key: str
    size: int = 0
    modified: float = 0.0
    md5: str = ""
    """Of an object that was put whole, as most servers tell it."""


def get(bucket: Bucket, key: str) -> bytes | None:
    """An object's bytes; None where there is none.

    Raises:
        LiversegError: LS411 when the server can't be reached or fails, LS412 when it refuses, LS413 when
            there is no such bucket.
    """
    found = _ask(bucket, "get_object", Key=key)
    return None if found is None else found["Body"]


def idle_s(bucket: Bucket, key: str) -> float | None:
    """Seconds since an object was written, by the server's clock; None where there is none.

    Raises:
        LiversegError: As `get`.
    """
    found = _ask(bucket, "head_object", Key=key)
    if found is None:
        return None
    now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - found["LastModified"]).total_seconds())


def put(bucket: Bucket, key: str, data: bytes) -> None:
    """Write an object; what arrives damaged is refused by the server and sent again.

    Raises:
        LiversegError: As `get`.
    """
    _ask(bucket, "put_object", Key=key, Body=data, ContentMD5=_md5(data))


def create(bucket: Bucket, key: str, data: bytes) -> None:
    """Write an object unless it is there.

    Servers that can't do so in one request are asked first; two writers in one moment may then both write,
    and the later one's object is the one that stays.

    Raises:
        LiversegError: As `get`.
    """
    try:
        _ask(bucket, "put_object", Key=key, Body=data, ContentMD5=_md5(data), IfNoneMatch="*")
    except _Unsupported:
        if get(bucket, key) is None:
            put(bucket, key, data)


def listing(bucket: Bucket, prefix: str, delimiter: str = "") -> Iterator[Listed]:
    """Every object whose key begins so; with a delimiter, what comes up to it is listed once.

    Raises:
        LiversegError: As `get`.
    """

    def ask(token: dict[str, str]) -> dict[str, Any]:
        return _ask(bucket, "list_objects_v2", Prefix=prefix, Delimiter=delimiter, **token) or {}

    for page in every_page(ask):
        yield from (Listed(entry["Prefix"]) for entry in page.get("CommonPrefixes", ()))
        for entry in page.get("Contents", ()):
            modified, md5 = entry["LastModified"].timestamp(), entry["ETag"].strip('"')
            yield Listed(entry["Key"], entry["Size"], modified, md5)


def delete(bucket: Bucket, keys: Sequence[str]) -> None:
    """Delete objects; one that is not there is none the less gone.

    Raises:
        LiversegError: As `get`.
    """
    for key in keys:  # one by one: not every server takes a list with the checksum that botocore sends
        _ask(bucket, "delete_object", Key=key)


class _Unsupported(Exception):
    """The server does not know this kind of request."""


def _ask(bucket: Bucket, operation: str, **request: Any) -> dict[str, Any] | None:
    system = file_system(bucket.options)

    def once() -> dict[str, Any] | None:
        answer: dict[str, Any] | None = fsspec.asyn.sync(
            system.loop, _ask_once, system, bucket, operation, request
        )
        return answer

    return insist(once, bucket.options)


async def _ask_once(
    system: Any, bucket: Bucket, operation: str, request: dict[str, Any]
) -> dict[str, Any] | None:
    where = f"s3://{bucket.name}/{request.get('Key', request.get('Prefix', ''))}"
    try:
        async with asyncio.timeout(10 * system.config_kwargs["read_timeout"]):
            client = await system.set_session()
            answer: dict[str, Any] = await getattr(client, operation)(Bucket=bucket.name, **request)
            if "Body" in answer:
                async with answer["Body"] as body:
                    answer = {**answer, "Body": await body.read()}
            return answer
    except exceptions.ClientError as error:
        _explain(error.response, where)
        return None
    except NO_CREDENTIALS as error:
        raise _refused(where, str(error)) from None
    except exceptions.ParamValidationError:
        what, remedy = f"{where} is no bucket's name", "Correct --store"
        raise LiversegError("LS413", what, "s3://bucket/prefix", remedy) from None
    except TimeoutError:
        raise Passing(_failing(where, "too slow")) from None
    except (*CUT, *UNREACHED) as error:
        raise Passing(_failing(where, str(error) or type(error).__name__)) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        raise _failing(where, str(error)) from None


def _explain(response: dict[str, Any], where: str) -> None:
    """An error that the server sent: nothing there, there already, or what to raise."""
    code = response.get("Error", {}).get("Code", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        what = f"there is no bucket for {where}"
        raise LiversegError("LS413", what, "a bucket that exists", "Make it, or correct --store")
    if status in (404, 412):
        return
    if status == 501 or code == "NotImplemented":
        raise _Unsupported
    if is_refused(status, code):
        raise _refused(where, f"{code or 'status'} {status}")
    trouble = _failing(where, f"status {status} {code}".strip())
    passing = is_passing(status, code) or status == 409 or code == "BadDigest"  # 409: two at the same moment
    raise Passing(trouble) if passing else trouble


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _failing(where: str, trouble: str) -> LiversegError:
    remedy = "Check storage.endpoint and the network, then run the same command again; finished work is kept"
    return LiversegError("LS411", f"{where}: {trouble}", "a server that answers", remedy)


def _refused(where: str, trouble: str) -> LiversegError:
    allowed, remedy = "credentials that may read, list, write and delete", "Renew the credentials (AWS_…)"
    return LiversegError("LS412", f"{where}: {trouble}", allowed, remedy)
