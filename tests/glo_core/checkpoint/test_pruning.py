"""Deleting old checkpoints: never under a reader, and never at the cost of the training."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import glo_core as glo
from glo_core.checkpoint.layout import MARK, committed_checkpoints
from glo_core.checkpoint.pruning import prune
from tests.helpers.paths import ROOT
from tests.helpers.tiny_training import CONFIG


@pytest.fixture
def run(blobs: torch.Tensor, tmp_path: Path) -> Path:
    """A run with four checkpoints: 100, 200, 300 and 400, by name."""
    run = tmp_path / "run"
    glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=64), run=run)
    (first,) = committed_checkpoints(run)
    for name in ("100", "200", "300", "400"):
        shutil.copytree(first, first.with_name(name))
    shutil.rmtree(first)
    for name in ("100", "200", "300", "400"):
        mark = run / "checkpoints" / name / MARK
        record = json.loads(mark.read_text()) | {"train_psnr": int(name) / 10}
        mark.write_text(json.dumps(record))
    return run


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


READER = """
import sys
from pathlib import Path
import glo_core as glo
checkpoint = glo.Checkpoint(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_checkpoint_that_another_process_reads_stays_until_it_has_ended(run: Path) -> None:
    command = [sys.executable, "-c", READER, str(run / "checkpoints/100")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert reader.stdout is not None
    try:
        assert reader.stdout.readline() == "open\n"
        prune(run, 2)
        assert names(run) == ["100", "300", "400"]
        ids, _ = glo.Checkpoint(run / "checkpoints/100").codes()
        assert len(ids) == 150
    finally:
        reader.kill()  # The kernel gives its lock back.
        reader.communicate()
    prune(run, 2)
    assert names(run) == ["300", "400"]


def test_a_checkpoint_stays_as_long_as_an_object_has_it_open(run: Path) -> None:
    checkpoint = glo.Checkpoint(run / "checkpoints/100")
    prune(run, 2)
    assert names(run) == ["100", "300", "400"]
    assert checkpoint.decoder() is not None
    del checkpoint
    prune(run, 2)
    assert names(run) == ["300", "400"]


def test_what_cannot_be_deleted_does_not_fail_and_is_no_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "checkpoints/100" / MARK).write_text("damaged")
    shutil.rmtree(run / "checkpoints/200")
    (run / "checkpoints/200").mkdir()
    (run / "checkpoints/200" / MARK).mkdir()  # Opening and removing it fail.
    prune(run, 2)
    assert names(run) == ["200", "300", "400"]
    glo.Checkpoint.latest(run)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may delete anything")
def test_a_folder_without_permission_costs_no_training(run: Path) -> None:
    """Another user deletes, or this one in a folder that it may not write."""
    script = """
import sys
from pathlib import Path
from glo_core.checkpoint.pruning import prune
prune(Path(sys.argv[1]), 2)
"""
    other_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "run"
        shutil.copytree(run, copy)
        for path in (Path(place), copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [*other_user, sys.executable, "-c", script, str(copy)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/tmp"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        left = names(copy)
        for path in (Path(place), copy, *copy.rglob("*")):
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert left == ["100", "200", "300", "400"]
