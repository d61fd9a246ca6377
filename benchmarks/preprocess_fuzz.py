"""Mutated image files through the decoder and through whole jobs: no crash, no hang, every file accounted for.

    python -m benchmarks.preprocess_fuzz --input DIR --mutations 10000

Each input is a real file with some of its bytes changed, cut, repeated, exchanged with another file's, or a header
field set to an extreme value, by a seeded generator. They are decoded one by one in child processes, each with a time
limit and a bound of memory, so that a crash or a hang names its file; then all of them go through one preprocessing
job, whose manifest must have a row for every file. Anything wrong is printed with the seed of its mutation and ends the
run with exit status 1.
"""

import argparse
import collections
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe, describe_config
from benchmarks.preprocess_speed import quietly
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import SUFFIXES, decode
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.rejection import REASONS, RejectedImageError
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess

LIMIT_S = 5.0
LIMIT_MIB = 1024
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
COMMON_DAMAGES = 6
"""Kinds of damage that files of any format get"""


def damage(data: bytearray, kind: int, at: int, size: int, random: np.random.Generator) -> None:
    """One of `COMMON_DAMAGES` kinds of damage to the `size` bytes at `at`, in place."""
    match kind:
        case 0:
            data[at : at + size] = random.bytes(size)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = data[at : at + size]
        case 4:
            value, width = EXTREMES[random.integers(len(EXTREMES))], (1, 2, 4)[random.integers(3)]
            data[at : at + width] = (value & (256**width - 1)).to_bytes(width, ("big", "little")[random.integers(2)])
        case _:
            data[at : at + 1] = bytes([data[at] ^ (1 << int(random.integers(8)))]) if at < len(data) else b""


def mutate(files: Sequence[bytes], seed: int) -> bytes:
    """One file of `files` with one to four damages."""
    random = np.random.default_rng(seed)
    data = bytearray(files[int(random.integers(len(files)))])
    for _ in range(random.integers(1, 5)):
        at, size = int(random.integers(len(data) or 1)), int(random.integers(1, 64))
        # Half of all damages fall into the first 200 bytes, where the headers are.
        at = at % 200 if random.integers(2) else at
        kind = int(random.integers(7))
        if kind < COMMON_DAMAGES:
            damage(data, kind, at, size, random)
        else:
            other = files[int(random.integers(len(files)))]
            start = int(random.integers(len(other) or 1))
            data[at : at + size] = other[start : start + size]
    return bytes(data)


