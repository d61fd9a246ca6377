"""Tests of the copies that make a small input large."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.preprocess_speed import with_other_pixels
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode

POLICY = ResolvedDatasetConfig(resolution=16, channels=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_copy_has_pixels_of_its_own(kind: str) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    data = io.BytesIO()
    coarse.resize((64, 48)).save(data, kind)
    copies = [with_other_pixels(data.getvalue(), number) for number in range(60)]
    assert copies[0] == data.getvalue()
    assert len({decode(copy, POLICY).pixels.tobytes() for copy in copies}) == 60
