"""The report of a model's evaluation: one page, the model card, films and pictures, in one folder."""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image as Pictures

from liverseg_core.artifacts.artifact import Facts
from liverseg_core.config import IngestConfig, ReportConfig
from liverseg_core.evaluation.case_view import CaseView, open_view
from liverseg_core.pictures import case_title, overlay_png
from liverseg_core.report.card import model_card
from liverseg_core.report.films import film, poster
from liverseg_core.report.page import Shown, report_page
from liverseg_core.report.results import (
    Results,
    hardest_tumours_first,
    headline,
    read_results,
    worst_first,
)
from liverseg_core.report.sources import ReportSources
from liverseg_core.report.viewer import FINEST_MM, Stack, coarser, fit, stack_of
from liverseg_core.training.learning_curves import learning_curves_png

PAGE, CARD, FILMS, PICTURES = "report.html", "model_card.md", "films", "pictures"
HISTORY, MODEL = "history.jsonl", "model.json"
PICTURE_SHARE, FILM_SHARE = 0.4, 0.4
"""Of the room that is left in the page: for pictures, and then for films; the viewer has the rest."""
MARKUP = 500
"""Bytes at most around a picture or film."""
PICTURE_QUALITY = 88


@dataclass
class Drawn:
    """What was made of single cases, in the order in which it is shown."""

    pictures: list[str] = field(default_factory=list)
    films: list[str] = field(default_factory=list)
    posters: dict[str, bytes] = field(default_factory=dict)
    stacks: list[Stack] = field(default_factory=list)


def write_report(
    sources: ReportSources, config: ReportConfig, folder: Path, progress: Callable[[int, int], None]
) -> Facts:
    """Write the report of an evaluation.

    Args:
        sources: What it is made from.
        config: The report section.
        folder: Receives `report.html`, `model_card.md`, `films/CASE.gif` and `.mp4`, `pictures/`.
        progress: Called with (done, total) cases drawn.

    Returns:
        The page's size, which cases it shows how, and the mean Dice with its interval.
    """
    results = read_results(sources.evaluation)
    drawn = _draw_cases(sources, results, config, folder, progress)
    limit = round(config.megabytes * 1e6)
    pictures = ((case, _webp(folder / PICTURES / f"{case}.png")) for case in drawn.pictures)
    films = ((case, (folder / FILMS / f"{case}.mp4").read_bytes()) for case in drawn.films)
    shown = Shown(curves=_curves(sources), posters=drawn.posters)
    room = limit - len(report_page(sources, results, shown).encode())
    shown.pictures = dict(_fitting(pictures, PICTURE_SHARE * room))
    room -= sum(map(_cost, shown.pictures.values()))
    room -= sum(map(_cost, drawn.posters.values()))
    shown.films = dict(_fitting(films, FILM_SHARE * room))
    shown.beside = [case for case in drawn.films if case not in shown.films]
    room = limit - len(report_page(sources, results, shown).encode()) - MARKUP
    shown.cases = fit(drawn.stacks, room)
    page = report_page(sources, results, shown)
    (folder / PAGE).write_text(page, "utf-8")
    (folder / CARD).write_text(model_card(sources, results), "utf-8")
    return {
        "bytes": len(page.encode()),
        "cases": len(results.scores),
        "pictured": list(shown.pictures),
        "viewed": [one.case for one in shown.cases],
        "filmed": drawn.films,
        "headline": headline(results.scores),
    }


def _draw_cases(
    sources: ReportSources,
    results: Results,
    config: ReportConfig,
    folder: Path,
    progress: Callable[[int, int], None],
) -> Drawn:
    """Each case is read once, and no two are held at a time."""
    known = {case["case"]: case for case in results.scores}
    worst = worst_first(results.scores)[: config.worst]
    hardest = hardest_tumours_first(results.scores)
    viewed, filmed = hardest[: config.viewed], hardest[: config.filmed]
    drawn = Drawn()
    for name in (FILMS, PICTURES):
        (folder / name).mkdir(exist_ok=True)
    ingest = IngestConfig.model_validate(json.loads((sources.model / MODEL).read_text())["ingest"])
    names = list(dict.fromkeys([*worst, *viewed, *filmed]))
    for done, case in enumerate(names):
        progress(done, len(names))
        view = open_view(known[case], sources.validation[case], sources.evaluation / "predictions", ingest)
        view = replace(view, case=case)  # by the name that it was scored under
        if case in worst:
            _draw(view, folder / PICTURES / f"{case}.png")
        if case in filmed:
            for suffix in (".gif", ".mp4"):
                film(view, folder / FILMS / f"{case}{suffix}")
            drawn.posters[case] = _webp(io.BytesIO(poster(view)))
        if case in viewed:
            drawn.stacks.append(coarser(stack_of(view), FINEST_MM))
    progress(len(names), len(names))
    drawn.pictures, drawn.films = worst, filmed
    drawn.stacks.sort(key=lambda stack: hardest.index(stack.case))
    return drawn


def _draw(view: CaseView, path: Path) -> None:
    title = case_title(view.case, view.score)
    overlay_png(path, view.image, view.reference, view.prediction, view.spacing_mm, title)


def _curves(sources: ReportSources) -> bytes | None:
    """Learning curves; None of an ensemble, which was not trained as one."""
    history = sources.model / HISTORY
    if not history.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.png"
        learning_curves_png(path, history, sources.resumed_from, sources.title)
        return _webp(path)


def _webp(source: Path | io.BytesIO) -> bytes:
    """A picture for the page, in a fifth of its bytes."""
    data = io.BytesIO()
    with Pictures.open(source) as picture:
        picture.convert("RGB").save(data, "WEBP", quality=PICTURE_QUALITY, method=4)
    return data.getvalue()


def _fitting(files: Iterator[tuple[str, bytes]], room: float) -> Iterator[tuple[str, bytes]]:
    """The first files that fit together."""
    for case, content in files:
        room -= _cost(content)
        if room < 0:
            return
        yield case, content


def _cost(content: bytes) -> int:
    """Bytes of a file inside the page."""
    return (len(content) + 2) // 3 * 4 + MARKUP