def peak_mebibytes() -> float:
    """The most memory that this process has had; `ru_maxrss` would count that of the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def decode_some(
    files: Sequence[bytes], seeds: Sequence[int], policies: Sequence[ResolvedDatasetConfig], now: Any, out: Any
) -> None:
    """Decode mutations in this process, saying before each one which it is."""
    warnings.simplefilter("ignore")
    for seed in seeds:
        now.value = seed
        data, started, outcome = mutate(files, seed), time.perf_counter(), "image"
        for policy in policies:
            try:
                pixels = decode(data, policy).pixels
                assert pixels.shape == (policy.resolution, policy.resolution, policy.channels)
            except RejectedImageError as error:
                outcome = error.reason
        out.put((seed, outcome, time.perf_counter() - started))
    out.put((-1, "", peak_mebibytes()))
    out.put(None)


def decode_all(files: Sequence[bytes], count: int, cores: int) -> tuple[collections.Counter[str], float, list[str]]:
    """Outcomes, the longest time of one file in seconds, and what went wrong."""
    policies = [
        ResolvedDatasetConfig(resolution=32, channels=3),
        ResolvedDatasetConfig(resolution=32, channels=1, allow_truncated=True),
    ]
    context = multiprocessing.get_context("spawn")
    outcomes, longest, wrong = collections.Counter[str](), 0.0, list[str]()
    pending = [list(range(first, count, cores)) for first in range(cores)]
    workers = [_start(context, files, seeds, policies) for seeds in pending]
    while workers:
        for worker in list(workers):
            process, now, out, seeds, last = worker
            finished = False
            while not out.empty():
                if (item := out.get()) is None:
                    finished = True
                    break
                if item[0] < 0:
                    if item[2] > LIMIT_MIB:
                        wrong.append(f"a process took {item[2]:.0f} MiB")
                    continue
                outcomes[item[1]] += 1
                longest, worker[4] = max(longest, item[2]), time.perf_counter()
            if finished:
                process.join()
                workers.remove(worker)
            elif not process.is_alive() and out.empty():
                wrong.append(f"mutation {now.value}: the process ended with status {process.exitcode}")
                workers.remove(worker)
                workers.append(_start(context, files, seeds[seeds.index(now.value) + 1 :], policies))
            elif time.perf_counter() - last > 4 * LIMIT_S + 30:
                wrong.append(f"mutation {now.value}: hangs")
                process.kill()
                workers.remove(worker)
                workers.append(_start(context, files, seeds[seeds.index(now.value) + 1 :], policies))
        time.sleep(0.05)
    return outcomes, longest, wrong


def _start(
    context: Any, files: Sequence[bytes], seeds: list[int], policies: Sequence[ResolvedDatasetConfig]
) -> list[Any]:
    now, out = context.Value("q", seeds[0] if seeds else -1), context.Queue()
    process = context.Process(target=decode_some, args=(files, seeds, policies, now, out))
    process.start()
    return [process, now, out, seeds, time.perf_counter()]


def run_job(files: Sequence[bytes], count: int) -> tuple[int, collections.Counter[str], list[str]]:
    """Write every mutation to a folder and preprocess it: rows of the manifest, their statuses, what is wrong."""
    with tempfile.TemporaryDirectory(prefix="glo-fuzz-") as scratch:
        root = Path(scratch)
        for seed in range(count):
            path = root / "images" / f"{seed % 100:02d}" / f"{seed}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutate(files, seed))
        job = PreprocessJob(input=(Location(root / "images"),), dataset=Location(root / "dataset"), resolution=32)
        summary = quietly(preprocess, job)
        parts = read_parts(Location(root / "dataset"), ["path", "status", "reason"])
        rows = [row for part in parts for row in part.to_pylist()]
        wrong = []
        names = sorted(int(Path(os.fsdecode(row["path"])).stem) for row in rows)
        if names != list(range(count)):
            wrong.append(f"{len(rows)} rows of the manifest for {count} files")
        unknown = [row for row in rows if row["status"] == "rejected" and row["reason"] not in REASONS]
        wrong += [f"{row['path']!r}: reason {row['reason']!r} is not of the list" for row in unknown]
        if summary["files"] != count:
            wrong.append(f"the summary has {summary['files']} files of {count}")
        return len(rows), collections.Counter(row["reason"] or row["status"] for row in rows), wrong


def main() -> None:
    """Decode damaged copies of the input, and say what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="folders of image files")
    parser.add_argument("--mutations", type=int, default=10_000)
    options = parser.parse_args()
    paths = sorted(p for folder in options.input for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // 500)]]
    print(f"{describe()}; {options.mutations} mutations of {len(files)} files\n{describe_config(options)}")
    outcomes, longest, wrong = decode_all(files, options.mutations, len(os.sched_getaffinity(0)))
    print(f"decoder: {dict(outcomes)}; the slowest took {longest:.2f} s")
    if longest > LIMIT_S:
        wrong.append(f"a file took {longest:.1f} s")
    rows, statuses, more = run_job(files, options.mutations)
    print(f"job: {dict(statuses)}")
    for line in wrong + more:
        print(f"wrong: {line}")
    print(
        json.dumps(
            {"mutations": options.mutations, "rows": rows, "slowest_s": round(longest, 3), "wrong": len(wrong + more)}
        )
    )
    sys.exit(1 if wrong or more else 0)


if __name__ == "__main__":
    main()
