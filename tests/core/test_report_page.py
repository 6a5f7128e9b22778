"""The report's page, opened in a browser: on a desk, a phone, paper; whole in itself; never too large."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.data_report import CaseRow
from liverseg_core.cases.ingest import ingest_case
from liverseg_core.config import IngestConfig, NetworkConfig, ReportConfig
from liverseg_core.evaluation.measures import CaseScore, score_case, summarise
from liverseg_core.models.model import ModelSpec
from liverseg_core.phantom.case import phantom_case
from liverseg_core.report.report import write_report
from liverseg_core.report.results import read_results
from liverseg_core.report.sources import WRITTEN, ReportSources, Rival
from liverseg_core.volumes.nifti import decode, write_label

INGEST = IngestConfig(spacing_mm=(4.0, 4.0, 4.0))
SIZE = (56, 56, 32)
EVIL = '"><script>alert(1)<\\script> & '
"""A name as a file may have it."""


def quiet(_done: int, _total: int) -> None:
    """Tell nobody."""


def shifted(label: np.ndarray, by: int) -> np.ndarray:
    """A prediction that is off by some voxels."""
    return np.roll(label, by, 0)


@pytest.fixture(scope="module")
def sources(build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> ReportSources:
    """Three phantom cases, stored and scored, and a champion that was a little worse."""
    folder = tmp_path_factory.mktemp("report")
    evaluation, model = folder / "evaluation", folder / "model"
    for path in (evaluation / "predictions", model):
        path.mkdir(parents=True)
    scores: list[CaseScore] = []
    rivals: list[CaseScore] = []
    stored, rows = {}, []
    for index in range(3):
        name = f"liver_{index}"
        image, label, affine = phantom_case(3, index, SIZE)
        files = [build.zipped(build.nifti(part, affine)) for part in (image, label)]
        stored[name] = ingest_case(
            build.case(folder, *files, name), INGEST, LocalStore(folder / "store")
        ).path
        header = decode(files[1], name).header
        predicted = shifted(label, 1)
        write_label(evaluation / "predictions" / f"{name}.nii.gz", predicted, header)
        for found, by in ((scores, 1), (rivals, 2)):
            found.append(score_case(name, shifted(label, by), label, header.grid.spacing_mm))
        rows.append(CaseRow(name, True, SIZE, header.grid.spacing_mm, "RAS", {"p50": 40}, 1500, 9, 2))
    rows.append(CaseRow("bad", True, problem="LS312: it is broken"))
    write_scores(evaluation, scores)
    spec = ModelSpec(
        network=NetworkConfig(),
        activation="softmax",
        patch_size=(32, 32, 32),
        window_hu=(-200, 300),
        ingest=INGEST,
        data_key="d" * 32,
    )
    (model / "model.json").write_text(json.dumps(spec.canonical()))
    lines = [{"step": n, "loss": 1 / n, "dice_liver": 1 - 1 / n, "dice_tumour": 0.5} for n in range(1, 9)]
    (model / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ReportSources(
        title="liverseg version 4",
        dataset="Liver phantom",
        phantom=True,
        evaluation=evaluation,
        model=model,
        resumed_from=[4],
        training=[f"liver_{n}" for n in range(10, 20)],
        validation=stored,
        data=rows,
        champion=Rival("liverseg version 3", [one.record() for one in rivals]),
        verdict="champion: mean Dice 0.7000 against the champion's 0.6000, tolerance 0",
        provenance={
            WRITTEN: "on Monday",
            "data key": "d" * 32,
            "commit": "c" * 40,
            "libraries": "torch 2.13.0",
        },
        recipe="train:\n  steps: 8\n",
        links={"MLflow run": "http://127.0.0.1:5000/#/runs/1", "nowhere": "javascript:alert(1)"},
    )


def write_scores(folder: Path, scores: list[CaseScore]) -> None:
    """An evaluation's `metrics.json`."""
    found = {"cases": [score.record() for score in scores], "summary": summarise(scores)}
    (folder / "metrics.json").write_text(json.dumps(found))


