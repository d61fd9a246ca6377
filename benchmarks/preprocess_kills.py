"""SIGKILL at random moments of preprocessing: blocks, manifest and digest must be those of an undisturbed run.

    python -m benchmarks.preprocess_kills --kills 20

The input is a folder of JPEG and PNG files, copies and broken files among them, beside tar shards and a Parquet table.
One Ray head serves all runs. Each time the job starts on a new dataset directory; at a random moment between the
creation of the directory and the end that the undisturbed run needed, its driver, or one of its workers, is killed;
then the same command is run to its end, and every file of blocks/, manifest/ and plans/ is compared byte by byte, and
the snapshot by its digest, ids and blocks.
"""

import argparse
import hashlib
import io
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.environment import describe, describe_config

COMPARED = ("plans", "blocks", "manifest")


def encoded(number: int, kind: str) -> bytes:
    """An image of 96 px, the same one for the same number."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_inputs(folder: Path, images: int) -> None:
    """About `images` images: half of them files, a quarter in tar shards, a quarter in a Parquet table."""
    half, quarter = images // 2, images // 4
    (folder / "files").mkdir(parents=True)
    for number in range(half):
        data = encoded(number if number % 50 else 0, ("JPEG", "PNG")[number % 2])  # Each 50th is a copy.
        data = data[: len(data) // 2] if number % 41 == 7 else data
        (folder / "files" / f"{number:06d}.{('jpg', 'png')[number % 2]}").write_bytes(data)
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(half + shard, half + quarter, 4):
                data = encoded(number, "JPEG")
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows = [{"bytes": encoded(number, "PNG"), "path": f"{number}.png"} for number in range(half + quarter, images)]
    pq.write_table(pa.table({"image": rows, "label": list(range(len(rows)))}), folder / "table.parquet")


def start_head(scratch: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """A Ray head of this machine, and the environment that reaches it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = ["start", "--head", "--block", f"--port={port}", "--include-dashboard=false", f"--temp-dir={scratch}"]
    with (scratch / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command], stdout=log, stderr=log, env=environment
        )
    time.sleep(12)
    return head, environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}


def start_job(images: Path, dataset: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start preprocessing of `images` into `dataset`."""
    command = ["-m", "jobs.preprocess", "--input", str(images), "--dataset", str(dataset), "--resolution", "64"]
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


def wait_for_start(dataset: Path, job: subprocess.Popen[bytes]) -> None:
    """Wait until the job has created the dataset, or has ended."""
    while not (dataset / "dataset.json").exists() and job.poll() is None:
        time.sleep(0.01)


def finish(job: subprocess.Popen[bytes]) -> None:
    """Wait for the job's end.

    Raises:
        RuntimeError: if it failed.
    """
    output = job.communicate()[0]
    if job.returncode:
        raise RuntimeError(f"the job ended with status {job.returncode}: {output.decode()[-2000:]}")


def state(dataset: Path) -> dict[str, str]:
    """A digest of every file that must be the same, and the snapshot's own."""
    files = [path for name in COMPARED for path in (dataset / name).iterdir()]
    digests = {f"{p.parent.name}/{p.name}": hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}
    snapshots = [json.loads(path.read_text()) for path in sorted((dataset / "snapshots").iterdir())]
    same = [{key: s[key] for key in ("digest", "counts", "removed", "blocks", "duplicate_of")} for s in snapshots]
    return digests | {"snapshots": json.dumps(same)}


def task_processes(head: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Workers that run a task of Ray Data at this moment."""
    processes = []
    for process in psutil.Process(head.pid).children(recursive=True):
        try:
            if "decode_block" in " ".join(process.cmdline()):
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    return processes


def kill_one(
    images: Path, dataset: Path, environment: dict[str, str], head: subprocess.Popen[bytes], after: float, worker: bool
) -> str:
    """Run, kill, run to the end. Returns what was killed, and when."""
    job = start_job(images, dataset, environment)
    wait_for_start(dataset, job)
    time.sleep(after)
    workers = task_processes(head) if worker else []
    while worker and not workers and job.poll() is None:  # No task runs yet.
        time.sleep(0.05)
        workers = task_processes(head)
    blocks = len(list((dataset / "blocks").glob("0*"))) if (dataset / "blocks").exists() else 0
    if workers:
        workers[0].kill()
        finish(job)  # Ray does the task again, and the job itself goes on.
        return f"a worker after {after:.2f} s, {blocks} blocks there"
    job.send_signal(signal.SIGKILL)
    job.communicate()
    finish(start_job(images, dataset, environment))
    return f"the driver after {after:.2f} s, {blocks} blocks there"


def main() -> None:
    """Kill the job again and again, and compare the dataset with an undisturbed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    # Ray's Unix sockets allow 107 bytes: a short directory.
    scratch = Path(tempfile.mkdtemp(prefix="glok"))
    head, environment = start_head(scratch)
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
    try:
        write_inputs(scratch / "images", options.images)
        for name in ("warm", "whole"):  # The first run also starts Ray's workers, and makes MLflow's database.
            job = start_job(scratch / "images", scratch / name, environment)
            wait_for_start(scratch / name, job)
            started = time.perf_counter()
            finish(job)
            needed = time.perf_counter() - started
        whole = state(scratch / "whole")
        print(f"{describe()}\n{describe_config(options)}")
        print(f"{options.images} images, {needed:.1f} s undisturbed, {len(whole)} files compared")
        same = 0
        for number in range(options.kills):
            dataset = scratch / f"killed{number}"
            after, worker = moments.uniform(0, needed), number % 4 == 3
            killed = kill_one(scratch / "images", dataset, environment, head, after, worker)
            equal = state(dataset) == whole
            same += equal
            print(f"{number + 1}: killed {killed}: {'identical' if equal else 'DIFFERENT'}", flush=True)
            shutil.rmtree(dataset)
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps({"kills": options.kills, "identical": same}))
    sys.exit(0 if same == options.kills else 1)


if __name__ == "__main__":
    main()
