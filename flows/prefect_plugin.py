"""Prefect plugin: `prefect deployment run ingest-train-evaluate` works as typed.

Prefect's client takes `<flow>/<deployment>` only. With this plugin a name without a slash means the one
deployment that carries it; when none or several do, the client's own error stays. Loaded in every Prefect
process where plugins are enabled, so it imports next to nothing else. What Prefect asks of this machine goes
through no proxy there either.
"""

from functools import wraps
from typing import TYPE_CHECKING

from prefect.plugins import HookContext, register_hook

from liverseg_core.surroundings import spare_loopback

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient
    from prefect.client.schemas.filters import DeploymentFilter
    from prefect.client.schemas.responses import DeploymentResponse

_patched = False


@register_hook
def setup_environment(*, ctx: HookContext) -> None:  # noqa: ARG001  (the hook's signature)
    """Teach both clients of this process to find a deployment by its bare name; see to proxies."""
    spare_loopback()
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    global _patched  # noqa: PLW0603  (Prefect may run its start-up hooks more than once)
    if _patched:
        return
    _patched = True
    by_name, by_name_sync = PrefectClient.read_deployment_by_name, SyncPrefectClient.read_deployment_by_name

    @wraps(by_name)
    async def read(self: "PrefectClient", name: str) -> "DeploymentResponse":
        if "/" not in name:
            found = await self.read_deployments(deployment_filter=_called(name), limit=2)
            if len(found) == 1:
                return found[0]
        return await by_name(self, name)

    @wraps(by_name_sync)
    def read_sync(self: "SyncPrefectClient", name: str) -> "DeploymentResponse":
        if "/" not in name:
            found = self.read_deployments(deployment_filter=_called(name), limit=2)
            if len(found) == 1:
                return found[0]
        return by_name_sync(self, name)

    PrefectClient.read_deployment_by_name = read  # type: ignore[assignment, method-assign]
    SyncPrefectClient.read_deployment_by_name = read_sync  # type: ignore[assignment, method-assign]


def _called(name: str) -> "DeploymentFilter":
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    return DeploymentFilter(name=DeploymentFilterName(any_=[name]))
