"""A group of ranks that was given up, but is alive, commits nothing; parts that are not there are not committed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import glo_core as glo
from glo_core.checkpoint import async_writer, attempt
from glo_core.checkpoint.async_writer import CheckpointWriter
from glo_core.checkpoint.attempt import Attempt, FencedError
from glo_core.checkpoint.layout import Position, committed_checkpoints
from glo_core.codes.pca_init import PcaInit
from glo_core.common.failures import UnseenFileError
from glo_core.training.learner import Learner
from glo_core.training.learner_state import checkpoint_record, decoder_files
from glo_core.training.restore import newest_checkpoint
from tests.distributed.train_ranks import CONFIG, images
from tests.helpers.paths import ROOT
from tests.helpers.tiny_training import CONFIG as TINY
from tests.helpers.tiny_training import RESOLVED

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def files_of(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_attempt_that_was_stopped_and_goes_on_after_the_next_one_commits_nothing(
    tmp_path: Path, moment: str
) -> None:
    script = Path(__file__).with_name("fenced_training.py")
    command = [sys.executable, str(script), str(tmp_path), moment]
    old = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        while psutil.Process(old.pid).status() != psutil.STATUS_STOPPED:
            assert old.poll() is None, old.stderr
            time.sleep(0.05)
        assert committed_checkpoints(tmp_path) == []
        assert any((tmp_path / "checkpoints").glob("*/codes/shard=*.arrow"))  # Its parts are there, and whole.

        intervals = glo.Intervals(checkpoint=100)
        new = glo.train_phase(CONFIG, images(), glo.Phase(target=400), run=tmp_path, intervals=intervals)
        assert new.finished
        before = files_of(tmp_path)
        old.send_signal(signal.SIGCONT)
        _, err = old.communicate(timeout=60)
    finally:
        old.kill()
    assert old.returncode == 1
    assert "FencedError" in err
    assert "a newer attempt trains this run" in err
    assert files_of(tmp_path) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdigit()] == []


def launch(*arguments: object) -> list[list[str]]:
    """Two ranks of `failing_ranks.py`; of each, the class and the message of its error."""
    script = ROOT / "tests/distributed/failing_ranks.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{arguments[0]}/rank-{rank}.json").read_text()) for rank in range(2)]


def test_ranks_that_do_not_share_the_run_end_in_one_line_that_names_host_and_path(tmp_path: Path) -> None:
    for kind, message in launch(tmp_path, "unshared"):
        assert kind == "CheckpointError"
        assert f"{tmp_path / 'disk-1'} on " in message
        assert "(rank 1) is not the directory that rank 0 on" in message
        assert "`run` must lie on a disk that every node shares" in message
    assert not any(tmp_path.glob("disk-*/checkpoints"))


def test_an_input_error_of_one_rank_is_no_users_error_on_any_rank(tmp_path: Path) -> None:
    (kind, line), own = launch(tmp_path, "eio")
    assert own == ["OSError", "[Errno 5] Input/output error"]
    assert kind == "RankError"
    assert line.startswith("rank 1 on ")
    assert line.endswith("failed: OSError: [Errno 5] Input/output error")
    assert committed_checkpoints(tmp_path / "disk-0") == []


def test_a_full_disk_of_one_rank_is_the_users_error_on_every_rank(tmp_path: Path) -> None:
    for kind, message in launch(tmp_path, "full"):
        assert kind == "UserError"
        assert "no space left on device; free some space" in message
        assert "\n" not in message
    assert committed_checkpoints(tmp_path / "disk-0") == []


def writer_with_parts(run: Path, blobs: torch.Tensor, *, fenced: bool = False) -> tuple[CheckpointWriter, Path]:
    """A writer whose parts are written and not committed, and their directory."""
    runtime = glo.SingleProcess()
    trained = glo.train_phase(TINY, glo.TensorImages(blobs), glo.Phase(target=64))
    learner = Learner(RESOLVED, trained.images, trained.table, runtime)
    begun = Attempt.begin(run, runtime)
    if fenced:
        Attempt.begin(run, runtime)
    writer = CheckpointWriter(begun, trained.images, runtime)
    record = checkpoint_record(learner, trained.images, Position(images_seen=64), None)
    writer.begin(trained.table, record, lambda: decoder_files(learner))
    while not writer.written:
        time.sleep(0.01)
    return writer, run / "checkpoints" / f"64.{begun.token}"


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_part_that_is_not_where_the_mark_is_is_not_committed(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(async_writer, "PATIENCE_SECONDS", 0.3)
    writer, directory = writer_with_parts(tmp_path, blobs)
    part = directory / "codes/shard=007.arrow"
    if damage == "missing":
        part.unlink()
    else:
        os.truncate(part, 100)
    line = "shard=007.arrow: rank 0 on .* wrote .* bytes, and rank 0 on .* (does not see it|sees 100)"
    with pytest.raises(UnseenFileError, match=line):
        writer.finish()
    assert committed_checkpoints(tmp_path) == []


def test_a_run_whose_folder_was_taken_away_is_not_committed_to(blobs: torch.Tensor, tmp_path: Path) -> None:
    writer, _ = writer_with_parts(tmp_path, blobs)
    (tmp_path / attempt.ATTEMPT_FILE).unlink()
    with pytest.raises(FencedError):
        writer.finish()
    assert committed_checkpoints(tmp_path) == []


def test_a_writer_that_was_given_up_leaves_no_parts(blobs: torch.Tensor, tmp_path: Path) -> None:
    writer, _ = writer_with_parts(tmp_path, blobs, fenced=True)
    with pytest.raises(FencedError):
        writer.finish()
    assert list(tmp_path.glob("checkpoints/*")) == []


def test_parts_that_were_written_after_the_next_attempt_had_swept_are_deleted(
    blobs: torch.Tensor, tmp_path: Path
) -> None:
    writer, directory = writer_with_parts(tmp_path, blobs)
    Attempt.begin(tmp_path, glo.SingleProcess())
    directory.mkdir()
    (directory / "decoder.json").write_text("late")
    with pytest.raises(FencedError):
        writer.finish()
    assert list(tmp_path.glob("checkpoints/*")) == []


def test_a_commit_deletes_the_fitted_codes_that_it_holds(blobs: torch.Tensor, tmp_path: Path) -> None:
    writer, _ = writer_with_parts(tmp_path, blobs)
    fitted = tmp_path / "growth/0123/4567.safetensors"
    fitted.parent.mkdir(parents=True)
    fitted.write_bytes(b"codes")
    writer.finish()
    assert len(committed_checkpoints(tmp_path)) == 1
    assert not (tmp_path / "growth").exists()


def test_an_attempt_that_was_given_up_leaves_the_principal_components_of_the_next_one(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, phase, fit = glo.TensorImages(blobs), glo.Phase(target=64), PcaInit.fit
    next_one: list[float] = []

    def slow(*args: Any) -> PcaInit:
        components = fit(*args)
        if not next_one:  # The next attempt trains to its end before the first goes on.
            next_one.append(0.0)
            glo.train_phase(TINY, images, phase, run=tmp_path)
            next_one[0] = (tmp_path / "pca_init.safetensors").stat().st_mtime_ns
        return components

    monkeypatch.setattr(PcaInit, "fit", slow)
    with pytest.raises(FencedError):
        glo.train_phase(TINY, images, phase, run=tmp_path)
    assert (tmp_path / "pca_init.safetensors").stat().st_mtime_ns == next_one[0]
    assert len(committed_checkpoints(tmp_path)) == 1


class Second(glo.SingleProcess):
    """Rank 1, to which rank 0 names a checkpoint."""

    rank, world_size = 1, 2

    def __init__(self, chosen: Path) -> None:
        super().__init__()
        self.chosen: Path | None = chosen

    def all_gather(self, value: Any) -> list[Any]:
        if self.chosen is not None:
            chosen, self.chosen = self.chosen, None
            return [[chosen], value]
        return [(None, "", "node-0"), value]


@pytest.mark.parametrize("patience", [30.0, 0.2])
def test_a_rank_waits_for_a_checkpoint_that_it_sees_late(
    blobs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(attempt, "PATIENCE_SECONDS", patience)
    images = glo.TensorImages(blobs)
    glo.train_phase(TINY, images, glo.Phase(target=64), run=tmp_path)
    (chosen,) = committed_checkpoints(tmp_path)
    hidden = tmp_path / "hidden"
    chosen.rename(hidden)
    if patience < 1:
        with pytest.raises(UnseenFileError, match=r"checkpoint.json: rank 0 sees it, and rank 1 on .* does not"):
            newest_checkpoint(RESOLVED, images, Second(chosen), tmp_path)
        return
    shown = threading.Timer(0.5, hidden.rename, (chosen,))
    shown.start()
    newest = newest_checkpoint(RESOLVED, images, Second(chosen), tmp_path)
    shown.join()
    assert newest is not None
    assert newest.position.images_seen == int(chosen.name)
