"""Every fault that training promises to survive, for real: what was lost, and how long until it went on.

    python -m benchmarks.train_faults [--only worker node ...] [--scratch DIR]

One Ray cluster of several raylets on this machine: a head, and nodes of one CPU. Each fault strikes a training of its
own (`jobs/train.py`, a process, on the cluster) while a checkpoint lies some images back. Lost are the images between
the last report before the fault and the place where training went on; the time is that between the fault and the
first report after it, or the end of the job where the fault means to end it: then the same command is run again.
`full disk` needs root, to mount a small file system.
"""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from benchmarks.environment import describe
from benchmarks.train_efficiency import random_dataset
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.dataset_format.config import ResolvedDatasetConfig

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
        found = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if "loss" in entry:
                    found.append((entry["time_ms"] / 1000, entry["images_seen"]))
        return found

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
            found = self.reports()
            # Back to an earlier image, or on where it had stopped, as a start takes seconds and a step does not.
            begun = (b for a, b in itertools.pairwise(found) if b[1] <= a[1] or b[0] - a[0] > 5)
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
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.info["cmdline"] or [])
            mine = (process.info["environ"] or {}).get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
            if "RayTrainWorker" in title and mine:
                found.append(process)
    return found


# ---------------------------------------------------------------- the faults


def worker(cluster: Cluster, run: Path) -> Outcome:
    """Kill a worker's process."""
    training = Training(cluster, run, "--workers", 2)
    training.until_worth_losing()
    since, before = time.time(), training.last()
    workers()[0].kill()
    outcome = training.went_on(since, before, "went on by itself from the last checkpoint")
    training.end()
    return outcome


def node(cluster: Cluster, run: Path) -> Outcome:
    """Take a node away without notice."""
    training = Training(cluster, run, "--workers", "1:2")
    training.until_worth_losing()
    since, before = time.time(), training.last()
    cluster.raylets.remove_node(cluster.nodes[-1], allow_graceful=False)
    outcome = training.went_on(since, before, "went on by itself with one worker, from the last checkpoint")
    training.end()
    return outcome


def preemption(cluster: Cluster, run: Path) -> Outcome:
    """Announce that a node will go, then take it away."""
    training = Training(cluster, run, "--workers", "1:2")
    training.until_worth_losing()
    leaving = cluster.nodes[-1]
    cluster.ray(
        "drain-node", "--node-id", leaving.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot", "--deadline-remaining-seconds", 20,
    )  # fmt: skip
    time.sleep(20)
    if not any(int(path.name) % EVERY > BATCH for path in committed_checkpoints(run)):  # Between two by the interval.
        raise RuntimeError("no checkpoint was written on the notice")
    since, before = time.time(), training.last()
    cluster.raylets.remove_node(leaving, allow_graceful=False)
    outcome = training.went_on(since, before, "wrote a checkpoint on the notice; went on with one worker")
    training.end()
    return outcome


