"""Every kind of decoder on the same images for the same time: parameters, operations, images/s, PSNR.

    python -m benchmarks.quality_decoders --dataset DATASET [--seconds 240] [--rounds 1]

A few steps tell each decoder's speed; its training is then as long as that speed makes of the seconds, so that its
schedule ends with them. One that does not have the best PSNR here is not the default.
"""

import argparse
import json
import statistics
from pathlib import Path

import glo_core as glo
from benchmarks.environment import describe
from benchmarks.quality_ablation import timed_training
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
    """Train each decoder for the same time, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="of training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="seeds (default: %(default)s)")
    options = parser.parse_args()
    dataset = glo.Dataset.open(options.dataset)
    resolution, channels = dataset.config.resolution, dataset.config.channels
    print(f"{describe()}; {dataset.num_train} images of {resolution} px, {options.seconds:.0f} s each")
    columns = ("decoder", "parameters", "MFLOP to decode", "images/s", "images seen", "seconds", "PSNR, dB")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    found: dict[str, list[float]] = {}
    for seed in range(options.rounds):
        for name, decoder in DECODERS.items():
            config = resolve_defaults(glo.TrainConfig(seed=seed, decoder=decoder), dataset.num_train, resolution)
            made = glo.make_decoder(decoder, code_dim=config.code.dim, resolution=resolution, channels=channels)
            taken = cost(made, config.code.dim)
            assert taken is not None
            rate = speed(config, dataset)
            trained, seconds = timed_training(config, dataset.images(), round(rate * options.seconds))
            found.setdefault(name, []).append(trained.metrics["psnr"])
            print(
                f"| {name} | {taken.parameters:,} | {taken.flops / 1e6:.1f} | {rate:.0f} | "
                f"{trained.position.images_seen:,} | {seconds:.0f} | {trained.metrics['psnr']:.2f} |",
                flush=True,
            )
    print(json.dumps({name: round(statistics.mean(values), 3) for name, values in found.items()}))


if __name__ == "__main__":
    main()
