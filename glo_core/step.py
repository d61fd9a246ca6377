"""One optimizer step: the only place where losses are reduced and gradients scaled.

Every image has a loss l_i. The decoder follows sum_i l_i / B over the global batch of nominal size B; a code
follows the gradient of sum_i l_i, so that its step neither shrinks with B nor grows with the world size.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glo_core.average import AveragedDecoder
from glo_core.codes import CodeConfig, Table
from glo_core.config import Config
from glo_core.dataset import ImageSource
from glo_core.decoder import DecoderConfig, SeedDecoder
from glo_core.hashing import Int64Array
from glo_core.losses import LOSSES, mse, to_target, to_unit
from glo_core.runtime import Runtime

NUM_SUMS = 6
"""What `Learner.step` sums over images"""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What decides a training's result, but for its length."""

    seed: int = 0
    """Seed of the start and of the order of training"""
    batch_size: int = 128
    """Images of one optimizer step over all workers"""
    loss: Literal["mse", "pairwise"] = "mse"
    """Mean squared error, or the seed's mean pairwise squared error"""
    precision: Literal["float32", "float64"] = "float32"
    """Type of weights, codes and arithmetic"""
    window: int = 0
    """Rows of a lane that an epoch visits together, so that no others need be in memory; 0 keeps every code there"""
    learning_rate: float = 1e-3
    """Adam's step size for the decoder at the schedule's peak"""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Of both learning rates: cosine decay to 0 over the images of a phase, none, or a factor every so many images"""
    warm_up: int = 0
    """Images over which both learning rates rise to their peak at a phase's start"""
    decay: float = 0.5
    """Factor of the step schedule"""
    decay_every: int = 1_000_000
    """Images between two steps of the step schedule"""
    clip_norm: float = 0.0
    """Largest norm of the decoder's gradient, longer ones are scaled down; 0 turns clipping off"""
    average_half_life: float = 50_000
    """Half-life in images of the averaged decoder weights; 0 turns averaging off"""
    code: CodeConfig = field(default_factory=CodeConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"`window` (={self.window}) must be at least 1 row, or 0 for all")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` (={self.batch_size}) must be at least 1")
        if not self.learning_rate >= 0:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be at least 0")
        if self.warm_up < 0 or self.decay_every < 1:
            raise ValueError(
                f"`warm_up` (={self.warm_up}) must be at least 0, and `decay_every` (={self.decay_every}) at least 1"
            )
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` (={self.decay}) must be in (0, 1]")
        if not self.clip_norm >= 0:
            raise ValueError(f"`clip_norm` (={self.clip_norm}) must be at least 0")
        if not self.average_half_life >= 0:
            raise ValueError(f"`average_half_life` (={self.average_half_life}) must be at least 0")


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: torch.Tensor
    """uint8 `[b, H, W, C]`"""
    rows: Int64Array
    """Rows of the rank's code table, int64 `[b]`"""
    live: npt.NDArray[np.bool_]
    """False for padding, bool `[b]`"""


class Learner:
    """What training changes: the decoder, its optimizer and average, and this rank's codes."""

    def __init__(self, config: TrainConfig, images: ImageSource, table: Table, runtime: Runtime) -> None:
        """Build decoder, optimizer and average in their initial state, beside `table`."""
        self.config, self.runtime, self.dtype = config, runtime, DTYPES[config.precision]
        decoder = SeedDecoder(
            config.decoder,
            code_dim=config.code.dim,
            resolution=images.resolution,
            channels=images.channels,
            seed=config.seed,
        )
        self.decoder = decoder.to(runtime.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = AveragedDecoder(self.decoder, config.average_half_life)
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), lr=config.learning_rate, fused=True)
        self.table = table

    def step(self, batch: Batch, rate_factor: float) -> torch.Tensor:
        """Train on one batch.

        Args:
            rate_factor: multiplies both learning rates, from the schedule.

        Returns:
            This rank's sums over live images of: loss, squared error of the clamped image on [0, 1] per pixel,
            norm of the raw code and its square, norm of the code's gradient, norm of the decoder's gradient.
            float64 `[6]`, on the device.
        """
        device = self.runtime.device
        places, codes = self.table.bring(batch.rows), self.table.held
        live = torch.from_numpy(batch.live).to(device, self.dtype)
        target = to_target(batch.images.to(device, non_blocking=True), self.dtype)
        raw = codes.raw[places].requires_grad_()
        prediction = self.decoder(codes.project(raw), live, self.runtime)
        losses = LOSSES[self.config.loss](prediction, target)
        self.optimizer.zero_grad(set_to_none=True)
        (losses * live).sum().backward()
        gradient = self._step_decoder(rate_factor)
        assert raw.grad is not None
        real = torch.from_numpy(np.flatnonzero(batch.live)).to(device)
        codes.update(places[real], raw.grad[real], rate_factor * self.config.code.learning_rate)
        with torch.no_grad():
            squared = mse(to_unit(prediction), to_unit(target))
            norm, pull = raw.norm(dim=1), raw.grad.norm(dim=1)
            each = torch.stack([losses, squared, norm, norm.square(), pull, gradient.expand_as(norm)])
            return each.double() @ live.double()

    def _step_decoder(self, rate_factor: float) -> torch.Tensor:
        gradients = [p.grad for p in self.decoder.parameters() if p.grad is not None]
        if self.runtime.world_size > 1:
            # One collective for all of them: a decoder's 6 to 20 MB are too few to be worth overlapping on a CPU.
            flat = self.runtime.all_sum(torch.cat([gradient.flatten() for gradient in gradients]))
            pieces = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view(g.shape) for p, g in zip(pieces, gradients, strict=True)])
        torch._foreach_div_(gradients, self.config.batch_size)
        # |g|_2 over all parameters; the host does not read it here, so that nothing waits for the device.
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self.config.clip_norm:
            torch._foreach_mul_(gradients, (self.config.clip_norm / norm.clamp_min(1e-12)).clamp_max(1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_factor * self.config.learning_rate
        self.optimizer.step()
        return norm
