"""Folders of images, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, *, seed: int, side: int = 20) -> None:
    """`count` PNG files of random bright spots, in two class folders."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    for number in range(count):
        centre = generator.uniform(4, side - 4, 2)
        spot = 255 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 10)
        path = folder / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(spot.round().astype(np.uint8)).save(path)
