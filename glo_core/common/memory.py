"""Host memory: how much this process may still take, and the allocator under training on a CPU."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of malloc.h"""


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that a step frees, for the next step; whether the C library can.

    glibc gives large blocks back to the system as soon as they are freed, and the kernel clears each page anew when
    the next step touches it: a third of the time of a step at 64 px (mallopt(3); docs/log has the figures).
    Blocks of 1 GiB or more are still given back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False  # Another C library, with another allocator.
    # Older versions take 32 MiB at most.
    mapped = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 32 << 20)
    return bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)) and bool(mapped)


def volunteer_for_killing() -> None:
    """Let the kernel end this process before those that wait for it, where memory is short; they say what happened."""
    with contextlib.suppress(OSError):  # Linux alone
        Path("/proc/self/oom_score_adj").write_text("500")


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take without swapping: of the machine, and of every control group above it.

    A container's limit is that of its control group. 0 where the system does not tell.

    Args:
        root: of the file system that holds `proc` and the control groups.
    """
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        machine = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
    return max(0, min([machine, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each memory control group of this process, and each above it, has left."""
    for directory, limit, usage, reclaimable in _groups(root):
        try:
            most = int((directory / limit).read_text())
            used = int((directory / usage).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # No limit ("max"), or a level that the container does not see.
            continue
        # Cached files that nobody works with make room when it is needed.
        yield most - used + int(stat.get(reclaimable, 0))


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Directory, and the names of limit, usage and inactive files, of each group, version 2 and version 1."""
    try:
        memberships = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        kind = fields[fields.index("-") + 1]
        if kind == "cgroup2":
            names = ("memory.max", "memory.current", "inactive_file")
            path = next((path for _, controllers, path in memberships if not controllers), None)
        elif kind == "cgroup" and "memory" in fields[-1].split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            path = next((path for _, controllers, path in memberships if "memory" in controllers.split(",")), None)
        else:
            continue
        if path is None:
            continue
        # A container may see its own group, or one above it, as the root of the mount (field 4, at field 5).
        inside = path.removeprefix(fields[3]) if fields[3] != "/" and path.startswith(fields[3]) else path
        base = root / fields[4].lstrip("/")
        for group in (Path(inside.lstrip("/")), *Path(inside.lstrip("/")).parents):
            yield (base / group, *names)
