"""What stages get, from the settings and from whoever watches."""

from pathlib import Path

from flows.console import current_report
from flows.runners import open_runner
from liverseg_core.artifacts.location import in_bucket
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from tasks.context import Context
from tasks.registry.place import require_tracking


def open_context(settings: Settings) -> Context:
    """What the stages need, from the settings and from whoever watches this process."""
    return Context(settings, lambda: open_runner(settings.compute), current_report())


def open_run(settings: Settings) -> Context:
    """The same for a flow run, whose store must be one that can last and be tracked.

    Raises:
        LiversegError: LS210 in a deployment with a relative store, which would end with the run's folder;
            LS214 for a store that can hold no tracking database while no tracking server is named.
    """
    from prefect import runtime  # takes a second, which single verbs are spared

    if runtime.deployment.id and not in_bucket(settings.store) and not Path(settings.store).is_absolute():
        allowed = "an absolute path, or s3://bucket/prefix"
        what = f"this run of a deployment has the relative store {settings.store!r}"
        raise LiversegError("LS210", what, allowed, "Set LIVERSEG_STORE and deploy again")
    require_tracking(settings.register_.tracking_uri, settings.store)
    return open_context(settings)
