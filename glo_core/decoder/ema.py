"""The EMA of the decoder's weights: an exponential moving average whose half-life is counted in images."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from glo_core.common.shapes import Float, Tensor
from glo_core.decoder.batch_norm import (
    GroupedBatchNorm,
    NormGroups,
    batch_norms,
    merge_running_statistics,
    norm_groups_set,
)

RAMP_UP = 0.05
"""The half-life is at most this fraction of the images seen, so that the first weights soon have no share (EDM2, Karras
et al., arXiv 2312.02696)"""


UPDATE_IMAGES = 128
"""Images between two updates at most, whatever the batch size"""


class EmaDecoder:
    """A second decoder, whose weights are an exponential moving average of the first one's."""

    def __init__(self, decoder: nn.Module, half_life: float | None) -> None:
        """Begin with a copy of `decoder`'s weights.

        Args:
            decoder: the decoder that is trained.
            half_life: number of images after which a weight's share in the average has halved; None copies the weights.
        """
        self.decoder = copy.deepcopy(decoder).eval().requires_grad_(False)
        self.half_life = half_life

    def follow(self, decoder: nn.Module, before: int, images_seen: int) -> None:
        """Average the weights of `decoder` in, if a step from `before` to `images_seen` images has crossed an interval.

        With small batches most steps cross none: averaging costs as much as a good part of such a step. The interval is
        a hundredth of the half-life at most, and `UPDATE_IMAGES` at most, so that the average is the same to the eye.
        """
        interval = max(1, min(UPDATE_IMAGES, int((self.half_life or 0) / 100)))
        crossed = images_seen // interval - before // interval
        if crossed:
            self.update(decoder, images_seen, crossed * interval)
        with torch.no_grad():  # A user's own buffers are no average: they are those of the last step.
            for target, source in self._other_buffers(decoder):
                target.copy_(source)

    @torch.no_grad()
    def update(self, decoder: nn.Module, images_seen: int, images: int) -> None:
        """Average the weights of `decoder` in, after a step of `images` images that ended at `images_seen`.

        w_ema <- d w_ema + (1 - d) w with d = 2^(-images / min(half_life, `RAMP_UP` images_seen)).
        """
        decay = 0.0
        if self.half_life is not None and images_seen:
            decay = 0.5 ** (images / min(self.half_life, RAMP_UP * images_seen))
        torch._foreach_lerp_(list(self.decoder.parameters()), list(decoder.parameters()), 1 - decay)

    def _other_buffers(self, decoder: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of buffers, of this decoder and of `decoder`, but for running statistics of a `GroupedBatchNorm`."""
        for target, source in zip(self.decoder.modules(), decoder.modules(), strict=True):
            if not isinstance(target, GroupedBatchNorm):
                yield from zip(target.buffers(recurse=False), source.buffers(recurse=False), strict=True)

    @torch.no_grad()
    def refresh_statistics(self, batches: Iterable[Float[Tensor, "b code_dim"]], groups: NormGroups) -> None:
        """Recompute the running statistics as means over `batches`; those of the trained decoder belong to its weights.

        Args:
            batches: this rank's codes of global batches, `[b, code_dim]`, padding included; as many on every rank.
            groups: the norm groups of the recipe.
        """
        norms = batch_norms(self.decoder)
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        self.decoder.train()
        with norm_groups_set(self.decoder, groups):
            for number, codes in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / number  # A cumulative mean: lerp by 1/k at the k-th batch.
                self.decoder(codes)
            merge_running_statistics(self.decoder, len(codes))
        self.decoder.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
