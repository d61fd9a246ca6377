"""One optimizer step: the only place where losses are reduced and gradients scaled.

Every image has a loss l_i. The decoder follows sum_i l_i / B over the global batch of nominal size B; a code
follows the gradient of sum_i l_i, so that its step neither shrinks with B nor grows with the world size.
"""

from collections.abc import Callable

import torch
from torch import nn

from glo_core.codes.table import Table
from glo_core.common.runtime import Runtime
from glo_core.common.shapes import Bool, Float, Int, Tensor
from glo_core.data.image_source import ImageSource
from glo_core.decoder.batch_norm import set_norm_groups
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import Shape
from glo_core.decoder.ema import EmaDecoder
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target
from glo_core.losses.weighted_sum import Loss, make_loss, require_loss_per_image
from glo_core.training.autocast import autocast
from glo_core.training.batch import Batch
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.gradient_sum import GradientSum
from glo_core.training.norm_groups import norm_groups
from glo_core.training.schedule import Rates

NUM_SUMS = 6
"""Numbers that `Learner.step` sums over images"""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
        self.groups = norm_groups(config.decoder.norm_group, config.batch_size, images.code_shards, runtime)
        set_norm_groups(self.decoder, self.groups)
        self.optimizer = _optimizer(config, self.decoder)
        self.table = table
        self.autocast = False
        """Whether the decoder computes in bfloat16"""
        self.compiled = False
        """Whether `forward` and `update` are compiled"""
        self.forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._losses
        self.update: Callable[..., None] = self._update
        """Two parts of a step that `compile_step` may replace by compiled ones"""
        self._sum = GradientSum(self.decoder.parameters(), runtime) if runtime.world_size > 1 else None

    def step(self, batch: Batch, rates: Rates) -> Float[Tensor, " sums"]:
        """Train on one batch. Nothing here waits for the device, and every shape is the same in every step.

        Args:
            batch: of this rank; its tensors are on the device, but for the images, which may be in host memory.
            rates: factors of the learning rates, from the schedules.

        Returns:
            This rank's sums over valid images of: loss, squared error of the clamped image on [0, 1] per pixel,
            norm of the raw code and its square, norm of the code's gradient, norm of the decoder's gradient.
            float64 `[6]`, on the device.
        """
        rows = batch.rows
        slots, codes = self.table.fetch(rows.on_host, rows.on_device), self.table.resident
        target = to_target(batch.images.to(self.runtime.device, non_blocking=True), self.dtype)
        raw = codes.raw[slots].requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        mean, losses, prediction = self.forward(raw, target, rows.mask)
        mean.backward()
        assert raw.grad is not None
        # d/dz of l_i + weight_decay |z|^2 / 2, for each row by itself; the decoder's last gradients are on their way.
        own_gradient, decay = raw.grad * self.config.batch_size, self.config.code.weight_decay
        code_gradient = own_gradient + decay * raw.detach() if decay else own_gradient
        rate = torch.full((), rates.codes * self.config.code.learning_rate, dtype=self.dtype, device=raw.device)
        self.update(slots, code_gradient if rows.source is None else code_gradient[rows.source], rate, rows.changed)
        gradient = self._step_decoder(rates.decoder)
        with torch.no_grad():
            # On [0, 1] an error is half of that on [-1, 1].
            squared = mse(prediction.clamp(-1, 1), target) / 4
            norm, code_gradient_norm = raw.norm(dim=1), own_gradient.norm(dim=1)
            # [6, b] @ [b] -> [6]
            values = [losses, squared, norm, norm.square(), code_gradient_norm, gradient.expand_as(norm)]
            return torch.stack(values).double() @ rows.mask.double()

    def _losses(
        self,
        raw: Float[Tensor, "b dim"],
        target: Float[Tensor, "b channels height width"],
        mask: Float[Tensor, " b"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " b"], Float[Tensor, "b channels height width"]]:
        """This rank's part of sum_i l_i / B over the valid rows, the losses `[b]`, and the decoded images."""
        codes = self.table.resident.project(raw)
        with autocast(self.runtime.device, self.autocast):
            prediction = self.decoder(codes)
        prediction = prediction.to(self.dtype)
        losses = self.loss(prediction, target)
        return (losses * mask).sum() / self.config.batch_size, losses, prediction

    def _update(
        self,
        slots: Int[Tensor, " b"],
        grad: Float[Tensor, "b dim"],
        rate: Float[Tensor, ""],
        changed: Bool[Tensor, "b 1"] | None,
    ) -> None:
        self.table.resident.update(slots, grad, rate, changed=changed)

    def trial(self, rows: int) -> None:
        """Compute what a step of `rows` rows computes, on made-up codes and images, and change nothing."""
        device, running = self.runtime.device, [buffer.clone() for buffer in self.decoder.buffers()]
        raw = torch.randn(rows, self.shape.code_dim, dtype=self.dtype, device=device, requires_grad=True)
        target = to_target(
            torch.zeros(rows, *[self.shape.resolution] * 2, self.shape.channels, dtype=torch.uint8, device=device),
            self.dtype,
        )
        mean, _, _ = self.forward(raw, target, torch.ones(rows, dtype=self.dtype, device=device))
        inputs = [raw, *(parameter for parameter in self.decoder.parameters() if parameter.requires_grad)]
        gradient = torch.autograd.grad(mean, inputs, allow_unused=True)[0]
        slots = torch.zeros(rows, dtype=torch.int64, device=device)
        nothing = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.update(slots, gradient, torch.zeros((), dtype=self.dtype, device=device), nothing)
        with torch.no_grad():
            for buffer, value in zip(self.decoder.buffers(), running, strict=True):
                buffer.copy_(value)

    def _step_decoder(self, rate_factor: float) -> Float[Tensor, ""]:
        """Step by the gradient of sum_i l_i / B over all ranks; returns its norm before clipping, `[]`."""
        if self._sum is not None:
            self._sum.wait()
        gradients = [p.grad for p in self.decoder.parameters() if p.grad is not None]
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
