"""The line that stands beside every figure: hardware with its vector extensions, versions, commit; and the options."""

import argparse
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "ray", "pyarrow", "pillow", "simplejpeg", "numpy")

EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
"""Names of vector extensions by the kernel's names of them; the figures of two processors differ most by these"""


def describe(device: str = "cpu") -> str:
    """Processor, vector extensions, cores, memory, versions and commit in one line.

    Args:
        device: `cuda` puts the GPU's name in front.
    """
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    return (
        f"{_gpu(device)}{_from_cpuinfo('model name') or platform.processor()} "
        f"({', '.join(vector_extensions()) or 'vector extensions unknown'}), {os.cpu_count()} CPUs, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {versions}; commit {commit.stdout.strip() or 'unknown'}"
    )


def describe_config(options: argparse.Namespace) -> str:
    """Every option of a benchmark and its value, defaults too, as they would be given."""
    return "config: " + " ".join(f"--{name.replace('_', '-')} {_text(value)}" for name, value in vars(options).items())


def vector_extensions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The processor's vector extensions, as far as `EXTENSIONS` names them; none where the system does not tell."""
    flags = set((_from_cpuinfo("flags", cpuinfo) or _from_cpuinfo("Features", cpuinfo)).split())
    return [name for flag, name in EXTENSIONS.items() if flag in flags]


def _from_cpuinfo(key: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The value of `key` of the first processor; empty where there is none."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def _gpu(device: str) -> str:
    if device != "cuda":
        return ""
    import torch  # The benchmarks of preprocessing work without it.

    return f"{torch.cuda.get_device_name()}; "


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"
