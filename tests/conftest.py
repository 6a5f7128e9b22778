"""What all tests share: the servers of servers.py, and in which order files are run."""

import pytest

pytest_plugins = ("servers", "range_server")
LONGEST = ("test_cluster.py", "test_readme.py", "test_image.py", "test_bad_input.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that of several processes none has them left at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
