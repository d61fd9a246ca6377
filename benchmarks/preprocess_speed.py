"""Images/s of a whole preprocessing job against a bare Pillow loop on as many processes as cores.

    python -m benchmarks.preprocess_speed --input DIR --resolution 64

The job is everything that `jobs/preprocess.py` does between the start of Ray and the last line of its summary: listing,
plan, checks of damage, decoding, hashes, blocks, manifest, snapshot, MLflow. Start-up is apart: Ray, its workers'
imports and MLflow's database are warmed by a job on a few other files. The loop opens each file, converts it to the
dataset's mode, crops the central square and resizes it; it checks, hashes and writes nothing. One side is the loop as
it stands, another one with `draft`, which lets libjpeg decode a JPEG at a smaller scale, as the job does; of other
formats both are the same. Fewer than --images files are multiplied, each copy with other pixels, so that none is a
duplicate: a JPEG with another quantization table, which costs the same to decode. Every round runs all sides in turn;
ratios are taken within a round.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.environment import describe, describe_config
from benchmarks.rounds import Spread, json_line, measure_in_turn, ratio, table
from glo_core.common.location import Location
from glo_core.dataset_format.image_decoding import SUFFIXES
from pipelines.common.ray_session import ray_session
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess


def bare_loop(paths: Sequence[str], side: int, mode: str, draft: bool) -> None:
    """Open, convert, crop and resize each file, as one would write it without a library."""
    for path in paths:
        with Image.open(path) as image:
            if draft:
                image.draft(mode, (side, side))
            converted = image.convert(mode)
            shorter = min(converted.size)
            left, top = (converted.width - shorter) // 2, (converted.height - shorter) // 2
            square = converted.crop((left, top, left + shorter, top + shorter))
            square.resize((side, side), Image.Resampling.BICUBIC)


def _worker(start: Any, paths: Sequence[str], side: int, mode: str, draft: bool) -> None:
    bare_loop(paths[:20], side, mode, draft)  # Imports and Pillow's plug-ins are start-up.
    start.wait()
    bare_loop(paths, side, mode, draft)


def bare_rate(paths: Sequence[str], side: int, mode: str, *, draft: bool, cores: int) -> float:
    """Images/s of the loop, in `cores` processes at once."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(cores + 1)
    shares = [paths[rank::cores] for rank in range(cores)]
    workers = [context.Process(target=_worker, args=(start, share, side, mode, draft)) for share in shares]
    for worker in workers:
        worker.start()
    start.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return len(paths) / (time.perf_counter() - started)


def quietly(call: Callable[[Any], dict[str, Any]], job: Any) -> dict[str, Any]:
    """Run a job without its lines on the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call(job)


def job_rate(folder: Path, root: Path, settings: dict[str, Any]) -> float:
    """Images/s of the whole job on a new dataset."""
    job = PreprocessJob(input=(Location(folder),), dataset=Location(root / f"dataset-{time.time_ns()}"), **settings)
    started = time.perf_counter()
    summary = quietly(preprocess, job)
    seconds = time.perf_counter() - started
    if summary["rejected"] or summary["duplicate"]:
        raise RuntimeError(f"{summary['rejected']} rejected and {summary['duplicate']} duplicate files in the input")
    return float(summary["files"] / seconds)


def with_other_pixels(data: bytes, copy: int) -> bytes:
    """The image file `data` with other pixels for each number `copy` below 200; 0 is the file itself."""
    table = data.find(b"\xff\xdb") + 5  # The first step of a JPEG's first table, that of a block's mean
    if not copy:
        return data
    if data[:2] == b"\xff\xd8" and table > 4:
        return data[:table] + bytes([(data[table] + copy - 1) % 255 + 1]) + data[table + 1 :]
    with Image.open(io.BytesIO(data)) as image:
        plain = image.convert("L" if image.mode == "L" else "RGB")
    shifted = plain.point([(value + copy) % 256 for value in range(256)] * len(plain.getbands()))
    out = io.BytesIO()
    shifted.save(out, "PNG")
    return out.getvalue()


def gather(source: Path, folder: Path, at_least: int) -> list[str]:
    """Copy the image files below `source`, as often as needed, each copy with other pixels."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = []
    for copy in range(max(1, -(-at_least // len(files)))):
        for path in files:
            target = folder / str(copy) / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(with_other_pixels(path.read_bytes(), copy))
            paths.append(str(target))
    return paths


def warm_up(paths: Sequence[str], root: Path, settings: dict[str, Any]) -> None:
    """Run a job on about 2,000 of the files, into a dataset of its own."""
    warm = root / "warm"
    warm.mkdir()
    for number, path in enumerate(paths[:: max(1, len(paths) // 2000)]):
        (warm / f"{number}.img").write_bytes(Path(path).read_bytes())
    job_rate(warm, root, settings)


def main() -> None:
    """Time the job and a bare Pillow loop in turn, and print their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--input", type=Path, required=True, help="folder of image files")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000, help="multiply the input until it has as many files")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores, mode = len(os.sched_getaffinity(0)), "L" if options.channels == 1 else "RGB"
    with tempfile.TemporaryDirectory(prefix="glo-benchmark-") as scratch, ray_session():
        root = Path(scratch)
        paths = gather(options.input, root / "images", options.images)
        settings = {"resolution": options.resolution, "channels": options.channels}
        warm_up(paths, root, settings)
        print(f"{describe()}; {len(paths)} files of {options.input.name}, {cores} cores\n{describe_config(options)}")

        def loop(draft: bool) -> float:
            os.sync()  # What the side before left to be written is not this side's to wait for.
            return bare_rate(paths, options.resolution, mode, draft=draft, cores=cores)

        def job() -> float:
            os.sync()
            return job_rate(root / "images", root, settings)

        sides = {"full": lambda: loop(draft=False), "draft": lambda: loop(draft=True), "job": job}
        rates = measure_in_turn(sides, options.rounds)
    spreads = {
        "ratio_full_decode": ratio(rates["job"], rates["full"]),
        "ratio_draft": ratio(rates["job"], rates["draft"]),
        **{f"{name}_images_per_s": Spread.of(rate) for name, rate in rates.items()},
    }
    print(table(spreads))
    print(json_line(spreads, images=len(paths), cores=cores, rounds=options.rounds))


if __name__ == "__main__":
    main()
