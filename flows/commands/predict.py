"""`liverseg predict`: labels and volumes of scans."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import Config, Device, Json, Store, print_json
from flows.console import DATA, plain_table, say, watching
from liverseg_core.durable import is_disk_full
from liverseg_core.errors import LiversegError


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(predict)


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Scans as NIfTI.")],
    model: Annotated[
        str, typer.Option(metavar="REF", help="models:/liverseg@champion, runs:/ID or a folder.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .nii.gz for one scan, else a folder.")],
    config: Config = None,
    store: Store = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Segment scans: labels 0, 1 liver, 2 tumour, on each scan's own grid; volumes in ml."""
    targets = _targets(images, out)
    from flows.settings import load_settings
    from tasks.model_reference import resolve_model

    folder = resolve_model(load_settings(config, store=store), model)
    from liverseg_core.measures import volumes_ml
    from liverseg_core.model import load_model
    from liverseg_core.nifti import read_nifti, write_label
    from liverseg_core.predict import segment

    network = load_model(folder, device)
    found: list[dict[str, Any]] = []
    with watching() as report:
        for done, (image, target) in enumerate(zip(images, targets, strict=True)):
            report.progress("predict", done, len(images), image.name)
            volume = read_nifti(image)
            label = segment(network, volume)
            with _replacing(target) as part:
                write_label(part, label, volume.header)
            found.append(
                {
                    "image": str(image),
                    "label": str(target),
                    **volumes_ml(label, volume.header.grid.spacing_mm),
                }
            )
    if as_json:
        print_json(found)
    else:
        headings = ("image", "label", "liver_ml", "tumour_ml")
        rows = [
            [one["image"], one["label"], f"{one['liver_ml']:.1f}", f"{one['tumour_ml']:.1f}"] for one in found
        ]
        DATA.print(plain_table(headings, rows))
        say("Research software, not a medical device.")


def _targets(images: list[Path], out: Path) -> list[Path]:
    """Where each scan's label goes."""
    if len(images) == 1 and out.name.endswith(".nii.gz"):
        return [out]
    names = [f"{image.name.removesuffix('.gz').removesuffix('.nii')}.nii.gz" for image in images]
    a_file = out.is_file() or out.name.endswith((".nii", ".nii.gz"))
    if len(set(names)) < len(names) or a_file:
        trouble = f"--out {out} is no folder" if a_file else "two scans of one name would write one file"
        raise LiversegError(
            "LS208", trouble, "a .nii.gz for one scan, else a folder", "Correct --out, or rename the scans"
        )
    return [out / name for name in names]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write instead of `path`, whose place it takes when it is whole."""
    part = path.with_name(f".part-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        code = "LS701" if is_disk_full(error) else "LS208"
        what, allowed = f"cannot write {path}: {error.strerror}", "a place that this user may write to"
        raise LiversegError(code, what, allowed, "Choose another --out, or free some space") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
