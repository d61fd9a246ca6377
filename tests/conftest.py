"""Fixtures shared by all tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def blobs() -> torch.Tensor:
    """150 images of a bright spot at a random place, uint8 [150, 16, 16, 1]: low-dimensional, not linear."""
    generator = np.random.default_rng(0)
    centres = generator.uniform(4, 12, (150, 2))
    y, x = np.mgrid[:16, :16]
    distance = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    return torch.from_numpy((255 * np.exp(-distance / 8)).round().astype(np.uint8))[..., None]