def job_stop(cluster: Cluster, run: Path) -> Outcome:
    """Stop a submitted job."""
    from ray.job_submission import JobSubmissionClient

    training = Training(cluster, run, "--workers", 2)
    training.until_worth_losing()
    training.end()
    client = JobSubmissionClient(cluster.dashboard)
    command = " ".join([sys.executable, "-m", "jobs.train", *map(str, training.flags)])
    entry = client.submit_job(
        entrypoint=command,
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30", "PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    start = training.last()
    training.until(lambda: training.last() > start + EVERY // 2, "the submitted job")
    since, before = time.time(), training.last()
    client.stop_job(entry)
    training.until(lambda: client.get_job_status(entry).is_terminal(), "the job's end")
    seconds = time.time() - since
    lost = max(before - int(committed_checkpoints(run)[-1].name), 0)
    return Outcome(lost, seconds, "stopped with a checkpoint; the same command goes on")


def interrupt(cluster: Cluster, run: Path) -> Outcome:
    """Interrupt the driver, as Ctrl-C does."""
    training = Training(cluster, run, "--workers", 2)
    training.until_worth_losing()
    since, before = time.time(), training.last()
    training.driver.send_signal(signal.SIGINT)
    seconds = training.ended(since)
    lost = max(before - int(committed_checkpoints(run)[-1].name), 0)
    return Outcome(lost, seconds, f"stopped with a checkpoint, status {training.driver.returncode}")


def driver(cluster: Cluster, run: Path) -> Outcome:
    """Kill the driver, and run the same command again."""
    training = Training(cluster, run, "--workers", 2)
    training.until_worth_losing()
    before = training.last()
    training.driver.kill()
    training.driver.wait()
    since = time.time()
    training.start()
    outcome = training.went_on(since, before, "the same command, run again at once, went on from the last checkpoint")
    training.end()
    return outcome


def full_disk(cluster: Cluster, run: Path) -> Outcome:
    """Fill the disk, then free it and run the same command again."""
    run.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", run], capture_output=True)
    if mounted.returncode:
        return Outcome(None, 0.0, "not injected: mounting a small file system needs root")
    try:
        tracked = f"sqlite:///{cluster.scratch}/mlflow.db"
        training = Training(cluster, run, "--workers", 2, "--tracking-uri", tracked)
        training.until_worth_losing()
        newest = committed_checkpoints(run)[-1]
        size = sum(path.stat().st_size for path in newest.rglob("*"))
        with (run / "other").open("wb") as file:  # Another user's file leaves room for half a checkpoint.
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(run).free - size // 2)
        since = time.time()
        training.ended(since)
        before, status = training.last(), training.driver.returncode
        line = run.with_suffix(".log").read_text().splitlines()[-1]
        lost, seconds = before - int(committed_checkpoints(run)[-1].name), time.time() - since
        (run / "other").unlink()
        training.start()
        training.went_on(time.time(), before, "")
        training.end()
        return Outcome(lost, seconds, f'ended with status {status} and "...{line[-60:]}"; with room again, went on')
    finally:
        subprocess.run(["umount", "-l", run], check=True)


def mlflow_away(cluster: Cluster, run: Path) -> Outcome:
    """Take the MLflow server away for half a minute."""
    place, port = cluster.scratch / "server", free_port()
    place.mkdir()
    uri = f"http://127.0.0.1:{port}"
    with server(place, port):
        training = Training(cluster, run, "--workers", 2, "--tracking-uri", uri)
        training.until_worth_losing()
    since, before = time.time(), training.last()
    training.until(lambda: time.time() - since > 30, "half a minute without MLflow")
    meanwhile = training.last() - before
    run_id = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    with server(place, port):
        returned, expected = time.time(), {seen for _, seen in training.reports()}

        def sent() -> bool:
            import mlflow

            history = mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")
            return expected <= {metric.step for metric in history}

        training.until(sent, "the reports that MLflow missed")
        seconds = time.time() - returned
        training.end()
    return Outcome(0, seconds, f"never stopped: {meanwhile} images in 30 s without; then MLflow got what it missed")


FAULTS = {
    "worker": worker, "node": node, "preemption": preemption, "job_stop": job_stop, "interrupt": interrupt,
    "driver": driver, "full_disk": full_disk, "mlflow": mlflow_away,
}  # fmt: skip


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(place: Path, port: int) -> Iterator[None]:
    """A real MLflow server, killed at the end."""
    command = ["server", "--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--artifacts-destination",
               str(place / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (place / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *command], stdout=log, stderr=log, env=environment)
    for _ in range(120):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            break
        time.sleep(0.5)
    try:
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def main() -> None:
    """Inject every fault into a training of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--scratch", type=Path, help="short path of a directory (default: a temporary one)")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="glo", dir=options.scratch))
    random_dataset(scratch / "dataset", ResolvedDatasetConfig(resolution=16, channels=1), images=2000)
    cluster = Cluster(scratch)
    print(f"{describe()}\na checkpoint every {EVERY} images, steps of {BATCH}; three raylets\n", flush=True)
    print("| fault | images lost | seconds | what training did |\n|---|---|---|---|", flush=True)
    failed = False
    for name in options.only:
        cluster.fill_up()
        try:
            outcome = FAULTS[name](cluster, scratch / name)
        except (TimeoutError, RuntimeError, IndexError, subprocess.SubprocessError) as error:
            failed = True
            for process in Training.drivers:
                process.kill()
            print(f"| {name} | | | FAILED: {error} |", flush=True)
            continue
        lost = "-" if outcome.lost is None else str(outcome.lost)
        failed |= (
            outcome.lost is not None and outcome.lost > EVERY + 32 * BATCH
        )  # Ranks agree every eight steps, and reports come by the second.
        print(f"| {name.replace('_', ' ')} | {lost} | {outcome.seconds:.0f} | {outcome.how} |", flush=True)
    cluster.shutdown()
    if not failed:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
