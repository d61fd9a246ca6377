"""Train on a tensor that is made on the spot, and write a grid of new images.

    python examples/train_on_a_tensor.py
    python examples/train_on_a_tensor.py --run runs/shapes

Training takes about two minutes on one core. The second command keeps the run, and returns at once when it is repeated.
"""

import argparse
from pathlib import Path

import numpy as np

import glo_core as glo


def shapes(count: int, side: int) -> np.ndarray:
    """`count` images of a disc or a square at a random place, in a random color: uint8 `[count, side, side, 3]`."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    center = random.uniform(0.3, 0.7, (2, count, 1, 1)) * side
    dx, dy = abs(x - center[0]), abs(y - center[1])  # [count, side, side]
    is_disc = random.integers(0, 2, (count, 1, 1))
    distance = np.where(is_disc, np.hypot(dx, dy), np.maximum(dx, dy))
    inside = (random.uniform(0.12, 0.28, (count, 1, 1)) * side + 0.5 - distance).clip(0, 1)  # A soft edge of one pixel.
    color = random.uniform(80, 255, (count, 1, 1, 3))
    return (inside[..., None] * color).round().astype(np.uint8)


def main() -> None:
    """Train, sample, and write a grid."""
    parser = argparse.ArgumentParser(description="Train on a tensor, and write a grid of new images.")
    parser.add_argument("--count", type=int, default=2000, help="training images")
    parser.add_argument("--side", type=int, default=32, help="their side in pixels: 8, 16, 32, ...")
    parser.add_argument("--images-seen", type=int, default=40_000)
    parser.add_argument("--run", type=Path, help="directory that keeps the run (default: none is kept)")
    parser.add_argument("--output", type=Path, default=Path("shapes.png"))
    arguments = parser.parse_args()

    images = shapes(arguments.count, arguments.side)
    result = glo.train(images, images_seen=arguments.images_seen, run=arguments.run)
    print(f"PSNR {result.metrics['psnr']:.2f} dB; PCA of the same dimension {result.metrics['pca_psnr']:.2f} dB")
    # Eight images, their reconstructions, and sixteen new images below.
    model = result.model
    rows = [model.images(range(8)), model.reconstruct(range(8)), model.sample(16, seed=0)]
    glo.image_grid(np.concatenate(rows), columns=8).save(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
