"""Batch normalization that is exact at every world size: statistics of the whole global batch, padding left out."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from glo_core.common.runtime import AllReduceSum, Runtime
from glo_core.common.shapes import Float, Tensor


class MaskedBatchNorm(nn.Module):
    """Batch normalization whose statistics are those of the whole global batch, padding left out.

    y = weight (x - mean) / sqrt(var + eps) + bias (Ioffe and Szegedy, arXiv 1502.03167). Count, sum and sum of squares
    are summed over ranks inside the graph, so that values and gradients are the same at every world size
    (`torch.nn.SyncBatchNorm` refuses CPU tensors and has no mask). `shared_batch` sets the mask and the ranks that
    share the batch; without it every input is valid and there are no other ranks.
    """

    running_mean: Tensor
    """`[channels]`"""
    running_var: Tensor
    """Unbiased, `[channels]`"""

    def __init__(self, channels: int, momentum: float, eps: float = 1e-5) -> None:
        """Begin with weight 1, bias 0 and statistics of N(0, 1).

        Args:
            channels: of the inputs.
            momentum: weight of a new batch in the running statistics, in [0, 1].
            eps: added to the variance.
        """
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.mask: Tensor | None = None
        self.runtime: Runtime | None = None

    def forward(self, x: Float[Tensor, "b channels *space"]) -> Float[Tensor, "b channels *space"]:
        """Normalize `x` `[b, channels, ...]`: in training by the batch's statistics, else by the running ones."""
        mean, var = self._batch_statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        # Axes [channel, 1, ...]: as many axes behind the channel as `x` has.
        behind = (...,) + (None,) * (x.ndim - 2)
        return torch.addcmul(shift[behind], x, scale[behind])

    def _batch_statistics(
        self, x: Float[Tensor, "b channels *space"]
    ) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
        """E[x] and E[x^2] - E[x]^2 over the valid inputs of all ranks, from one sum over ranks."""
        channels, area, space = x.shape[1], x[0, 0].numel(), tuple(range(2, x.ndim))
        mask = x.new_ones(len(x)) if self.mask is None else self.mask
        # Axis [channel]: `mask` [b] times sums over space [b, channel].
        sums = mask @ (x.sum(dim=space) if space else x)
        squares = mask @ (x.square().sum(dim=space) if space else x.square())
        # Axis [sums of channels, squares of channels, count].
        statistics = torch.cat([sums, squares, (mask.sum() * area).reshape(1)])
        if self.runtime is not None and self.runtime.world_size > 1:
            statistics = AllReduceSum.apply(statistics, self.runtime)  # type: ignore[no-untyped-call]
        count = statistics[-1].clamp_min(1)
        mean = statistics[:channels] / count
        var = (statistics[channels : 2 * channels] / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp_min(1), self.momentum)
        return mean, var


@contextlib.contextmanager
def shared_batch(decoder: nn.Module, mask: Float[Tensor, " b"], runtime: Runtime) -> Iterator[None]:
    """Within the block, batch statistics of `decoder` are those of the valid inputs of all ranks.

    Args:
        decoder: the module whose batch norms are meant, at any depth.
        mask: 1 for images and 0 for padding, `[b]`, in the decoder's dtype.
        runtime: the ranks that share the batch; every rank calls the decoder at the same step.
    """
    norms = [module for module in decoder.modules() if isinstance(module, MaskedBatchNorm)]
    for norm in norms:
        norm.mask, norm.runtime = mask, runtime
    try:
        yield
    finally:
        for norm in norms:
            norm.mask = norm.runtime = None


def mask_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm of PyTorch in `module` by a `MaskedBatchNorm`, which is exact at every world size.

    Weights, biases and running statistics are copied.

    Returns:
        `module`, changed in place; a new module if it is a batch norm itself.

    Raises:
        ValueError: if a batch norm has no running statistics, or cumulative ones.
    """
    return _masked(module, {})


def _masked(module: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in replacements:  # A module may be a child of several modules.
        return replacements[module]
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.momentum is None or not module.track_running_stats:
            raise ValueError(
                f"{module}: a batch norm needs running statistics (track_running_stats=True) and a momentum in [0, 1]"
            )
        masked = MaskedBatchNorm(module.num_features, module.momentum, module.eps)
        tensors = {name: value for name, value in module.state_dict().items() if name in masked.state_dict()}
        masked.load_state_dict(tensors, strict=False)
        replacements[module] = masked.requires_grad_(module.affine)
        return masked
    replacements[module] = module
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _masked(child, replacements)
    return module