def written(sources: ReportSources, folder: Path, **settings: Any) -> dict[str, Any]:
    """The facts of a report, by default without films, which take longest."""
    folder.mkdir()
    return write_report(sources, ReportConfig(**{"filmed": 0, **settings}), folder, quiet)


def with_cases(sources: ReportSources, folder: Path, names: Mapping[str, str]) -> ReportSources:
    """The same with other cases: name → the case of `sources` that it is under another name."""
    evaluation = folder / "evaluation"
    (evaluation / "predictions").mkdir(parents=True)
    known = {case["case"]: case for case in read_results(sources.evaluation).scores}
    for name, like in names.items():
        source = sources.evaluation / "predictions" / f"{like}.nii.gz"
        (evaluation / "predictions" / f"{name}.nii.gz").symlink_to(source)
    records = [{**known[like], "case": name} for name, like in names.items()]
    write_scores(evaluation, [CaseScore.from_record(record) for record in records])
    validation = {name: sources.validation[like] for name, like in names.items()}
    return dataclasses.replace(sources, evaluation=evaluation, validation=validation, champion=None)


@pytest.fixture(scope="module")
def report(sources: ReportSources, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The whole report's folder, and its facts."""
    folder = tmp_path_factory.mktemp("written") / "report"
    return folder, written(sources, folder, filmed=1)


def test_what_is_written_and_told(report: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = report
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    (filmed,) = facts["filmed"]
    pictures = [f"pictures/liver_{n}.png" for n in range(3)]
    assert files == [f"films/{filmed}.gif", f"films/{filmed}.mp4", "model_card.md", *pictures, "report.html"]
    assert facts["bytes"] == (folder / "report.html").stat().st_size
    assert sorted(facts["viewed"]) == ["liver_0", "liver_1", "liver_2"]
    tumours = facts["headline"]["tumour"]
    assert tumours["n"] == 2
    assert tumours["low"] <= tumours["mean"] <= tumours["high"]
    page = (folder / "report.html").read_text()
    assert page.count('src="data:video/mp4;base64,') == 1
    assert page.count('src="data:image/webp;base64,') == 4  # three cases and the learning curves
    assert "Phantom results." in page
    assert not re.search(r"(src|href|srcset|action)=\"(?!data:|#|https?://)", page)
    assert "javascript:" not in page


@contextmanager
def opened(browser: Any, page_file: Path, **screen: Any) -> Iterator[Any]:
    """A page that asks nobody for anything and says nothing on the console."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **screen})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: said.extend([request.url] * (not request.url.startswith("data:"))))
    page.goto(page_file.as_uri())
    yield page
    context.close()
    assert said == [page_file.as_uri()]


PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("screen", [{}, PHONE, {"color_scheme": "dark"}], ids=["desk", "phone", "dark"])
def test_it_opens_and_asks_nobody(
    browser: Any, report: tuple[Path, dict[str, Any]], screen: dict[str, Any]
) -> None:
    with opened(browser, report[0] / "report.html", **screen) as page:
        page.locator("canvas[aria-label]").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
        assert page.evaluate(broken) == 0
        text = page.locator("body").inner_text()
        for words in (
            "Phantom results.", "champion: mean Dice 0.7000", "liverseg version 3", "0.465", "0.558",
            "≈ 0.955", "other cases than these", "Research software, not a medical device",
            "10 cases to train on, 3 to validate. Written on Monday", "tumour, empty = 1",
        ):  # fmt: skip
            assert words in text


def test_cases_sort_and_lead_to_the_viewer(browser: Any, report: tuple[Path, dict[str, Any]]) -> None:
    with opened(browser, report[0] / "report.html") as page:
        page.locator("canvas[aria-label]").wait_for()
        table = page.locator("#every-case table")
        names = "rows => rows.map(row => row.cells[0].textContent)"
        orders = []
        for _ in range(2):
            table.get_by_role("button", name="tumour Dice").click()
            orders.append(table.locator("tbody tr").evaluate_all(names))
        assert [order[-1] for order in orders] == ["liver_2"] * 2, "the case without a tumour is last"
        assert orders[0][:2] == orders[1][1::-1]
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        table.get_by_role("link", name="liver_2").click()
        page.locator('canvas[aria-label^="liver_2,"]').wait_for()


def test_on_paper_there_is_a_still_and_no_controls(browser: Any, report: tuple[Path, dict[str, Any]]) -> None:
    with opened(browser, report[0] / "report.html") as page:
        page.locator("canvas[aria-label]").wait_for()
        page.emulate_media(media="print")
        assert page.locator("canvas").is_visible()
        for hidden in ("nav", "#viewer .controls", "#films"):
            assert not page.locator(hidden).first.is_visible()
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_names_are_shown_not_obeyed(browser: Any, sources: ReportSources, tmp_path: Path) -> None:
    evil = with_cases(sources, tmp_path / "cases", {f"{EVIL}{n}": f"liver_{n}" for n in range(2)})
    evil = dataclasses.replace(
        evil,
        title=f"<b>{EVIL}",
        dataset=EVIL,
        verdict=EVIL,
        recipe="#" + EVIL,
        phantom=False,
        provenance={EVIL: EVIL},
        links={EVIL: "https://x/<script>", "safe": 'https://x/"onclick="alert(1)'},
        data=[CaseRow(EVIL, True, problem=EVIL), CaseRow("a", True, flags=("identity-affine",))],
        champion=Rival(EVIL, read_results(evil.evaluation).scores),
        training=[EVIL],
    )
    written(evil, tmp_path / "report", filmed=1)
    with opened(browser, tmp_path / "report" / "report.html") as page:
        page.locator("canvas[aria-label]").wait_for()
        assert page.locator("script").count() == 3, "the page's own, and two cases' voxels"
        handlers = (
            "[...document.querySelectorAll('*')].filter(e => e.getAttributeNames().some(n => /^on/.test(n)))"
        )
        assert page.evaluate(f"{handlers}.length") == 0
        assert EVIL.strip() in page.locator("h1").inner_text()
        assert "Phantom" not in page.locator("body").inner_text()


def test_one_case_without_tumour_rival_or_history(
    browser: Any, sources: ReportSources, tmp_path: Path
) -> None:
    alone = with_cases(sources, tmp_path / "cases", {"liver_2": "liver_2"})
    shutil.copytree(sources.model, tmp_path / "model", ignore=shutil.ignore_patterns("history.jsonl"))
    alone = dataclasses.replace(alone, model=tmp_path / "model", verdict="", links={}, data=[], training=[])
    facts = written(alone, tmp_path / "report")
    assert facts["headline"]["tumour"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert facts["headline"]["liver"]["low"] is None, "one case has no interval"
    with opened(browser, tmp_path / "report" / "report.html") as page:
        page.locator("canvas[aria-label]").wait_for()
        sections = page.locator("nav").inner_text()
        assert "Training" not in sections
        assert "Films" not in sections
        assert "n = 0" in page.locator(".counts").first.inner_text()


@pytest.mark.parametrize(("megabytes", "viewed"), [(2.0, 3), (0.75, 1), (0.5, 0)])
def test_it_is_never_larger_than_it_may_be(
    sources: ReportSources, tmp_path: Path, megabytes: float, viewed: int
) -> None:
    many = with_cases(sources, tmp_path / "cases", {f"case_{n:03}": f"liver_{n % 3}" for n in range(200)})
    facts = written(many, tmp_path / "report", megabytes=megabytes, worst=2)
    assert facts["cases"] == 200
    assert facts["bytes"] <= megabytes * 1e6
    assert len(facts["viewed"]) >= viewed
