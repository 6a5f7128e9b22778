"""What a person calls a report: its key, the key of what it tells of, or a registered version."""

import re

from liverseg_core.artifacts.artifact import Artifact
from liverseg_core.artifacts.location import open_store
from liverseg_core.artifacts.stages import REPORT
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from tasks.registry.place import is_tracked

PAGE, CARD = "report.html", "model_card.md"
TELLS_OF = ("evaluation", "model", "registration")
VERSION = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<number>\d+))")


def resolve_report(settings: Settings, reference: str) -> Artifact:
    """The report that a reference means.

    Args:
        settings: Name the store, and the registry for a version.
        reference: Key of a report, an evaluation or a model, or its beginning; models:/NAME@ALIAS or
            models:/NAME/VERSION.

    Raises:
        LiversegError: LS295 when there is none, LS296 when there are several; LS401 when MLflow fails, LS501
            for a damaged manifest.
    """
    store = open_store(settings.store, settings.storage)
    key = _registration(settings, reference) if reference.startswith("models:/") else reference.lower()
    reports = (store.find(REPORT, name) for name in sorted(store.folders(REPORT)))
    found = [report for report in reports if report and any(name.startswith(key) for name in _keys(report))]
    if not found:
        raise _no_report(settings, reference)
    if len(found) > 1:
        named = ", ".join(f"{one.key[:12]} ({one.facts['title']})" for one in found)
        what = f"{len(found)} reports in {store} are meant by {reference}: {named}"
        raise LiversegError("LS296", what, "one report", "Give the key of one of them, or more of a key")
    return found[0]


def _keys(report: Artifact) -> list[str]:
    return [report.key, *(report.manifest["inputs"][name] for name in TELLS_OF)]


def _registration(settings: Settings, reference: str) -> str:
    """The registration's key, which the registered version is tagged with."""
    named = VERSION.fullmatch(reference)
    if named is None or not is_tracked(settings):
        raise _no_report(settings, reference)
    from tasks.registry.tracking import connect
    from tasks.registry.versions import KEY, list_versions

    register = settings.register_
    tracking = connect(register.tracking_uri, settings.store, register.experiment)
    for version in list_versions(tracking, named["name"]):
        if named["alias"] in version.aliases or named["number"] == str(version.version):
            return version.tags[KEY]
    raise _no_report(settings, reference)


def _no_report(settings: Settings, reference: str) -> LiversegError:
    return LiversegError(
        "LS295",
        f"there is no report {reference} in {settings.store}",
        "the key of a report, an evaluation or a model, the beginning of one, or models:/NAME@ALIAS",
        "See what there is with `liverseg models list`; `liverseg report` without a key makes one",
    )
