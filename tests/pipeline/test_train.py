"""Training through jobs/train.py on Ray Train: world sizes, SIGKILL, Ctrl-C, and what is refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydantic
import pytest

from glo_core import DecoderConfig, TrainConfig, UserError
from glo_core.checkpoint import committed
from jobs.cli import parse
from pipelines.ingest import PreprocessJob, preprocess
from pipelines.training import TrainJob, run_training

from .conftest import ROOT, Head, Job, write_images

# The seed's decoder with its batch norm, narrower: 500 steps of 32 images in float64, each step reported.
FLAGS = ["--images", 16_000, "--batch-size", 32, "--precision", "float64", "--code.dim", 8,
         "--decoder.filters", 64, 32, "--intervals.report", 32, "--intervals.checkpoint", 2000]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("train")
    write_images(place / "images", 333, seed=3)
    preprocess(PreprocessJob(input=(place / "images",), dataset=place / "dataset", resolution=16, channels=1))
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


def test_killed_and_started_again_ends_bitwise_undisturbed(
    undisturbed: Path, dataset: Path, head: Head, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "jobs/train.py"), "--dataset", str(dataset), "--run", str(run)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *map(str, FLAGS)], env=os.environ | {"RAY_ADDRESS": head.address})

    def wait_until_seen(images: int, driver: subprocess.Popen[bytes]) -> None:
        while not any(int(path.name) >= images for path in committed(run)):
            assert driver.poll() is None, "the job ended before it could be killed"
            time.sleep(0.02)

    driver = start()
    wait_until_seen(3000, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (run / "done.json").exists()
    after_driver = max(int(path.name) for path in committed(run))
    assert after_driver < 16_000
    # The head ends the dead driver's workers.
    deadline = time.monotonic() + 60
    while head.processes("RayTrainWorker"):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    driver = start()
    wait_until_seen(after_driver + 3000, driver)
    workers = head.processes("RayTrainWorker")
    assert len(workers) == 1
    workers[0].kill()
    before_end = max(int(path.name) for path in committed(run))
    assert before_end < 16_000
    assert driver.wait(timeout=240) == 0
    ends = [json.loads((committed(path)[-1] / "checkpoint.json").read_text()) for path in (run, undisturbed)]
    assert ends[0]["position"] == ends[1]["position"]
    # The digests of every part: decoder, average, optimizer, and codes with their optimizer state.
    assert ends[0]["parts"] == ends[1]["parts"]
    assert losses(run) == losses(undisturbed)


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(dataset: Path, head: Head, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    command = [sys.executable, str(ROOT / "jobs/train.py"), "--dataset", str(dataset), "--run", str(run),
               *map(str, FLAGS), "--intervals.checkpoint", "1000000"]  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ | {"RAY_ADDRESS": head.address}, stdout=subprocess.PIPE, text=True
    )
    while not (run / "progress.jsonl").exists() or not (run / "progress.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    seen = int(committed(run)[-1].name)
    assert 0 < seen < 16_000
    assert f"stopped at {seen} of 16000 images with a checkpoint" in out
    assert not (run / "done.json").exists()


def job_of(dataset: Path, run: Path, **changes: object) -> TrainJob:
    return TrainJob(dataset=dataset, run=run, **changes)


def refused(job: TrainJob) -> str:
    with pytest.raises(UserError) as caught:
        run_training(job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_finished_run_is_not_done_again_and_refuses_what_is_not_its_own(
    undisturbed: Path, dataset: Path, tmp_path: Path, job: Job
) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    again = job("train", "--dataset", dataset, "--run", undisturbed, "--images", 16_000)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "has seen 16002 images already, nothing to do" in again.stdout
    other = job("train", "--dataset", dataset, "--run", undisturbed, "--images", 16_000, "--code.dim", 9, "--seed", 1)
    assert other.returncode == 1
    line = other.stderr.strip().splitlines()[-1]
    assert "was made with another recipe (code.dim: 8 -> 9; seed: 0 -> 1)" in line
    assert "Traceback" not in other.stderr
    assert "workers=40 is more than the 32 lanes" in refused(job_of(dataset, tmp_path / "r", workers=40))
    assert "no dataset here" in refused(job_of(tmp_path / "none", tmp_path / "r"))
    narrow = job_of(dataset, tmp_path / "r", decoder=DecoderConfig(filters=(8,)))
    assert "must have 2 entries for images of 16 px" in refused(narrow)
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}
    ignored = {undisturbed / ".lock"}
    assert {k: v for k, v in after.items() if k not in ignored} == {k: v for k, v in before.items() if k not in ignored}


def test_a_run_of_another_dataset_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40, seed=9)
    preprocess(PreprocessJob(input=(tmp_path / "images",), dataset=tmp_path / "d", resolution=16, channels=1))
    identity = json.loads((undisturbed / "run.json").read_text())["identity"]
    config = pydantic.TypeAdapter(TrainConfig).validate_python(identity)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    assert "was made from other inputs (dataset: " in refused(job_of(tmp_path / "d", undisturbed, **own))
