"""Safetensors files."""

from pathlib import Path
from typing import TYPE_CHECKING

from glo_core.common.errors import UserError
from glo_core.common.files import _not_whole

if TYPE_CHECKING:
    import torch


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        UserError: if the file is missing or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load  # Brings PyTorch, which takes seconds: not for those who read no tensors.

    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy it back") from None
    except SafetensorError as error:
        raise UserError(_not_whole(path, "safetensors", error)) from None
