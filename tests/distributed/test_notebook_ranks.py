"""`glo.train` under torchrun: rank 0 decides what is left of a run, and every rank does the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import glo_core as glo
from tests.distributed.train_ranks import CONFIG, images
from tests.helpers.paths import ROOT
from tests.helpers.processes import free_port


@pytest.mark.slow
def test_two_ranks_begin_repeat_and_continue_a_run_alike(tmp_path: Path) -> None:
    script = Path(__file__).with_name("notebook_ranks.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run")], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    begun, repeated, continued, refusal = first
    assert begun == repeated
    assert [
        (seen >= target, phase, finished) for (seen, phase, finished, _), target in ((begun, 200), (continued, 400))
    ] == [
        (True, 0, True),
        (True, 1, True),
    ]
    assert "was trained on other images" in refusal
    # One process opens the run that two have trained.
    alone = glo.train(images(), config=CONFIG, images_seen=400, run=tmp_path / "run", progress=False)
    assert alone.metrics == continued[3]
    assert len(alone.model.ids) == 77
