"""Ridge regression from sums over rows, which merge over shards and ranks."""

import torch

from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor

RIDGE = 1e-3
"""Penalty, in units of the mean variance of the inputs"""


class RidgeRegression:
    """The map from initial codes to learned codes; it tells where the model expects an image that it has not seen."""

    def __init__(self, dim: int) -> None:
        """Begin without rows; inputs and outputs have `dim` values each."""
        # [X 1]^T [X 1 Y] over the rows. Axes [input or 1, input or 1 or output].
        self.products = torch.zeros(dim + 1, 2 * dim + 1, dtype=torch.float64)

    def add(self, inputs: Float[Tensor, "n dim"], outputs: Float[Tensor, "n dim"]) -> None:
        """Add rows: initial codes and learned codes, `[n, dim]` each, any floating dtype."""
        left = _with_one(inputs)
        self.products += left.T @ torch.cat([left, outputs.double()], dim=1)

    def merge(self, other: "RidgeRegression") -> "RidgeRegression":
        """Add the rows that `other` has met; returns this regression."""
        self.products += other.products
        return self

    def solve(self, runtime: Runtime) -> Float[Tensor, "inputs_and_one dim"]:
        """The weights W of outputs = [inputs 1] W over the rows of all ranks, float64 `[dim + 1, dim]` on the CPU.

        W = (G + P)^+ [X 1]^T Y with G = [X 1]^T [X 1] and the penalty P = `RIDGE` mean(diag G) I, which spares the
        constant. Every rank calls this. Without rows W is zero.
        """
        sums = runtime.all_reduce_sum(self.products.to(runtime.device)).cpu()
        size = len(sums)
        gram, target = sums[:, :size], sums[:, size:]
        penalty = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(size, dtype=torch.float64)
        penalty[-1, -1] = 0  # The mean is not shrunk.
        # The pseudo-inverse: without rows, or with constant ones, there is nothing to regress on.
        return torch.linalg.pinv(gram + penalty, hermitian=True) @ target


def apply_ridge(inputs: Float[Tensor, "n dim"], weights: Float[Tensor, "dim+1 dim"]) -> Float[Tensor, "n dim"]:
    """Map `inputs` `[n, dim]` by the `weights` of `RidgeRegression.solve`; dtype and device of `inputs`.

    A row whose output has a norm of at most 1e-6 has no direction: it keeps its input.
    """
    mapped = _with_one(inputs) @ weights.to(inputs.device)
    return torch.where(mapped.norm(dim=1, keepdim=True) > 1e-6, mapped, inputs.double()).to(inputs)


def _with_one(rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim+1"]:
    return torch.cat([rows.double(), rows.new_ones(len(rows), 1).double()], dim=1)
