"""Tests of the line beside every figure."""

import argparse
import subprocess
from pathlib import Path

import pytest

from benchmarks.environment import describe, describe_config, vector_extensions

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu sse avx avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "names"),
    [
        (INTEL, ["AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX BF16"]),
        (ARM, ["NEON", "SVE", "BF16"]),
        ("flags\t\t: avx2\n", ["AVX2"]),
        ("", []),
    ],
)
def test_vector_extensions_are_read_from_the_kernels_flags(tmp_path: Path, cpuinfo: str, names: list[str]) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert vector_extensions(path) == names


def test_vector_extensions_are_none_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    assert vector_extensions(tmp_path / "missing") == []


def test_line_names_extensions_versions_and_commit() -> None:
    line = describe()
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert all(name in line for name in [*vector_extensions(), "torch 2.", "pillow ", "GiB", f"commit {commit}"])
    assert "\n" not in line


def test_config_names_every_option_with_its_value() -> None:
    options = argparse.Namespace(batch_size=128, rows=[1, 2], input=Path("a"))
    assert describe_config(options) == "config: --batch-size 128 --rows 1 2 --input a"
