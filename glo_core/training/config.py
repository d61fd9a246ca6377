"""The settings that decide a training's result, and the intervals of reports, checkpoints and previews."""

import math
from dataclasses import dataclass, field
from typing import Literal

from glo_core.codes.config import CodeConfig, ResolvedCodeConfig
from glo_core.common.config import AllInt, AutoInt, Config, OffFloat, OffInt
from glo_core.common.limits import LARGEST_RATE, LARGEST_SEED, MANY, require_at_most
from glo_core.decoder.config import KINDS, MODULE, DecoderConfig, ResolvedDecoderConfig
from glo_core.losses.config import VGG16, PyramidConfig, loss_terms

Autocast = Literal["auto", "off", "bfloat16"]
"""Whether layers compute in bfloat16; auto does so where the device does so in hardware"""
Compile = Literal["auto", "on", "off"]
"""Whether `torch.compile` compiles a step; auto does so on a GPU alone: on a CPU the libraries' kernels are as fast"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """The settings that decide a training's result, except its length."""

    seed: int = 0
    """Seed of the initial weights and codes and of the order of training"""
    batch_size: AutoInt = None
    """Images of one optimizer step over all workers; auto takes 16 to 256, by the number of images"""
    loss: str = "mse"
    """Weighted sum, such as pyramid + 0.5 mse, of: mse, l1, pairwise, pyramid (Laplacian), ssim, perceptual"""
    perceptual_network: str = VGG16
    """Network of the loss perceptual: vgg16 of torchvision, or package.module:function that returns your own"""
    precision: Literal["float32", "float64"] = "float32"
    """Type of weights, codes and arithmetic"""
    window: AllInt = None
    """Rows of a lane that an epoch visits together, so that no others need be in memory; all keeps every code there"""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the decoder"""
    learning_rate: float = 2e-3
    """The optimizer's step size for the decoder at the schedule's peak"""
    beta1: float = 0.9
    """Decay of Adam's first moment, per step; with sgd, the momentum"""
    beta2: float = 0.999
    """Decay of Adam's second moment, per step"""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Schedule of both learning rates: cosine to 0 over a phase, constant, or a factor every `lr_step_images`"""
    warm_up: int = 0
    """Images over which both learning rates rise to their peak at a phase's start"""
    lr_gamma: float = 0.5
    """Factor of each step of the step schedule"""
    lr_step_images: int = 1_000_000
    """Images between two steps of the step schedule"""
    clip_norm: OffFloat = None
    """Largest norm of the decoder's gradient; a longer gradient is scaled down"""
    ema_half_life: OffFloat = 50_000.0
    """Half-life in images of the exponential moving average (EMA) of the decoder's weights"""
    code: CodeConfig = field(default_factory=CodeConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)

    def __post_init__(self) -> None:
        loss_terms(self.loss)
        if self.window is not None and self.window < 1:
            raise ValueError(f"`window` (={self.window}) must be at least 1 row, or all")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"`batch_size` (={self.batch_size}) must be at least 1, or auto")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` (={self.learning_rate}) must be finite, and at least 0")
        for name, least in (("warm_up", 0), ("lr_step_images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 0 and below 1")
        if not 0 < self.lr_gamma <= 1:
            raise ValueError(f"`lr_gamma` (={self.lr_gamma}) must be in (0, 1]")
        for name in ("clip_norm", "ema_half_life"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` (={value}) must be above 0, or off")
        require_at_most(self, seed=LARGEST_SEED, batch_size=2**20, learning_rate=LARGEST_RATE, clip_norm=MANY)
        require_at_most(self, window=MANY, warm_up=MANY, lr_step_images=MANY, ema_half_life=MANY)

    @property
    def imports(self) -> dict[str, str]:
        """Settings that name code to import, as package.module:name, by their dotted names."""
        named = {"decoder.kind": self.decoder.kind, "perceptual_network": self.perceptual_network}
        return {name: value for name, value in named.items() if value not in (*KINDS, MODULE, VGG16)}


@dataclass(frozen=True, kw_only=True)
class ResolvedTrainConfig(TrainConfig):
    """The recipe of one training: nothing is left to choose. `auto_config.resolve_defaults` makes it."""

    batch_size: int = field()
    """Images of one optimizer step over all workers"""
    code: ResolvedCodeConfig = field()
    decoder: ResolvedDecoderConfig = field()


@dataclass(frozen=True, kw_only=True)
class Intervals(Config):
    """Intervals in images seen, or in minutes; none of them changes the result."""

    report: int = 10_000
    """Images between two reports of loss, rates and speed"""
    checkpoint: OffInt = None
    """Images between two checkpoints, besides those by time"""
    checkpoint_minutes: float = 10
    """Minutes between two checkpoints"""
    grid: int = 100_000
    """Images between two previews: the same training images and the same random codes each time"""

    def __post_init__(self) -> None:
        for name in ("report", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 1 image")
        if self.checkpoint is not None and self.checkpoint < 1:
            raise ValueError(f"`checkpoint` (={self.checkpoint}) must be at least 1 image, or off")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"`checkpoint_minutes` (={self.checkpoint_minutes}) must be above 0")
        require_at_most(self, report=MANY, grid=MANY, checkpoint=MANY, checkpoint_minutes=1e6)
