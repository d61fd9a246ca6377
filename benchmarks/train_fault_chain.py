"""Many faults in one float64 training: codes, decoder and losses must be those of an undisturbed training.

    python -m benchmarks.train_fault_chain --faults 20 --seed 0

A seed chooses the faults and where they strike. Each hits the job itself, which runs a Ray of its own on this machine:
SIGKILL to a rank, to the raylet or to the driver; EIO from a write or fsync of a checkpoint's part (a library that
`LD_PRELOAD` names fails one call; it needs gcc); a disk that is full (a small tmpfs; it needs root); the MLflow server
killed and started again; SIGTERM to the driver, and to its process group. A command that has ended is run again, as a
user would. `benchmarks.train_faults` measures what each fault costs on a cluster.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environment import describe, describe_config
from benchmarks.run_difference import largest_difference
from benchmarks.surroundings import free_port, server, small_disk
from benchmarks.train_efficiency import random_dataset
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.dataset_format.config import ResolvedDatasetConfig

BATCH, EVERY, DISK_BYTES = 32, 500, 512 << 20
PATIENCE_S = 900
RTOL = 1e-9


@dataclass
class Chain:
    """One training, its disk and its tracker."""

    scratch: Path
    run: Path
    target: int
    port: int
    library: Path | None
    tracker: contextlib.ExitStack
    driver: subprocess.Popen[bytes] | None = None

    @property
    def trigger(self) -> Path:
        """The file whose deletion makes a call fail with EIO."""
        return self.scratch / "io-error"

    @property
    def log(self) -> Path:
        """What all commands print."""
        return self.scratch / f"{self.run.name}.log"

    def start(self) -> None:
        """Run the command; the same one each time."""
        flags = [
            "--dataset", self.scratch / "dataset", "--run", self.run, "--images", self.target, "--batch-size", BATCH,
            "--code.dim", 8, "--precision", "float64", "--device", "cpu", "--workers", 2, "--cpus-per-worker", 1,
            "--decoder.filters", 256, 128, "--intervals.report", 160, "--intervals.checkpoint", EVERY,
            "--max-failures", 100, "--tracking-uri", f"http://127.0.0.1:{self.port}",
        ]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "GLO_IO_ERROR": str(self.trigger)}
        if self.library is not None:
            environment |= {"LD_PRELOAD": str(self.library), "RAY_LD_PRELOAD_ON_WORKERS": "1"}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "jobs.train", *map(str, flags)]
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def start_tracker(self) -> None:
        """Start the MLflow server, on the database that it had before."""
        place = self.scratch / "server"
        place.mkdir(exist_ok=True)
        self.tracker.enter_context(server(place, self.port))

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of the job whose command line contains `name`, oldest first."""
        assert self.driver is not None
        matches = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.driver.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if name in " ".join(process.cmdline()):
                        matches.append(process)
        return matches

    def reports(self) -> list[dict[str, Any]]:
        """Every report with a loss, as they were made."""
        path = self.run / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return [entry for entry in entries if "loss" in entry]

    def seen(self) -> int:
        """Images seen at the last report."""
        return int((self.reports() or [{"images_seen": 0}])[-1]["images_seen"])

    def ended(self) -> bool:
        """Whether the command has ended."""
        assert self.driver is not None
        return self.driver.poll() is not None

    def wait(self, happened: Callable[[], Any], what: str) -> None:
        """Wait until `happened` returns something true.

        Raises:
            TimeoutError: if it does not in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {PATIENCE_S} s; {self.log}")
            time.sleep(0.1)

    def finish(self) -> None:
        """Run the command until it has reached its target.

        Raises:
            RuntimeError: if it fails five times without a fault.
        """
        for _ in range(5):
            self.wait(self.ended, "the end")
            assert self.driver is not None
            if self.driver.returncode == 0:
                return
            self.start()
        raise RuntimeError(f"the training does not end: {self.last_line()}")

    def last_line(self) -> str:
        """The last line that a command printed."""
        return self.log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()[-1]

    def kill(self) -> None:
        """End what is left of the command."""
        if self.driver is not None and not self.ended():
            left = self.processes("")
            self.driver.kill()
            self.driver.wait()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


# ---------------------------------------------------------------- the faults


def rank(chain: Chain) -> None:
    """SIGKILL to a rank."""
    random.choice(chain.processes("RayTrainWorker")).kill()


def raylet(chain: Chain) -> None:
    """SIGKILL to the raylet."""
    chain.processes("raylet/raylet")[0].kill()


def driver(chain: Chain) -> None:
    """SIGKILL to the driver."""
    assert chain.driver is not None
    chain.driver.kill()


def sigterm(chain: Chain) -> None:
    """SIGTERM to the driver."""
    assert chain.driver is not None
    chain.driver.terminate()


def group(chain: Chain) -> None:
    """SIGTERM to the driver's process group."""
    assert chain.driver is not None
    os.killpg(chain.driver.pid, signal.SIGTERM)


