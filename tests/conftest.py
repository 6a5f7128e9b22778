"""What all tests share: the servers of servers.py, a browser, and in which order files are run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("servers", "range_server")
CHROMIUM = Path("/usr/bin/chromium")
LONGEST = (
    "test_cluster.py",
    "test_odd_places.py",
    "test_served_elsewhere.py",
    "test_readme.py",
    "test_image.py",
    "test_bad_input.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that of several processes none has them left at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()
