"""Batch normalization by norm groups: fixed parts of the global batch, the same at every world size."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from glo_core.common.runtime import AllReduceSum, Runtime
from glo_core.common.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class NormGroups:
    """Where a rank's rows lie among the norm groups of a global batch.

    Group g holds the rows from g * `rows` to before (g + 1) * `rows` of the global batch; a rank holds contiguous rows
    of it, the ranks in their order. `training/norm_groups.py` makes one of a recipe.
    """

    rows: int
    """Rows of a group"""
    count: int
    """Groups of a global batch, over all ranks"""
    first: int
    """The rank's first row in the global batch"""
    shared: bool
    """Whether any group has rows on two ranks; the same on every rank"""
    runtime: Runtime

    def parts(self, length: int) -> list[tuple[int, int, int]]:
        """Group, first row and end of each part of this rank's `length` rows that lies in one group."""
        last = self.first + length
        groups = range(self.first // self.rows, -(-last // self.rows))
        edges = [(g, max(g * self.rows, self.first), min((g + 1) * self.rows, last)) for g in groups]
        return [(group, start - self.first, end - self.first) for group, start, end in edges]


class GroupedBatchNorm(nn.Module):
    """Batch normalization whose statistics are those of norm groups, so that no world size changes them.

    y = weight (x - mean) / sqrt(var + eps) + bias (Ioffe and Szegedy, arXiv 1502.03167), with mean and variance of the
    group ("ghost batches", Hoffer et al., arXiv 1705.08741). A group on one rank is PyTorch's own batch norm; of
    groups that span ranks, count, sum and sum of squares are summed over ranks in float64, inside the graph.
    Padding counts: it repeats rows of its own lane, whatever the world size. Running statistics are the mean over this
    rank's groups until `merge_running_statistics` makes them the mean over all.
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
        self.groups: NormGroups | None = None
        """Set by `set_norm_groups`; None makes the whole batch one group"""

    def forward(self, x: Float[Tensor, "b channels *space"]) -> Float[Tensor, "b channels *space"]:
        """Normalize `x` `[b, channels, ...]`: in training by its groups' statistics, else by the running ones."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if self.groups is not None and self.groups.shared:
            return self._over_ranks(x, self.groups)
        parts = [(0, 0, len(x))] if self.groups is None else self.groups.parts(len(x))
        # Axes [group, channel]: with momentum 1 PyTorch writes the statistics of the batch themselves.
        means = self.running_mean.new_zeros(len(parts), len(self.running_mean))
        variances = torch.zeros_like(means)
        outputs = [
            F.batch_norm(x[start:end], mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for (_, start, end), mean, var in zip(parts, means, variances, strict=True)
        ]
        self._update_running(means, variances)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _over_ranks(
        self, x: Float[Tensor, "b channels *space"], groups: NormGroups
    ) -> Float[Tensor, "b channels *space"]:
        """Normalize by the statistics of groups of which other ranks have rows too: one sum over ranks."""
        channels, parts = x.shape[1], groups.parts(len(x))
        space = tuple(axis for axis in range(x.ndim) if axis != 1)
        # Axis [sums of channels, squares of channels, count], of each group of the global batch.
        sums_of = [x.new_zeros(2 * channels + 1, dtype=torch.float64) for _ in range(groups.count)]
        for group, start, end in parts:
            part = x[start:end].to(self.weight.dtype)
            var, mean = (value.double() for value in torch.var_mean(part, dim=space, correction=0))
            count = torch.full_like(mean[:1], part.numel() // channels)
            sums_of[group] = torch.cat([count * mean, count * (var + mean.square()), count])
        sums = torch.stack(sums_of)
        sums = AllReduceSum.apply(sums, groups.runtime)  # type: ignore[no-untyped-call]
        counts = sums[:, -1:].clamp_min(1)
        means = sums[:, :channels] / counts
        # E[x^2] - E[x]^2 cancels nothing that float32 holds: it has twice the digits.
        variances = (sums[:, channels:-1] / counts - means.square()).clamp_min(0)
        scale = self.weight * torch.rsqrt(variances + self.eps)
        shift = self.bias - means * scale
        # Axes [channel, 1, ...]: as many axes behind the channel as `x` has.
        behind = (...,) + (None,) * (x.ndim - 2)
        dtype = self.weight.dtype
        outputs = [
            torch.addcmul(shift[group].to(dtype)[behind], x[start:end], scale[group].to(dtype)[behind]).to(x.dtype)
            for group, start, end in parts
        ]
        with torch.no_grad():
            self._update_running(means, variances * counts / (counts - 1).clamp_min(1))
        return torch.cat(outputs)

    @torch.no_grad()
    def _update_running(
        self, means: Float[Tensor, "groups channels"], variances: Float[Tensor, "groups channels"]
    ) -> None:
        self.running_mean.lerp_(means.mean(dim=0).to(self.running_mean), self.momentum)
        self.running_var.lerp_(variances.mean(dim=0).to(self.running_var), self.momentum)


def batch_norms(module: nn.Module) -> list[GroupedBatchNorm]:
    """The batch norms in `module`, at any depth."""
    return [child for child in module.modules() if isinstance(child, GroupedBatchNorm)]


def set_norm_groups(decoder: nn.Module, groups: NormGroups | None) -> None:
    """Let the batch norms of `decoder` normalize by `groups` from now on; every rank then decodes at the same step."""
    for norm in batch_norms(decoder):
        norm.groups = groups


@contextlib.contextmanager
def norm_groups_set(decoder: nn.Module, groups: NormGroups) -> Iterator[None]:
    """Within the block, the batch norms of `decoder` normalize by `groups`."""
    set_norm_groups(decoder, groups)
    try:
        yield
    finally:
        set_norm_groups(decoder, None)


@torch.no_grad()
def merge_running_statistics(decoder: nn.Module, rows: int) -> None:
    """Make the running statistics of `decoder` the mean over the groups of all ranks; every rank calls this.

    Args:
        decoder: its batch norms have their groups.
        rows: of this rank in a global batch.
    """
    norms = [norm for norm in batch_norms(decoder) if norm.groups is not None]
    if not norms or norms[0].groups is None or norms[0].groups.shared:
        return  # Shared groups have the same statistics on every rank already.
    groups = norms[0].groups
    # Running statistics are linear in those of each batch, so that merging them late is merging every batch.
    share = len(groups.parts(rows)) / groups.count
    statistics = torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in norms]).double() * share
    merged = groups.runtime.all_reduce_sum(statistics)
    for norm, values in zip(norms, merged.split([2 * len(norm.running_mean) for norm in norms]), strict=True):
        mean, var = values.chunk(2)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def group_batch_norms(module: nn.Module) -> nn.Module:
    """Replace every batch norm of PyTorch in `module` by a `GroupedBatchNorm`, which is exact at every world size.

    Weights, biases and running statistics are copied.

    Returns:
        `module`, changed in place; a new module if it is a batch norm itself.

    Raises:
        ValueError: if a batch norm has no running statistics, or cumulative ones.
    """
    return _grouped(module, {})


def _grouped(module: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in replacements:  # A module may be a child of several modules.
        return replacements[module]
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.momentum is None or not module.track_running_stats:
            raise ValueError(
                f"{module}: a batch norm needs running statistics (track_running_stats=True) and a momentum in [0, 1]"
            )
        grouped = GroupedBatchNorm(module.num_features, module.momentum, module.eps)
        tensors = {name: value for name, value in module.state_dict().items() if name in grouped.state_dict()}
        grouped.load_state_dict(tensors, strict=False)
        replacements[module] = grouped.requires_grad_(module.affine)
        return grouped
    replacements[module] = module
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _grouped(child, replacements)
    return module
