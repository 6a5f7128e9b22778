"""What ingest holds is what its headers foretell, and a case that would hold too much is refused first."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from isal import igzip

from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case, memory_needed, survey_case
from liverseg_core.cases.scans import open_scans
from liverseg_core.cases.target import plan_target
from liverseg_core.config import IngestConfig
from liverseg_core.errors import LiversegError

MEASURE = """
import json, os, sys
from pathlib import Path
from liverseg_core.config import IngestConfig
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.ingest import ingest_case, memory_needed
from liverseg_core.cases.scans import open_scans
from liverseg_core.cases.target import plan_target
from liverseg_core.sources.source import open_source

def bytes_of(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

config, store = IngestConfig(interpolation=sys.argv[2]), LocalStore(Path(sys.argv[3]))
small, *cases = sorted(open_source(sys.argv[1]).cases, key=lambda case: case.case)
ingest_case(small, config, store)  # loads every library
for case in cases:
    if os.fork():  # what one case leaves to the allocator is not the next one's
        os.wait()
        continue
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = bytes_of("VmRSS")
    image, label = open_scans(case)
    need = memory_needed(case, image, label, plan_target(image.header, config))
    ingest_case(case, config, store)
    print(json.dumps([case.case, need, bytes_of("VmHWM") - before]), flush=True)
    os._exit(0)
"""

SHAPES: dict[str, dict[str, Any]] = {
    "a small": {"shape": (64, 64, 70)},
    "streamed": {"shape": (400, 400, 130)},
    "thick slices": {"shape": (400, 400, 30), "spacing": (1, 1, 5)},
    "refined in plane": {"shape": (300, 300, 70), "spacing": (2.5, 2.5, 1)},
    "unlabelled": {"shape": (400, 400, 130), "label": None},
    "float64": {"shape": (400, 400, 70), "image": np.float64, "label": np.float64},
    "stacked along y": {"shape": (400, 300, 300), "code": "LIP"},
    "stacked along x": {"shape": (300, 300, 300), "code": "SPL", "image": np.float64},
    "all of it liver": {"shape": (400, 400, 70), "fill": 1},
}


def scans(build: SimpleNamespace, spec: dict[str, Any]) -> tuple[bytes, bytes | None]:
    """A scan and its label, of little entropy: packing them is not what is tested."""
    matrix = build.affine(spec.get("code", "LPS"), spec.get("spacing", (1, 1, 1)))
    label = np.full(spec["shape"], spec.get("fill", 0), spec.get("label", np.uint8), "F")
    label[10:40, 10:40, 10:40] = 1
    image = np.zeros(spec["shape"], spec.get("image", np.int16), "F")
    packed = [igzip.compress(build.nifti(part, matrix), 0, mtime=0) for part in (image, label)]
    return packed[0], packed[1] if spec.get("label", np.uint8) else None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own count")
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_the_headers_foretell_the_memory(build: SimpleNamespace, tmp_path: Path, interpolation: str) -> None:
    """At most a tenth too little, or half too much; small cases as if they held 24 MB."""
    shapes = SHAPES if interpolation == "linear" else {name: SHAPES[name] for name in ("a small", "streamed")}
    cases = {name.replace(" ", "-"): scans(build, spec) for name, spec in shapes.items()}
    source = build.tar(tmp_path / "T.tar", build.members(cases))
    command = [sys.executable, "-c", MEASURE, str(source), interpolation, str(tmp_path / "s")]
    found = [json.loads(line) for line in subprocess.check_output(command).splitlines()]
    assert len(found) == len(shapes) - 1
    for case, need, held in found:
        assert 0.9 * held <= need <= 1.5 * max(held, 24e6), (case, need, held)


def test_a_case_that_needs_more_than_there_is_is_refused(build: SimpleNamespace, tmp_path: Path) -> None:
    """By name, with both numbers, before anything is set aside or written but the label on its way."""
    case = build.case(tmp_path, *scans(build, {"shape": (200, 200, 40)}), name="giant")
    config, store = IngestConfig(), LocalStore(tmp_path / "s")
    image, label = open_scans(case)
    need = memory_needed(case, image, label, plan_target(image.header, config))
    for function, arguments in ((ingest_case, (case, config, store)), (survey_case, (case, config))):
        with pytest.raises(
            LiversegError, match=r"^LS703: giant needs \d\d MB .* a task has \d\d MB"
        ) as caught:
            function(*arguments, memory_limit=need - 1)
        assert caught.value.exit_code == 7
        function(*arguments, memory_limit=need)
        function(*arguments)


def test_a_giant_is_refused_whatever_its_file_holds(build: SimpleNamespace, tmp_path: Path) -> None:
    """The header alone tells: 2 GB held whole, of which the file has a few bytes."""
    content = bytearray(build.nifti(np.zeros((4, 4, 4), np.int16), build.affine("LIP")))
    content[40:48] = np.array([3, 1000, 1000, 1000], "<i2").tobytes()
    packed = igzip.compress(bytes(content) + np.random.default_rng(0).bytes(1 << 21), 0)
    case = build.case(tmp_path, packed, name="giant")
    with pytest.raises(LiversegError, match="LS703: giant needs 2"):
        ingest_case(case, IngestConfig(), LocalStore(tmp_path / "s"), memory_limit=10**9)
