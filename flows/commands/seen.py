"""`liverseg seen`: whether a model has seen scans before."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.batch import end_batch
from flows.commands.options import Config, Json, Store, print_json
from flows.commands.scan_paths import scans_of
from flows.console import DATA, plain_table, say, watching
from liverseg_core.errors import LiversegError

if TYPE_CHECKING:
    from liverseg_core.models.known_data import SeenCase


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(seen)


def seen(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="models:/liverseg@champion, runs:/ID or a folder.")
    ],
    scans: Annotated[
        list[Path],
        typer.Argument(metavar="SCAN...", help="Scans as NIfTI, folders of them, or of a DICOM series."),
    ],
    config: Config = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Say whether scans trained or validated a model, or the weights it began with, by their voxels."""
    from flows.settings import load_settings
    from liverseg_core.inference.opened import identify_path
    from liverseg_core.models.known_data import read_known
    from tasks.registry.model_reference import resolve_model

    known = read_known(resolve_model(load_settings(config, store=store), model)).seen
    paths, found = scans_of(scans), []
    errors: dict[Path, LiversegError] = {}
    with watching() as report:
        for done, path in enumerate(paths):
            report.progress("seen", done, len(paths), path.name)
            try:
                identity = identify_path(path)
            except LiversegError as trouble:
                errors[path] = trouble
            else:
                found.append((path, known.find(identity) if known else ()))
    if len(errors) == len(paths) == 1:
        raise next(iter(errors.values()))
    _show(found, known.complete if known else None, as_json)
    end_batch(errors, bool(found))


def _show(found: Sequence[tuple[Path, Sequence["SeenCase"]]], complete: bool | None, as_json: bool) -> None:
    """The answers; `complete` as a model has it, None where the model knows nothing."""
    if as_json:
        parts = {"case", "role", "before", "member"}
        told: list[dict[str, Any]] = [
            {
                "image": str(path),
                "known": complete is not None,
                "complete": bool(complete),
                "seen": [case.model_dump(include=parts) for case in cases],
            }
            for path, cases in found
        ]
        print_json(told)
        return
    none = "not known" if complete is None else "not seen"
    rows = [
        (path, ", ".join(dict.fromkeys(map(_where, cases))) or none, " ".join(_names(cases)))
        for path, cases in found
    ]
    DATA.print(plain_table(("image", "seen in", "as case"), rows))
    if complete is None:
        say("This model was made before models kept what they had seen: train it again to know")
    elif not complete:
        say("What the weights it began with had seen is not known, or not all of it")


def _where(case: "SeenCase") -> str:
    member = f" of member {case.member}" if case.member else ""
    return f"{case.role}{member}{' of the weights it began with' if case.before else ''}"


def _names(cases: Sequence["SeenCase"]) -> list[str]:
    return [*dict.fromkeys(case.case for case in cases)]