def io_error(chain: Chain) -> None:
    """EIO at a part of the next checkpoint."""
    chain.trigger.touch()
    chain.wait(lambda: not chain.trigger.exists() or chain.ended(), "a write to a checkpoint")
    if chain.trigger.exists():
        raise RuntimeError("no call failed: the library was not loaded")


def full_disk(chain: Chain) -> None:
    """No room for the next checkpoint, and room again when the command has ended, or after 30 s."""
    filler = chain.run.parent / "other"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(chain.run).free - 4096)
    deadline = time.monotonic() + 30
    with contextlib.suppress(TimeoutError):
        chain.wait(lambda: chain.ended() or time.monotonic() > deadline, "the end")
    filler.unlink()


def tracker_away(chain: Chain) -> None:
    """The MLflow server killed, and started again 5 s later."""
    chain.tracker.close()
    time.sleep(5)
    chain.start_tracker()


FAULTS = {
    "rank": rank, "raylet": raylet, "driver": driver, "sigterm": sigterm, "group": group, "eio": io_error,
    "disk": full_disk, "tracker": tracker_away,
}  # fmt: skip


# ---------------------------------------------------------------- the chain


def strike(chain: Chain, name: str, after: int) -> str:
    """Inject one fault once the job itself has trained on to `after` images; returns a row of the table."""
    begun = time.time() * 1000
    chain.wait(lambda: chain.ended() or any(r["time_ms"] > begun for r in chain.reports()[-1:]), "training again")
    chain.wait(lambda: chain.ended() or chain.seen() >= after, f"{after} images")
    if chain.ended():
        raise RuntimeError(f"the command ended before the fault {name}: {chain.last_line()}")
    since, before = time.time(), chain.seen()
    FAULTS[name](chain)
    went_on = "went on"
    with contextlib.suppress(TimeoutError):
        chain.wait(lambda: chain.ended() or any(r["time_ms"] / 1000 > since + 5 for r in chain.reports()), "an effect")
    if name in ("raylet", "driver", "sigterm", "group"):  # These mean to end the command.
        chain.wait(chain.ended, "the end of the command")
    if chain.ended():
        assert chain.driver is not None
        went_on = f"ended with status {chain.driver.returncode}; the same command went on"
        chain.start()
    newest = committed_checkpoints(chain.run)
    lost = max(before - int(newest[-1].name), 0) if newest and chain.ended() else ""
    return f"{before} | {went_on} | {time.time() - since:.0f} | {lost}"


def compiled(scratch: Path) -> Path | None:
    """The library that lets a call fail with EIO; None without gcc."""
    source, library = Path(__file__).with_name("io_error.c"), scratch / "io_error.so"
    if shutil.which("gcc") is None:
        return None
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def chosen(kinds: list[str], count: int, generator: random.Random) -> list[str]:
    """`count` of the kinds, each as often as the others, in a random order."""
    names = (kinds * count)[:count]
    generator.shuffle(names)
    return names


def main() -> None:
    """Train once undisturbed and once through faults, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    generator = random.Random(options.seed)
    random.seed(options.seed)
    scratch = Path(tempfile.mkdtemp(prefix="glo"))
    random_dataset(scratch / "dataset", ResolvedDatasetConfig(resolution=16, channels=1), images=2000)
    # A fault strikes within 1.4 intervals, and training goes on for some while MLflow's server starts.
    target = (6 * options.faults + 20) * EVERY
    library = compiled(scratch)
    with small_disk(scratch / "disk", DISK_BYTES) as mounted, contextlib.ExitStack() as closing:
        kinds = [k for k in options.only if (k != "disk" or mounted) and (k != "eio" or library is not None)]
        tracker = closing.enter_context(contextlib.ExitStack())
        whole, chain = (
            Chain(scratch, scratch / place, target, free_port(), library, tracker) for place in ("whole", "disk/run")
        )
        whole.port = chain.port
        closing.callback(chain.kill)
        chain.start_tracker()
        print(f"{describe()}\n{describe_config(options)}")
        print(f"{target} images, a checkpoint every {EVERY}; faults of {', '.join(kinds)}\n", flush=True)
        whole.start()
        whole.finish()
        print("| fault | at | the job | seconds | images lost |\n|---|---|---|---|---|", flush=True)
        chain.start()
        after = 0
        for name in chosen(kinds, options.faults, generator):
            after = max(after, chain.seen()) + int(generator.uniform(0.5, 1.4) * EVERY)
            print(f"| {name} | {strike(chain, name, after)} |", flush=True)
        chain.finish()
        worst = largest_difference(whole.run, chain.run)
    print(json.dumps({"faults": options.faults, "largest_relative_difference": worst, "equal": worst <= RTOL}))
    if worst <= RTOL:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(worst > RTOL)


if __name__ == "__main__":
    main()
