"""What speed costs in quality: norm groups, and the decoder in bfloat16, three seeds each.

    python -m jobs.preprocess --input FOLDER --dataset DATASET --resolution 32
    python -m benchmarks.quality_speed --dataset DATASET [--images 60000] [--batch-size 128] [--seeds 0 1 2]

Every variant sees the same images in the same order from the same initial state, a seed each. Measured is the PSNR over
the training images with the EMA decoder, in float32 for all.
"""

import argparse
import json
import os

import torch

import glo_core as glo
from benchmarks.environment import describe, describe_config
from benchmarks.rounds import Spread, json_line, table
from glo_core.common.location import Location
from glo_core.training.config import Autocast

VARIANTS: dict[str, tuple[int, Autocast]] = {
    "one_group_float32": (1, "off"),
    "groups_of_32_float32": (4, "off"),
    "groups_of_32_bfloat16": (4, "bfloat16"),
}
"""By name: norm groups of a batch of 128, and autocast"""


def psnr(dataset: glo.Dataset, options: argparse.Namespace, seed: int, groups: int, autocast: Autocast) -> float:
    """PSNR in dB of one training."""
    decoder = glo.DecoderConfig(norm_group=options.batch_size // groups)
    config = glo.TrainConfig(seed=seed, batch_size=options.batch_size, decoder=decoder)
    result = glo.train(dataset, config=config, images_seen=options.images, autocast=autocast, progress=False)
    return result.metrics["psnr"]


def main() -> None:
    """Train every variant with every seed, and print PSNR and differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--images", type=int, default=60_000, help="seen by each training; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe())
    print(describe_config(options))
    dataset = glo.Dataset.open(Location(options.dataset))
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in options.seeds:
        for name, (groups, autocast) in VARIANTS.items():
            found[name].append(psnr(dataset, options, seed, groups, autocast))
            print(json.dumps({"seed": seed, "variant": name, "psnr": round(found[name][-1], 3)}), flush=True)
    one, grouped, reduced = found.values()
    differences = {
        "groups_minus_one_db": Spread.of([a - b for a, b in zip(grouped, one, strict=True)]),
        "bfloat16_minus_float32_db": Spread.of([a - b for a, b in zip(reduced, grouped, strict=True)]),
    }
    print(table({name: Spread.of(values) for name, values in found.items()} | differences, "PSNR, dB"))
    print(json_line(differences))


if __name__ == "__main__":
    main()
