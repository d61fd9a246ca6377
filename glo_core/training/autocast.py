"""Mixed precision: whether the decoder computes in bfloat16, and how float32 products are rounded on a GPU.

Weights, codes, optimizer states, losses, statistics and sums stay float32; what is computed in bfloat16 are the
decoder's layers. It changes rounding and nothing that a recipe promises (Micikevicius et al., arXiv 1710.03740;
Kalamkar et al., arXiv 1905.12322).
"""

import contextlib
import platform
import time
from collections.abc import Callable

import torch

from glo_core.common.errors import ConfigError
from glo_core.common.runtime import Runtime
from glo_core.training.config import Autocast

LEAST_CAPABILITY = (8, 0)
"""CUDA's compute capability from which on tensor cores take bfloat16"""
_TRIAL_SECONDS, _TRIAL_PAIRS, _LEAST_GAIN = 1.0, 5, 1.05


def bfloat16_in_hardware(device: torch.device) -> bool | None:
    """Whether `device` multiplies bfloat16 in hardware; None if it does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def choose_autocast(
    requested: Autocast, precision: str, runtime: Runtime, trial: Callable[[bool], object], earlier: str | None = None
) -> bool:
    """Whether to compute in bfloat16; the same on every rank, which all call this.

    Args:
        requested: by the user.
        precision: of weights and codes.
        runtime: this rank and its connection to the others.
        trial: computes what a step computes, with or without bfloat16; it is timed where the device does not tell.
        earlier: "off" or "bfloat16" as the same phase began; a phase goes on as it began, on a device that can.

    Raises:
        ConfigError: if bfloat16 is asked for, and `precision` is float64.
    """
    if precision == "float64":
        if requested == "bfloat16":
            raise ConfigError("`autocast` (=bfloat16) needs `precision` float32; float64 excludes it")
        return False
    if requested != "auto":
        return requested == "bfloat16"
    able = bfloat16_in_hardware(runtime.device)
    wanted = able if able is not None else _pays(trial)
    if earlier is not None:
        wanted = earlier == "bfloat16" and able is not False
    # All ranks or none: their gradients are summed.
    return all(runtime.all_gather(bool(wanted)))


def _pays(trial: Callable[[bool], object]) -> bool:
    """Whether `trial` is faster in bfloat16, timed for about a second."""
    seconds: dict[bool, float] = {}
    end = time.perf_counter() + _TRIAL_SECONDS
    for pair in range(_TRIAL_PAIRS + 1):
        for reduced in (False, True):
            since = time.perf_counter()
            trial(reduced)
            if pair:  # The first one of each chooses kernels.
                seconds[reduced] = min(seconds.get(reduced, float("inf")), time.perf_counter() - since)
        if seconds and time.perf_counter() > end:
            break
    return seconds[False] > _LEAST_GAIN * seconds[True]


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Within the block, layers compute in bfloat16 if `enabled`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def set_float32_products(enabled: bool) -> None:
    """Set how a GPU multiplies float32: as TF32 (10 bits of mantissa) if `enabled`, else as IEEE float32 in full.

    The process's own setting is not inherited: what a training does shall not depend on who imported it.
    """
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled
