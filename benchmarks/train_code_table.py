"""What the length of the code table costs: the time of steps at 10^5, 10^6 and 10^7 rows, in memory and by windows.

    python -m benchmarks.train_code_table [--rows 100000 1000000 10000000] [--window 256] [--decoder default | linear]

Codes, optimizer state and the order of rows are real; images are made up on the spot. Each table has a process of its
own, which lives as long as the benchmark: the tables take turns, a stretch of steps each, and only one of them works at
a time. A stretch is several windows long, and its whole time counts: before it the table's files leave the page cache,
so that windows are read from the disk, and it ends when every row that it changed has reached the disk. A window has
the same number of rows at every size, at most an eighth of a lane's. Every column is written to the files in advance,
since a file with holes would read faster than a disk; initial codes are drawn by PyTorch, because those of a recipe
would take minutes. "memory" is the most that the process held above what it held before its table; `table_over_ram` is
the bytes of the rows over all memory that the process held, with the pages of its files in the page cache. The linear
decoder is the least that a decoder can be: what is left is the table.

Beside them: a dense Adam over the whole table, and the windows' own rate, that of visiting them all without a step,
over the disk's, that of reading and writing a file of as many bytes in sequence in the same directory.
"""

import argparse
import ctypes
import json
import mmap
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import glo_core as glo
import glo_core.training.loop
from benchmarks.environment import describe
from benchmarks.made_up_images import DIM, SHARDS, SIDE, EnoughError, MadeUpImages
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.table import Table
from glo_core.codes.windowed_table import WindowedTable
from glo_core.training.init_codes import InitialCodes, empty_table

BATCH = 128
ROW_BYTES = 3 * DIM * 4 + 4
_SPAWN = multiprocessing.get_context("spawn")


class Linear(torch.nn.Module):
    """The least that a decoder can be."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(DIM, 4)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `[b, 1, SIDE, SIDE]` of codes `[b, DIM]`."""
        corner = torch.tanh(self.linear(codes)).reshape(len(codes), 1, 2, 2)
        return corner.repeat(1, 1, SIDE // 2, SIDE // 2)


class Kind(NamedTuple):
    """One table to measure."""

    rows: int
    window: int | None
    """Rows of a window; None keeps every row in memory"""
    decoder: str
    """default, or linear"""

    def __str__(self) -> str:
        place = "in memory" if self.window is None else f"windows of {self.window}"
        return f"{self.rows:>9} rows, {place:>15}, {self.decoder} decoder"


class Stretch(NamedTuple):
    """What one stretch of steps took."""

    seconds: float
    read_bytes: int
    """From the disk"""
    written_bytes: int
    """To the disk"""
    resident: int
    """Bytes that the process holds at its end"""
    cached: int
    """Bytes of the table's files in the page cache at its end"""


# ---------------------------------------------------------------- the process of a table


def train_in_turns(kind: Kind, steps: int, scratch: str, parent: Connection) -> None:
    """Train for a stretch of `steps` each time that `parent` sends True, and send back what it took."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tables: list[Table] = []

    def filled_table(*arguments: Any, **options: Any) -> Table:
        table = empty_table(*arguments, **options)
        fill(table)
        tables.append(table)
        return table

    # In this process alone.
    setattr(glo_core.training.loop, "empty_table", filled_table)  # noqa: B010
    setattr(InitialCodes, "fill", lambda *_: None)  # noqa: B010
    # The first step makes the optimizer's state: it belongs to no stretch.
    done, since, counters = -1, 0.0, (0, 0)

    def on_step(_: int) -> None:
        nonlocal done, since, counters
        done += 1
        if done % steps:
            return
        if done:
            to_disk(tables[0])
            seconds, after = time.perf_counter() - since, disk_counters()
            moved = after[0] - counters[0], after[1] - counters[1]
            parent.send(Stretch(seconds, *moved, resident(), cached(tables[0])))
        if not parent.recv():
            raise EnoughError
        out_of_cache(tables[0])
        counters, since = disk_counters(), time.perf_counter()

    images = MadeUpImages(kind.rows)
    parent.send(resident())
    code = glo.CodeConfig(dim=DIM, init="random")
    decoder = glo.DecoderConfig(kind="module" if kind.decoder == "linear" else "dcgan")
    config = glo.TrainConfig(batch_size=BATCH, code=code, decoder=decoder, window=kind.window)
    try:
        glo.train_phase(
            config,
            images,
            glo.Phase(target=10**10),
            intervals=glo.Intervals(report=10**10, grid=10**10),
            scratch=Path(scratch),
            cache="disk",
            decoder=Linear() if kind.decoder == "linear" else None,
            on_step=on_step,
        )
    except EnoughError:
        parent.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def fill(table: Table) -> None:
    """Write every column of `table`: directions at random, moments of ones, and counts of one."""
    generator = torch.Generator().manual_seed(0)
    columns = table.resident.columns()
    chunk = {name: torch.ones(1 << 14, *column.shape[1:], dtype=column.dtype) for name, column in columns.items()}
    chunk["raw"] = torch.randn(1 << 14, DIM, generator=generator) / DIM**0.5
    for start in range(0, len(table.ids), 1 << 14):
        count = min(1 << 14, len(table.ids) - start)
        table.write(start, {name: values[:count] for name, values in chunk.items()})


def files(table: Table) -> list[Any]:
    """The open files of a table by windows."""
    return list(table._files.values()) if isinstance(table, WindowedTable) else []


def to_disk(table: Table) -> None:
    """Wait until every row that was changed is on the disk."""
    if isinstance(table, WindowedTable):
        table.flush()
    for file in files(table):
        os.fsync(file.fileno())


def out_of_cache(table: Table) -> None:
    """Take the files of `table` out of the page cache."""
    to_disk(table)
    for file in files(table):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(table: Table) -> int:
    """Bytes of the files of `table` in the page cache (mincore(2))."""
    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    for file in files(table):
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapping:
            view, states = np.frombuffer(mapping, np.uint8), np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            address, vector = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(states.ctypes.data)
            if libc.mincore(address, ctypes.c_size_t(size), vector):
                raise OSError(ctypes.get_errno(), "mincore")
            pages += int((states & 1).sum())
            del view, address
    return pages * mmap.PAGESIZE


def disk_counters() -> tuple[int, int]:
    """Bytes that this process has had read from the disk, and written to it."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"]), int(lines["write_bytes"])


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- all tables


class Trainer:
    """A process that trains a table, a stretch at a time."""

    def __init__(self, kind: Kind, steps: int, scratch: str) -> None:
        self.kind, self.stretches, self.peak = kind, list[Stretch](), 0
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=train_in_turns, args=(kind, steps, scratch, theirs), daemon=True)
        self._process.start()
        theirs.close()  # Then a process that dies is an EOFError here.
        self.before: int = self._connection.recv()

    def train(self) -> Stretch:
        """Train for a stretch, and wait for its end."""
        self._connection.send(True)
        stretch: Stretch = self._connection.recv()
        return stretch

    def end(self) -> None:
        """End the process, and take the most memory that it has held."""
        self._connection.send(False)
        self.peak = self._connection.recv()
        self._process.join()

    @property
    def seconds_per_image(self) -> float:
        """Over all stretches."""
        return statistics.mean(stretch.seconds for stretch in self.stretches)

    @property
    def held(self) -> int:
        """The most bytes of memory, with the pages of the table's files in the page cache."""
        return self.peak + max(stretch.cached for stretch in self.stretches)


def measure(kinds: Sequence[Kind], steps: int, rounds: int, scratch: str) -> Iterator[Trainer]:
    """Train all `kinds` in turns; yields them at the end."""
    trainers = []
    for kind in kinds:
        trainers.append(Trainer(kind, steps, scratch))
        trainers[-1].train()  # One after the other: the first stretch fills the table, and warms up.
    for number in range(rounds):
        for trainer in trainers if number % 2 == 0 else reversed(trainers):
            trainer.stretches.append(trainer.train())
            print(f"round {number + 1}: {trainer.kind}: {trainer.stretches[-1].seconds:.2f} s", flush=True)
    for trainer in trainers:
        trainer.end()
        yield trainer


def dense_adam(rows: int, steps: int) -> float:
    """Seconds of a step of PyTorch's own Adam, which updates every row of the table; no decoder."""
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(rows, DIM))
    optimizer = torch.optim.Adam([table], lr=1e-3, fused=True)
    times = []
    for _ in range(steps):
        since = time.perf_counter()
        table.grad = torch.zeros_like(table)
        table.grad[torch.randint(0, rows, (BATCH,), generator=generator)] = torch.randn(BATCH, DIM)
        optimizer.step()
        times.append(time.perf_counter() - since)
    return statistics.median(times[1:])


def swapping(rows: int, window: int, scratch: str) -> float:
    """Bytes/s read and written by a table that only visits its windows, one after the other, without a step."""
    lane = rows // SHARDS
    first = np.arange(SHARDS + 1) * lane
    table = WindowedTable(
        ResolvedCodeConfig(dim=DIM),
        np.arange(SHARDS * lane),
        first,
        window,
        device=torch.device("cpu"),
        dtype=torch.float32,
        scratch=Path(scratch),
    )
    fill(table)
    windows = -(-lane // window)
    for _ in range(2):  # The first round touches the memory of the slots, which a training does once.
        out_of_cache(table)
        table.begin_epoch([np.arange(windows)] * SHARDS)
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


def spread(numbers: Sequence[float]) -> str:
    """The lowest and the highest of `numbers`."""
    return f"{min(numbers):.3f} to {max(numbers):.3f}"


def ratios(over: Trainer, under: Trainer) -> list[float]:
    """Of each round: the time of a stretch of `over` over that of `under`."""
    return [a.seconds / b.seconds for a, b in zip(over.stretches, under.stretches, strict=True)]


def report(trainers: Sequence[Trainer], steps: int) -> dict[str, float]:
    """Print a line for each table; returns the figures."""
    for trainer in trainers:
        per_step = [stretch.seconds / steps * 1e3 for stretch in trainer.stretches]
        print(
            f"{trainer.kind}: {statistics.mean(per_step):.2f} ms/step ({spread(per_step)}), "
            f"{statistics.mean(s.read_bytes for s in trainer.stretches) / 1e6:.0f} MB read and "
            f"{statistics.mean(s.written_bytes for s in trainer.stretches) / 1e6:.0f} MB written a stretch; memory "
            f"{(trainer.peak - trainer.before) / 2**30:.2f} GiB above the start, {trainer.held / 2**30:.2f} GiB in all"
        )
    windowed = [trainer for trainer in trainers if trainer.kind.window is not None]
    small, large = windowed[0], windowed[-1]
    by_round = ratios(large, small)
    print(f"most rows over fewest, by round: {spread(by_round)}")
    figures = {
        "ratio_1e7": round(large.seconds_per_image / small.seconds_per_image, 3),
        "ratio_1e7_min": round(min(by_round), 3),
        "ratio_1e7_max": round(max(by_round), 3),
        "memory_gib": round((large.peak - large.before) / 2**30, 2),
        "table_over_ram": round(large.kind.rows * ROW_BYTES / large.held, 2),
    }
    resident_tables = [trainer for trainer in trainers if trainer.kind.window is None]
    if resident_tables:
        speeds = ratios(resident_tables[-1], large)
        print(f"speed of the largest table by windows over that of the largest in memory, by round: {spread(speeds)}")
        figures["speed_of_memory"] = round(resident_tables[-1].seconds_per_image / large.seconds_per_image, 3)
    return figures


def main() -> None:
    """Measure every size of the table, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--window", type=int, default=256, help="rows of a lane, default: %(default)s")
    parser.add_argument("--windows", type=int, default=4, help="that a stretch visits, default: %(default)s")
    parser.add_argument("--decoder", choices=("default", "linear"), default="default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-memory", type=int, default=10**6, help="most rows that are tried without windows")
    parser.add_argument("--disk-rounds", type=int, default=3, help="of the windows alone beside the disk; 0 for none")
    parser.add_argument("--scratch", default=tempfile.gettempdir())
    options = parser.parse_args()
    if 8 * options.window > min(options.rows) // SHARDS:
        raise SystemExit(f"--window {options.window} is more than an eighth of the {min(options.rows) // SHARDS} "
                         "rows of a lane of the smallest table")  # fmt: skip
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    steps = options.windows * options.window * SHARDS // BATCH
    print(
        f"{describe()}; {DIM} dimensions, batch {BATCH}, decoder of {SIDE} px gray, stretches of {steps} steps",
        flush=True,
    )
    sizes = sorted(options.rows)
    kinds = [Kind(rows, options.window, options.decoder) for rows in sizes]
    kinds += [Kind(rows, None, options.decoder) for rows in sizes if rows <= options.in_memory][-1:]
    figures = report(list(measure(kinds, steps, options.rounds, options.scratch)), steps)
    if options.disk_rounds:
        for rows in (rows for rows in sizes if rows <= options.in_memory):
            print(f"{rows:>9} rows, dense Adam alone: {dense_adam(rows, 10) * 1e3:.1f} ms/step")
        pairs = [
            (swapping(10**6, options.window, options.scratch), disk(options.scratch, 1536))
            for _ in range(options.disk_rounds)
        ]
        table, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"windows alone: {table / 1e6:.0f} MB/s read and written; disk in sequence {bare / 1e6:.0f} MB/s")
        figures["ratio_disk"] = round(table / bare, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
