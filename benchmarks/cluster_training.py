"""A Ray cluster of several raylets on this machine, and a training on it whose reports are watched."""

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from benchmarks.surroundings import free_port
from glo_core.checkpoint.layout import committed_checkpoints

BATCH, EVERY, TARGET = 32, 8_000, 10_000_000
PATIENCE_S = 240


@dataclass
class Outcome:
    """What a fault cost."""

    lost: int | None
    seconds: float
    how: str
    """What training did"""


class Cluster:
    """A head and two nodes of one CPU, all on this machine."""

    def __init__(self, scratch: Path) -> None:
        os.environ |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10", "PYTHONPATH": str(Path(__file__).parents[1]),
        }  # fmt: skip
        from ray.cluster_utils import Cluster as Raylets

        self.raylets = Raylets(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port()},
        )
        self.nodes = [self.raylets.add_node(num_cpus=1) for _ in range(2)]
        self.environment = os.environ | {"RAY_ADDRESS": self.raylets.address}
        import ray

        self.dashboard = f"http://{ray.init(self.raylets.address, log_to_driver=False).dashboard_url}"
        self.scratch = scratch

    def shutdown(self) -> None:
        """End every node."""
        import ray

        ray.shutdown()
        self.raylets.shutdown()

    def fill_up(self) -> None:
        """Two nodes again."""
        alive = [node for node in self.nodes if node in self.raylets.worker_nodes]
        self.nodes = alive + [self.raylets.add_node(num_cpus=1) for _ in range(2 - len(alive))]

    def ray(self, *arguments: object) -> None:
        """Run a command of Ray's on this cluster.

        Raises:
            RuntimeError: if it fails.
        """
        command = [sys.executable, "-m", "ray.scripts.scripts", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)


class Training:
    """A run and the process that drives it."""

    drivers: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, cluster: Cluster, run: Path, *flags: object) -> None:
        self.cluster, self.run = cluster, run
        self.flags = [
            "--dataset", cluster.scratch / "dataset", "--run", run, "--images", TARGET, "--batch-size", BATCH,
            "--code.dim", 32, "--device", "cpu", "--cpus-per-worker", 1, "--schedule", "constant",
            "--intervals.report", BATCH, "--intervals.checkpoint", EVERY, *flags,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start the driver."""
        command = [sys.executable, "-m", "jobs.train", *map(str, self.flags)]
        self.log = self.run.with_suffix(".log").open("ab")
        self.driver = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=self.cluster.environment)
        self.drivers.append(self.driver)

    def reports(self) -> list[tuple[float, int]]:
        """Seconds since 1970, and images seen, of each report."""
        path = self.run / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if "loss" in entry:
                    entries.append((entry["time_ms"] / 1000, entry["images_seen"]))
        return entries

    def until(self, happened: Callable[[], Any], what: str) -> None:
        """Wait until `happened` returns something true.

        Raises:
            TimeoutError: if it does not in time.
        """
        deadline = time.time() + PATIENCE_S
        while not happened():
            if time.time() > deadline:
                raise TimeoutError(f"{what}: not within {PATIENCE_S} s; {self.run.with_suffix('.log')}")
            time.sleep(0.1)

    def until_worth_losing(self) -> None:
        """Half an interval beyond a checkpoint that this process wrote."""
        begun = len(committed_checkpoints(self.run))
        self.until(lambda: self.driver.poll() is None and self._ahead(begun), "half an interval of training")

    def _ahead(self, begun: int) -> bool:
        marks, reports = committed_checkpoints(self.run), self.reports()
        return len(marks) > begun and bool(reports) and reports[-1][1] - int(marks[-1].name) > EVERY // 2

    def went_on(self, since: float, before: int, how: str) -> Outcome:
        """Wait for the first report of a training that began again after `since`, `before` images seen."""

        def again() -> list[tuple[float, int]]:
            reports = self.reports()
            # Back to an earlier image, or on where it had stopped, as a start takes seconds and a step does not.
            begun = (b for a, b in itertools.pairwise(reports) if b[1] <= a[1] or b[0] - a[0] > 5)
            return [report for report in begun if report[0] > since][:1]

        self.until(again, "training again")
        when, seen = again()[0]
        return Outcome(max(before - (seen - BATCH), 0), when - since, how)

    def last(self) -> int:
        """Images seen at the last report."""
        return self.reports()[-1][1]

    def ended(self, since: float) -> float:
        """Wait for the driver's end; seconds since `since`."""
        self.driver.wait(PATIENCE_S)
        return time.time() - since

    def end(self) -> None:
        """Ask it to stop, which writes a checkpoint."""
        if self.driver.poll() is None:
            self.driver.send_signal(signal.SIGINT)
            self.driver.wait(PATIENCE_S)
        self.log.close()


def workers() -> list[psutil.Process]:
    """Processes of Ray Train's workers below this one's raylets."""
    processes = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.info["cmdline"] or [])
            own = (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
            if "RayTrainWorker" in title and own:
                processes.append(process)
    return processes
