"""Verbs that look around: what the store holds, whether the machine is fit, what is installed."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import Config, Json, Store, print_json
from flows.console import DATA, plain_table, say
from flows.settings import RECIPES, every_setting, load_settings
from liverseg_core.artifacts.location import in_bucket, open_store
from liverseg_core.artifacts.stages import STAGES
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from liverseg_core.provenance import git_commit
from tasks.registry.place import require_tracking

PACKAGES = ("dask", "mlflow", "numpy", "prefect", "torch", "torchio", "zarr")
SAFE = {"fastapi": ((0, 139), (0, 151)), "sqlalchemy": ((2, 0), (2, 1))}
"""Outside these, Prefect's server fails without saying so."""
LOW_DISK_GB = 5


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for verb in (status, gc, doctor, info):
        app.command()(verb)


def status(config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """What the store holds, stage by stage."""
    settings = load_settings(config, store=store)
    root = open_store(settings.store, settings.storage)
    rows = []
    for stage in STAGES:
        found = root.survey(stage)
        sizes = {"complete": found.complete, "unfinished": len(found.leftovers)}
        rows.append({"stage": stage.name, **sizes, "mb": round(found.size / 1e6, 1)})
    if as_json:
        print_json({"store": str(root), "stages": rows})
    else:
        DATA.print(plain_table(("stage", "complete", "unfinished", "mb"), [[*row.values()] for row in rows]))
        say(f"Store {root}")


def gc(
    config: Config = None,
    store: Store = None,
    hours: Annotated[float, typer.Option("--older-than", min=0, help="Hours without a change.")] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed runs left unfinished, and this machine's copies; no artifact of the store."""
    settings = load_settings(config, store=store)
    root = open_store(settings.store, settings.storage)
    rows = []
    for stage in STAGES:
        for old in root.survey(stage).leftovers:
            idle_h = (time.time() - old.modified) / 3600
            if idle_h < hours:
                continue
            done = "would go" if dry_run else "removed" if root.discard(old) else "in use"
            mb = round(old.size / 1e6, 1)
            rows.append({"place": old.place, "mb": mb, "idle_h": round(idle_h), "state": done})
    if as_json:
        print_json(rows)
    else:
        DATA.print(plain_table(("place", "mb", "idle h", ""), [[*row.values()] for row in rows]))
        say(f"Store {root}: {len(rows)} leftovers older than {hours:g} hours")


def doctor(config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """Check that this machine can do the work: libraries, store, services, device."""
    settings = load_settings(config, store=store)
    checks: dict[str, Callable[[Settings], str]] = {
        "libraries": _check_libraries,
        "store": _check_store,
        "device": _check_device,
        "mlflow": _check_mlflow,
        "prefect": _check_prefect,
    }
    results = {name: _examine(settings, check) for name, check in checks.items()}
    rows = [
        {"check": name, "ok": not isinstance(found, LiversegError), "found": str(found)}
        for name, found in results.items()
    ]
    if as_json:
        print_json(rows)
    else:
        DATA.print(plain_table(("check", "ok", "found"), [[*row.values()] for row in rows]))
    for found in results.values():
        if isinstance(found, LiversegError):
            raise typer.Exit(found.exit_code)


def info(config: Config = None, as_json: Json = False) -> None:
    """Versions, recipes and every setting with its value."""
    settings = load_settings(config)
    found: dict[str, Any] = {
        "liverseg": version("liverseg"),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
        "recipes": sorted({path.stem for folder in RECIPES for path in folder.glob("*.yaml")}),
        "settings": every_setting(settings),
    }
    if as_json:
        print_json(found)
    else:
        flat = [(key, value) for key, value in found.items() if not isinstance(value, dict)]
        flat += [(key, value) for key, value in found["packages"].items()]
        flat += [*_flat(found["settings"])]
        DATA.print(plain_table(("", "value"), flat))


def _examine(settings: Settings, check: Callable[[Settings], str]) -> str | LiversegError:
    try:
        return check(settings)
    except LiversegError as error:
        return error


def _check_libraries(_: Settings) -> str:
    for name, (lowest, below) in SAFE.items():
        major, minor = (int(part) for part in version(name).split(".")[:2])
        if not lowest <= (major, minor) < below:
            allowed = f"at least {lowest[0]}.{lowest[1]}, below {below[0]}.{below[1]}"
            remedy = "Install with the constraints file: Prefect's server fails silently otherwise"
            raise LiversegError("LS209", f"{name} {version(name)}", allowed, remedy)
    return ", ".join(f"{name} {version(name)}" for name in ("prefect", "mlflow", "torch"))


def _check_store(settings: Settings) -> str:
    if in_bucket(settings.store):
        open_store(settings.store, settings.storage).write("doctor", b"This may be deleted.")
        return f"{settings.store} can be written"
    root = Path(settings.store).absolute()
    existing = next(path for path in (root, *root.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise LiversegError(
            "LS203", f"{root} can't be written", "a writable folder", "Choose another --store"
        )
    free = shutil.disk_usage(existing).free / 1e9
    if free < LOW_DISK_GB:
        allowed = f"at least {LOW_DISK_GB} GB free"
        raise LiversegError("LS701", f"{free:.1f} GB free at {root}", allowed, "Free some space")
    return f"{root}, {free:.0f} GB free"


def _check_device(settings: Settings) -> str:
    from liverseg_core.models.device import device_name, gpu_expected, pick_device, unusable, why_no_gpu

    chosen = pick_device(settings.compute.device)
    if chosen.type == "cpu" and settings.compute.device == "auto" and gpu_expected():
        raise unusable("cuda", why_no_gpu())
    shown = f"{chosen}, {device_name(chosen)}" if chosen.type == "cuda" else str(chosen)
    return f"{shown}, {os.cpu_count()} cores"


def _check_mlflow(settings: Settings) -> str:
    uri = settings.register_.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    require_tracking(uri, settings.store)
    if uri is None:
        return "SQLite in the store"
    from tasks.registry.tracking import connect

    return connect(uri, settings.store, settings.register_.experiment).uri


def _check_prefect(_: Settings) -> str:
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        return "a temporary API for each run"
    try:
        httpx.get(f"{url}/health", timeout=5).raise_for_status()
    except (httpx.HTTPError, ImportError, ValueError) as error:  # also of a proxy
        what = f"no Prefect API answers at {url} ({type(error).__name__})"
        raise LiversegError("LS404", what, "a running server", "Start it, or unset PREFECT_API_URL") from None
    return str(url)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
