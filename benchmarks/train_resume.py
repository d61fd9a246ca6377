"""How long a run of 10^6 images that was killed takes to go on, beside the reading of its checkpoint.

    python -m benchmarks.train_resume [--rows 1000000] [--rounds 5] [--run DIR]

A process trains on a dataset of 10^6 noisy images of 32 px until a checkpoint is committed, and is killed (SIGKILL).
Then the two sides alternate, each in a process of its own, whose clock starts once everything is imported. One goes on
with the training: its time ends with the first step, and it is killed. The other reads the checkpoint, one part after
the other: every part is verified and decoded. Both find the files in the page cache, as after a kill on one machine.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import glo_core as glo
from benchmarks.environment import describe
from benchmarks.made_up_images import DIM, SHARDS, SIDE
from benchmarks.train_efficiency import random_dataset
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.dataset_format.config import ResolvedDatasetConfig

_SPAWN = multiprocessing.get_context("spawn")


def train(dataset: Path, run: Path, on_step: Callable[[int], None]) -> None:
    """Train on, from the newest checkpoint if there is one."""
    config = glo.TrainConfig(code=glo.CodeConfig(dim=DIM, init="random"))
    images, intervals = glo.Dataset.open(dataset).images(), glo.Intervals(checkpoint=256 * 20)
    glo.train_phase(config, images, glo.Phase(target=10**9), run=run, intervals=intervals, on_step=on_step)


def first_step(dataset: Path, run: Path, results: Connection) -> None:
    """Send the seconds until the first step, then train on until this process is killed."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    begun, sent = time.perf_counter(), list[float]()

    def on_step(_: int) -> None:
        if not sent:
            sent.append(time.perf_counter() - begun)
            results.send(sent[0])

    train(dataset, run, on_step)


def read(run: Path, results: Connection) -> None:
    """Send the seconds of reading the newest checkpoint: every part, verified and decoded, one after the other."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    begun = time.perf_counter()
    checkpoint = glo.Checkpoint.latest(run)
    for shard in range(checkpoint.code_shards):
        checkpoint.shard(shard)
    for name in ("decoder", "ema", "optimizer"):
        checkpoint.tensors(name)
    checkpoint.decoder_record()
    results.send(time.perf_counter() - begun)


def in_process(call: Callable[..., None], *arguments: Any, until: Callable[[], bool] = lambda: True) -> float:
    """What `call` sends from a new process, which is killed when it has, and `until` holds."""
    receiver, sender = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=call, args=(*arguments, sender))
    process.start()
    sender.close()  # Then a process that dies is an EOFError here.
    try:
        seconds = float(receiver.recv())
        while not until():
            time.sleep(0.1)
        return seconds
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Resume and read in turn, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="directory on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    print(f"{describe()}; {options.rows} rows of {DIM} dimensions, images of {SIDE} px", flush=True)
    resumed, reading = [], []
    with tempfile.TemporaryDirectory(dir=options.run) as scratch:
        run, dataset = Path(scratch) / "run", Path(scratch) / "dataset"
        random_dataset(dataset, ResolvedDatasetConfig(resolution=SIDE, channels=1, code_shards=SHARDS), options.rows)
        in_process(first_step, dataset, run, until=lambda: bool(committed_checkpoints(run)))
        checkpoints = committed_checkpoints(run)
        for number in range(1, options.rounds + 1):
            resumed.append(in_process(first_step, dataset, run))
            reading.append(in_process(read, run))
            print(
                f"round {number}: first step after {resumed[-1]:.2f} s, checkpoint read in {reading[-1]:.2f} s, "
                f"ratio {resumed[-1] / reading[-1]:.2f}",
                flush=True,
            )
        if committed_checkpoints(run) != checkpoints:
            raise SystemExit("a round has committed a checkpoint: the rounds read different ones")
        size = sum(file.stat().st_size for file in checkpoints[-1].rglob("*") if file.is_file())
    ratios = [first / other for first, other in zip(resumed, reading, strict=True)]
    print(
        json.dumps(
            {
                "resume_ratio": round(statistics.median(ratios), 3),
                "resume_ratio_min": round(min(ratios), 3),
                "resume_ratio_max": round(max(ratios), 3),
                "resume_s": round(statistics.median(resumed), 2),
                "read_s": round(statistics.median(reading), 2),
                "gigabytes": round(size / 1e9, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
