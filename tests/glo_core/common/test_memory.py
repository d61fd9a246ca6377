"""A step's memory is reused by the next step, where the C library is glibc; the limit of a container counts."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from glo_core.common.memory import available_memory, keep_freed_memory

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


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system of 16 GiB of available memory whose control groups are `files`."""
    files = files | {
        "proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": mounts,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(path: str, limit: str, used: int, inactive: int, version: int = 2) -> dict[str, str]:
    most, usage, stat = ("max", "current", "") if version == 2 else ("limit_in_bytes", "usage_in_bytes", "total_")
    return {
        f"sys/fs/cgroup/{path}/memory.{most}": f"{limit}\n",
        f"sys/fs/cgroup/{path}/memory.{usage}": f"{used}\n",
        f"sys/fs/cgroup/{path}/memory.stat": f"anon 5\n{stat}inactive_file {inactive}\n",
    }


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
DOCKER_V1 = "36 31 0:33 /docker/ab /sys/fs/cgroup/memory ro,relatime master:5 - cgroup cgroup rw,memory\n"
GIB = 1 << 30


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "left"),
    [
        pytest.param("0::/a\n", V2, group("a", "max", GIB, 0), 16 * GIB, id="no limit"),
        pytest.param("0::/\n", V2, group("", str(4 * GIB), 3 * GIB, GIB), 2 * GIB, id="a container of version 2"),
        pytest.param("0::/a/b\n", V2, group("a/b", "max", GIB, 0) | group("a", str(2 * GIB), GIB, 0), GIB,
                     id="the limit of the group above"),
        pytest.param("0::/a/b\n", V2, group("a/b", str(GIB), 0, 0) | group("a", str(2 * GIB), 0, 0), GIB,
                     id="the smaller of two"),
        pytest.param("4:memory:/x\n1:cpu:/\n", V1, group("memory/x", str(3 * GIB), GIB, 0, 1), 2 * GIB, id="version 1"),
        pytest.param("4:memory:/x\n", V1, group("memory/x", "9223372036854771712", GIB, 0, 1), 16 * GIB,
                     id="version 1 without a limit"),
        pytest.param("4:memory:/docker/ab\n", DOCKER_V1, group("memory", str(2 * GIB), GIB, 0, 1), GIB,
                     id="a container of version 1"),
        pytest.param("4:cpu,memory:/x\n0::/y\n", V2 + V1, group("memory/x", str(GIB), 0, 0, 1), GIB, id="both"),
        pytest.param("0::/a\n", V2, group("a", str(GIB), 2 * GIB, 0), 0, id="above its limit"),
        pytest.param("", "", {}, 16 * GIB, id="no control groups"),
    ],
)  # fmt: skip
def test_the_limit_of_a_container_counts(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], left: int
) -> None:
    assert available_memory(machine(tmp_path, groups, mounts, files)) == left


def test_this_machine_has_memory_left() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_a_real_group_limits_this_process() -> None:
    """Version 1 or 2, made for the test where root may."""
    bases = [(Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")]
    base, limit = next(((base, name) for base, name in bases if (base / "cgroup.procs").exists()), (None, ""))
    if base is None or not os.access(base, os.W_OK):
        pytest.skip("making a control group needs root and a mounted hierarchy")
    group_of_test = base / f"glo-test-{os.getpid()}"
    group_of_test.mkdir()
    try:
        if not (group_of_test / limit).exists():
            pytest.skip("the memory controller is not handed down here")
        (group_of_test / limit).write_text(str(GIB))
        code = (
            "import os, sys, pathlib; from glo_core.common.memory import available_memory\n"
            "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); print(available_memory())"
        )
        procs = str(group_of_test / "cgroup.procs")
        done = subprocess.run([sys.executable, "-c", code, procs], capture_output=True, text=True, check=True)
        assert 0 < int(done.stdout) <= GIB
    finally:
        group_of_test.rmdir()
