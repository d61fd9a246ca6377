"""Codes of appended images: the same at every world size, and after a stop in their midst. Real processes, float64."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import glo_core as glo
from glo_core.checkpoint.layout import committed_checkpoints
from tests.distributed.growth_ranks import first_images
from tests.distributed.train_ranks import CONFIG

SCRIPT = Path(__file__).with_name("growth_ranks.py")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("begun")
    glo.train_phase(CONFIG, first_images(), glo.Phase(target=200), run=run)
    return run


def grow(begun: Path, run: Path, world_size: int, *arguments: int) -> list[list[int]]:
    """Of each rank: whether it has finished, and the images seen."""
    if not run.exists():
        shutil.copytree(begun, run)
    command = [sys.executable, str(SCRIPT), str(world_size), str(run), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((run / f"rank-{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
def test_two_ranks_grow_as_one_and_stop_together(begun: Path, tmp_path: Path) -> None:
    seen = int(committed_checkpoints(begun)[-1].name)
    alone, two, stopped = (tmp_path / name for name in ("alone", "two", "stopped"))
    ((finished, end),) = grow(begun, alone, 1)
    assert finished
    assert grow(begun, two, 2) == [[True, end]] * 2

    # One rank asks in the middle of its third chunk: both end there, and keep what they have.
    assert grow(begun, stopped, 2, 120) == [[False, seen]] * 2
    assert len(list((stopped / "growth").glob("*/*.safetensors"))) == 4
    assert grow(begun, stopped, 2) == [[True, end]] * 2

    ids, codes = glo.Checkpoint.latest(alone).codes()
    for run in (two, stopped):
        other_ids, other_codes = glo.Checkpoint.latest(run).codes()
        assert other_ids.tolist() == ids.tolist()
        np.testing.assert_allclose(other_codes, codes, rtol=1e-9, atol=1e-12)
    marks = [json.loads((committed_checkpoints(run)[-1] / "checkpoint.json").read_text()) for run in (two, stopped)]
    assert marks[0]["parts"] == marks[1]["parts"]  # At the same world size: bitwise.
