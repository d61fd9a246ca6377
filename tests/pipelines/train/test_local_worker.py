"""A training of one worker without Ray: the process beside the driver, its errors, its end, and what it trains."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import glo_core as glo
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.common.errors import UserError
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig
from pipelines.train.arguments import WorkerArguments
from pipelines.train.local_process import TRACEBACK_FILE
from pipelines.train.local_worker import LocalWorker
from tests.helpers.faulty_decoder import FAULT
from tests.helpers.paths import ROOT

DATASET = ROOT / "tests/golden/v1/dataset"
FAULTY = glo.DecoderConfig(kind="tests.helpers.faulty_decoder:FaultyDecoder")


def recipe(decoder: glo.DecoderConfig | None = None) -> ResolvedTrainConfig:
    decoder = decoder or glo.DecoderConfig(kind="seed", filters=(4,), kernel_size=3)
    config = glo.TrainConfig(batch_size=8, code=glo.CodeConfig(dim=3), decoder=decoder)
    dataset = glo.Dataset.open(DATASET)
    return resolve_defaults(config, dataset.num_train, dataset.config.resolution)


def arguments(run: Path, *, target: int = 400, decoder: glo.DecoderConfig | None = None) -> WorkerArguments:
    run.mkdir(parents=True, exist_ok=True)
    return WorkerArguments(
        recipe=recipe(decoder),
        phase=glo.Phase(target=target),
        intervals=glo.Intervals(report=40, checkpoint=80),
        dataset=str(DATASET),
        snapshot=glo.Dataset.open(DATASET).digest,
        run=run,
        scratch=None,
        cache="auto",
        autocast="auto",
        compile="auto",
        warm_start=None,
        threads=1,
        gpu=False,
    )


@pytest.fixture
def worker() -> Iterator[LocalWorker]:
    with LocalWorker() as worker:
        yield worker


@pytest.fixture
def fault() -> Iterator[Path]:
    """The file that makes `FaultyDecoder` fail."""
    yield FAULT
    FAULT.unlink(missing_ok=True)


def train(worker: LocalWorker, told: WorkerArguments, max_failures: int = 2) -> None:
    worker.prepare(told)
    worker.begin()
    worker.train(told, max_failures)


def parts(run: Path) -> object:
    """The digests of every part of the newest checkpoint: decoder, EMA, optimizer, codes with their state."""
    return glo.Checkpoint.latest(run).record.parts


def when_seen(run: Path, images: int, action: Callable[[], None]) -> None:
    """Call `action` in a thread once a checkpoint of `images` is there."""

    def work() -> None:
        while not any(int(path.name) >= images for path in committed_checkpoints(run)):
            time.sleep(0.01)
        action()

    threading.Thread(target=work, daemon=True).start()


def test_it_trains_what_the_loop_trains_in_one_process_and_survives_its_death(
    worker: LocalWorker, tmp_path: Path, fault: Path
) -> None:
    fault.write_text("SIGKILL\n")
    told = arguments(tmp_path / "here", decoder=FAULTY)
    train(worker, told)
    assert fault.read_text() == "SIGKILL\nmet\nmet\n"  # The second attempt goes on.
    assert worker.mailbox.take_incidents() == [
        "the process that trains was ended by SIGKILL, which the system sends where memory is short"
    ]
    images = glo.Dataset.open(DATASET).images()
    glo.train_phase(told.recipe, images, told.phase, run=tmp_path / "alone", intervals=told.intervals)
    assert parts(tmp_path / "here") == parts(tmp_path / "alone")
    reports = worker.mailbox.take_reports()
    assert {"loss", "train_psnr"} <= reports[0].metrics.keys()
    assert reports[-1].metrics.keys() == {"psnr", "pca_psnr"}
    assert {p.name for p in worker.mailbox.take_pictures()} == {"training_reconstructions", "training_samples"}


def test_nothing_is_written_before_the_run_has_its_record(worker: LocalWorker, tmp_path: Path) -> None:
    told = arguments(tmp_path / "run")
    worker.prepare(told)
    (process,) = (p for p in psutil.Process().children() if "pipelines.train.local_process" in p.cmdline())
    while process.status() != psutil.STATUS_SLEEPING or process.cpu_times().user < 1:  # It imports PyTorch till then.
        time.sleep(0.1)
    assert list(told.run.iterdir()) == []
    worker.begin()
    worker.train(told, 0)
    assert (told.run / "pca_init.safetensors").exists()


@pytest.mark.slow
def test_a_lost_process_ends_training_where_no_attempt_is_left(
    worker: LocalWorker, tmp_path: Path, fault: Path
) -> None:
    fault.write_text("SIGSEGV\n")
    with pytest.raises(UserError, match=r"^training failed: the process that trains was ended by SIGSEGV$"):
        train(worker, arguments(tmp_path / "run", decoder=FAULTY), max_failures=0)


@pytest.mark.slow
def test_after_an_error_of_the_machine_training_goes_on(worker: LocalWorker, tmp_path: Path, fault: Path) -> None:
    fault.write_text("eio\n")
    told = arguments(tmp_path / "run", decoder=FAULTY)
    train(worker, told)
    assert fault.read_text() == "eio\nmet\nmet\n"
    (line,) = worker.mailbox.take_incidents()
    assert line.startswith("rank 0 on ")
    assert line.endswith(" failed: OSError: [Errno 5] Input/output error")
    assert glo.Checkpoint.latest(told.run).position.images_seen >= 400
    assert "in _fail" in (told.run / TRACEBACK_FILE).read_text()


def test_an_error_of_the_machine_is_told_where_no_attempt_is_left(
    worker: LocalWorker, tmp_path: Path, fault: Path
) -> None:
    fault.write_text("eio\n")
    with pytest.raises(UserError, match=r"^training failed: OSError: \[Errno 5\] Input/output error$"):
        train(worker, arguments(tmp_path / "run", decoder=FAULTY), max_failures=0)


@pytest.mark.slow
def test_too_little_memory_is_one_line_and_no_second_attempt(worker: LocalWorker, tmp_path: Path, fault: Path) -> None:
    fault.write_text("memory\n")
    with pytest.raises(UserError, match=r"^out of memory \(.*\); use a smaller `batch_size`[^\n]*$"):
        train(worker, arguments(tmp_path / "run", decoder=FAULTY))
    assert fault.read_text() == "memory\nmet\n"


def test_a_wish_to_stop_ends_with_a_checkpoint_and_the_same_goes_on(tmp_path: Path) -> None:
    told = arguments(tmp_path / "run", target=10**9)
    with LocalWorker() as worker:
        when_seen(told.run, 160, worker.mailbox.request_stop)
        train(worker, told)
    seen = glo.Checkpoint.latest(told.run).position.images_seen
    with LocalWorker() as worker:
        train(worker, dataclasses.replace(told, phase=glo.Phase(target=seen + 160)))
    assert seen + 160 <= glo.Checkpoint.latest(told.run).position.images_seen < seen + 320


DRIVER = """
import sys
from jobs import train
from jobs.cli import main
try:
    main("train", train.TrainJob, train.run, saved_config=train.saved_config)
finally:
    print(sorted({"ray", "torch"} & set(sys.modules)), flush=True)
"""


def test_a_job_of_one_worker_uses_no_ray_and_its_worker_ends_with_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    flags = ["--dataset", DATASET, "--run", tmp_path / "run", "--batch-size", 8, "--code.dim", 3,
             "--decoder.kind", "seed", "--decoder.filters", 4, "--device", "cpu"]  # fmt: skip
    command = [sys.executable, "-c", DRIVER, *map(str, flags)]
    done = subprocess.run([*command, "--images", "80"], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "train: done" in done.stdout
    assert "'ray'" not in done.stdout
    with subprocess.Popen(
        [*command, "--images", "1000000000"], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as driver:
        while not (children := psutil.Process(driver.pid).children()):
            assert driver.poll() is None
            time.sleep(0.05)
        (child,) = children
        time.sleep(1)  # It imports PyTorch, or trains.
        driver.kill()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert alive == []
