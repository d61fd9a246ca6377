"""What a decoder takes: parameters, operations, memory for the backward pass."""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(module: nn.Module) -> int:
    """Trained values of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


class Cost(NamedTuple):
    """What a decoder takes."""

    parameters: int
    flops: int
    """Floating-point operations of decoding one image, a multiplication and an addition being two; a step of training
    takes three times as many: forward, by the inputs, by the weights"""
    activations: int
    """Values that the backward pass needs of each image"""


_COUNTED = 7
"""Images of the batch that is counted: a number that no weight has as its first size"""


def cost(decoder: nn.Module, code_dim: int) -> Cost | None:
    """Count on PyTorch's meta device: nothing is computed. `decoder` is left there.

    None for a decoder of the user's that cannot run there.
    """
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 1 and len(tensor) == _COUNTED:  # Of the batch; weights and statistics are not.
            held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    decoder = decoder.to("meta").train()
    codes = torch.zeros(_COUNTED, code_dim, device="meta")
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        try:
            decoder(codes)
        except Exception:  # Whatever the user's code raises: it trains all the same.
            return None
    activations = sum(tensor.numel() for tensor in held.values()) // _COUNTED
    return Cost(num_parameters(decoder), counter.get_total_flops() // _COUNTED, activations)
