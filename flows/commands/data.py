"""Verbs about datasets: make a phantom, check a source."""

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.case_table import case_table, say_flags
from flows.commands.options import Config, Dask, Json, Overrides, Workers, all_overrides, print_json
from flows.console import DATA, TALK, say, watching
from liverseg_core.artifact import Facts
from liverseg_core.config import RemoteConfig
from liverseg_core.data_report import describe
from liverseg_core.errors import ExitCode, LiversegError


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command()(phantom)
    app.command()(verify)


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="Where to write the tar.")],
    cases: Annotated[int, typer.Option(min=1, help="Labelled cases.")] = 30,
    unlabelled: Annotated[int, typer.Option(min=0, help="Unlabelled cases.")] = 4,
    size: Annotated[str, typer.Option(metavar="X,Y,Z", help="Voxels of every case.")] = "112,112,64",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")] = 0,
) -> None:
    """Write a Decathlon tar of made-up abdomens with livers and tumours."""
    from liverseg_core.phantom import PhantomSpec, write_phantom_tar

    try:
        x, y, z = (int(part) for part in size.split(","))
    except ValueError:
        raise LiversegError("LS207", f"--size {size}", "X,Y,Z", "Write --size 112,112,64") from None
    spec = PhantomSpec(cases, unlabelled, (x, y, z), seed)
    with TALK.status("phantom") as status:
        write_phantom_tar(out, spec, lambda case: status.update(f"phantom {case}"))
    say(f"{out}: {cases} labelled and {unlabelled} unlabelled phantom cases")


def verify(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Decathlon tar or folder; a path or URL.")
    ],
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Read the whole tar for its MD5; Task03_Liver's is known.")
    ] = False,
    md5: Annotated[str | None, typer.Option(help="Expected MD5 of the tar: implies --checksum.")] = None,
    config: Config = None,
    overrides: Overrides = None,
    workers: Workers = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Check a dataset without writing anything: every scan and label is read whole."""
    from flows.runners import open_runner
    from flows.settings import load_settings
    from liverseg_core.runners import Outcome
    from liverseg_core.source import CaseSource, open_source
    from liverseg_core.spacing_overrides import override_spacings
    from liverseg_core.verify import verify_case

    settings = load_settings(config, all_overrides(overrides, workers, dask))
    md5 = md5 or settings.source_md5
    digest = _checked_md5(source, md5, settings.remote) if checksum or md5 else None
    dataset = open_source(source, None, settings.remote)
    dataset = override_spacings(dataset, settings.ingest.spacing_overrides)
    work = functools.partial(verify_case, config=settings.ingest)
    found: list[Facts] = []
    with watching() as report, open_runner(settings.compute) as runner:
        outcome: Outcome[CaseSource, Facts]
        for done, outcome in enumerate(runner.map(work, dataset.cases), 1):
            if outcome.error and outcome.error.exit_code is ExitCode.UNREACHABLE:
                raise outcome.error  # it says nothing of the case
            report.progress("verify", done, len(dataset.cases), outcome.item.case)
            failed = {
                "case": outcome.item.case,
                "labelled": outcome.item.label is not None,
                "problem": str(outcome.error),
            }
            found.append(outcome.result or failed)
    rows = describe(found)
    problems = sum(row.problem is not None for row in rows)
    if as_json:
        summary = {"dataset": dataset.name, "md5": digest, "skipped": dataset.junk, "problems": problems}
        print_json({**summary, "cases": [asdict(row) for row in rows]})
    else:
        DATA.print(case_table(rows))
        say_flags(rows)
        say(f"{dataset.name}: {len(found)} cases, {problems} with problems, {dataset.junk} junk members")
    if problems:
        raise typer.Exit(ExitCode.BAD_INPUT)


def _checked_md5(source: str, expected: str | None, options: RemoteConfig) -> str:
    from liverseg_core.files import checksum
    from liverseg_core.source import check_md5, locate, published_md5

    file, _ = locate(source, options)
    with watching() as report:
        found = checksum(file, lambda done, total: report.progress("MiB", done >> 20, total >> 20, str(file)))
    expected = expected or published_md5(file)
    if expected:
        check_md5(file, found, expected)
    say(f"MD5 {found}{', as expected' if expected else '; none is known to compare it with'}")
    return found
