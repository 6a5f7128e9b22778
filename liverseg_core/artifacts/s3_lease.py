"""Who is at work on what in a bucket: an object that its holder writes again and again while it lives."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from liverseg_core.artifacts.s3_objects import Bucket, create, delete, get, idle_s, put
from liverseg_core.errors import LiversegError

RENEWED_EVERY_S = 20.0
STALE_S = 90.0
"""A holder that was silent for so long is dead: its machine or its process is gone."""
SETTLED_S = 1.0
"""Where put-if-absent is not to be had, two claims of one moment are told apart after this."""


@contextlib.contextmanager
def lease(bucket: Bucket, key: str, here: str) -> Iterator[None]:
    """Hold a lease; of a holder that shows no life for a while, it is taken over.

    It spares work and guards nothing: who loses it without noticing still commits whole or not at all.

    Args:
        bucket: Where the object is.
        key: The object.
        here: A folder that one process of this machine holds at a time: an older claim from it is a dead
            one's.

    Raises:
        LiversegError: LS601 when another holds it, naming its process and machine; what `get` raises.
    """
    place = f"{socket.gethostname()}:{here}"
    claim = {"process": os.getpid(), "place": place, "claim": uuid.uuid4().hex}
    content = json.dumps(claim).encode()
    _await_silence(bucket, key, place)
    create(bucket, key, content)
    time.sleep(SETTLED_S)
    if get(bucket, key) != content:
        raise _held(bucket, key)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(bucket, key, content, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(LiversegError):  # it goes stale by itself
            delete(bucket, [key])


def is_held(bucket: Bucket, key: str) -> bool:
    """Whether a process that showed life of late holds this lease."""
    idle = idle_s(bucket, key)
    return idle is not None and idle < STALE_S


def _await_silence(bucket: Bucket, key: str, place: str) -> None:
    """Return when nobody holds the lease any more; refuse as soon as its holder shows life."""
    before = idle_s(bucket, key)
    if before is None:
        return
    if _holder(bucket, key).get("place") != place:
        while (idle := idle_s(bucket, key)) is not None and idle < STALE_S:
            if idle < before:
                raise _held(bucket, key)
            before = idle
            time.sleep(SETTLED_S)
    delete(bucket, [key])


def _renew(bucket: Bucket, key: str, content: bytes, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_EVERY_S):
        with contextlib.suppress(LiversegError):  # the next time, or never: then another takes over
            put(bucket, key, content)


def _holder(bucket: Bucket, key: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(get(bucket, key) or b"{}")
    except ValueError:
        return {}
    return found


def _held(bucket: Bucket, key: str) -> LiversegError:
    holder = _holder(bucket, key)
    name = key.rpartition("/")[0].rpartition("/")[2].removeprefix(".staging-")
    return LiversegError(
        "LS601",
        f"{name} is being made by another run (process {holder.get('process')} at {holder.get('place')})",
        "one run per artifact at a time",
        "Wait for it to end, or stop it, then run the same command again",
    )
