"""What an installation of the package must look like."""

import tomllib
from importlib.metadata import entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PACKAGES = ["liverseg_core", "tasks", "flows"]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_comes_from_this_distribution_alone(package: str) -> None:
    """Two wheels that ship `tasks` overwrite each other without a word."""
    # An editable install lists no modules; every other distribution does.
    assert set(packages_distributions().get(package, ["liverseg"])) == {"liverseg"}
    found = find_spec(package)
    assert found is not None
    assert found.origin == str(ROOT / package / "__init__.py")


def test_the_wheel_names_its_packages() -> None:
    """Discovery would leave `tasks` out silently."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES


@pytest.mark.parametrize(
    ("distribution", "safe"), [("fastapi", ">=0.139,<0.151"), ("sqlalchemy", ">=2.0,<2.1")]
)
def test_libraries_that_break_the_prefect_server_silently(distribution: str, safe: str) -> None:
    assert version(distribution) in SpecifierSet(safe)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("prefect.plugins", "liverseg", "flows.prefect_plugin"),
        ("console_scripts", "liverseg", "flows.cli:main"),
        ("mlflow.artifact_repository", "file", "tasks.registry.moved:open_artifacts"),
    ],
)
def test_entry_points(group: str, name: str, value: str) -> None:
    (found,) = entry_points(group=group, name=name)
    assert found.value == value
    assert found.load()
