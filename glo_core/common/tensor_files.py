"""Safetensors files. The package safetensors is imported by those who read or write one."""

from collections.abc import Mapping
from pathlib import Path

import torch

from glo_core.common.errors import CheckpointError
from glo_core.common.files import not_whole, write_bytes

METADATA = {"format_version": "1"}
"""One key: safetensors writes several in an order that differs from process to process, and so would the digests"""


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of `tensors`, which are row-major and on the CPU."""
    from safetensors.torch import save

    return bytes(save(dict(tensors), METADATA))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` as the file `path`, whole or not at all."""
    write_bytes(path, tensor_bytes(tensors))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: if the file is missing or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; copy it back") from None
    except SafetensorError as error:
        raise CheckpointError(not_whole(path, "safetensors", error)) from None
