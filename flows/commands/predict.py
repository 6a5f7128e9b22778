"""`liverseg predict`: labels and volumes of scans."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.batch import end_batch
from flows.commands.options import Config, Dask, Device, Json, Store, print_json
from flows.commands.scan_paths import label_paths, refuse_replacing, scans_of
from flows.console import DATA, plain_table, say, watching
from liverseg_core.config import ComputeConfig
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.inference.wanted import Wanted
from liverseg_core.models.caveats import caveats_of
from liverseg_core.models.model_folder import renamed_from
from liverseg_core.words import counted

COLUMNS = ("liver_ml", "tumour_ml", "burden", "lesions", "largest_diameter_mm")


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(predict)


def predict(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Scans as NIfTI, folders of them, or of a DICOM series."),
    ],
    model: Annotated[
        str, typer.Option(metavar="REF", help="models:/liverseg@champion, runs:/ID or a folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .nii.gz for one scan, else a folder.")],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write each class's probability too.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write the probabilities' entropy too, from 0 to 1.")
    ] = False,
    config: Config = None,
    store: Store = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Dask workers for many scans; 0: none, in this process.")
    ] = 0,
    dask: Dask = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 8 where a scan or its label is in doubt.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment scans: labels 0, 1 liver, 2 tumour, on each scan's own grid; volumes, lesions, and doubts."""
    scans = scans_of(images)
    wanted = [
        Wanted(scan.absolute(), label.absolute(), probabilities, uncertainty)
        for scan, label in zip(scans, label_paths(scans, out, len(images)), strict=True)
    ]
    refuse_replacing(wanted, images, Path(model) if Path(model).is_dir() else None)
    from flows.settings import load_settings
    from tasks.registry.model_reference import resolve_model

    folder = resolve_model(load_settings(config, store=store), model)
    if key := renamed_from(folder):
        say(f"{folder} is a copy of the model {key[:12]} under another name")
    from flows.runners import open_runner
    from liverseg_core.inference.predict_scan import predict_scan

    work = functools.partial(predict_scan, model=folder.absolute(), device=device)
    found: dict[Path, dict[str, Any]] = {}
    errors: dict[Path, LiversegError] = {}
    with watching() as report, open_runner(ComputeConfig(workers=workers, dask=dask)) as runner:
        report.progress("predict", 0, len(wanted))
        for done, outcome in enumerate(runner.map(work, wanted), 1):
            if outcome.error:
                errors[outcome.item.scan] = outcome.error
            elif outcome.result:
                found[outcome.item.scan] = outcome.result
            report.progress("predict", done, len(wanted), outcome.item.case)
    if len(errors) == len(wanted) == 1:
        raise next(iter(errors.values()))
    _show([found[one.scan] for one in wanted if one.scan in found], as_json)
    say_caveats(folder)
    doubtful = [one.scan for one in wanted if one.scan in found and found[one.scan]["flags"]]
    for scan in doubtful:
        say(f"{scan}: {'; '.join(found[scan]['remarks'])}")
    if strict and doubtful:
        say(f"--strict: {len(doubtful)} of {counted(len(wanted), 'label')} in doubt, though written")
    end_batch(errors, bool(found))
    if strict and doubtful:
        raise typer.Exit(ExitCode.PARTIAL)


def _show(found: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        [one["image"], one["label"], *(_shown(name, one[name]) for name in COLUMNS), ", ".join(one["flags"])]
        for one in found
    ]
    DATA.print(plain_table(("image", "label", *COLUMNS, "remarks"), rows))
    say("Research software, not a medical device.")


def say_caveats(model: Path) -> None:
    """Tell what the model's settings alone say of its volumes."""
    for told in caveats_of(model):
        say(f"Caveat: {told}")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if name == "lesions" else f"{value:.3f}" if name == "burden" else f"{value:.1f}"
