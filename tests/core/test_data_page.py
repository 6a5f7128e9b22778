"""The data report's page: whole in itself, safe against names, a picture for each flagged case."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from liverseg_core.cases.case_picture import LONGEST, draw_case
from liverseg_core.cases.data_page import data_page
from liverseg_core.cases.data_report import CaseRow
from liverseg_core.page import POLICY

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)>'
PIXEL = b"\x89PNG"
HU = {"p0.5": -470, "p50": 40, "p99.5": 300}
ROWS = [
    CaseRow("a", True, (512, 512, 80), (0.7, 0.7, 5), "LPS", HU, 1500, 0, 0),
    CaseRow("b", False, (512, 512, 90), (1, 1, 1), "RAS", None, flags=("identity-affine",)),
    CaseRow("c", True, (9, 9, 9), (1, 1, 1), "RAS", None, 70.5, 2.25, 3, ("duplicate-voxels",), ("d",)),
    CaseRow("d", True, problem=f"LS312: {EVIL}"),
]  # fmt: skip


class Elements(HTMLParser):
    """Every element with its attributes, in order, and which were closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return data_page(f"Liver {EVIL}", "x.tar", ROWS, {"b": PIXEL, "c": PIXEL})


def test_nothing_comes_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    assert not elements.all("link")
    assert [script for script in elements.all("script") if script] == []
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in elements.all("img"))
    assert [meta["content"] for meta in elements.all("meta") if "http-equiv" in meta] == [POLICY]
    assert not re.search(r"https?:|@import|url\(", page)


def test_names_are_shown_not_obeyed(page: str) -> None:
    elements = Elements(page)
    assert len(elements.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "alert(&quot;1&quot;)" in page


def test_rows_pictures_and_keys_to_sort_by(page: str) -> None:
    elements = Elements(page)
    assert [row["class"] for row in elements.all("tr")[1:]] == ["sound", "odd", "odd", "odd"]
    keys = [cell["data-key"] for cell in elements.all("td") if cell.get("data-name") == "liver ml"]
    assert keys == ["1500", "", "70.5"]
    assert [figure["id"] for figure in elements.all("figure")] == ["b", "c"]
    assert [image["src"] for image in elements.all("img")] == [
        f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    ] * 2
    assert len(elements.all("th")) == 9


def test_a_case_is_drawn_small_whatever_its_size(build: SimpleNamespace, tmp_path: Path) -> None:
    image, label = build.ball((20, 18, 900))
    matrix = build.affine("PIR", (3, 2, 0.5))
    parts = [build.zipped(build.nifti(part, matrix)) for part in (image, label)]
    point = build.zipped(build.nifti(np.zeros((1, 1, 1), np.int16), matrix))
    for name, case in {
        "labelled": build.case(tmp_path, *parts, "a"),
        "scan alone": build.case(tmp_path, parts[0], None, "b"),
        "a point": build.case(tmp_path, point, None, "c"),
    }.items():
        picture = Image.open(io.BytesIO(draw_case(case)))
        assert picture.width == 1300, name
        assert picture.height > 150
    assert LONGEST**3 * 3 < 100e6
