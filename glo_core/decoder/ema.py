"""Averaged decoder weights: an exponential moving average whose half-life is counted in images."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Tensor
from glo_core.decoder.batch_norm import MaskedBatchNorm, shared_batch

RAMP_UP = 0.05
"""The half-life is at most this fraction of the images seen, so that the start is soon forgotten (EDM2)."""


class EmaDecoder:
    """A second decoder that follows the first."""

    def __init__(self, decoder: nn.Module, half_life: float | None) -> None:
        """Start at `decoder`'s weights; `half_life` is in images, None for no averaging."""
        self.decoder = copy.deepcopy(decoder).eval().requires_grad_(False)
        self.half_life = half_life

    @torch.no_grad()
    def update(self, decoder: nn.Module, images_seen: int, images: int) -> None:
        """Follow `decoder` after a step of `images` images that ended at `images_seen`."""
        decay = 0.0
        if self.half_life is not None and images_seen:
            decay = 0.5 ** (images / min(self.half_life, RAMP_UP * images_seen))
        torch._foreach_lerp_(list(self.decoder.parameters()), list(decoder.parameters()), 1 - decay)
        for mine, theirs in self._other_buffers(decoder):
            mine.copy_(theirs)

    def _other_buffers(self, decoder: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Buffers that are no running statistics: what a user's decoder keeps beside its weights."""
        for mine, theirs in zip(self.decoder.modules(), decoder.modules(), strict=True):
            if not isinstance(mine, MaskedBatchNorm):
                yield from zip(mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True)

    @torch.no_grad()
    def refresh_statistics(self, batches: Iterable[tuple[Tensor, Tensor]], runtime: Runtime) -> None:
        """Recompute the running statistics, which belong to other weights, as means over `batches`.

        Args:
            batches: codes `[b, code_dim]` and their mask `[b]`.
        """
        norms = [module for module in self.decoder.modules() if isinstance(module, MaskedBatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        self.decoder.train()
        for number, (codes, mask) in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / number  # A cumulative mean: lerp by 1/k at the k-th batch.
            with shared_batch(self.decoder, mask, runtime):
                self.decoder(codes)
        self.decoder.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
