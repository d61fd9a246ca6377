"""What this machine, or the container that this process is in, has for a worker that needs no Ray."""

import os
from pathlib import Path

from pipelines.common.ray_nodes import Node

_GPU_DEVICES = ("nvidiactl", "kfd", "dxg")
"""Below /dev: of NVIDIA's driver, of AMD's, and of Windows' subsystem"""
_UNLIMITED = 1 << 20
"""More CPUs than any machine has"""


def this_machine(root: Path = Path("/")) -> Node:
    """CPUs that this process may use, and GPUs that PyTorch sees.

    Args:
        root: of the file system that holds `dev` and the control groups.
    """
    return Node(_cpus(root), _gpus(root))


def _cpus(root: Path) -> int:
    """CPUs of this process, as few as its container's share of them; at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota(root))))


def _quota(root: Path) -> float:
    """CPUs that the control group of a container allows, of version 2 or 1."""
    groups = root / "sys/fs/cgroup"
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((groups / name).read_text() for name in names).split()
            if int(quota) > 0:
                return max(1.0, int(quota) / int(period))
        except (OSError, ValueError):  # Another version, or no limit ("max").
            continue
    return float(_UNLIMITED)


def _gpus(root: Path) -> int:
    if not any((root / "dev" / name).exists() for name in _GPU_DEVICES):
        return 0  # PyTorch, which takes seconds to import, would find none.
    import torch

    return torch.cuda.device_count()
