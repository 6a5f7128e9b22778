"""What the documentation lists is what the code has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def test_every_error_code_is_explained_once() -> None:
    files = (path for name in ("liverseg_core", "tasks", "flows") for path in (ROOT / name).rglob("*.py"))
    used = {code for path in files for code in re.findall(r"\bLS\d{3}\b", path.read_text())}
    listed = re.findall(r"^\| (LS\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(used)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_of_ours_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r"\b(?:flows|tasks|liverseg_core|benchmarks)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name


def test_how_it_works_calls_files_by_their_names() -> None:
    links = re.findall(r"\[([^]]+)\]\(\.\./([^)]+)\)", (ROOT / "docs" / "how-it-works.md").read_text())
    assert len(links) > 20
    assert [name for name, path in links if not f"/{path}".endswith(f"/{name}")] == []
