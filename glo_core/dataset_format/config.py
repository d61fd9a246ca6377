"""What a dataset is, and the policy by which files become pixels."""

import re
from dataclasses import dataclass, field

from PIL import ImageColor

from glo_core.common.config import AutoInt, Config, OffInt, OffText
from glo_core.common.limits import LARGEST_SEED, MANY, require_at_most


@dataclass(frozen=True, kw_only=True)
class DecodePolicy(Config):
    """How a file becomes pixels. Two datasets of different policies hold different images."""

    resolution: AutoInt = None
    """Side of the square images in pixels: 8, 16, 32, ...; auto takes what suits the images of the first run"""
    channels: AutoInt = None
    """1 for gray, 3 for RGB; auto takes gray where all images of a sample are gray"""
    tight_crop: OffInt = None
    """Side in pixels of a central crop taken before resizing (CelebA's faces: 108); off crops to the shorter side"""
    background: str = "#ffffff"
    """Color under transparent pixels, as '#rrggbb' or a CSS name"""
    draft: bool = True
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that still covers the resolution: 2 to 3 times as fast"""
    srgb: bool = True
    """Convert colors to sRGB where a file embeds another profile"""
    max_bytes: int = 1 << 30
    """Largest file in bytes that is read, or member of a tar or table"""
    max_pixels: int = 100_000_000
    """Largest width times height after libjpeg's scaling; the memory that pixels take is bounded as well"""
    min_side: int = 1
    """Shortest side in pixels that is accepted"""
    allow_truncated: bool = False
    """Accept a file that ends too early; what is missing stays black or gray"""

    def __post_init__(self) -> None:
        side = self.resolution
        if side is not None and (side < 8 or side & (side - 1)):
            raise ValueError(f"`resolution` (={side}) must be 4 * 2^n: 8, 16, 32, 64, 128, 256, ..., or auto")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"`channels` (={self.channels}) must be 1 (gray), 3 (RGB), or auto")
        if self.tight_crop is not None and self.tight_crop < 1:
            raise ValueError(f"`tight_crop` (={self.tight_crop}) must be a side in pixels, or off")
        if self.max_bytes < 1:
            raise ValueError(f"`max_bytes` (={self.max_bytes}) must be at least 1")
        if self.max_pixels < 1 or self.min_side < 1:
            raise ValueError(f"`max_pixels` (={self.max_pixels}) and `min_side` (={self.min_side}) must be at least 1")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"`background` (={self.background!r}) must be a color such as '#ffffff'") from None
        require_at_most(self, resolution=4096, tight_crop=10**6, max_bytes=MANY, max_pixels=MANY, min_side=10**6)

    @property
    def mode(self) -> str:
        """Pillow's name of the result's pixel format."""
        return "L" if self.channels == 1 else "RGB"


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(DecodePolicy):
    """What a dataset is, fixed when it is created."""

    code_shards: int = 32
    """S: image id modulo S is its code shard; a power of two"""
    seed: int = 0
    """Seed of the order in which ids are assigned, and of the holdout"""
    holdout: float = 0.0
    """Fraction of the files kept out of training, in [0, 1)"""
    group_by: OffText = None
    """Regular expression whose first group, searched in a file's path below its source, names what is held out as a
    whole: a burst, a patient, a film; off holds out file by file"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_shards < 1 or self.code_shards & (self.code_shards - 1):
            raise ValueError(f"`code_shards` (={self.code_shards}) must be a power of two")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"`holdout` (={self.holdout}) must be at least 0 and below 1")
        require_at_most(self, code_shards=2**16, seed=LARGEST_SEED)
        if self.group_by is not None:
            _check_pattern(self.group_by)


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"`group_by` (={pattern!r}) is no regular expression: {error}") from None
    if not groups:
        raise ValueError(
            f"`group_by` (={pattern!r}) has no group; put what names a group in parentheses, such as '^([^/]+)/'"
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedDatasetConfig(DatasetConfig):
    """What one dataset is: nothing is left to choose."""

    resolution: int = field()
    """Side of the square images in pixels"""
    channels: int = field()
    """1 for gray, 3 for RGB"""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image: H * W * C."""
        return self.resolution * self.resolution * self.channels
