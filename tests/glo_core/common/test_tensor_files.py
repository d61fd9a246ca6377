"""Safetensors files: the same tensors make the same bytes."""

import subprocess
import sys


def test_two_processes_write_the_same_bytes() -> None:
    code = (
        "import torch; from glo_core.common.tensor_files import tensor_bytes; "
        "from glo_core.common.digests import digest; "
        "tensors = {name: torch.arange(6.0).reshape(2, 3) for name in ('z', 'a', 'k.weight', 'k.bias')}; "
        "print({digest(tensor_bytes(tensors)).hex() for _ in range(32)})"
    )
    shown = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert shown[0].stdout == shown[1].stdout
    assert shown[0].stdout.count(",") == 0
