"""Memory of preprocessing by number of files: the driver's and a task's peak, for two folders of tiny generated images.

    python -m benchmarks.preprocess_memory --files 100000 1000000

Each size runs in a process of its own against a new dataset, so that its peak is its own: the resident memory at its
highest, as the kernel counts it, of the driver and of the largest worker. The folder is listed and planned, decoded and
committed, and listed once more with nothing new. What grows with the number of files is told in bytes per file, from
the two sizes. The images are 8 x 8 gray PNG files, all different.
"""

import argparse
import json
import multiprocessing
import resource
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environment import describe, describe_config
from benchmarks.preprocess_speed import quietly
from glo_core.common.location import Location
from pipelines.common.ray_session import ray_session
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess

FOLDER_FILES = 5000


def png(number: int) -> bytes:
    """An 8 x 8 gray image that spells `number`, without Pillow: a million of them in a minute."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + struct.pack(">Q", number * 0x9E3779B97F4A7C15 + row & (2**64 - 1)) for row in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_images(folder: Path, first: int, last: int) -> None:
    """Write the PNG files of the numbers from `first` to before `last`, in folders."""
    for number in range(first, last):
        if number % FOLDER_FILES == 0 or number == first:
            (folder / f"{number // FOLDER_FILES:04d}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number // FOLDER_FILES:04d}" / f"{number:08d}.png").write_bytes(png(number))


def run(folder: str, dataset: str, out: Any) -> None:
    """Preprocess `folder` twice; peaks in bytes and seconds."""
    own = psutil.Process()
    before = own.memory_info().rss
    job = PreprocessJob(input=(Location(folder),), dataset=Location(dataset), resolution=8, channels=1)
    with ray_session():
        start = own.memory_info().rss
        started = time.perf_counter()
        summary = quietly(preprocess, job)
        first = time.perf_counter() - started
        workers = [p for p in own.children(recursive=True) if "ray::" in " ".join(p.cmdline())]
        task = max((_peak(p.pid) for p in workers), default=0)
        started = time.perf_counter()
        quietly(preprocess, job)
        second = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.put({"files": summary["files"], "images": summary["train"], "before": before, "start": start, "driver": peak,
             "task": task, "first_s": first, "second_s": second})  # fmt: skip


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Preprocess two numbers of files, and print the memory of driver and tasks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, nargs=2, default=[100_000, 1_000_000])
    options = parser.parse_args()
    print(f"{describe()}\n{describe_config(options)}")
    context, results = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory(prefix="glo-benchmark-") as scratch:
        written = 0
        for count in sorted(options.files):
            write_images(Path(scratch) / "images", written, count)
            written = count
            out = context.Queue()
            process = context.Process(target=run, args=(f"{scratch}/images", f"{scratch}/{count}/dataset", out))
            process.start()
            results.append(out.get())
            process.join()
            r = results[-1]
            print(
                f"{r['files']} files: driver {r['driver'] / 2**20:.0f} MiB at its peak "
                f"({r['start'] / 2**20:.0f} before), a task {r['task'] / 2**20:.0f} MiB; "
                f"first run {r['first_s']:.1f} s, second {r['second_s']:.1f} s",
                flush=True,
            )
    small, large = results
    grown = {k: (large[k] - small[k]) / (large["files"] - small["files"]) for k in ("driver", "task")}
    print(json.dumps({f"{name}_bytes_per_file": round(value, 1) for name, value in grown.items()}))


if __name__ == "__main__":
    main()
