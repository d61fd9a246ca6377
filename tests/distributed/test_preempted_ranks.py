"""Ranks need not be told at the same moment of a machine that leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glo_core.checkpoint.layout import committed_checkpoints
from tests.helpers.paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_all_ranks_save_what_one_of_them_was_told_to_save(tmp_path: Path, told: int) -> None:
    script = ROOT / "tests/distributed/preempted_ranks.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path), str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ends[0] == ends[1] >= 1600
    early, end = (int(path.name) for path in committed_checkpoints(tmp_path / "run"))
    assert early < end == ends[0]
