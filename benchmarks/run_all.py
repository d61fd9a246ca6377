"""Every benchmark, short, one after the other, on one page: does each still run, and what does it say roughly?

    python -m benchmarks.run_all [--page bench.md] [--only train_efficiency ...] [--minutes 15]

The inputs are made up: noise that is as large as photographs, and small gray drawings. Sizes and rounds are a fraction
of the defaults, so that all of them fit into a quarter of an hour on two cores: a figure here may tell that something
broke, and is none to publish. One that fails, or does not end in its time, is shown as failed with the end of its
output.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.environment import describe

LIMIT_S = 150
"""Time that any one of them gets"""
PHOTOS, SMALL, DATASET, OUT = "{photos}", "{small}", "{dataset}", "{out}"
"""Stand for the folders of made-up photographs and drawings, a dataset of the drawings, and a new folder"""

SHORT: dict[str, tuple[str, ...]] = {
    "code_structure": (),
    "preprocess_speed": (
        "--input", SMALL, "--resolution", "32", "--channels", "1", "--images", "8000", "--rounds", "2",
    ),
    "preprocess_append": ("--input", SMALL, "--images", "4000", "--rounds", "1"),
    "preprocess_memory": ("--files", "2000", "8000"),
    "preprocess_fuzz": ("--input", PHOTOS, SMALL, "--mutations", "200"),
    "preprocess_fuzz_containers": ("--input", SMALL, "--mutations", "20"),
    "preprocess_kills": ("--images", "800", "--kills", "1"),
    "train_efficiency": ("--resolution", "32", "--images", "2560", "--rounds", "2"),
    "train_plain_loop": ("--resolution", "32", "--steps", "20", "--rounds", "1"),
    "train_workers": ("--steps", "20", "--rounds", "1"),
    "train_code_table": (
        "--rows", "100000", "200000", "--windows", "2", "--rounds", "1", "--in-memory", "100000", "--disk-rounds", "1",
    ),
    "train_checkpoint": ("--rows", "100000", "--steps", "40", "--checkpoints", "2"),
    "train_resume": ("--rows", "20000", "--rounds", "1"),
    "start_up": ("--rounds", "1", "--images", "500", "--skip-help"),
    "train_faults": ("--only", "worker"),
    "train_fault_chain": ("--faults", "1", "--only", "rank"),
    "quality_ablation": ("--dataset", DATASET, "--out", OUT, "--images", "640", "--seeds", "0", "--only", "init"),
    "quality_speed": ("--dataset", DATASET, "--images", "1280", "--seeds", "0"),
    "quality_decoders": ("--dataset", DATASET, "--images", "640"),
}  # fmt: skip
"""By benchmark, the options that make it short"""


class Outcome(NamedTuple):
    """What a benchmark did."""

    name: str
    command: str
    seconds: float
    failure: str
    """Why it failed, or "" """
    output: str

    @property
    def result(self) -> str:
        """The JSON object that is the last line of the output; empty without one."""
        last = (self.output.strip().splitlines() or [""])[-1]
        with contextlib.suppress(json.JSONDecodeError):
            return last if isinstance(json.loads(last), dict) else ""
        return ""


def run(name: str, arguments: list[str], limit_s: float) -> Outcome:
    """Run one benchmark in a process group of its own, and end what is left of the group."""
    command = ["-m", f"benchmarks.{name}", *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        output, failure = process.communicate(timeout=limit_s)[0], ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        failure = f"not done after {limit_s:.0f} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        output = b""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if failure:
        output = process.communicate()[0]
    if process.returncode and not failure:
        failure = f"exit status {process.returncode}"
    shown = " ".join(["python", *command])
    outcome = Outcome(name, shown, time.perf_counter() - started, failure, output.decode(errors="replace"))
    return outcome if outcome.failure or outcome.result else outcome._replace(failure="its last line is no JSON object")


# ---------------------------------------------------------------- inputs


def write_inputs(scratch: Path, photos: int = 200, small: int = 2000) -> dict[str, str]:
    """Make what the benchmarks read. Returns the folder that each placeholder stands for."""
    random = np.random.default_rng(0)
    for number in range(photos):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        _save(coarse.resize((512, 384), Image.Resampling.BICUBIC), scratch / "photos" / f"{number:04d}.jpg")
    for number in range(small):
        coarse = Image.fromarray(random.integers(0, 256, (7, 7), np.uint8))
        drawing = coarse.resize((28, 28), Image.Resampling.BICUBIC)
        _save(drawing, scratch / "small" / str(number % 10) / f"{number:05d}.png")
    return {key: str(scratch / key.strip("{}")) for key in (PHOTOS, SMALL, DATASET, OUT)}


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_dataset(folders: dict[str, str]) -> None:
    """Preprocess the drawings, for the benchmarks that take a dataset."""
    options = ["--input", folders[SMALL], "--dataset", folders[DATASET], "--resolution", "32", "--holdout", "0.1"]
    command = [sys.executable, "-m", "jobs.preprocess", *options]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])


# ---------------------------------------------------------------- the page


def page(outcomes: list[Outcome], missing: list[str]) -> str:
    """The page in Markdown: a row for each benchmark, then the command, tables and figures of each."""
    lines = [
        "# Every benchmark, short",
        "",
        "A run in minutes on made-up inputs: it shows what works, and gives no figure to publish.",
        "",
        describe(),
        "",
        "| benchmark | outcome | seconds |",
        "|---|---|---|",
        *(f"| {o.name} | {f'FAILED: {o.failure}' if o.failure else 'done'} | {o.seconds:.0f} |" for o in outcomes),
        *(f"| {name} | FAILED: not run | 0 |" for name in missing),
    ]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", f"    {outcome.command}", "", *_body(outcome)]
    return "\n".join(lines) + "\n"


def _body(outcome: Outcome) -> list[str]:
    """The rounds, tables and figures of one benchmark; of one that failed, the end of what it printed."""
    printed = outcome.output.strip().splitlines()
    if outcome.failure:
        return [f"**FAILED: {outcome.failure}**", "", "```text", *printed[-25:], "```"]
    rows = [line for line in printed if line.startswith("|")]
    others = [line for line in printed[:-1] if line.strip() and not line.startswith("|")]
    return ["```text", *others[-25:], "```", "", *rows, "", "```json", outcome.result, "```"]


def main() -> int:
    """Run the benchmarks in turn, and write the page after each. Returns the exit status: 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("bench.md"), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=SHORT, default=list(SHORT), metavar="NAME", help="default: all")
    parser.add_argument("--minutes", type=float, default=15, help="for all of them together, default: %(default)s")
    options = parser.parse_args()
    end = time.perf_counter() + 60 * options.minutes
    outcomes = list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="glo-bench-") as scratch:
        folders = write_inputs(Path(scratch))
        if any(DATASET in SHORT[name] for name in options.only):
            make_dataset(folders)
        for number, name in enumerate(options.only, 1):
            limit_s = min(LIMIT_S, end - time.perf_counter())
            if limit_s <= 0:
                break
            arguments = [folders.get(argument, argument) for argument in SHORT[name]]
            outcomes.append(run(name, arguments, limit_s))
            last = outcomes[-1]
            print(f"{name}: {last.failure or last.result} ({last.seconds:.0f} s)", flush=True)
            options.page.write_text(page(outcomes, options.only[number:]))
    options.page.write_text(page(outcomes, options.only[len(outcomes) :]))
    failed = [o.name for o in outcomes if o.failure] + options.only[len(outcomes) :]
    print(json.dumps({"page": str(options.page), "done": len(options.only) - len(failed), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
