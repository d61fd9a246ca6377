"""What a checkpoint of 10^6 codes of 128 dimensions costs the training beside it.

    python -m benchmarks.train_checkpoint [--rows 1000000] [--run DIR]

One run trains on made-up images with the 32 px decoder; checkpoints begin every so many steps, are copied at the
boundary and written and hashed by a thread. The cost of one is the time that the steps from its beginning to the next
took beyond what as many steps took before the first one. Beside it: the seconds that training stood still for the
copy, and the share of ten minutes that the cost is. At the end the same training starts again: the seconds until its
first step, beside those of reading and verifying every part of the checkpoint, and the images that it read until then.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import glo_core as glo
from benchmarks.environment import describe
from benchmarks.train_code_table import DIM, EnoughError, MadeUpImages
from glo_core.common.arrays import Int64Array
from glo_core.common.runtime import Metrics

DEFAULT_INTERVAL_S = 600


class CountedImages(MadeUpImages):
    """Made-up images that count how many of them were read."""

    read = 0

    def take(self, rows: Int64Array) -> torch.Tensor:
        """Images at `rows` (int64 `[b]`)."""
        CountedImages.read += len(rows)
        return super().take(rows)

    def select(self, shards: Sequence[int]) -> "CountedImages":
        """The same images of some shards."""
        return CountedImages(self._rows, shards)


def resumed(config: glo.TrainConfig, rows: int, run: Path) -> dict[str, float]:
    """Seconds until the first step of a training that goes on, and of reading its checkpoint; images read."""
    images, at_step = CountedImages(rows), list[tuple[float, int]]()

    def on_step(_: int) -> None:
        at_step.append((time.perf_counter(), CountedImages.read))
        raise EnoughError

    CountedImages.read, begun = 0, time.perf_counter()
    with contextlib.suppress(EnoughError):
        glo.train_phase(config, images, glo.Phase(target=10**12), run=run, on_step=on_step)
    resume_s = at_step[0][0] - begun
    begun = time.perf_counter()
    checkpoint = glo.Checkpoint.latest(run)
    for shard in range(checkpoint.code_shards):
        checkpoint.shard(shard)
    for name in ("decoder", "ema", "optimizer"):
        checkpoint.tensors(name)
    read_s = time.perf_counter() - begun
    # The first step's own batch, and the one that is read ahead.
    before = at_step[0][1] - 2 * config.batch_size if config.batch_size is not None else at_step[0][1]
    return {
        "resume_s": round(resume_s, 2),
        "read_s": round(read_s, 2),
        "resume_by_read": round(resume_s / read_s, 2),
        "images_read_before": max(before, 0),
    }


def main() -> None:
    """Train with checkpoints, and print what share of the time they take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--steps", type=int, default=200, help="between two checkpoints, default: %(default)s")
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--run", type=Path, help="directory on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"{describe()}; {options.rows} rows of {DIM} dimensions")
    batch, every, seconds, stood = 128, 5, list[float](), list[float]()
    reports = options.steps // every

    def on_report(_: int, metrics: Metrics) -> None:
        if "images_per_s" not in metrics:
            return
        elapsed = batch * every / metrics["images_per_s"]
        seconds.append(elapsed)
        stood.append(metrics["checkpoint_share"] * elapsed)
        if len(seconds) == reports * (options.checkpoints + 1):
            raise EnoughError

    config = glo.TrainConfig(batch_size=batch, code=glo.CodeConfig(dim=DIM, init="random"))
    intervals = glo.Intervals(report=batch * every, checkpoint=batch * options.steps)
    with tempfile.TemporaryDirectory(dir=options.run) as scratch:
        with contextlib.suppress(EnoughError):
            glo.train_phase(
                config,
                MadeUpImages(options.rows),
                glo.Phase(target=10**12),
                runtime=glo.SingleProcess(on_report=on_report),
                run=Path(scratch),
                intervals=intervals,
            )
        again = resumed(config, options.rows, Path(scratch))
        written = max(sum(f.stat().st_size for f in path.rglob("*")) for path in Path(scratch).glob("checkpoints/*"))
    # The steps of the first stretch warm up; its second half is the undisturbed rate.
    plain = statistics.median(seconds[reports // 2 : reports])
    stretches = [seconds[start : start + reports] for start in range(reports, len(seconds), reports)]
    costs = [sum(stretch) - plain * reports for stretch in stretches]
    # A checkpoint begins after the report of its step: its copy stands in the next one.
    waits = [sum(stood[start : start + reports]) for start in range(reports, len(stood), reports)]
    for number, (cost, wait) in enumerate(zip(costs, waits, strict=True), start=1):
        print(f"checkpoint {number}: {cost:.2f} s beyond {plain * reports:.1f} s, {wait:.2f} s of them standing still")
    cost = statistics.median(costs)
    print(
        json.dumps(
            {
                "share_of_10_minutes": round(cost / DEFAULT_INTERVAL_S, 4),
                "cost_s": round(cost, 2),
                "still_s": round(statistics.median(waits), 2),
                "gigabytes": round(written / 1e9, 2),
                **again,
            }
        )
    )


if __name__ == "__main__":
    main()
