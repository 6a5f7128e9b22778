"""Metrics of a training, which reach MLflow however long its server was away."""

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from liverseg_core.environment import environment
from tasks.registry.tracking import IMPATIENT, reason, service

LOG = logging.getLogger(__name__)


class MetricLog:
    """`log(step, values)` for a training loop, which must never die of a server's absence.

    Values are sent in batches. While the server is away they are kept, with one warning, and offered again
    now and then; only the end of the `with` block insists. The time stamp of a value is the run's start plus
    its step in milliseconds, so that what a resumed training logs again is stored once.

    Raises:
        LiversegError: LS401 at the end, when values are left that could not be delivered.
    """

    def __init__(self, run_id: str, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic):
        with service():
            self._start_ms = int(MlflowClient().get_run(run_id).info.start_time)
        self._run_id, self._interval_s, self._clock = run_id, interval_s, clock
        self._kept: list[Metric] = []
        self._due, self._warned = clock() + interval_s, False

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by name at a step."""
        stamp = self._start_ms + step
        self._kept.extend(Metric(name, float(value), stamp, step) for name, value in values.items())
        if self._clock() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Offer what is kept, without insisting."""
        try:
            with environment(IMPATIENT):
                self._send()
            self._due = self._clock() + self._interval_s
        except MlflowException as error:
            self._due = self._clock() + 10 * self._interval_s
            if not self._warned:
                LOG.warning(
                    "MLflow takes no metrics; they are kept while training goes on: %s", reason(error)
                )
            self._warned = True

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with service():
                self._send()
        else:  # the loop's own error is the one to show
            self.flush()

    def _send(self) -> None:
        client = MlflowClient()
        while self._kept:
            client.log_batch(self._run_id, metrics=self._kept[:1000], synchronous=True)
            del self._kept[:1000]
