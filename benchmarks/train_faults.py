"""Every fault that training promises to survive, for real: what was lost, and how long until it went on.

    python -m benchmarks.train_faults [--only worker node ...] [--scratch DIR]

One Ray cluster of several raylets on this machine: a head, and nodes of one CPU. Each fault strikes a training of its
own (`jobs/train.py`, a process, on the cluster) while a checkpoint lies some images back. Lost are the images between
the last report before the fault and the place where training went on; the time is that between the fault and the
first report after it, or the end of the job where the fault means to end it: then the same command is run again.
`full disk` needs root, to mount a small file system.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cluster_training import BATCH, EVERY, Cluster, Outcome, Training, workers
from benchmarks.environment import describe, describe_config
from benchmarks.surroundings import free_port, server
from benchmarks.train_efficiency import random_dataset
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.dataset_format.config import ResolvedDatasetConfig

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


def main() -> None:
    """Inject every fault into a training of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--scratch", type=Path, help="short path of a directory (default: a temporary one)")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="glo", dir=options.scratch))
    random_dataset(scratch / "dataset", ResolvedDatasetConfig(resolution=16, channels=1), images=2000)
    cluster = Cluster(scratch)
    print(f"{describe()}\n{describe_config(options)}")
    print(f"a checkpoint every {EVERY} images, steps of {BATCH}; three raylets\n", flush=True)
    print("| fault | images lost | seconds | what training did |\n|---|---|---|---|", flush=True)
    failed, seconds = False, dict[str, float]()
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
        seconds[name] = round(outcome.seconds, 1)
        lost = "-" if outcome.lost is None else str(outcome.lost)
        failed |= (
            outcome.lost is not None and outcome.lost > EVERY + 32 * BATCH
        )  # Ranks agree every eight steps, and reports come by the second.
        print(f"| {name.replace('_', ' ')} | {lost} | {outcome.seconds:.0f} | {outcome.how} |", flush=True)
    cluster.shutdown()
    if not failed:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"faults": len(options.only), "all_as_promised": not failed, "seconds": seconds}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
