"""One optimizer step: the only place where losses are reduced and gradients scaled.

Every image has a loss l_i. The decoder follows sum_i l_i / B over the global batch of nominal size B; a code
follows the gradient of sum_i l_i, so that its step neither shrinks with B nor grows with the world size.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from glo_core.codes.table import Table
from glo_core.common.arrays import Int64Array
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Float, Tensor, UInt8
from glo_core.data.image_source import ImageSource
from glo_core.decoder.batch_norm import shared_batch
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import Shape
from glo_core.decoder.ema import EmaDecoder
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target, to_unit
from glo_core.losses.weighted_sum import Loss, make_loss, require_loss_per_image
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.schedule import Rates

NUM_SUMS = 6
"""Numbers that `Learner.step` sums over images"""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: UInt8[Tensor, "b height width channels"]
    """uint8 `[b, H, W, C]`"""
    rows: Int64Array
    """Rows of the rank's code table, int64 `[b]`"""
    valid: npt.NDArray[np.bool_]
    """False for padding, bool `[b]`"""


class Learner:
    """The parts that training changes: the decoder, its optimizer and average, and this rank's codes."""

    def __init__(
        self,
        config: ResolvedTrainConfig,
        images: ImageSource,
        table: Table,
        runtime: Runtime,
        *,
        module: nn.Module | None = None,
        loss: Loss | None = None,
    ) -> None:
        """Build decoder, optimizer and average in their initial state, beside `table`.

        Args:
            module: the decoder of kind "module"; it is copied.
            loss: in place of the one that `config` names.

        Raises:
            UserError: if `module` makes other images, `loss` does not give one number per image, or a network that
                `config` names cannot be loaded.
            ValueError: if `config` does not fit the resolution of `images`.
        """
        self.config, self.runtime, self.dtype = config, runtime, DTYPES[config.precision]
        self.shape = Shape(config.code.dim, images.resolution, images.channels)
        decoder = make_decoder(config.decoder, **self.shape._asdict(), seed=config.seed, module=module)
        device, resolution = runtime.device, images.resolution
        if loss is not None:
            require_loss_per_image(loss, resolution, images.channels, device)
        self.loss = loss or make_loss(config.loss, config.pyramid, config.perceptual_network, resolution, device)
        self.decoder = decoder.to(device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EmaDecoder(self.decoder, config.ema_half_life)
        self.optimizer = _optimizer(config, self.decoder)
        self.table = table

    def step(self, batch: Batch, rates: Rates) -> Float[Tensor, " sums"]:
        """Train on one batch.

        Args:
            rates: factors of the learning rates, from the schedules.

        Returns:
            This rank's sums over valid images of: loss, squared error of the clamped image on [0, 1] per pixel,
            norm of the raw code and its square, norm of the code's gradient, norm of the decoder's gradient.
            float64 `[6]`, on the device.
        """
        device = self.runtime.device
        slots, codes = self.table.fetch(batch.rows), self.table.resident
        mask = torch.from_numpy(batch.valid).to(device, self.dtype)
        target = to_target(batch.images.to(device, non_blocking=True), self.dtype)
        raw = codes.raw[slots].requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        with shared_batch(self.decoder, mask, self.runtime):  # The backward pass may compute a norm anew.
            prediction = self.decoder(codes.project(raw))
            losses = self.loss(prediction, target)
            (losses * mask).sum().backward()
        gradient = self._step_decoder(rates.decoder)
        assert raw.grad is not None
        # d/dz of l_i + weight_decay |z|^2 / 2, for each row by itself.
        decay = self.config.code.weight_decay
        code_gradient = raw.grad + decay * raw.detach() if decay else raw.grad
        valid = torch.from_numpy(np.flatnonzero(batch.valid)).to(device)
        codes.update(slots[valid], code_gradient[valid], rates.codes * self.config.code.learning_rate)
        with torch.no_grad():
            squared = mse(to_unit(prediction), to_unit(target))
            norm, code_gradient_norm = raw.norm(dim=1), raw.grad.norm(dim=1)
            # [6, b] @ [b] -> [6]
            values = [losses, squared, norm, norm.square(), code_gradient_norm, gradient.expand_as(norm)]
            return torch.stack(values).double() @ mask.double()

    def _step_decoder(self, rate_factor: float) -> Float[Tensor, ""]:
        """Step by the gradient of sum_i l_i / B over all ranks; returns its norm before clipping, `[]`."""
        gradients = [p.grad for p in self.decoder.parameters() if p.grad is not None]
        if self.runtime.world_size > 1:
            # One collective for all of them: a decoder's 6 to 20 MB are too few to be worth overlapping on a CPU.
            flat = self.runtime.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
            pieces = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [p.view(g.shape) for p, g in zip(pieces, gradients, strict=True)])
        torch._foreach_div_(gradients, self.config.batch_size)
        # |g|_2 over all parameters; the host does not read it here, so that nothing waits for the device.
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self.config.clip_norm is not None:
            torch._foreach_mul_(gradients, (self.config.clip_norm / norm.clamp_min(1e-12)).clamp_max(1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_factor * self.config.learning_rate
        self.optimizer.step()
        return norm


def _optimizer(config: ResolvedTrainConfig, decoder: torch.nn.Module) -> torch.optim.Optimizer:
    weights = decoder.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=config.learning_rate, momentum=config.beta1, fused=True)
    return torch.optim.Adam(weights, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
