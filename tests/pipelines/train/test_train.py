"""Training through jobs/train.py on Ray Train: world sizes, SIGKILL and Ctrl-C: `make test-slow`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from glo_core import Checkpoint, UserError
from glo_core.checkpoint.layout import committed_checkpoints
from jobs.cli import parse
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training
from tests.helpers.faulty_decoder import FAULT
from tests.helpers.paths import ROOT
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.processes import Head
from tests.helpers.write_images import write_images

pytestmark = pytest.mark.slow

# The seed's decoder with its batch norm at 16 px: 500 steps of 32 images in float64, each step reported.
FLAGS = [
    *("--images", 16_000, "--batch-size", 32, "--precision", "float64", "--code.dim", 8),
    *("--intervals.report", 1, "--intervals.checkpoint", 2000),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("train")
    write_images(place / "images", 333, seed=3)
    preprocess_small(place / "dataset", place / "images", code_shards=32)
    return place / "dataset"


def trained(dataset: Path, run: Path, *flags: object) -> Path:
    run_training(parse("train", TrainJob, argv=list(map(str, ["--dataset", dataset, "--run", run, *FLAGS, *flags]))))
    return run


@pytest.fixture(scope="module")
def undisturbed(dataset: Path) -> Path:
    return trained(dataset, dataset.parent / "one")


def losses(run: Path) -> dict[int, float]:
    """The last loss reported at each position: a resumed run reports some of them again."""
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    return {line["images_seen"]: line["loss"] for line in lines if "loss" in line}


def test_two_workers_make_the_losses_of_one(undisturbed: Path, dataset: Path) -> None:
    run = trained(dataset, dataset.parent / "two", "--workers", 2)
    one, two = losses(undisturbed), losses(run)
    assert len(one) >= 500
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-9)


def test_one_worker_beside_the_job_makes_the_bits_of_one_under_ray_train(undisturbed: Path, dataset: Path) -> None:
    run = dataset.parent / "beside"
    command = [sys.executable, ROOT / "jobs/train.py", "--dataset", dataset, "--run", run, *FLAGS]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert losses(run) == losses(undisturbed)
    assert Checkpoint.latest(run).record.parts == Checkpoint.latest(undisturbed).record.parts


class Training:
    """`python jobs/train.py`, to be disturbed."""

    def __init__(self, head: Head, dataset: Path, run: Path) -> None:
        self.head, self.run = head, run
        self.command = [sys.executable, str(ROOT / "jobs/train.py"), "--dataset", str(dataset), "--run", str(run)]
        self.start()

    def start(self) -> None:
        environment = os.environ | {"RAY_ADDRESS": self.head.address}
        self.driver = subprocess.Popen(
            [*self.command, *map(str, FLAGS)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def seen(self) -> int:
        return max([0, *(int(path.name) for path in committed_checkpoints(self.run))])

    def wait_until_seen(self, images: int) -> None:
        while self.seen() < images:
            assert self.driver.poll() is None, "the job ended before it could be disturbed"
            time.sleep(0.02)
        assert self.seen() < 15_000


def test_killed_stopped_and_started_again_ends_bitwise_undisturbed(
    undisturbed: Path, dataset: Path, head: Head, tmp_path: Path
) -> None:
    training = Training(head, dataset, tmp_path / "run")
    training.wait_until_seen(2000)
    training.driver.kill()
    training.driver.wait()
    assert not (training.run / "done.json").exists()

    # The same command goes on at once; then Ctrl-C: it stops with a checkpoint of its own.
    before = training.seen()
    training.start()
    training.wait_until_seen(before + 2000)
    training.driver.send_signal(signal.SIGINT)
    out, _ = training.driver.communicate(timeout=120)
    assert training.driver.returncode == 130
    stopped = training.seen()
    assert f"stopped at {stopped} of 16000 images with a checkpoint" in out
    assert not (training.run / "done.json").exists()

    # And again; now a worker is killed, and the job carries on by itself.
    training.start()
    training.wait_until_seen(stopped + 2000)
    workers = head.processes("RayTrainWorker")
    assert len(workers) == 1
    workers[0].kill()
    out, _ = training.driver.communicate(timeout=240)
    assert training.driver.returncode == 0, out
    ends = [
        json.loads((committed_checkpoints(path)[-1] / "checkpoint.json").read_text())
        for path in (training.run, undisturbed)
    ]
    assert ends[0]["position"] == ends[1]["position"]
    # The digests of every part: decoder, average, optimizer, and codes with their optimizer state.
    assert ends[0]["parts"] == ends[1]["parts"]
    # Reports of the last second before a kill may be lost; those that were made are the same.
    disturbed, whole = losses(training.run), losses(undisturbed)
    assert len(disturbed) > 400
    assert disturbed == {seen: whole[seen] for seen in disturbed}


@pytest.fixture
def fault() -> Iterator[Path]:
    """The file that makes `FaultyDecoder` fail."""
    yield FAULT
    FAULT.unlink(missing_ok=True)


FAULTY = ("--decoder.kind", "tests.helpers.faulty_decoder:FaultyDecoder", "--images", 2000, "--batch-size", 32,
          "--code.dim", 8, "--intervals.checkpoint", 100, "--max-failures", 2)  # fmt: skip


def test_after_an_error_of_the_machine_training_goes_on_from_its_checkpoint(
    dataset: Path, tmp_path: Path, fault: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fault.write_text("eio\n")
    run = trained(dataset, tmp_path / "run", *FAULTY, "--workers", 2)
    assert fault.read_text().count("met") >= 1
    assert "failed: OSError: [Errno 5] Input/output error; training goes on from the last checkpoint" in caplog.text
    assert Checkpoint.latest(run).position.images_seen >= 2000
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()) == []


@pytest.mark.parametrize("max_failures", [0, 2])
def test_too_little_memory_is_one_line_and_no_second_attempt(
    dataset: Path, tmp_path: Path, fault: Path, max_failures: int
) -> None:
    fault.write_text("memory\n")
    with pytest.raises(UserError, match=r"out of memory \(.*\); use a smaller `batch_size`") as caught:
        trained(dataset, tmp_path / "run", *FAULTY, "--max-failures", max_failures)
    assert "\n" not in str(caught.value)
    assert fault.read_text() == "memory\nmet\n"


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(dataset: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system to fill needs root")
    try:
        run, tracking = small / "run", ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
        trained(dataset, run, *tracking, "--images", 2000)
        (first,) = committed_checkpoints(run)
        size = sum(path.stat().st_size for path in first.rglob("*"))
        # Another user's file leaves room for half of a second checkpoint.
        other = small / "other"
        with other.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small).free - size // 2)
        with pytest.raises(UserError, match=r"checkpoints/.*: no space left on device; free some") as caught:
            trained(dataset, run, *tracking)
        assert "\n" not in str(caught.value)
        assert committed_checkpoints(run) == [first]
        _, codes = Checkpoint(first).codes()
        assert Checkpoint(first).decoder()(torch.from_numpy(codes[:2])).shape == (2, 1, 16, 16)
        other.unlink()
        trained(dataset, run, *tracking)
        assert Checkpoint.latest(run).position.images_seen >= 16_000
    finally:
        subprocess.run(["umount", small], check=True)
