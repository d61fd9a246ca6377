"""Every kind of decoder on the same images: parameters, operations, images/s, PSNR.

    python -m benchmarks.quality_decoders --dataset DATASET [--images 120000 | --seconds 240] [--rounds 1]

Every decoder trains to the same number of images, so that its PSNR does not depend on the machine; the seconds that it
took stand beside it. With --seconds every decoder gets a number of images of its own: as many as its speed, taken
from a few steps before, makes of these seconds. Its schedule ends with them, and its PSNR is that of this
machine: another one, or a busier one, gives other numbers of images, and may turn the order of the decoders round.
"""

import argparse
import statistics
from pathlib import Path

import glo_core as glo
from benchmarks.environment import describe, describe_config
from benchmarks.quality_ablation import timed_training
from benchmarks.rounds import Spread, json_line
from glo_core.decoder.cost import cost
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig

DECODERS = {
    "seed": glo.DecoderConfig(kind="seed"),
    "seed, kernel 5": glo.DecoderConfig(kind="seed", kernel_size=5),
    "dcgan": glo.DecoderConfig(kind="dcgan"),
    "residual": glo.DecoderConfig(kind="residual"),
    "residual, modulated": glo.DecoderConfig(kind="residual", modulation=True),
}
TRIAL_STEPS = 40


def speed(config: ResolvedTrainConfig, dataset: glo.Dataset) -> float:
    """Images/s of the loop after its first steps."""
    rates: list[float] = []
    runtime = glo.SingleProcess(on_report=lambda _, metrics: rates.append(metrics.get("images_per_s", 0.0)))
    glo.train_phase(
        config,
        dataset.images(),
        glo.Phase(target=TRIAL_STEPS * config.batch_size),
        runtime=runtime,
        intervals=glo.Intervals(report=5 * config.batch_size),
    )
    return statistics.median(rates[2:-1])


def main() -> None:
    """Train each decoder to as many images, or for as many seconds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--images", type=int, default=120_000, help="that each decoder sees (default: %(default)s)")
    length.add_argument("--seconds", type=float, help="of training instead: each decoder sees what its speed allows")
    parser.add_argument("--rounds", type=int, default=1, help="seeds (default: %(default)s)")
    options = parser.parse_args()
    dataset = glo.Dataset.open(options.dataset)
    resolution, channels = dataset.config.resolution, dataset.config.channels
    length_text = f"{options.seconds:.0f} s each" if options.seconds else f"{options.images:,} images seen by each"
    print(f"{describe()}; {dataset.num_train} images of {resolution} px, {length_text}\n{describe_config(options)}")
    columns = ("decoder", "parameters", "MFLOP to decode", "images/s", "images seen", "seconds", "PSNR, dB")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    psnr: dict[str, list[float]] = {name: [] for name in DECODERS}
    for seed in range(options.rounds):
        for name, decoder in DECODERS.items():
            config = resolve_defaults(glo.TrainConfig(seed=seed, decoder=decoder), dataset.num_train, resolution)
            made = glo.make_decoder(decoder, code_dim=config.code.dim, resolution=resolution, channels=channels)
            taken = cost(made, config.code.dim)
            assert taken is not None
            images = round(speed(config, dataset) * options.seconds) if options.seconds else options.images
            trained, seconds = timed_training(config, dataset.images(), images)
            psnr[name].append(trained.metrics["psnr"])
            print(
                f"| {name} | {taken.parameters:,} | {taken.flops / 1e6:.1f} | {images / seconds:.0f} | "
                f"{trained.position.images_seen:,} | {seconds:.0f} | {trained.metrics['psnr']:.2f} |",
                flush=True,
            )
    equal = "seconds" if options.seconds else "images"
    print(json_line({name: Spread.of(values) for name, values in psnr.items()}, equal=equal, seeds=options.rounds))


if __name__ == "__main__":
    main()
