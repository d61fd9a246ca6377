"""Training against its limit: the loop's images/s beside the same decoder stepping on a resident random batch.

    python -m benchmarks.train_efficiency [--resolution 32 64] [--batch-size 128 16] [--autocast auto] [--rounds 5]

Both sides run in one process and alternate, so that a noisy machine is noisy for both. The loop's side is
the whole training loop: mapped blocks, gathering, codes, row-wise Adam, averaging, reports. The bare side has no
codes and no data: forward, backward and a fused Adam of the same decoder on one batch that stays where it is.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import glo_core as glo
from benchmarks.environment import describe, describe_config
from glo_core.common.location import Location
from glo_core.common.memory import keep_freed_memory
from glo_core.common.records import write_record
from glo_core.common.runtime import Metrics
from glo_core.data.block_images import BlockImages
from glo_core.dataset_format.blocks import write_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.records import write_config
from glo_core.dataset_format.snapshots import Snapshot, SnapshotCounts, snapshot_digest, snapshot_path
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.autocast import bfloat16_in_hardware
from glo_core.training.config import Autocast, ResolvedTrainConfig

CODE = glo.CodeConfig(init="random")


def random_dataset(path: Path, config: ResolvedDatasetConfig, images: int) -> glo.Dataset:
    """A dataset of noise in the project's own format, on disk."""
    generator = np.random.default_rng(0)
    ids = np.arange(images, dtype=np.int64)
    pixels = generator.integers(0, 256, (images, config.resolution, config.resolution, config.channels), np.uint8)
    held_out = np.zeros(images, np.bool_)
    block = write_block(path / "blocks" / "000001-00000.arrow", ids, pixels, held_out, config.code_shards)
    write_config(Location(path), config)
    snapshot = Snapshot(
        number=1,
        parent="",
        digest=snapshot_digest("", config, ids, pixels[:0], ids[:0]),
        counts=SnapshotCounts(files=images, train=images, holdout=0, duplicate=0, rejected=0),
        rejected={},
        removed=(),
        duplicate_of={},
        replaced={},
        blocks=(block,),
        sources={},
        mlflow_run_id=None,
        versions={},
    )
    write_record(snapshot_path(Location(path), 1), snapshot)
    return glo.Dataset.open(path)


def loop_side(
    config: ResolvedTrainConfig, images: BlockImages, target: int, device: str, autocast: Autocast = "auto"
) -> float:
    """Steady-state images/s of the loop: the median of its own reports, the first ones left out."""
    rates: list[float] = []

    def on_report(_: int, metrics: Metrics) -> None:
        if "images_per_s" in metrics:
            rates.append(metrics["images_per_s"])

    intervals = glo.Intervals(report=max(1280, 10 * config.batch_size), checkpoint=10**12)
    runtime = glo.SingleProcess(device, on_report=on_report)
    glo.train_phase(config, images, glo.Phase(target=target), runtime=runtime, intervals=intervals, autocast=autocast)
    return statistics.median(rates[1:])


def bare_side(config: ResolvedTrainConfig, shape: tuple[int, int], steps: int, device: str, reduced: bool) -> float:
    """Images/s of the decoder alone: forward, mean squared error, backward, fused Adam; one norm group, the batch."""
    if device == "cpu":
        keep_freed_memory()  # As the loop does: neither side shall be slow for want of it.
    resolution, channels = shape
    decoder = glo.make_decoder(config.decoder, code_dim=config.code.dim, resolution=resolution, channels=channels)
    decoder = decoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3, fused=True)
    codes = torch.randn(config.batch_size, config.code.dim, device=device)
    target = torch.rand(config.batch_size, channels, resolution, resolution, device=device) * 2 - 1
    target = target.to(memory_format=torch.channels_last)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for step in range(steps + 3):
        if step == 3:  # The first steps choose kernels and allocate.
            wait()
            since = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            decoded = decoder(codes)
        (decoded.float() - target).square().mean().backward()
        optimizer.step()
    wait()
    return config.batch_size * steps / (time.perf_counter() - since)


def measure(
    resolution: int, batch_size: int, options: argparse.Namespace, device: str, reduced: bool
) -> dict[str, Any]:
    """Images/s of both sides at one size, round by round."""
    channels = 3 if resolution >= 64 else 1
    steps = max(options.images // batch_size, 30)
    config = resolve_defaults(glo.TrainConfig(batch_size=batch_size, code=CODE), 8192, resolution)
    dataset_config = ResolvedDatasetConfig(resolution=resolution, channels=channels)
    rates: dict[str, list[float]] = {"loop": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        images = random_dataset(Path(scratch), dataset_config, images=8192).images()
        for _ in range(options.rounds):
            rates["bare"].append(bare_side(config, (resolution, channels), steps, device, reduced))
            rates["loop"].append(
                loop_side(config, images, steps * batch_size, device, "bfloat16" if reduced else "off")
            )
    ratios = sorted(a / b for a, b in zip(rates["loop"], rates["bare"], strict=True))
    result: dict[str, Any] = {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        **{f"{name}_images_per_s": round(statistics.median(values)) for name, values in rates.items()},
    }
    print(
        f"| {resolution} | {batch_size} | {'bfloat16' if reduced else 'float32'} | {result['loop_images_per_s']} "
        f"| {result['bare_images_per_s']} | {result['ratio']} | {result['spread'][0]} to {result['spread'][1]} |",
        flush=True,
    )
    return result


def main() -> None:
    """Time the loop and the bare decoder in turn at each size, and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, nargs="+", default=[32, 64], help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 16], help="default: %(default)s")
    parser.add_argument("--images", type=int, default=5120, help="of a side and round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    parser.add_argument("--autocast", choices=["auto", "off", "bfloat16"], default="auto", help="of both sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = bool(bfloat16_in_hardware(torch.device(device)))
    reduced = hardware if options.autocast == "auto" else options.autocast == "bfloat16"
    print(describe(device))
    print(describe_config(options))
    print("| px | batch | decoder in | loop, images/s | bare step, images/s | ratio | of rounds |")
    print("| -: | -: | -- | -: | -: | -: | -- |")
    results = {
        f"{resolution}px_{batch_size}": measure(resolution, batch_size, options, device, reduced)
        for resolution in options.resolution
        for batch_size in options.batch_size
    }
    print(json.dumps({"autocast": reduced, **results}))


if __name__ == "__main__":
    main()
