"""What is printed of a dataset comes from counts, not from a list of all images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import _median, inspect_dataset
from tests.helpers.preprocess_small import preprocess_small


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 50, 51])
def test_the_median_of_counts_is_that_of_the_values(count: int) -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).integers(1, 9, count)
        assert _median(Counter(values.tolist())) == np.median(values)


@pytest.mark.usefixtures("session")
def test_the_sizes_of_images_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [(20, 30), (40, 25), (60, 70), (64, 17)]
    (tmp_path / "images").mkdir()
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    preprocess_small(tmp_path / "dataset", tmp_path / "images")
    capsys.readouterr()
    inspect_dataset(InspectJob(dataset=Location(tmp_path / "dataset")))
    out = capsys.readouterr().out
    assert "sizes      20x17 px at least, 50x28 median, 64x70 at most" in out
    assert "images: 4 images of 4 files" in out
