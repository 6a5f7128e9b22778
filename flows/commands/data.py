"""Verbs about datasets: make a phantom, check a source."""

import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from flows.commands.case_table import case_table, say_flags
from flows.commands.options import Config, Dask, Json, Overrides, Workers, all_overrides, print_json
from flows.console import DATA, TALK, say, watching
from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.data_report import CaseRow, describe
from liverseg_core.config import RemoteConfig, Settings
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.words import counted
from tasks.context import Report

if TYPE_CHECKING:  # they take a while to import
    from liverseg_core.runners import Outcome
    from liverseg_core.sources.source import CaseSource, Source

Result = TypeVar("Result")


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
    from liverseg_core.phantom.dataset import PhantomSpec, write_phantom_tar

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
    page: Annotated[
        Path | None, typer.Option("--report", metavar="PAGE.html", help="Write the table as a page, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a dataset without writing anything: every scan and label is read whole."""
    from flows.settings import load_settings
    from liverseg_core.sources.source import open_source
    from liverseg_core.sources.spacing_overrides import override_spacings

    settings = load_settings(config, all_overrides(overrides, workers, dask))
    if page:
        _refuse_replacing(page)
        _write(page, "", "a")  # a path that can't be written shows before hours of reading
    md5 = md5 or settings.source_md5
    digest = _checked_md5(source, md5, settings.remote) if checksum or md5 else None
    dataset = open_source(source, None, settings.remote)
    dataset = override_spacings(dataset, settings.ingest.spacing_overrides)
    rows = _verified(dataset, settings, page)
    problems = sum(row.problem is not None for row in rows)
    if as_json:
        summary = {"dataset": dataset.name, "md5": digest, "skipped": dataset.junk, "problems": problems}
        print_json({**summary, "cases": [asdict(row) for row in rows]})
    else:
        DATA.print(case_table(rows))
        say_flags(rows)
        cases, junk = counted(len(rows), "case"), counted(dataset.junk, "junk member")
        say(f"{dataset.name}: {cases}, {problems} with problems, {junk}")
    if problems:
        raise typer.Exit(ExitCode.BAD_INPUT)


def _verified(dataset: "Source", settings: Settings, page: Path | None) -> list[CaseRow]:
    """A row a case, also on the page where one is asked for."""
    from flows.runners import open_runner
    from liverseg_core.cases.case_picture import draw_case
    from liverseg_core.cases.data_page import data_page
    from liverseg_core.cases.verify import verify_case

    with watching() as report, open_runner(settings.compute) as runner:
        work = functools.partial(verify_case, config=settings.ingest, memory_limit=runner.memory_per_task)
        found: list[Facts] = []
        for outcome in _watched("verify", runner.map(work, dataset.cases), len(dataset.cases), report):
            case, error = outcome.item, outcome.error
            if error and error.exit_code is ExitCode.UNREACHABLE:
                raise error  # it says nothing of the case
            failed = {"case": case.case, "labelled": case.label is not None, "problem": str(error)}
            found.append(outcome.result or failed)
        rows = describe(found)
        if page:
            flagged = {row.case for row in rows if row.flags}
            odd = [case for case in dataset.cases if case.case in flagged]
            drawn = _watched("pictures", runner.map(draw_case, odd), len(odd), report)
            pictures = {outcome.item.case: outcome.result for outcome in drawn if outcome.result}
            about = dataset.path.name if isinstance(dataset.path, Path) else str(dataset.path)
            _write(page, data_page(dataset.name, about, rows, pictures))
            say(f"Wrote {page}")
    return rows


def _watched(
    name: str, outcomes: Iterator["Outcome[CaseSource, Result]"], total: int, report: Report
) -> Iterator["Outcome[CaseSource, Result]"]:
    for done, outcome in enumerate(outcomes, 1):
        report.progress(name, done, total, outcome.item.case)
        yield outcome


def _refuse_replacing(page: Path) -> None:
    """A page takes the place of another page, and of nothing else: not of the source, say.

    Raises:
        LiversegError: LS213.
    """
    try:
        with page.open("rb") as file:
            start = file.read(15).lower()
    except OSError:  # it is not there, or `_write` says what is wrong
        return
    if start and start != b"<!doctype html>":
        what = f"{page} is a file of another kind"
        raise LiversegError("LS213", what, "a new file, or a page to replace", "Correct --report")


def _write(page: Path, text: str, mode: Literal["a", "w"] = "w") -> None:
    try:
        with page.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        what = f"cannot write {page}: {error.strerror or error}"
        raise LiversegError("LS213", what, "a path that can be written", "Correct --report") from None


def _checked_md5(source: str, expected: str | None, options: RemoteConfig) -> str:
    from liverseg_core.sources.files import checksum
    from liverseg_core.sources.source import check_md5, locate, published_md5

    file, _ = locate(source, options)
    with watching() as report:
        found = checksum(file, lambda done, total: report.progress("MiB", done >> 20, total >> 20, str(file)))
    expected = expected or published_md5(file)
    if expected:
        check_md5(file, found, expected)
    say(f"MD5 {found}{', as expected' if expected else '; none is known to compare it with'}")
    return found
