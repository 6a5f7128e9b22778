"""Memory is kept for the next arrays while that is asked for, and given back then."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from pathlib import Path
import torch
from liverseg_core.allocator import first_step_done, memory_kept

PAGE = resource.getpagesize()

mb = int(sys.argv[1])

def step():
    "Pages that were mapped for a step's arrays."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(mb * 2**20, dtype=torch.uint8) for _ in range(160 // mb)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

unlike = step()
with memory_kept():
    first = step()
    first_step_done()
    [step() for _ in range(8)]  # what is freed between others serves at the second or third attempt
    kept = [step() for _ in range(5)]
    held = resident()
pages = 160 * 2**20 // PAGE
print(unlike / pages, first / pages, sum(kept) / pages, (held - resident()) / pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("mb", [16, 80])
def test_pages_are_mapped_once(mb: int) -> None:
    """Of arrays that glibc keeps as it is told to, and of those that it would map whatever it is told."""
    done = subprocess.run([sys.executable, "-c", FAULTS, str(mb)], capture_output=True, text=True, check=True)
    unlike, first, kept, given_back = map(float, done.stdout.split())
    assert unlike > 0.95
    assert first > 0.95
    assert kept < 0.01
    assert given_back > 0.95
