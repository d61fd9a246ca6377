"""Types of tensors with names of their axes: `Float[Tensor, "b dim"]`; see `glo_core.common.arrays`."""

import torch

from glo_core.common.arrays import Bool, Float, Int, Integer, Shaped, UInt8

Tensor = torch.Tensor

__all__ = ["Bool", "Float", "Int", "Integer", "Shaped", "Tensor", "UInt8"]
