"""Safetensors files. The package safetensors is imported by those who read or write one."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from glo_core.common.errors import CheckpointError
from glo_core.common.files import not_whole

METADATA = {"format_version": "1"}
"""One key: safetensors writes several in an order that differs from process to process, and so would the digests"""


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of `tensors`, which are row-major and on the CPU."""
    from safetensors.torch import save

    return bytes(save(dict(tensors), METADATA))


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Args:
        names: of the tensors that the file must hold; None for any.

    Raises:
        CheckpointError: if the file is missing, not whole, of another version, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        tensors = load(data)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; copy it back") from None
    except SafetensorError as error:
        raise CheckpointError(not_whole(path, "safetensors", error)) from None
    # The file begins with the length of its header, a little-endian uint64, and the header in JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if (metadata := header.get("__metadata__", {})) != METADATA:
        raise CheckpointError(
            f"{path}: format_version={metadata.get('format_version')!r} is not {METADATA['format_version']!r}, which "
            "this program reads; update it, or copy the file back"
        )
    if names is not None and set(tensors) != set(names):
        raise CheckpointError(
            f"{path}: holds the tensors {', '.join(sorted(tensors))}, not {', '.join(sorted(names))}; copy it back"
        )
    return tensors
