"""The EMA of the decoder's weights: an exponential moving average whose half-life is counted in images."""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor
from glo_core.decoder.batch_norm import MaskedBatchNorm, shared_batch

RAMP_UP = 0.05
"""The half-life is at most this fraction of the images seen, so that the first weights soon have no share (EDM2, Karras
et al., arXiv 2312.02696)"""


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

    @torch.no_grad()
    def update(self, decoder: nn.Module, images_seen: int, images: int) -> None:
        """Average the weights of `decoder` in, after a step of `images` images that ended at `images_seen`.

        w_ema <- d w_ema + (1 - d) w with d = 2^(-images / min(half_life, `RAMP_UP` images_seen)).
        """
        decay = 0.0
        if self.half_life is not None and images_seen:
            decay = 0.5 ** (images / min(self.half_life, RAMP_UP * images_seen))
        torch._foreach_lerp_(list(self.decoder.parameters()), list(decoder.parameters()), 1 - decay)
        for target, source in self._other_buffers(decoder):
            target.copy_(source)

    def _other_buffers(self, decoder: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of buffers, of this decoder and of `decoder`, that are no running statistics of a `MaskedBatchNorm`."""
        for target, source in zip(self.decoder.modules(), decoder.modules(), strict=True):
            if not isinstance(target, MaskedBatchNorm):
                yield from zip(target.buffers(recurse=False), source.buffers(recurse=False), strict=True)

    @torch.no_grad()
    def refresh_statistics(
        self, batches: Iterable[tuple[Float[Tensor, "b code_dim"], Float[Tensor, " b"]]], runtime: Runtime
    ) -> None:
        """Recompute the running statistics as means over `batches`; those of the trained decoder belong to its weights.

        Args:
            batches: codes `[b, code_dim]` and their mask `[b]`, 1 for images and 0 for padding; as many on every rank.
            runtime: the ranks, which all call this.
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
