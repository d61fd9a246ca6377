"""From the shell to the first step of training, and to the help of every job.

    python -m benchmarks.start_up [--rounds 5] [--images 2000] [--resolution 32] [--workers 1] [--skip-help]

Every round starts `python jobs/train.py` in a process of its own on a small dataset of noise: once into a new folder,
where MLflow's database is made too, and once more beside that database. The clock runs from before the process is
started to the report of the first step, which carries the time at which rank 0 made it. The stages between are seen
from outside, by the files of the run and the lines of the log. Beside them stands what each large library takes to
import, alone in a process. A round that nobody counts comes first, and fills the caches of the disk. The load of the
machine stands beside each round, since whatever else runs makes the start longer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.environment import describe
from benchmarks.train_efficiency import random_dataset
from glo_core.dataset_format.config import ResolvedDatasetConfig

JOBS = ("preprocess", "train", "fit_prior", "render", "evaluate", "pipeline", "inspect_dataset")
ROOT = Path(__file__).parent.parent
LIBRARIES = {
    "python alone": "pass",
    "command line (jobs.train)": "import jobs.train",
    "torch": "import torch",
    "the loop (glo_core.training.loop)": "import glo_core.training.loop",
    "mlflow": "import mlflow",
    "ray": "import ray",
    "ray.train": "import ray.train.torch",
}
"""What is imported, alone in a process"""
DATABASE = "a new MLflow database, with mlflow"
FILES = {"run.json": "MLflow's run is open", "attempt.json": "a worker begins", "pca_init.safetensors": "PCA is ready"}
"""Files of a run, and what has happened when each is written"""
LINES = {"train: device ": "workers are planned; Ray is up, if it is used"}
"""First words of a line of the log, and what has happened then"""
FIRST_STEP, END = "first step", "end of the command"
TARGET = 64
"""Images that each training sees"""
Times = dict[str, float]
"""Seconds since the process was started, by what happened"""


def start_up(dataset: Path, run: Path, workers: str) -> Times:
    """Train a new run to its end; when each stage of its start was reached."""
    database = f"sqlite:///{run.parent / 'mlflow.db'}"
    flags = ["--dataset", str(dataset), "--run", str(run), "--images", str(TARGET), "--workers", workers,
             "--intervals.report", "1", "--tracking-uri", database]  # fmt: skip
    begin = time.time()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/train.py"), *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stderr is not None
    times, words = Times(), list[str]()
    reader = threading.Thread(target=_watch_lines, args=(process.stderr, begin, times, words))
    reader.start()
    status = process.wait()
    times[END] = time.time() - begin
    reader.join()
    if status:
        raise RuntimeError("".join(words))
    for name, event in FILES.items():
        times[event] = (run / name).stat().st_mtime - begin
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    times[FIRST_STEP] = min(line["time_ms"] for line in lines if "loss" in line) / 1000 - begin
    return times


def _watch_lines(stderr: IO[str], begin: float, times: Times, words: list[str]) -> None:
    for line in stderr:
        words.append(line)
        for start, event in LINES.items():
            if start in line:
                times.setdefault(event, time.time() - begin)


def command_seconds(*words: str) -> float:
    """Seconds of `python WORDS` from its start to its end."""
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT, env=environment)
    return time.perf_counter() - begin


def import_seconds(scratch: Path) -> Iterator[tuple[str, float]]:
    """Seconds of a process that imports each library, and of one that makes an MLflow database in `scratch`."""
    for name, code in LIBRARIES.items():
        yield name, command_seconds("-c", code)
    code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    yield DATABASE, command_seconds("-c", code, f"sqlite:///{scratch / 'empty.db'}")


def spread(values: list[float]) -> str:
    """Median, lowest and highest of `values`, in seconds."""
    return f"{statistics.median(values):6.2f}  ({min(values):.2f} to {max(values):.2f})"


def print_table(title: str, columns: dict[str, list[float]]) -> None:
    """A line for each name, by rising medians."""
    print(f"\n{title}: seconds, median (lowest to highest)")
    for name, values in sorted(columns.items(), key=lambda item: statistics.median(item[1])):
        print(f"  {name:<50}{spread(values)}")


def main() -> None:
    """Measure rounds of trainings, imports and helps, and print each median with its spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("rounds", 5), ("images", 2000), ("resolution", 32)]:
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--workers", default="1", help="as of jobs/train.py; default: %(default)s")
    parser.add_argument("--skip-help", action="store_true", help="measure trainings alone")
    options = parser.parse_args()
    print(f"{describe()}; {options.images} images of {options.resolution} px, {options.workers} worker(s)")
    sides: dict[str, dict[str, list[float]]] = {"new folder": {}, "database there": {}}
    imports: dict[str, list[float]] = {}
    helps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="glo-start-") as scratch:
        dataset = Path(scratch) / "dataset"
        random_dataset(dataset, ResolvedDatasetConfig(resolution=options.resolution, channels=3), options.images)
        for number in range(-1, options.rounds):
            place, shown = Path(scratch) / f"round{number}", list[str]()
            for side, columns in sides.items():
                times = start_up(dataset, place / side.replace(" ", "-"), options.workers)
                shown.append(f"{side} {times[FIRST_STEP]:.2f} s")
                if number >= 0:
                    _collect(columns, times)
            print(f"round {number + 1}: {', '.join(shown)}; load {os.getloadavg()[0]:.1f}", flush=True)
            if number >= 0 and not options.skip_help:
                _collect(imports, dict(import_seconds(place)))
                _collect(helps, {job: command_seconds(f"jobs/{job}.py", "--help") for job in JOBS})
    for side, columns in sides.items():
        print_table(f"From the shell, {side}", columns)
    result = {
        "first_step_s": statistics.median(sides["new folder"][FIRST_STEP]),
        "first_step_database_there_s": statistics.median(sides["database there"][FIRST_STEP]),
    }
    if not options.skip_help:
        print_table("Imports, each alone in a process", imports)
        print_table("--help", helps)
        result["help_s"] = max(statistics.median(values) for values in helps.values())
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


def _collect(columns: dict[str, list[float]], values: Times) -> None:
    for name, value in values.items():
        columns.setdefault(name, []).append(value)


if __name__ == "__main__":
    main()
