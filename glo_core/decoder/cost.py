"""The cost of a decoder: parameters, operations, memory for the backward pass."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def num_parameters(module: nn.Module) -> int:
    """Trained values of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


class Cost(NamedTuple):
    """The cost of a decoder."""

    parameters: int
    """Trained values"""
    flops: int
    """Floating-point operations of decoding one image; a multiplication and an addition are two. A step of training
    takes three times as many: the forward pass, the gradient by the inputs, the gradient by the weights"""
    activations: int
    """Values that the backward pass needs of each image"""


_COUNTED = 7
"""Images of the batch that is counted: a number that is not the first size of any weight"""


def cost(decoder: nn.Module, code_dim: int) -> Cost | None:
    """Count the cost of `decoder` on PyTorch's meta device, where nothing is computed; `decoder` is moved there.

    Args:
        decoder: codes `[b, code_dim]` to images.
        code_dim: dimensions of a code.

    Returns:
        None if the decoder cannot run on that device, as a decoder of the user's may.
    """
    activations_by_storage: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.ndim > 1 and len(tensor) == _COUNTED:  # An activation of the batch; weights have another first size.
            activations_by_storage[tensor.untyped_storage()._cdata] = tensor
        return tensor

    decoder = decoder.to("meta").train()
    codes = torch.zeros(_COUNTED, code_dim, device="meta")
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
    ):
        try:
            decoder(codes)
        except Exception:  # The user's code may raise anything; training does not need the cost.
            return None
    activations = sum(tensor.numel() for tensor in activations_by_storage.values()) // _COUNTED
    return Cost(num_parameters(decoder), counter.get_total_flops() // _COUNTED, activations)
