"""scikit-learn's 1,797 handwritten digits -> PNG files in class folders, as a user's own images would lie."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> None:
    """Write `<folder>/<digit>/<number>.png`, 8x8 gray."""
    digits = load_digits()
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        if path.exists():  # A rewritten file would be a new one to preprocessing.
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * 255 / 16).round().astype(np.uint8)).save(path)
    print(f"demo: {len(digits.images)} digits as PNG files in {folder}")


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
