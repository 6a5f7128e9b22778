"""`liverseg report` and what a run shows in Prefect, through the real command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from liverseg_core.artifacts.artifact import Recipe
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.artifacts.produce import produce
from liverseg_core.artifacts.s3_store import S3Store
from liverseg_core.artifacts.stages import REPORT
from liverseg_core.config import StorageConfig

pytestmark = pytest.mark.slow

Run = Callable[..., Any]


def test_the_page_of_a_run_is_found(liverseg: Run, stored: Any, tmp_path: Path) -> None:
    """By its own key, its evaluation's, its model's, its version, and without any."""
    store = ["--store", stored.path]
    page = Path(stored.ended.err.splitlines()[-1].removeprefix("Report").strip())
    inputs = json.loads((page.parent / "manifest.json").read_text())["inputs"]
    assert liverseg("report", page.parent.name[:12], *store).ok().out == f"{page}\n"
    for reference in (inputs["evaluation"], inputs["model"], "models:/liverseg/1"):
        found = liverseg("report", reference, *store, "--json").ok().data
        assert (found["key"], found["page"], found["title"]) == (
            page.parent.name,
            str(page),
            "liverseg version 1",
        )
        assert Path(found["model_card"]).is_file()
    current = liverseg("report", "--config", stored.config, *store).ok()
    assert current.out == f"{page}\n"
    assert "report       0.0 s  Cached  liverseg version 1" in current.err
    missing = liverseg("report", "nothing", *store)
    assert (missing.code, missing.error[:5]) == (2, "LS295")


def test_the_page_is_opened(liverseg: Run, stored: Any, tmp_path: Path) -> None:
    """In the browser that the environment names; where none can be started, the run says so."""
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    arguments = ["report", "models:/liverseg/1", "--store", stored.path, "--open"]
    page = liverseg(*arguments, BROWSER=f"{browser} %s").ok().out.strip()
    assert opened.read_text().strip() == Path(page).as_uri()
    assert "No browser could be started" in liverseg(*arguments, BROWSER="/bin/false", DISPLAY="").err


def test_a_damaged_page_is_not_shown(liverseg: Run, tmp_path: Path) -> None:
    key = _small_report(LocalStore(tmp_path)).key
    (tmp_path / "reports" / key / "report.html").write_text("another")
    ended = liverseg("report", key, "--store", tmp_path)
    assert (ended.code, ended.error[:5], ended.out) == (5, "LS502", "")


def test_a_page_in_a_bucket_is_copied_here(
    liverseg: Run, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://data/{tmp_path.name}"
    key = _small_report(S3Store(url, StorageConfig(copies=str(tmp_path / "maker")))).key
    reader = s3_server.environment | {"LIVERSEG_CACHE": str(tmp_path / "cache")}
    page = Path(liverseg("report", key[:8], "--store", url, **reader).ok().out.strip())
    assert page.is_relative_to(tmp_path / "cache")
    assert page.read_text() == "<!doctype html>"


def _small_report(store: Any) -> Any:
    """An artifact of the report's stage with little in it."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "report.html").write_text("<!doctype html>")
        (folder / "model_card.md").write_text("# A model")
        return {"title": "a model", "links": {}}

    return produce(
        store, Recipe(REPORT, {}, dict.fromkeys(("evaluation", "model", "registration"), "")), make
    )


def test_a_run_shows_its_measures_and_report_in_prefect(stored: Any, prefect_server: str) -> None:
    """What the run and its tasks are called, and its artifacts, as the API tells them."""

    def ask(what: str, **wanted: Any) -> Any:
        return httpx.post(f"{prefect_server}/{what}/filter", json=wanted).raise_for_status().json()

    named = {"name": {"any_": [f"{stored.source.name}, {stored.config.name}"]}}
    runs = [
        run for run in ask("flow_runs", flow_runs=named) if run["parameters"]["store"] == str(stored.path)
    ]
    run = min(runs, key=lambda run: run["created"])
    of_run = {"flow_run_id": {"any_": [run["id"]]}}
    assert sorted(task["name"] for task in ask("task_runs", task_runs=of_run)) == sorted(
        ["ingest", "split", "train", "evaluate", "register", "report"]
    )
    shown = {one["key"]: one["data"] for one in ask("artifacts", artifacts=of_run)}
    assert shown.keys() == {"liverseg-dice", "liverseg-model", "liverseg-report"}
    dice = json.loads(shown["liverseg-dice"])
    assert [row["class"] for row in dice] == ["liver with tumour", "liver without tumour", "tumour"]
    assert dice[0]["mean"] in stored.ended.out
    page = stored.ended.err.splitlines()[-1].removeprefix("Report").strip()
    assert shown["liverseg-report"] == f"[Report of liverseg version 1]({Path(page).as_uri()})"
    assert "champion: there was none" in shown["liverseg-model"]
