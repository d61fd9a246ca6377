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
from glo_core.decoder import DecoderConfig, Shape, make_decoder
from glo_core.hashing import Int64Array
from glo_core.losses import PyramidConfig, loss_terms, make_loss, mse, to_target, to_unit
from glo_core.norm import sharing_batch
from glo_core.runtime import Runtime

NUM_SUMS = 6
"""What `Learner.step` sums over images"""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """What decides a training's result, but for its length."""

    seed: int = 0
    """Seed of the start and of the order of training"""
    batch_size: int = 0
    """Images of one optimizer step over all workers; 0 for 16 to 256, by the number of images"""
    loss: str = "mse"
    """A sum such as pyramid + 0.5 mse of: mse, l1, pairwise (the seed's), pyramid (the paper's), ssim, perceptual"""
    perceptual_network: str = "vgg16"
    """Of the loss perceptual: vgg16 of torchvision, or package.module:function that returns your own"""
    precision: Literal["float32", "float64"] = "float32"
    """Type of weights, codes and arithmetic"""
    window: int = 0
    """Rows of a lane that an epoch visits together, so that no others need be in memory; 0 keeps every code there"""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of the decoder"""
    learning_rate: float = 2e-3
    """The optimizer's step size for the decoder at the schedule's peak"""
    beta1: float = 0.9
    """Decay of Adam's first moment, per step; with sgd, the momentum"""
    beta2: float = 0.999
    """Decay of Adam's second moment, per step"""
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
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)

    def __post_init__(self) -> None:
        loss_terms(self.loss)
        if self.window < 0:
            raise ValueError(f"`window` (={self.window}) must be at least 1 row, or 0 for all")
        if self.batch_size < 0:
            raise ValueError(f"`batch_size` (={self.batch_size}) must be at least 1, or 0 for the rule's")
        if not self.learning_rate >= 0:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be at least 0")
        for name, least in (("warm_up", 0), ("decay_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 0 and below 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` (={self.decay}) must be in (0, 1]")
        if not self.clip_norm >= 0:
            raise ValueError(f"`clip_norm` (={self.clip_norm}) must be at least 0")
        if not self.average_half_life >= 0:
            raise ValueError(f"`average_half_life` (={self.average_half_life}) must be at least 0")


class Rates(NamedTuple):
    """What the schedules multiply the learning rates with at some step."""

    decoder: float
    codes: float


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
        self.shape = Shape(config.code.dim, images.resolution, images.channels)
        decoder = make_decoder(config.decoder, **self.shape._asdict(), seed=config.seed)
        self.loss = make_loss(config.loss, config.pyramid, config.perceptual_network, images.resolution, runtime.device)
        self.decoder = decoder.to(runtime.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = AveragedDecoder(self.decoder, config.average_half_life)
        self.optimizer = _optimizer(config, self.decoder)
        self.table = table

    def step(self, batch: Batch, rates: Rates) -> torch.Tensor:
        """Train on one batch.

        Args:
            rates: multiply the learning rates, from the schedules.

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
        self.optimizer.zero_grad(set_to_none=True)
        with sharing_batch(self.decoder, live, self.runtime):  # The backward pass may compute a norm anew.
            prediction = self.decoder(codes.project(raw))
            losses = self.loss(prediction, target)
            (losses * live).sum().backward()
        gradient = self._step_decoder(rates.decoder)
        assert raw.grad is not None
        pulled = raw.grad + self.config.code.decay * raw.detach() if self.config.code.decay else raw.grad
        real = torch.from_numpy(np.flatnonzero(batch.live)).to(device)
        codes.update(places[real], pulled[real], rates.codes * self.config.code.learning_rate)
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


def _optimizer(config: TrainConfig, decoder: torch.nn.Module) -> torch.optim.Optimizer:
    weights = decoder.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=config.learning_rate, momentum=config.beta1, fused=True)
    return torch.optim.Adam(weights, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
