"""What the length of the code table costs: seconds per image at 10^5, 10^6 and 10^7 rows, in memory and by windows.

    python -m benchmarks.train_code_table [--rows 100000 1000000 10000000] [--window 4096] [--scratch DIR]

Codes, optimizer state and the order of rows are real; images are made up on the spot, so that 10^7 of them need no
disk. Every configuration trains a few hundred steps of an epoch, and the median of the reports' rates counts, the first
left out. Each runs in a process of its own, so that resident memory is its own: "memory" is the peak above what
the process held before the codes. The sizes alternate, round by round. The trivial decoder is one linear layer: what is
left is the table. Dense Adam over the whole table stands beside it. The windows' own rate is that of visiting them all
without a step; the disk's is that of reading and writing a file of as many bytes in sequence, in the same directory.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import glo_core as glo
from benchmarks.environment import describe
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.windowed_table import WindowedTable
from glo_core.common.arrays import Int64Array
from glo_core.common.runtime import Metrics

DIM, SIDE, SHARDS = 128, 32, 32
ROW_BYTES = 3 * DIM * 4 + 4


class MadeUpImages:
    """As many images as one asks for, all cut from a few random ones; see `glo_core.dataset.ImageSource`."""

    resolution, channels, code_shards = SIDE, 1, SHARDS
    snapshot = "made up"

    def __init__(self, rows: int, shards: Sequence[int] = range(SHARDS)) -> None:
        self.shards: Sequence[int] = list(shards)
        # In the order of the shards, ids ascending within each.
        self.ids: Int64Array = np.concatenate([np.arange(shard, rows, SHARDS, dtype=np.int64) for shard in self.shards])
        self._rows = rows
        self._pool = torch.randint(0, 256, (1024, SIDE, SIDE, 1), dtype=torch.uint8)

    def take(self, rows: Int64Array) -> torch.Tensor:
        """Images at `rows` (int64 `[b]`), uint8 `[b, side, side, 1]`."""
        return self._pool[torch.from_numpy(rows % len(self._pool))]

    def select(self, shards: Sequence[int]) -> "MadeUpImages":
        """The same images of some shards."""
        return MadeUpImages(self._rows, shards)


class Linear(torch.nn.Module):
    """The least that a decoder can be."""

    def __init__(self, *_: Any, code_dim: int, resolution: int, channels: int, **__: Any) -> None:
        super().__init__()
        self.code_dim, self.resolution, self.channels = code_dim, resolution, channels
        self.linear = torch.nn.Linear(code_dim, channels * 4)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `[b, channels, resolution, resolution]` of codes `[b, code_dim]`."""
        corner = torch.tanh(self.linear(codes)).reshape(len(codes), self.channels, 2, 2)
        return corner.repeat(1, 1, self.resolution // 2, self.resolution // 2)


class EnoughError(Exception):
    """The sample is taken."""


def sample(rows: int, window: int, trivial: bool, steps: int, scratch: str, threads: int) -> dict[str, float]:
    """Seconds per image in the steady state, and resident memory in GiB above the start."""
    torch.set_num_threads(threads)
    if trivial:
        import glo_core.training.learner

        setattr(glo_core.training.learner, "make_decoder", Linear)  # noqa: B010, in this process alone.
    batch = 128
    code = glo.CodeConfig(dim=DIM, init="random")
    config = glo.TrainConfig(batch_size=batch, code=code, window=window)
    rates: list[float] = []
    held: list[float] = []

    def on_report(_: int, metrics: Metrics) -> None:
        if "images_per_s" not in metrics:
            return
        rates.append(metrics["images_per_s"])
        held.append(resident())
        if len(rates) == 12:
            raise EnoughError

    images = MadeUpImages(rows)
    before = resident()
    intervals = glo.Intervals(report=batch * steps // 12, checkpoint=10**12)
    since = time.perf_counter()
    runtime = glo.SingleProcess(on_report=on_report)
    with contextlib.suppress(EnoughError):
        glo.train_phase(
            config, images, glo.Phase(target=10**9), runtime=runtime, intervals=intervals, scratch=Path(scratch)
        )
    return {
        "seconds_per_image": 1 / statistics.median(rates[2:]),
        "memory_gib": max(held) - before,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before,
        "total_s": time.perf_counter() - since,
    }


def dense_adam(rows: int, steps: int, threads: int) -> dict[str, float]:
    """Seconds per image of a table under PyTorch's own Adam, which steps every row; no decoder."""
    torch.set_num_threads(threads)
    batch, generator = 128, torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(rows, DIM))
    optimizer = torch.optim.Adam([table], lr=1e-3, fused=True)
    times = []
    for _ in range(steps):
        since = time.perf_counter()
        places = torch.randint(0, rows, (batch,), generator=generator)
        table.grad = torch.zeros_like(table)
        table.grad[places] = torch.randn(batch, DIM)
        optimizer.step()
        times.append(time.perf_counter() - since)
    return {"seconds_per_image": statistics.median(times[1:]) / batch}


def swapping(rows: int, window: int, scratch: str) -> float:
    """Bytes/s read and written by a table that only visits its windows, one after the other, without a step."""
    code = ResolvedCodeConfig(dim=DIM)
    lane = rows // 32
    first = np.arange(33) * lane
    table = WindowedTable(
        code,
        np.arange(32 * lane),
        first,
        window,
        device=torch.device("cpu"),
        dtype=torch.float32,
        scratch=Path(scratch),
    )
    for start in range(0, 32 * lane, 1 << 16):  # Files with holes would read faster than a disk.
        count = min(1 << 16, 32 * lane - start)
        table.write(start, {name: torch.ones(count, *c.shape[1:]) for name, c in table.resident.columns().items()})
    windows = -(-lane // window)
    for _ in range(2):  # The first round touches the memory of the slots, which a training does once.
        for column in table._files.values():  # As cold as the disk's own file.
            os.fsync(column.fileno())
            os.posix_fadvise(column.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        table.begin_epoch([np.arange(windows)] * 32)
        since = time.perf_counter()
        for number in range(windows):
            table.fetch(first[:-1] + number * window)
        table.flush()
        seconds = time.perf_counter() - since
    return 2 * rows * ROW_BYTES / seconds


def disk(scratch: str, megabytes: int) -> float:
    """Bytes/s of reading and writing `megabytes` in sequence, in runs of 2 MB: as many bytes each way."""
    run = os.urandom(2 << 20)
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        for _ in range(megabytes // 2):
            file.write(run)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer, since = bytearray(2 << 20), time.perf_counter()
        for place in range(megabytes // 2):
            os.preadv(file.fileno(), [buffer], place * len(run))
            os.pwrite(file.fileno(), buffer, place * len(run))
        return megabytes * 2**20 * 2 / (time.perf_counter() - since)


def resident() -> float:
    """Resident memory of this process, in GiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def apart(call: Any, *arguments: Any) -> Any:
    """The result of `call` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    """Measure every size of the table, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--window", type=int, default=4096, help="rows of a lane")
    parser.add_argument("--steps", type=int, default=120, help="with the decoder; 10 times as many without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-memory", type=int, default=10**6, help="most rows that are tried without windows")
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"{describe()}; {DIM} dimensions, batch 128, decoder of {SIDE} px gray, windows of {options.window}")
    found: dict[tuple[int, str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for rows in options.rows:
            for kind, window in (("memory", 0), ("windows", options.window)):
                for decoder, steps in (("decoder", options.steps), ("trivial", 10 * options.steps)):
                    if window or rows <= options.in_memory:
                        result = apart(sample, rows, window, decoder == "trivial", steps, options.scratch, threads)
                        found.setdefault((rows, kind, decoder), []).append(result)
            if rows <= 10**6:
                found.setdefault((rows, "dense Adam", "none"), []).append(apart(dense_adam, rows, 20, threads))
    seconds = {}
    for key, results in sorted(found.items()):
        seconds[key] = statistics.median(result["seconds_per_image"] for result in results)
        memory = max(result.get("memory_gib", 0.0) for result in results)
        peak = max(result.get("peak_gib", 0.0) for result in results)
        print(
            f"{key[0]:>9} rows, {key[1]:>10}, {key[2]:>8}: {seconds[key] * 1e6:8.1f} us/image, {memory:.2f} GiB "
            f"above the start, {peak:.2f} at most"
        )
    small, large = min(options.rows), max(options.rows)
    pairs = [
        (apart(swapping, 10**6, options.window, options.scratch), apart(disk, options.scratch, 1536)) for _ in range(3)
    ]
    table_rate, rate = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"windows alone: {table_rate / 1e6:.0f} MB/s read and written; disk in sequence {rate / 1e6:.0f} MB/s")
    print(
        json.dumps(
            {
                "ratio_1e7": round(seconds[large, "windows", "decoder"] / seconds[small, "windows", "decoder"], 3),
                "ratio_trivial": round(seconds[large, "windows", "trivial"] / seconds[small, "windows", "trivial"], 3),
                "ratio_windows": round(seconds[small, "windows", "decoder"] / seconds[small, "memory", "decoder"], 3),
                "ratio_disk": round(table_rate / rate, 3),
                "memory_gib": round(max(r["memory_gib"] for r in found[large, "windows", "decoder"]), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
