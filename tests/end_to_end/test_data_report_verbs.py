"""The data report through the real command line: verify, its page, and ingest say the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_verify_and_ingest_agree(
    liverseg: Callable[..., Any], phantom: Path, tiny: Path, tmp_path: Path
) -> None:
    spacings, page = tmp_path / "spacings.csv", tmp_path / "page.html"
    spacings.write_text("case,x,y,z\nliver_2,2,2,6\n")
    settings = ["--config", tiny, "--set", f"ingest.spacing_overrides={spacings}", "--workers", 0]
    verified = liverseg("verify", phantom, *settings, "--report", page, "--json").ok().data["cases"]
    store = tmp_path / "store"
    assert liverseg("ingest", phantom, *settings, "--store", store, "--json").ok().data["report"] == verified
    assert [row["case"] for row in verified if "spacing-overridden" in row["flags"]] == ["liver_2"]
    assert next(row["spacing_mm"] for row in verified if row["case"] == "liver_2") == [2, 2, 6]
    flagged = sum(bool(row["flags"]) for row in verified)
    assert page.read_text().count('src="data:image/png') == flagged > 0
    again = (
        liverseg("ingest", phantom, "--config", tiny, "--workers", 0, "--store", store, "--json").ok().data
    )
    assert again["made"] == 1  # the case without its correction; the others' keys are the same


def test_what_stops_it_is_said_first(liverseg: Callable[..., Any], phantom: Path, tmp_path: Path) -> None:
    ended = liverseg("verify", phantom, "--report", tmp_path / "no" / "page.html")
    assert (ended.code, ended.error[:5]) == (2, "LS213")
    (tmp_path / "s.csv").write_text("case,x,y,z\nnobody,1,1,1\n")
    for verb in (["verify", phantom], ["ingest", phantom, "--store", tmp_path / "store"]):
        ended = liverseg(*verb, "--set", f"ingest.spacing_overrides={tmp_path / 's.csv'}", "--workers", 0)
        assert (ended.code, ended.error[:5]) == (2, "LS212")
    assert not (tmp_path / "store").exists()
