"""Training against its limit: the loop's images/s beside the same decoder stepping on a resident random batch.

    python -m benchmarks.train_efficiency [--resolution 32] [--channels 1] [--batch-size 128] [--steps 40] [--rounds 5]

Both sides run in one process and alternate, so that a noisy machine is noisy for both. The loop's side is
the whole training loop: mapped blocks, gathering, codes, row-wise Adam, averaging, reports. The bare side has no
codes and no data: forward, backward and a fused Adam of the same decoder on one batch that stays where it is.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import glo_core as glo
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
from glo_core.training.config import ResolvedTrainConfig


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


def loop_side(config: ResolvedTrainConfig, images: BlockImages, target: int, device: str) -> float:
    """Steady-state images/s of the loop: the median of its own reports, the first ones left out."""
    rates: list[float] = []

    def on_report(_: int, metrics: Metrics) -> None:
        if "images_per_s" in metrics:
            rates.append(metrics["images_per_s"])

    intervals = glo.Intervals(report=10 * config.batch_size, checkpoint=10**12)
    runtime = glo.SingleProcess(device, on_report=on_report)
    glo.train_phase(config, images, glo.Phase(target=target), runtime=runtime, intervals=intervals)
    return statistics.median(rates[1:])


def bare_side(config: ResolvedTrainConfig, shape: tuple[int, int], steps: int, device: str) -> float:
    """Images/s of the decoder alone: forward, mean squared error, backward, fused Adam."""
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
        (decoder(codes) - target).square().mean().backward()
        optimizer.step()
    wait()
    return config.batch_size * steps / (time.perf_counter() - since)


def hardware(device: str) -> str:
    """Processor, threads, versions and commit, for the line below the table."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if device == "cpu" else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return (
        f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}; commit {commit.stdout.strip() or 'unknown'}"
    )


def main() -> None:
    """Time the loop and the bare decoder in turn, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [
        ("resolution", 32),
        ("channels", 1),
        ("batch-size", 128),
        ("code-dim", 32),
        ("steps", 40),
        ("rounds", 5),
        ("threads", os.cpu_count() or 1),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    code = glo.CodeConfig(dim=options.code_dim, init="random")
    config = resolve_defaults(glo.TrainConfig(batch_size=options.batch_size, code=code), 8192, options.resolution)
    dataset_config = ResolvedDatasetConfig(resolution=options.resolution, channels=options.channels)
    loop, bare = [], []
    with tempfile.TemporaryDirectory() as scratch:
        dataset = random_dataset(Path(scratch), dataset_config, images=8192)
        for round_number in range(options.rounds):
            bare.append(bare_side(config, (options.resolution, options.channels), options.steps, device))
            loop.append(loop_side(config, dataset.images(), options.steps * options.batch_size, device))
            print(
                f"round {round_number + 1}: loop {loop[-1]:8.1f} images/s   bare {bare[-1]:8.1f} images/s   "
                f"ratio {loop[-1] / bare[-1]:.3f}",
                flush=True,
            )
    train, alone = statistics.median(loop), statistics.median(bare)
    ratio = statistics.median(a / b for a, b in zip(loop, bare, strict=True))
    print(f"median : loop {train:8.1f} images/s   bare {alone:8.1f} images/s   ratio {ratio:.3f}")
    print(f"{options.resolution} px, {options.channels} channel(s), batch {options.batch_size}; {hardware(device)}")
    print(
        json.dumps(
            {"train_images_per_s": round(train, 1), "bare_images_per_s": round(alone, 1), "ratio": round(ratio, 4)}
        )
    )


if __name__ == "__main__":
    main()
