"""A second run that finds nothing new, against a bare scandir and stat; then one with one per cent of new files.

    python -m benchmarks.preprocess_append --input DIR --resolution 32

All runs are in one process in which Ray is up and its workers have imported what they need: start-up is apart. The bare
side lists every folder below the input and asks each file for its size and time, and keeps nothing. Both alternate, and
ratios are taken within a round. The new files are copies with a few bytes after their end: they are
decoded, and then found to have the pixels of others. A run that has anything to do also opens an MLflow run and a Ray
Data execution: its time with one new file is the start-up that `ratio_one_per_cent` leaves apart, and that
`ratio_one_per_cent_whole` leaves in.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe, describe_config
from benchmarks.preprocess_speed import gather, quietly
from benchmarks.rounds import Spread, json_line, ratio, table
from glo_core.common.location import Location
from pipelines.common.ray_session import ray_session
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess


def bare_listing(folder: Path) -> int:
    """Number of files below `folder`, each asked for size and time."""
    files, pending = 0, [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    entry.stat()
                    files += 1
    return files


def timed(call: Any) -> float:
    """Seconds that `call` takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure a run with nothing new, and one with a few new files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--input", type=Path, required=True, help="folder of image files")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--images", type=int, default=60_000, help="multiply the input until it has as many files")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="glo-benchmark-") as scratch, ray_session():
        root = Path(scratch)
        paths = gather(options.input, root / "images", options.images)
        print(f"{describe()}; {len(paths)} files of {options.input.name}\n{describe_config(options)}")

        def run(folder: Path, dataset: str) -> dict[str, Any]:
            settings = {"resolution": options.resolution, "channels": options.channels}
            job = PreprocessJob(input=(Location(folder),), dataset=Location(root / dataset), **settings)
            return quietly(preprocess, job)

        (root / "warm").mkdir()
        for path in paths[:500]:
            shutil.copy(path, root / "warm" / path.replace("/", "_"))
        run(root / "warm", "warm-dataset")
        first = timed(lambda: run(root / "images", "dataset"))
        bare, second = [], []
        for _ in range(options.rounds):
            bare.append(timed(lambda: bare_listing(root / "images")))
            second.append(timed(lambda: run(root / "images", "dataset")))
        single, many, hundredth = [], [], paths[::100]
        for number in range(options.rounds):
            _add(paths[:1], f"one{number}")
            single.append(timed(lambda: run(root / "images", "dataset")))
            _add(hundredth, f"many{number}")
            many.append(timed(lambda: run(root / "images", "dataset")))
    share = first * len(hundredth) / len(paths)
    print(f"first run {first:.2f} s, {share:.3f} s of it for {len(hundredth)} files, as many as are new below")
    seconds = {"bare listing": bare, "nothing new": second, "one new file": single, "one per cent new": many}
    print(table({name: Spread.of(values) for name, values in seconds.items()}, "seconds"))
    spreads = {
        "ratio_nothing_new": ratio(second, bare),
        "ratio_one_per_cent_whole": Spread.of([(m - s) / share for m, s in zip(many, second, strict=True)]),
        "ratio_one_per_cent": Spread.of([(m - s) / share for m, s in zip(many, single, strict=True)]),
    }
    print(json_line(spreads, files=len(paths), rounds=options.rounds))


def _add(paths: Sequence[str], name: str) -> None:
    for path in paths:
        Path(f"{path}.{name}").write_bytes(Path(path).read_bytes() + name.encode())


if __name__ == "__main__":
    main()
