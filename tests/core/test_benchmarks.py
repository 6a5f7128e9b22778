"""The arithmetic of the benchmarks: what is derived from measurements, and the volume of known values."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_the_longest_case_may_come_last(benchmark: Any) -> None:
    wall_s = benchmark("ingest_estimate").wall_s
    assert wall_s(100, 1, 1.0, 10, {"read": 20}) == {"wall_s": 100, "decided_by": "CPU"}
    assert wall_s(100, 4, 0.5, 10, {"read": 20}) == {"wall_s": 57.5, "decided_by": "CPU"}  # 100 / 2 + 10 × ¾
    assert wall_s(100, 50, 1.0, 10, {"read": 20}) == {"wall_s": 20, "decided_by": "read"}


def test_the_unlabelled_cases_are_as_long_as_the_others(benchmark: Any) -> None:
    archive = benchmark("ingest_estimate").Archive
    assert archive("tar", 1, labelled=10, unlabelled=5, labelled_slices=1000).slices == 1500


def test_an_estimate_takes_the_larger_of_bytes_and_slices(benchmark: Any) -> None:
    estimate = benchmark("ingest_estimate")
    case = {"case": "full-300", "ingest_cpu_s": 0.6, "bytes_read": 100_000_000, "bytes_written": 0}
    measured = {
        "floor": {
            "cases": [{**case, "shape": [512, 512, 300]}, {**case, "case": "thick-80", "ingest_cpu_s": 9}]
        },
        "workers": {"rows": [{"source": "local tar", "workers": 2, "efficiency_per_core": 1.02}]},
        "peers": {"full_size": ["x"], "cases": [{"peer": "x", "case": "full-300", "cpu_s": 60.0}]},
    }
    rows = {(row["tool"], row["cores"]): row["wall_s"] for row in estimate.estimate(measured)["rows"]}
    by_slices = 0.002 * estimate.TAR.slices  # 180 CPU-s; by bytes it would be 174
    assert rows["ours", 1] == round(by_slices, 1)
    assert rows["ours", 16] == round(estimate.TAR.bytes / 1.25e9, 1)  # reading; the cores would take 13 s
    assert rows["x", 64] == round(0.2 * estimate.TAR.slices / 64, 1)


def test_the_known_volume_is_band_limited(benchmark: Any) -> None:
    """What is left above 0.3 cycles a voxel is what a window lets through."""
    n, spacing_mm = 64, (0.7, 0.8, 2.0)
    value = benchmark("ingest_error").waves(spacing_mm)
    window = np.hanning(n)[:, None, None] * np.hanning(n)[:, None] * np.hanning(n)
    volume = value(np.moveaxis(np.indices((n, n, n)), 0, -1) * spacing_mm)
    power = np.abs(np.fft.fftn(volume * window)) ** 2
    high = np.max(np.abs(np.meshgrid(*[np.fft.fftfreq(n)] * 3, indexing="ij")), axis=0) > 0.3 + 4 / n
    assert power[high].sum() < 1e-6 * power.sum()
    assert 0.1 * 1000 < volume.std() < np.abs(volume).max() <= 1000
