"""`liverseg predict`: labels and volumes of scans."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import Config, Dask, Device, Json, Store, print_json
from flows.console import DATA, plain_table, say, watching
from liverseg_core.config import ComputeConfig
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.models.caveats import caveats_of

NIFTI = (".nii", ".nii.gz")
COLUMNS = ("liver_ml", "tumour_ml", "burden", "lesions", "largest_diameter_mm")


@dataclass(frozen=True)
class Target:
    """A scan, and where its label goes."""

    scan: Path
    label: Path


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
    as_json: Json = False,
) -> None:
    """Segment scans: labels 0, 1 liver, 2 tumour, on each scan's own grid; volumes and lesions."""
    targets = _targets(_scans(images), out, len(images))
    from flows.settings import load_settings
    from tasks.registry.model_reference import resolve_model

    folder = resolve_model(load_settings(config, store=store), model)
    from flows.runners import open_runner
    from liverseg_core.inference.predict_scan import Wanted, predict_scan

    wanted = [
        Wanted(target.scan.absolute(), target.label.absolute(), probabilities, uncertainty)
        for target in targets
    ]
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
    if not found:
        raise next(iter(errors.values()))
    _show([found[one.scan] for one in wanted if one.scan in found], as_json)
    say_caveats(folder)
    for scan, error in errors.items():
        say(f"{scan}: {error}")
    if errors:
        raise typer.Exit(ExitCode.PARTIAL)


def _show(found: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [[one["image"], one["label"], *(_shown(name, one[name]) for name in COLUMNS)] for one in found]
    DATA.print(plain_table(("image", "label", *COLUMNS), rows))
    say("Research software, not a medical device.")


def say_caveats(model: Path) -> None:
    """Tell what the model's settings alone say of its volumes."""
    for told in caveats_of(model):
        say(f"Caveat: {told}")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if name == "lesions" else f"{value:.3f}" if name == "burden" else f"{value:.1f}"


def _scans(images: Sequence[Path]) -> list[Path]:
    """The scans that these files and folders are: a folder without NIfTI files may be a DICOM series."""
    found: list[Path] = []
    for image in images:
        if not image.is_dir():
            found.append(image)
            continue
        files = (path for path in sorted(image.iterdir()) if path.name.lower().endswith(NIFTI))
        found += [path for path in files if path.is_file() and not path.name.startswith(".")] or [image]
    return found


def _targets(scans: Sequence[Path], out: Path, given: int) -> list[Target]:
    """Where each scan's label goes."""
    if len(scans) == given == 1 and out.name.endswith(".nii.gz"):
        return [Target(scans[0], out)]
    names = [
        f"{scan.absolute().name.removesuffix('.gz').removesuffix('.nii')}.nii.gz" for scan in scans
    ]  # a series is named by its folder, which may be given as "."
    a_file = out.is_file() or out.name.endswith(NIFTI)
    if len(set(names)) < len(names) or a_file:
        trouble = f"--out {out} is no folder" if a_file else "two scans of one name would write one file"
        raise LiversegError(
            "LS208", trouble, "a .nii.gz for one scan, else a folder", "Correct --out, or rename the scans"
        )
    targets = [Target(scan, out / name) for scan, name in zip(scans, names, strict=True)]
    for target in targets:
        if target.label.absolute() in {scan.absolute() for scan in scans}:
            raise LiversegError(
                "LS208",
                f"the label of {target.scan} would replace a scan",
                "another folder than the scans'",
                "Choose another --out",
            )
    return targets
