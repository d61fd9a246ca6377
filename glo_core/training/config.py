"""What decides a training's result, and how often things happen in it."""

from dataclasses import dataclass, field
from typing import Literal

from glo_core.codes.config import CodeConfig
from glo_core.common.config import Config
from glo_core.decoder.config import DecoderConfig
from glo_core.losses.config import PyramidConfig, loss_terms


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
    lr_gamma: float = 0.5
    """Factor of the step schedule"""
    lr_step_images: int = 1_000_000
    """Images between two steps of the step schedule"""
    clip_norm: float = 0.0
    """Largest norm of the decoder's gradient, longer ones are scaled down; 0 turns clipping off"""
    ema_half_life: float = 50_000
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
        for name, least in (("warm_up", 0), ("lr_step_images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be at least 0 and below 1")
        if not 0 < self.lr_gamma <= 1:
            raise ValueError(f"`lr_gamma` (={self.lr_gamma}) must be in (0, 1]")
        if not self.clip_norm >= 0:
            raise ValueError(f"`clip_norm` (={self.clip_norm}) must be at least 0")
        if not self.ema_half_life >= 0:
            raise ValueError(f"`ema_half_life` (={self.ema_half_life}) must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Intervals(Config):
    """How often things happen, in images unless said otherwise; none of it changes the result."""

    report: int = 10_000
    checkpoint: int = 0
    """Images between two checkpoints, besides those by time; 0 for none"""
    checkpoint_minutes: float = 10
    """Minutes between two checkpoints"""
    grid: int = 100_000
    """Pictures of the same images and of the same random codes"""

    def __post_init__(self) -> None:
        for name in ("report", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` interval (={getattr(self, name)}) must be at least 1 image")
        if self.checkpoint < 0:
            raise ValueError(f"`checkpoint` interval (={self.checkpoint}) must be at least 1 image, or 0 for none")
        if not self.checkpoint_minutes > 0:
            raise ValueError(f"`checkpoint_minutes` (={self.checkpoint_minutes}) must be above 0")
