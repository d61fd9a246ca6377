"""The memory allocator under training on a CPU."""

import ctypes
import functools

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
