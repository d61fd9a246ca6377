"""Optimizers of the code table, which update single rows; each row has its own count of updates.

`state` makes what the optimizer keeps of each row, by PyTorch's names. `step` changes the state of the rows of a batch,
and returns what is multiplied with the learning rate and subtracted from them.
"""

import functools
from typing import Protocol

import torch

from glo_core.codes.config import CodeConfig
from glo_core.common.shapes import Float, Int, Tensor


class RowOptimizer(Protocol):
    """An optimizer of single rows; it has no state of its own."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """The state of rows before their first update, by name: tensors of `n` rows."""
        ...

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """Update `state`, that of the rows of a batch, in place of the old one; returns the rows' steps.

        Args:
            config: gives `beta1` and `beta2`.
            state: that of the batch's rows, `[b, ...]` each; its tensors are replaced.
            count: number of updates of each row, this one included, int32 `[b]`.
            grad: gradient of the sum of losses by the raw rows, `[b, dim]`.
        """
        ...


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1), where t is the row's own number of updates."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """Zero moments, `exp_avg` and `exp_avg_sq` `[n, dim]`."""
        # Of `zeros`, unlike of `zeros_like`, the kernel clears a page when it is first touched.
        zeros = functools.partial(torch.zeros, raw.shape, dtype=raw.dtype, device=raw.device)
        return {"exp_avg": zeros(), "exp_avg_sq": zeros()}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """m / (sqrt(v) + 1e-8), both moments without their bias, `[b, dim]`."""
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
        """Zero sums, `sum_sq` `[n]`."""
        return {"sum_sq": torch.zeros_like(raw[:, 0])}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """g / (sqrt(s) + 1e-10), where s is the row's sum of mean squared gradients, `[b, dim]`."""
        total = state["sum_sq"] = state["sum_sq"] + grad.square().mean(dim=1)
        return grad / (total.sqrt() + 1e-10).unsqueeze(1)


class Sgd:
    """Plain gradient descent."""

    @staticmethod
    def state(raw: Float[Tensor, "n dim"]) -> dict[str, Tensor]:
        """Nothing is kept."""
        return {}

    @staticmethod
    def step(
        config: CodeConfig, state: dict[str, Tensor], count: Int[Tensor, " b"], grad: Float[Tensor, "b dim"]
    ) -> Float[Tensor, "b dim"]:
        """The gradient itself, `[b, dim]`."""
        return grad


OPTIMIZERS: dict[str, type[RowOptimizer]] = {"adam": Adam, "adagrad": Adagrad, "sgd": Sgd}
