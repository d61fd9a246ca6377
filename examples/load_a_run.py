"""Open a run that was trained before, and write a grid of what it can make.

    python examples/load_a_run.py runs/shapes
    python examples/load_a_run.py ~/glo/run --images-seen 300000

The second command opens an older checkpoint.
"""

import argparse
from pathlib import Path

import numpy as np

import glo_core as glo


def main() -> None:
    """Load the run that the command line names, decode, and write a grid."""
    parser = argparse.ArgumentParser(description="Open a run, and write a grid of what it can make.")
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--images-seen", type=int, help="checkpoint to open (default: the newest)")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("run.png"))
    arguments = parser.parse_args()

    model = glo.load(arguments.run, images_seen=arguments.images_seen)
    codes = model.codes()
    print(f"{len(codes)} codes of {codes.shape[1]} dimensions, {model.images_seen} images seen")
    # Four rows: reconstructions, a line between two codes, the mean code with one dimension moved, new images.
    columns = arguments.columns
    moved = np.tile(codes.mean(0), (columns, 1))
    moved[:, 0] += np.linspace(-2, 2, columns) * codes[:, 0].std()
    rows = [
        model.reconstruct(model.ids[:columns]),
        model.interpolate(model.ids[0], model.ids[-1], columns),
        model.decode(moved),
        model.sample(columns, seed=0),
    ]
    glo.image_grid(np.concatenate(rows), columns).save(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
