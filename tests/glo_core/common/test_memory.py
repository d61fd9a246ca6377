"""A step's memory is reused by the next step, where the C library is glibc."""

import subprocess
import sys

import pytest

from glo_core.common.memory import keep_freed_memory

SCRIPT = """
import resource, sys, torch
from glo_core.common.memory import keep_freed_memory
if sys.argv[1] == "reused":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
big = torch.ones(64 << 18)  # 64 MiB
def step():
    before = faults()
    for _ in range(5):
        big * 2
    return faults() - before
print(min(step() for _ in range(10)))  # The first ones make room.
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_memory_that_a_step_frees_is_not_cleared_anew_for_the_next() -> None:
    if not keep_freed_memory():
        pytest.skip("a C library without mallopt")
    plain, reused = page_faults("plain"), page_faults("reused")
    assert plain > 10_000
    assert reused < plain / 10
