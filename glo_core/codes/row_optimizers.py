"""Optimizers that update single rows of the code table, each with its own count of updates."""

from typing import Any

import torch

from glo_core.codes.config import CodeConfig
from glo_core.common.shapes import Float, Int, Tensor


class Adam:
    """Adam (Kingma and Ba, algorithm 1), each row with its own count of updates."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """What the optimizer keeps of each row, initially."""
        return {"exp_avg": torch.zeros_like(raw), "exp_avg_sq": torch.zeros_like(raw)}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """The step of each row, to be scaled by the learning rate; `state` is replaced by its new values."""
        mean = state["exp_avg"] = torch.lerp(grad, state["exp_avg"], config.beta1)
        square = state["exp_avg_sq"] = torch.lerp(grad * grad, state["exp_avg_sq"], config.beta2)
        # A step count of the whole run would leave rarely met rows without bias correction.
        unbiased_mean = mean / (1 - config.beta1 ** count.to(mean)).unsqueeze(1)
        unbiased_square = square / (1 - config.beta2 ** count.to(mean)).unsqueeze(1)
        return unbiased_mean / (unbiased_square.sqrt() + 1e-8)


class Adagrad:
    """Row-wise Adagrad: one sum of mean squared gradients per row (Gupta et al., arXiv 1404.4909; BigGraph)."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """What the optimizer keeps of each row, initially."""
        return {"sum_sq": torch.zeros_like(raw[:, 0])}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """The step of each row, to be scaled by the learning rate; `state` is replaced by its new values."""
        total = state["sum_sq"] = state["sum_sq"] + grad.square().mean(dim=1)
        return grad / (total.sqrt() + 1e-10).unsqueeze(1)


class Sgd:
    """Plain gradient descent: no state."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """What the optimizer keeps of each row, initially."""
        return {}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """The step of each row, to be scaled by the learning rate; `state` is replaced by its new values."""
        return grad


OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adagrad": Adagrad, "sgd": Sgd}
