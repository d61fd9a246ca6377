"""What a checkpoint of 10^6 codes of 128 dimensions costs the training beside it.

    python -m benchmarks.train_checkpoint [--rows 1000000] [--steps 400] [--checkpoints 5] [--run DIR]

One run trains on made-up images with the 32 px decoder. Stretches of equally many steps alternate: a checkpoint
begins at the start of one, and the next one has none. A checkpoint must be committed before its stretch ends. Its cost
is the time of its stretch beyond the mean of the two stretches beside it; `share` is the cost over the interval of ten
minutes, and "standing still" is the part of the cost in which no step runs. The first stretch only warms up.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

import glo_core as glo
from benchmarks.environment import describe
from benchmarks.made_up_images import DIM, EnoughError, MadeUpImages
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.common.runtime import Metrics

BATCH = 128
INTERVAL_S = 600
"""The default of `checkpoint_minutes`"""


class Stretches:
    """The time of each stretch of steps, and the part of it that stood still for checkpoints."""

    def __init__(self, run: Path, steps: int, count: int) -> None:
        self.run, self.steps, self.count = run, steps, count
        self.seconds: list[float] = []
        self.still: list[float] = []
        self._step, self._since = 0, time.perf_counter()
        self._newest: Path | None = None

    def on_step(self, _: int) -> None:
        """End a stretch after every `steps` steps; a checkpoint begins after this, at the start of the next one."""
        self._step += 1
        if self._step % self.steps:
            return
        now = time.perf_counter()
        self.seconds.append(now - self._since)
        if len(self.seconds) > 1 and len(self.seconds) % 2:
            newest = committed_checkpoints(self.run)[-1:]
            if not newest or newest[0] == self._newest:
                raise SystemExit("a checkpoint was not committed before its stretch had ended: give more --steps")
            self._newest = newest[0]
        if len(self.seconds) == self.count:
            raise EnoughError
        self._since = time.perf_counter()

    def on_report(self, _: int, metrics: Metrics) -> None:
        """Take the share that stood still; there is a report at the end of every stretch."""
        if "images_per_s" in metrics:
            self.still.append(metrics["checkpoint_share"] * self.seconds[-1])


def measure(options: argparse.Namespace) -> tuple[Stretches, int]:
    """Train with and without checkpoints in turn; returns the stretches, and the bytes of the last checkpoint."""
    config = glo.TrainConfig(batch_size=BATCH, code=glo.CodeConfig(dim=DIM, init="random"))
    images_of_stretch = BATCH * options.steps
    intervals = glo.Intervals(
        report=images_of_stretch, checkpoint=2 * images_of_stretch, checkpoint_minutes=1e6, grid=10**12
    )
    with tempfile.TemporaryDirectory(dir=options.run) as run:
        # Without, with, without, with, ..., without, after the one that warms up.
        stretches = Stretches(Path(run), options.steps, 2 * options.checkpoints + 2)
        with contextlib.suppress(EnoughError):
            glo.train_phase(
                config,
                MadeUpImages(options.rows),
                glo.Phase(target=10**12),
                runtime=glo.SingleProcess(on_report=stretches.on_report),
                run=Path(run),
                intervals=intervals,
                on_step=stretches.on_step,
            )
        newest = committed_checkpoints(Path(run))[-1]
        return stretches, sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def main() -> None:
    """Train with and without checkpoints, and print what share of the time they take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--steps", type=int, default=400, help="of a stretch, default: %(default)s")
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--run", type=Path, help="directory on the disk to measure (default: a temporary one)")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"{describe()}; {options.rows} rows of {DIM} dimensions, batch {BATCH}")
    stretches, size = measure(options)
    costs, still = [], []
    for number in range(2, len(stretches.seconds) - 1, 2):
        before, during, after = stretches.seconds[number - 1 : number + 2]
        costs.append(during - (before + after) / 2)
        still.append(stretches.still[number])
        print(
            f"checkpoint {number // 2}: {during:.2f} s beside {before:.2f} and {after:.2f} s without, "
            f"cost {costs[-1]:.2f} s, of which {still[-1]:.2f} s standing still"
        )
    cost = statistics.median(costs)
    print(
        json.dumps(
            {
                "share": round(cost / INTERVAL_S, 4),
                "share_min": round(min(costs) / INTERVAL_S, 4),
                "share_max": round(max(costs) / INTERVAL_S, 4),
                "cost_s": round(cost, 2),
                "still_s": round(statistics.median(still), 2),
                "gigabytes": round(size / 1e9, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
