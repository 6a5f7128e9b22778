"""One at a time at the registry: MLflow sets an alias for whoever comes last, and knows no locks.

A tracking store in a folder has the kernel's lock, which ends with its holder. Behind a server there is one
thing that only the first of several can do: create a registered model of a certain name. So promotions take
turns. Turn n is held by whoever created `NAME.turn-n`, and over for good once the model NAME has the tag
`liverseg.turn.n`, which is set and never taken back. Both go again when the turn is over; the tag of the last
turn stays. A turn that outlives the lease is declared over by whoever waits, by its own clock alone.
"""

import contextlib
import fcntl
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from liverseg_core.errors import LiversegError
from tasks.registry.tracking import Tracking

WAIT_S, LEASE_S, PAUSE_S = 420.0, 180.0, 0.05
TURN = "liverseg.turn."
Check = Callable[[], None]


@contextlib.contextmanager
def one_at_a_time(tracking: Tracking, name: str) -> Iterator[Check]:
    """Hold the registered model's turn; call what this yields just before anything is changed.

    Raises:
        LiversegError: LS602 when others take too long, or when this process itself did and lost its turn.
    """
    if tracking.folder:
        with _kernel_lock(tracking.folder / ".register.lock"):
            yield lambda: None
        return
    client = MlflowClient()
    number = _take_turn(client, name)
    until = time.monotonic() + LEASE_S / 2

    def check() -> None:
        if time.monotonic() > until:
            raise _busy(f"this process held turn {number} of {name} for too long, and has changed nothing")

    try:
        yield check
    finally:
        _end_turn(client, name, number)


@contextlib.contextmanager
def _kernel_lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _busy(f"another registration has held {path} for {WAIT_S:.0f} s") from None
                time.sleep(PAUSE_S)
        yield


def _take_turn(client: MlflowClient, name: str) -> int:
    owner, deadline = uuid.uuid4().hex, time.monotonic() + WAIT_S
    waited_for, since = -1, 0.0
    while time.monotonic() < deadline:
        number = max(_over(client, name), default=0) + 1
        if _create(client, f"{name}.turn-{number}", owner):
            if number > max(_over(client, name), default=0):
                return number
            _delete(client, f"{name}.turn-{number}")  # it was over before we had it
        elif number != waited_for:
            waited_for, since = number, time.monotonic()
        elif time.monotonic() - since > LEASE_S:  # whoever holds it died
            _end_turn(client, name, number)
        time.sleep(PAUSE_S)
    raise _busy(f"other promotions of {name} have kept this one waiting for {WAIT_S:.0f} s")


def _end_turn(client: MlflowClient, name: str, number: int) -> None:
    """Say that a turn is over, then tidy up: no tag but the last, and no model."""
    client.set_registered_model_tag(name, f"{TURN}{number}", "over")
    for earlier in _over(client, name):
        if earlier < number:
            with contextlib.suppress(MlflowException):
                client.delete_registered_model_tag(name, f"{TURN}{earlier}")
    _delete(client, f"{name}.turn-{number}")


def _over(client: MlflowClient, name: str) -> list[int]:
    tags = client.get_registered_model(name).tags
    return [int(found[1]) for tag in tags if (found := re.fullmatch(re.escape(TURN) + r"(\d+)", tag))]


def _create(client: MlflowClient, turn: str, owner: str) -> bool:
    try:
        client.create_registered_model(turn, {"liverseg.owner": owner}, "A promotion is under way.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        with contextlib.suppress(
            MlflowException
        ):  # ours, if a request was sent again after its answer was lost
            return bool(client.get_registered_model(turn).tags.get("liverseg.owner") == owner)
        return False
    return True


def _delete(client: MlflowClient, turn: str) -> None:
    with contextlib.suppress(MlflowException):  # gone already
        client.delete_registered_model(turn)


def _busy(what: str) -> LiversegError:
    return LiversegError(
        "LS602", what, "one promotion at a time", "Wait a little, then run the same command again"
    )
